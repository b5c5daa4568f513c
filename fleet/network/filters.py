"""Keeps nftables tables equal to rules: an object for the host's table of each family, one for the bridges, one for sandboxes.

What was applied last is remembered, so that a change is a small transaction; when in doubt (start, failure) the table
is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fleet.errors import RuntimeFault
from fleet.network import cardrules, rules
from fleet.network.cardrules import Card
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.thread import KernelThread
from fleet.network.namespaces import open_namespace
from fleet.network.rules import Family, HostRules, SandboxRules
from fleet.network.sweeper import FlowSweeper

__all__ = ["CardFilter", "HostFilter", "SandboxFilters"]

T = TypeVar("T")


class HostFilter:
    """This owner's table of one family in the host's namespace."""

    def __init__(self, *, closer: NftCloser, sweeper: FlowSweeper, table: str, family: Family = "ip") -> None:
        self._family: Family = family
        self._sweeper = sweeper
        self._nft = NftContext(closer)
        self._table = table
        self._applied: HostRules | None = None

    def apply(self, desired: HostRules | None, *, dead: Collection[str] = ()) -> bool:
        """Bring the table to ``desired`` (``None``: there is to be none); returns whether anything had to change.

        ``dead`` are backends that are gone, not merely unready: TCP connections to them are given
        up too (soon, by the sweeper).
        """
        before = self._applied
        if desired is None:
            if before is not None:
                self.remove()
            return before is not None
        text = rules.plan_host(before, desired, table=self._table, family=self._family)
        lost: set[str] = set()
        opened: set[int] = set()
        if text:
            self._applied = None
            self._nft.run(text)
            self._applied = desired
        if text and before is not None:
            for key, backends in before.published.items():
                lost |= {address for address, _ in _lost(backends, desired.published.get(key))}
            lost |= {rule.target[0] for rule in before.host_ports - desired.host_ports}
            # a client that knocked while nobody was there is tracked as "leads to the host itself", and would be for ever
            opened = _open_udp(desired) - _open_udp(before)
        self._sweeper.ask(None, lost=lost, dead=dead, opened=opened)
        return bool(text)

    def mend(self, desired: HostRules | None) -> bool:
        """Replace the table; returns whether it had differed from what was ordered."""
        before = _listing(self._nft, self._table, self._family)
        if desired is None:
            if before:  # left by a daemon that was killed while it removed the last network of that family
                self.remove()
            return bool(before)
        self._applied = None
        self.apply(desired)
        return before != _listing(self._nft, self._table, self._family)

    def obstacles(self) -> list[str]:
        """A sentence for each table of others that drops forwarded packets by policy: no rule of ours can overrule it."""
        found: list[str] = []
        table = chain = ""
        for line in self._nft.run(f"list chains {self._family}\n").splitlines():
            words = line.split()
            if words[:1] == ["table"]:
                table = words[2]
            elif words[:1] == ["chain"]:
                chain = words[1]
            elif "hook forward" in line and "policy drop" in line and table != self._table:
                found.append(
                    f"firewall: chain {chain} of table {table} is not ours and drops forwarded packets by policy; "
                    "containers reach nothing outside and published ports lead nowhere unless it lets interfaces fb* pass"
                )
        return found

    def remove(self) -> None:
        """Delete the table; absent is fine."""
        name = f"{self._family} {self._table}"
        self._nft.run(f"add table {name}\ndelete table {name}\n")
        self._applied = None

    def close(self) -> None:
        """Leave the table as it is."""
        self._nft.close()


class SandboxFilters:
    """The table in each sandbox."""

    def __init__(
        self, *, closer: NftCloser, sweeper: FlowSweeper, thread: KernelThread, path_of: Callable[[str], Path]
    ) -> None:
        self._sweeper = sweeper
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

    def apply(self, sandbox_id: str, desired: SandboxRules, *, dead: Collection[str] = ()) -> None:
        """Bring a sandbox's table to ``desired``. ``dead`` as in ``HostFilter.apply``."""
        before = self._applied.get(sandbox_id)
        text = rules.plan_sandbox(before, desired)
        lost: set[str] = set()
        if before is not None:
            for was, now in ((before.vips, desired.vips), (before.vips6 or {}, desired.vips6 or {})):
                lost |= {address for vip, backends in was.items() for address in _lost(backends, now.get(vip))}
        if text:
            self._applied.pop(sandbox_id, None)
            with self._context(sandbox_id) as nft:
                nft.run(text)
            self._applied[sandbox_id] = desired
        self._sweeper.ask(self._path_of(sandbox_id), lost=lost, dead=dead)

    def mend(self, sandbox_id: str, desired: SandboxRules) -> bool:
        """Replace a sandbox's table; returns whether it had differed from what was ordered."""
        self._applied.pop(sandbox_id, None)
        with self._context(sandbox_id) as nft:
            before = _sandbox_listing(nft, desired)
            nft.run(rules.plan_sandbox(None, desired))
            after = _sandbox_listing(nft, desired)
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


class CardFilter:
    """This owner's table of the bridges. Exists while there are cards; used on the network thread, in the host's namespace."""

    def __init__(self, *, closer: NftCloser, table: str) -> None:
        self._nft = NftContext(closer)
        self._table = table
        self._applied: frozenset[Card] | None = None

    def apply(self, desired: frozenset[Card]) -> None:
        """Bring the table to ``desired``. Raises ``RuntimeFault`` when the kernel refuses."""
        if not desired:
            if self._applied:
                self.remove()
            return
        text = cardrules.plan_cards(self._applied, desired, table=self._table)
        if text:
            self._applied = None
            self._nft.run(text)
            self._applied = desired

    def mend(self, desired: frozenset[Card]) -> bool:
        """Replace the table; returns whether it had differed from what was ordered."""
        before = _listing(self._nft, self._table, "bridge")
        if not desired:
            if before:
                self.remove()
            return bool(before)
        self._applied = None
        self.apply(desired)
        return before != _listing(self._nft, self._table, "bridge")

    def remove(self) -> None:
        """Delete the table; absent is fine."""
        self._nft.run(f"add table bridge {self._table}\ndelete table bridge {self._table}\n")
        self._applied = None

    def close(self) -> None:
        """Leave the table as it is."""
        self._nft.close()


def _lost(before: tuple[T, ...], after: tuple[T, ...] | None) -> set[T]:
    return set(before) - set(after or ())


def _open_udp(state: HostRules) -> set[int]:
    published = {port for (protocol, port), backends in state.published.items() if protocol == "udp" and backends}
    return published | {rule.host_port for rule in state.host_ports if rule.protocol == "udp"}


def _sandbox_listing(nft: NftContext, desired: SandboxRules) -> list[tuple[str, ...]]:
    families: tuple[Family, ...] = ("ip",) if desired.vips6 is None else ("ip", "ip6")
    return [_listing(nft, rules.SANDBOX_TABLE, family) for family in families]


def _listing(nft: NftContext, table: str, family: str) -> tuple[str, ...]:
    """A table as sorted words (the kernel lists the elements of a set in no particular order); empty if there is none."""
    try:
        return tuple(sorted(nft.run(f"list table {family} {table}\n").replace(",", " ").split()))
    except RuntimeFault:
        return ()
