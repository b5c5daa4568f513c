"""The engine protocol in memory, for unit tests of what stands on it. Passes the engines' contract suite.

It checks its own state after every change and refuses (``InvariantError``) what no real engine could show.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

from fleet import errors
from fleet.clock import Clock, SystemClock
from fleet.store.engine import (
    FIRST_REVISION,
    OPS_MAX,
    CompactedError,
    CompareFailed,
    Deleted,
    EngineFailedError,
    Entry,
    LeaseLostError,
    Listing,
    Txn,
    WatchBatch,
)


class MemoryEngine:
    """See the module. ``fail`` and ``compact`` are the test's."""

    def __init__(self, *, clock: Clock | None = None, ops_max: int = OPS_MAX) -> None:
        self._clock = clock or SystemClock()
        self._ops_max = ops_max
        self._history: list[WatchBatch] = []
        self._current: dict[str, Entry] = {}
        self._compacted = 0
        self._changed = asyncio.Event()
        self._leases: dict[int, tuple[float, asyncio.Task[None]]] = {}
        self._lease_ids = itertools.count(1)
        self._state = "new"
        self._failure: errors.FleetError | None = None
        self.refuse: errors.FleetError | None = None
        """Raised by the next commits, as a full disk or a lost quorum would."""

    @property
    def ops_max(self) -> int:
        return self._ops_max

    @property
    def revision(self) -> int:
        return FIRST_REVISION + len(self._history)

    async def start(self) -> None:
        if self._state != "new":
            raise errors.InvariantError("started twice")
        self._state = "running"

    async def close(self) -> None:
        self._state = "closed"
        tasks = [task for _, task in self._leases.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wake()

    def fail(self, text: str = "disk on fire") -> None:
        """As a write error does: nothing works from now on."""
        self._failure = EngineFailedError(text)
        self._wake()

    def compact(self, revision: int) -> None:
        """Forget history up to ``revision``."""
        if not self._compacted <= revision <= self.revision:
            raise errors.InvariantError(f"compact to {revision} at {self.revision}")
        self._compacted = revision
        self._wake()

    async def commit(self, txn: Txn) -> int:
        txn.check(ops_max=self._ops_max)
        await asyncio.sleep(0)
        self._check()
        if self.refuse is not None:
            raise self.refuse
        actual = {c.key: self._mod(c.key) for c in txn.compares if self._mod(c.key) != c.mod_revision}
        if actual:
            raise CompareFailed(actual, revision=self.revision)
        for put in txn.puts:
            if put.lease and put.lease not in self._leases:
                raise LeaseLostError(f"lease {put.lease} has ended")
        revision = self.revision + 1
        events: list[Entry | Deleted] = []
        for put in txn.puts:
            old = self._current.get(put.key)
            events.append(Entry(put.key, put.value, revision, old.create_revision if old else revision, put.lease))
        events.extend(Deleted(key) for key in txn.deletes if key in self._current)
        if events:
            self._record(events)
        return self.revision

    async def get(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        self._check()
        return self._current.get(key)

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        await asyncio.sleep(0)
        self._check()
        wanted = self.revision if at_revision is None else at_revision
        if wanted < self._compacted:
            raise CompactedError(wanted, oldest=self._compacted)
        if wanted > self.revision:
            raise errors.UnavailableError(f"revision {wanted} is not here yet")
        state: dict[str, Entry] = {}
        for batch in self._history[: wanted - FIRST_REVISION]:
            _replay(state, batch)
        return Listing(tuple(state[key] for key in sorted(state) if key.startswith(prefix)), wanted)

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        following = max(from_revision, FIRST_REVISION + 1)
        if from_revision <= self._compacted:
            raise CompactedError(from_revision, oldest=self._compacted + 1)
        while self._state != "closed":
            self._check()
            if following > self.revision:
                await self._changed.wait()
                continue
            if following <= self._compacted:
                raise CompactedError(following, oldest=self._compacted + 1)
            batch = self._history[following - FIRST_REVISION - 1]
            if batch.revision != following:
                raise errors.InvariantError(f"gap in history: {batch.revision} where {following} belongs")
            following += 1
            events = tuple(event for event in batch.events if event.key.startswith(prefix))
            if events:
                yield WatchBatch(batch.revision, events)

    async def grant(self, ttl_s: float) -> int:
        self._check()
        if ttl_s <= 0:
            raise errors.InvariantError(f"a lease of {ttl_s} s")
        lease = next(self._lease_ids)
        self._leases[lease] = (ttl_s, asyncio.create_task(self._expire(lease, ttl_s)))
        return lease

    async def keep_alive(self, lease: int) -> None:
        self._check()
        if lease not in self._leases:
            raise LeaseLostError(f"lease {lease} has ended")
        ttl_s, task = self._leases[lease]
        task.cancel()
        self._leases[lease] = (ttl_s, asyncio.create_task(self._expire(lease, ttl_s)))

    async def revoke(self, lease: int) -> None:
        self._check()
        if lease in self._leases:
            self._leases[lease][1].cancel()
            self._end_lease(lease)

    async def _expire(self, lease: int, ttl_s: float) -> None:
        await self._clock.sleep(ttl_s)
        self._end_lease(lease)

    def _end_lease(self, lease: int) -> None:
        del self._leases[lease]
        keys = [key for key, entry in self._current.items() if entry.lease == lease]
        if keys:
            self._record([Deleted(key) for key in keys])

    def _mod(self, key: str) -> int:
        entry = self._current.get(key)
        return entry.mod_revision if entry else 0

    def _record(self, events: list[Entry | Deleted]) -> None:
        batch = WatchBatch(self.revision + 1, tuple(events))
        for event in events:
            if isinstance(event, Deleted) and event.key not in self._current:
                raise errors.InvariantError(f"delete of absent key {event.key}")
            if isinstance(event, Entry) and not 0 < event.create_revision <= event.mod_revision == batch.revision:
                raise errors.InvariantError(f"impossible entry {event}")
        self._history.append(batch)
        _replay(self._current, batch)
        self._wake()

    def _check(self) -> None:
        if self._failure is not None:
            raise EngineFailedError(str(self._failure))
        if self._state != "running":
            raise errors.UnavailableError("the state engine is not running")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _replay(state: dict[str, Entry], batch: WatchBatch) -> None:
    for event in batch.events:
        if isinstance(event, Deleted):
            del state[event.key]
        else:
            state[event.key] = event
