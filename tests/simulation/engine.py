"""A state engine of several members in one place: the contract of ``fleet.store.engine``, as badly as a network allows.

``Truth`` is the one linear history. A ``SimEngine`` is one manager's way to it: what it asks takes time, is not answered while
its host reaches no majority of the members, and may be done although no answer comes. As with etcd a new engine of a host fences
the former one's late writes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from fleet import errors
from fleet.engines.etcd import OutcomeUnknownError
from fleet.store.engine import (
    FIRST_REVISION,
    OPS_MAX,
    CompactedError,
    CompareFailed,
    Deleted,
    Entry,
    LeaseLostError,
    Listing,
    Txn,
    WatchBatch,
)
from simulation.loop import SimLoop

__all__ = ["SimEngine", "Truth"]

TIMEOUT_S = 5.0
_AGAIN_S = 0.1


class Truth:
    """What is durable. ``applied`` is called after each change with its batch and the host that made it."""

    def __init__(self, loop: SimLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.current: dict[str, Entry] = {}
        self.history: list[WatchBatch] = []
        self.compacted = 0
        self.is_full = False
        self.holders: dict[str, int] = {}
        self.engines = 0
        self.changed = asyncio.Event()
        self.applied: list[Callable[[WatchBatch, str], None]] = []
        self._leases: dict[int, tuple[float, asyncio.TimerHandle]] = {}
        self._lease_ids = 0

    @property
    def revision(self) -> int:
        return FIRST_REVISION + len(self.history)

    def commit(self, txn: Txn, author: str) -> int:
        actual = {c.key: self._mod(c.key) for c in txn.compares if self._mod(c.key) != c.mod_revision}
        if actual:
            raise CompareFailed(actual, revision=self.revision)
        for put in txn.puts:
            if put.lease and put.lease not in self._leases:
                raise LeaseLostError(f"lease {put.lease} has ended")
        if self.is_full and txn.puts:
            raise errors.StorageFullError("the state's disk is full")
        revision = self.revision + 1
        events: list[Entry | Deleted] = []
        for put in txn.puts:
            old = self.current.get(put.key)
            events.append(Entry(put.key, put.value, revision, old.create_revision if old else revision, put.lease))
        events.extend(Deleted(key) for key in txn.deletes if key in self.current)
        if events:
            self._record(events, author)
        return self.revision

    def list(self, prefix: str, at_revision: int | None) -> Listing:
        wanted = self.revision if at_revision is None else at_revision
        if wanted < self.compacted:
            raise CompactedError(wanted, oldest=self.compacted)
        if wanted == self.revision:
            state = self.current
        else:
            state = {}
            for batch in self.history[: wanted - FIRST_REVISION]:
                _replay(state, batch)
        return Listing(tuple(state[key] for key in sorted(state) if key.startswith(prefix)), wanted)

    def grant(self, ttl_s: float) -> int:
        self._lease_ids += 1
        self._leases[self._lease_ids] = (ttl_s, self._timer(self._lease_ids, ttl_s))
        return self._lease_ids

    def keep_alive(self, lease: int) -> None:
        if lease not in self._leases:
            raise LeaseLostError(f"lease {lease} has ended")
        ttl_s, timer = self._leases[lease]
        timer.cancel()
        self._leases[lease] = (ttl_s, self._timer(lease, ttl_s))

    def end_lease(self, lease: int) -> None:
        if lease not in self._leases:
            return
        self._leases.pop(lease)[1].cancel()
        keys = [key for key, entry in self.current.items() if entry.lease == lease]
        if keys:
            self._record([Deleted(key) for key in keys], "")

    def _timer(self, lease: int, ttl_s: float) -> asyncio.TimerHandle:
        return self.loop.later(ttl_s, lambda: self.end_lease(lease))

    def _mod(self, key: str) -> int:
        entry = self.current.get(key)
        return entry.mod_revision if entry else 0

    def _record(self, events: list[Entry | Deleted], author: str) -> None:
        batch = WatchBatch(self.revision + 1, tuple(events))
        self.history.append(batch)
        _replay(self.current, batch)
        self.changed.set()
        self.changed = asyncio.Event()
        for look in self.applied:
            look(batch, author)


def _replay(state: dict[str, Entry], batch: WatchBatch) -> None:
    for event in batch.events:
        if isinstance(event, Deleted):
            del state[event.key]
        else:
            state[event.key] = event


class SimEngine:
    """``reaches_majority`` is asked for this host, now."""

    def __init__(self, truth: Truth, host: str, reaches_majority: Callable[[], bool]) -> None:
        self._truth = truth
        self._loop = truth.loop
        self._chance = truth.chance
        self._host = host
        self._reaches = reaches_majority
        self._nonce = 0
        self._closed = asyncio.Event()

    @property
    def ops_max(self) -> int:
        return OPS_MAX - 2

    async def start(self) -> None:
        holders = self._truth.holders
        self._truth.engines += 1
        self._nonce = self._truth.engines

        def take(seen: int) -> None:
            if holders.get(self._host, 0) == seen:
                holders[self._host] = self._nonce

        while (seen := await self._ask(lambda: holders.get(self._host, 0))) != self._nonce:
            await self._ask(lambda seen=seen: take(seen))  # type: ignore[misc]

    async def close(self) -> None:
        self._closed.set()

    async def commit(self, txn: Txn) -> int:
        txn.check(ops_max=self.ops_max)
        return int(await self._ask(lambda: self._apply(txn), repeatable=not txn.puts and not txn.deletes))

    async def get(self, key: str) -> Entry | None:
        found: Entry | None = await self._ask(lambda: self._truth.current.get(key))
        return found

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        listing: Listing = await self._ask(lambda: self._truth.list(prefix, at_revision))
        return listing

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        truth, following = self._truth, max(from_revision, FIRST_REVISION + 1)
        while not self._closed.is_set():
            if following <= truth.compacted:
                raise CompactedError(following, oldest=truth.compacted + 1)
            if following > truth.revision:
                await truth.changed.wait()
                continue
            await asyncio.sleep(self._delay())
            while not self._reaches():
                await asyncio.sleep(_AGAIN_S)
            if following <= truth.compacted:
                continue
            for batch in truth.history[following - FIRST_REVISION - 1 :]:
                following = batch.revision + 1
                events = tuple(event for event in batch.events if event.key.startswith(prefix))
                if events:
                    yield WatchBatch(batch.revision, events)

    async def grant(self, ttl_s: float) -> int:
        return int(await self._ask(lambda: self._truth.grant(ttl_s)))

    async def keep_alive(self, lease: int) -> None:
        await self._ask(lambda: self._truth.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        await self._ask(lambda: self._truth.end_lease(lease))

    def _apply(self, txn: Txn) -> int:
        if self._truth.holders.get(self._host) != self._nonce:
            raise errors.UnavailableError("another process has taken this manager's place; nothing was changed")
        return self._truth.commit(txn, self._host)

    def _delay(self) -> float:
        chance = self._chance
        return chance.uniform(0.1, 0.8) if chance.random() < 0.02 else chance.uniform(0.0002, 0.006)

    async def _ask(self, work: Callable[[], Any], *, repeatable: bool = True) -> Any:
        """What ``work`` gives, done at one instant somewhere between asking and the answer."""
        if self._closed.is_set():
            raise errors.UnavailableError("the state engine is not running")
        end = self._loop.time() + TIMEOUT_S
        while True:
            answer = self._loop.create_future()
            self._loop.later(self._delay(), lambda answer=answer: self._arrive(work, answer))  # type: ignore[misc]
            try:
                async with asyncio.timeout_at(end):
                    outcome, value = await answer
            except TimeoutError:
                if repeatable:
                    raise errors.UnavailableError(
                        "etcd does not answer; nothing was changed", retry_after_s=1.0
                    ) from None
                raise OutcomeUnknownError("etcd did not confirm the write; it may have happened") from None
            if outcome == "lost":
                if not repeatable:
                    raise errors.UnavailableError("the write was not made", retry_after_s=1.0)
                await asyncio.sleep(_AGAIN_S)
                continue
            if outcome == "raised":
                raise value
            return value

    def _arrive(self, work: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        """In the world: the request has reached the members, or not."""
        if not self._reaches():
            if self._chance.random() < 0.5:  # it waits on its way, and may yet arrive: late
                self._loop.later(self._chance.uniform(0.2, 2.0), lambda: self._arrive(work, answer))
            else:
                self._loop.later(_AGAIN_S, lambda: _resolve(answer, "lost", None))
            return
        outcome, value = "done", None
        try:
            value = work()
        except errors.FleetError as cause:
            outcome, value = "raised", cause
        self._answer(answer, outcome, value)

    def _answer(self, answer: asyncio.Future[Any], outcome: str, value: Any) -> None:
        def deliver() -> None:
            if self._reaches():
                _resolve(answer, outcome, value)
            else:
                self._answer(answer, outcome, value)

        self._loop.later(self._delay(), deliver)


def _resolve(answer: asyncio.Future[Any], outcome: str, value: Any) -> None:
    if not answer.done():
        answer.set_result((outcome, value))
