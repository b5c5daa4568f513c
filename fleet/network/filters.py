"""Keeps nftables tables equal to rules: one object for the host's table, one for the sandboxes'.

What was applied last is remembered, so that a change is a small transaction; when in doubt (start, failure) the table
is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import RuntimeFault
from fleet.network import rules
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.thread import KernelThread
from fleet.network.namespaces import open_namespace
from fleet.network.rules import HostRules, SandboxRules

__all__ = ["HostFilter", "SandboxFilters"]


class HostFilter:
    """This owner's table in the host's namespace."""

    def __init__(self, *, closer: NftCloser, table: str) -> None:
        self._nft = NftContext(closer)
        self._table = table
        self._applied: HostRules | None = None

    def apply(self, desired: HostRules) -> bool:
        """Bring the table to ``desired``; returns whether anything had to change."""
        text = rules.plan_host(self._applied, desired, table=self._table)
        if text:
            self._applied = None
            self._nft.run(text)
            self._applied = desired
        return bool(text)

    def mend(self, desired: HostRules) -> bool:
        """Replace the table; returns whether it had differed from what was ordered."""
        before = _listing(self._nft, self._table)
        self._applied = None
        self.apply(desired)
        return before != _listing(self._nft, self._table)

    def remove(self) -> None:
        """Delete the table; absent is fine."""
        self._nft.run(f"add table ip {self._table}\ndelete table ip {self._table}\n")
        self._applied = None

    def close(self) -> None:
        """Leave the table as it is."""
        self._nft.close()


class SandboxFilters:
    """The table in each sandbox."""

    def __init__(self, *, closer: NftCloser, thread: KernelThread, path_of: Callable[[str], Path]) -> None:
        self._closer = closer
        self._thread = thread
        self._path_of = path_of
        self._applied: dict[str, SandboxRules] = {}

    def adopt(self, sandbox_id: str, applied: SandboxRules) -> None:
        """Remember what a new sandbox's table holds."""
        self._applied[sandbox_id] = applied

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone, or its table is not known any more."""
        self._applied.pop(sandbox_id, None)

    def apply(self, sandbox_id: str, desired: SandboxRules) -> None:
        """Bring a sandbox's table to ``desired``."""
        text = rules.plan_sandbox(self._applied.get(sandbox_id), desired)
        if not text:
            return
        self._applied.pop(sandbox_id, None)
        with self._context(sandbox_id) as nft:
            nft.run(text)
        self._applied[sandbox_id] = desired

    def mend(self, sandbox_id: str, desired: SandboxRules) -> bool:
        """Replace a sandbox's table; returns whether it had differed from what was ordered."""
        self._applied.pop(sandbox_id, None)
        with self._context(sandbox_id) as nft:
            before = _listing(nft, rules.SANDBOX_TABLE)
            nft.run(rules.plan_sandbox(None, desired))
            after = _listing(nft, rules.SANDBOX_TABLE)
        self._applied[sandbox_id] = desired
        return before != after

    @contextmanager
    def _context(self, sandbox_id: str) -> Iterator[NftContext]:
        netns = open_namespace(self._path_of(sandbox_id))
        try:
            with self._thread.inside(netns), NftContext(self._closer) as nft:
                yield nft
        finally:
            os.close(netns)


def _listing(nft: NftContext, table: str) -> tuple[str, ...]:
    """A table as sorted words (the kernel lists the elements of a set in no particular order); empty if there is none."""
    try:
        return tuple(sorted(nft.run(f"list table ip {table}\n").replace(",", " ").split()))
    except RuntimeFault:
        return ()
