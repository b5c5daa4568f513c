"""The sandboxes' side of what the plane brings about: rules, default routes and ways back inside each.

Used on the network thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import msgspec

from fleet.network import rules
from fleet.network.cables import mend_routes, set_default_route
from fleet.network.filters import SandboxFilters
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.thread import KernelThread
from fleet.network.known import Known
from fleet.network.namespaces import open_namespace
from fleet.network.return_routes import NO_RETURNS, ReturnRoutes
from fleet.network.rules import SandboxRules
from fleet.network.store import SandboxRecord, Store
from fleet.network.sweeper import FlowSweeper

__all__ = ["SandboxSide"]


class SandboxSide:
    """Sandboxes whose names are answered by us (``dns_port``) have rules; the others are left alone."""

    def __init__(
        self, *, known: Known, store: Store, thread: KernelThread, closer: NftCloser, sweeper: FlowSweeper
    ) -> None:
        self._known = known
        self._store = store
        self._thread = thread
        self._closer = closer
        self._filters = SandboxFilters(closer=closer, sweeper=sweeper, thread=thread, path_of=store.netns_path)
        self._returns_applied: dict[str, ReturnRoutes] = {}  # by sandbox; none: what is there is not known

    @contextmanager
    def inside(self, sandbox_id: str) -> Iterator[int]:
        """The block runs in the sandbox's namespace, and gets its descriptor."""
        netns = open_namespace(self._store.netns_path(sandbox_id))
        try:
            with self._thread.inside(netns):
                yield netns
        finally:
            os.close(netns)

    def begin(self, sandbox_id: str, wanted: SandboxRules, *, prepared: SandboxRules) -> None:
        """Make the rules of a new sandbox out of those that its namespace was ``prepared`` with; called inside it."""
        text = rules.plan_sandbox(prepared, wanted)
        if text:
            with NftContext(self._closer) as nft:
                nft.run(text)
        self._filters.adopt(sandbox_id, wanted)
        mend_routes(wanted.returns, before=NO_RETURNS)
        self._returns_applied[sandbox_id] = wanted.returns

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone."""
        self._filters.forget(sandbox_id)
        self.card_gone(sandbox_id)

    def card_gone(self, sandbox_id: str) -> None:
        """A card left the sandbox, and the routes by it."""
        self._returns_applied.pop(sandbox_id, None)

    def apply(self, record: SandboxRecord, *, dead: Collection[str] = ()) -> None:
        """Bring a sandbox to what its networks are now. ``dead`` as in ``HostFilter.apply``."""
        if record.dns_port:
            wanted = self._wanted(record)
            self._apply_returns(record.spec.id, wanted.returns)
            self._filters.apply(record.spec.id, wanted, dead=dead)
            interfaces = self._known.with_gateway(record.interfaces)
            if interfaces != record.interfaces:
                with self.inside(record.spec.id):
                    set_default_route(interfaces)
                record = msgspec.structs.replace(record, interfaces=interfaces)
                self._known.records[record.spec.id] = record
                self._store.put_sandbox(record)

    def mend(self, sandbox_id: str) -> list[str]:
        """Replace a sandbox's rules if they differ from what was ordered; a sandbox that is gone is fine."""
        record = self._known.records.get(sandbox_id)
        if record is None or not record.dns_port:
            return []
        wanted = self._wanted(record)
        differed = self._filters.mend(sandbox_id, wanted)
        self._returns_applied.pop(sandbox_id, None)
        if not (self._apply_returns(sandbox_id, wanted.returns) or differed):
            return []
        return [f"sandbox {sandbox_id}: rules differed from what was ordered, replaced"]

    def _wanted(self, record: SandboxRecord) -> SandboxRules:
        return self._known.sandbox_rules(record.spec.id, record.interfaces, port=record.dns_port)

    def _apply_returns(self, sandbox_id: str, wanted: ReturnRoutes) -> bool:
        """Bring a sandbox's ways back to ``wanted``; returns whether its routing rules had to change."""
        before = self._returns_applied.get(sandbox_id)
        if before == wanted:
            return False
        self._returns_applied.pop(sandbox_id, None)
        with self.inside(sandbox_id):
            changed = mend_routes(wanted, before=before)
        self._returns_applied[sandbox_id] = wanted
        return changed
