"""The embedded engine: cluster state of a single manager in one SQLite file.

Three threads share the work: the event loop (calls, watches, leases), the writer (``sqlite_writer``: all writes) and one
reader. Recent changes are also kept in memory, so watches that keep up never touch the file; those that lag are served
from history, and those that lag behind history get ``CompactedError``. Watches pull, so a slow one costs no memory.

Leases are counted on the monotonic clock and start anew when the engine does, as etcd's do on a change of leader.

A write or fsync error fails the engine for good: every call and watch raises ``EngineFailedError`` from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fleet import errors
from fleet.cancellation import cancel_and_wait
from fleet.clock import Clock, SystemClock
from fleet.engines.sqlite_file import SqliteFile, open_file
from fleet.engines.sqlite_writer import HistoryLimits, Job, Outcome, Writer
from fleet.store.engine import (
    FIRST_REVISION,
    OPS_MAX,
    EngineFailedError,
    Entry,
    LeaseLostError,
    Listing,
    Txn,
    WatchBatch,
)

__all__ = ["HistoryLimits", "SqliteEngine"]

T = TypeVar("T")

_IN_FLIGHT_MAX: Final = 512
"""Commits accepted and not yet answered; more callers wait."""
_HISTORY_PAGE_ROWS: Final = 1000
_LEASE_BITS: Final = 62
_LATE_S: Final = 0.5
"""An alarm that comes so late tells that the process stood still; and so long its keepers then get to say that they live."""


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    deadline: float


class _Ring:
    """The last batches in memory, consecutive revisions; trimmed when twice too long, so that trimming is rare."""

    def __init__(self, revision: int, limits: HistoryLimits) -> None:
        self.first = revision + 1
        self._limits = limits
        self._batches: list[WatchBatch] = []
        self._bytes = 0

    def add(self, batch: WatchBatch) -> None:
        self._batches.append(batch)
        self._bytes += _size(batch)
        if len(self._batches) > 2 * self._limits.memory_revisions or self._bytes > 2 * self._limits.memory_bytes:
            self._trim()

    def since(self, revision: int) -> list[WatchBatch]:
        """Batches from ``revision`` on; it must not be older than ``first``."""
        return self._batches[revision - self.first :]

    def _trim(self) -> None:
        drop = 0
        while drop < len(self._batches) and (
            len(self._batches) - drop > self._limits.memory_revisions or self._bytes > self._limits.memory_bytes
        ):
            self._bytes -= _size(self._batches[drop])
            drop += 1
        del self._batches[:drop]
        self.first += drop


def _size(batch: WatchBatch) -> int:
    return sum(len(event.key) + (len(event.value) if isinstance(event, Entry) else 0) for event in batch.events)


class _LoopInbox:
    """Carries the writer's reports to the event loop; silent once the loop is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_done: Callable[[Outcome], None],
        on_broken: Callable[[EngineFailedError], None],
    ) -> None:
        self._loop = loop
        self._on_done = on_done
        self._on_broken = on_broken

    def done(self, outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(self._on_done, outcome)

    def broken(self, cause: EngineFailedError) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_broken, cause)


class SqliteEngine:
    """``Engine`` on one file in ``directory``; see the module and ``fleet.store.engine``.

    ``pages_max`` bounds the file (4 KiB pages); beyond it commits raise ``StorageFullError`` as on a full disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cluster_id: str,
        clock: Clock | None = None,
        history: HistoryLimits | None = None,
        pages_max: int | None = None,
    ) -> None:
        self._directory = directory
        self._cluster_id = cluster_id
        self._clock = clock or SystemClock()
        self._limits = history or HistoryLimits()
        self._pages_max = pages_max
        self._file: SqliteFile | None = None
        self._writer: Writer | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._closed = False
        self._failure: EngineFailedError | None = None
        self._revision = 0
        self._ring = _Ring(0, self._limits)
        self._changed = asyncio.Event()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT_MAX)
        self._leases: dict[int, _Lease] = {}
        self._lease_added = asyncio.Event()
        self._lease_loop: asyncio.Task[None] | None = None

    has_others: Final = False
    """Nobody else can write to the file while it is open here."""

    @property
    def ops_max(self) -> int:
        return OPS_MAX

    async def start(self) -> None:
        """See ``Engine.start``; also ``ConflictError`` if another process has the directory."""
        file = await asyncio.to_thread(
            open_file, self._directory, cluster_id=self._cluster_id, pages_max=self._pages_max
        )
        inbox = _LoopInbox(asyncio.get_running_loop(), on_done=self._deliver, on_broken=self._break)
        self._file = file
        self._writer = Writer(file, inbox, limits=self._limits)
        self._revision = self._writer.revision
        self._ring = _Ring(self._revision, self._limits)
        now = self._clock.monotonic()
        for lease, ttl_ms in file.leases():
            self._leases[lease] = _Lease(ttl_ms / 1000, now + ttl_ms / 1000)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fleet-state-reader")
        self._writer.start()
        self._lease_loop = asyncio.create_task(self._expire_leases(), name="state leases")

    async def close(self) -> None:
        """See ``Engine.close``."""
        if self._closed:
            return
        self._closed = True
        await cancel_and_wait(self._lease_loop)
        if self._writer is not None:
            self._writer.stop()
            await asyncio.to_thread(self._writer.join)
            await asyncio.sleep(0)  # its last reports are already queued on this loop: let them run
        if self._reader is not None:
            await asyncio.to_thread(self._reader.shutdown)
        if self._file is not None:
            await asyncio.to_thread(self._file.close)
        self._end_waiting(errors.UnavailableError("the state engine is closed"))

    async def commit(self, txn: Txn) -> int:
        """See ``Engine.commit``."""
        txn.check(ops_max=OPS_MAX)
        return await self._write(lambda writer: writer.apply(txn), size=sum(len(put.value) for put in txn.puts))

    async def get(self, key: str) -> Entry | None:
        """See ``Engine.get``."""
        return await self._read(lambda file: file.get(key))

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        """See ``Engine.list``."""
        return await self._read(lambda file: file.list(prefix, at_revision=at_revision))

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """See ``Engine.watch``. Ends when the engine is closed."""
        following = max(from_revision, FIRST_REVISION + 1)
        while not self._closed:
            self._check()
            if following > self._revision:
                await self._changed.wait()
                continue
            for batch in await self._batches(following):
                following = batch.revision + 1
                events = tuple(event for event in batch.events if event.key.startswith(prefix))
                if events:
                    yield batch if len(events) == len(batch.events) else WatchBatch(batch.revision, events)

    async def grant(self, ttl_s: float) -> int:
        """See ``Engine.grant``."""
        if ttl_s <= 0:
            raise errors.InvariantError(f"a lease of {ttl_s} s")
        lease = secrets.randbits(_LEASE_BITS) + 1
        await self._write(lambda writer: writer.grant(lease, ttl_ms=max(1, round(ttl_s * 1000))), size=0)
        self._leases[lease] = _Lease(ttl_s, self._clock.monotonic() + ttl_s)
        self._lease_added.set()
        return lease

    async def keep_alive(self, lease: int) -> None:
        """See ``Engine.keep_alive``."""
        self._check()
        known = self._leases.get(lease)
        if known is None:
            raise LeaseLostError(f"lease {lease} has ended")
        known.deadline = self._clock.monotonic() + known.ttl_s

    async def revoke(self, lease: int) -> None:
        """See ``Engine.revoke``."""
        self._leases.pop(lease, None)
        await self._write(lambda writer: writer.revoke(lease), size=0)

    # -- inner workings

    def _check(self) -> None:
        if self._failure is not None:
            raise EngineFailedError(str(self._failure))
        if self._closed or self._writer is None:
            raise errors.UnavailableError("the state engine is not running")

    async def _write(self, work: Callable[[Writer], T], *, size: int) -> T:
        async with self._in_flight:
            self._check()
            assert self._writer is not None
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                self._writer.submit(Job(work, future, size))
                return await future
            finally:
                self._waiting.discard(future)

    async def _read(self, work: Callable[[SqliteFile], T]) -> T:
        self._check()
        assert self._file is not None
        assert self._reader is not None
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, self._file)

    async def _batches(self, first: int) -> Sequence[WatchBatch]:
        """Some batches from ``first`` on: from memory if it reaches back so far, else a page of history."""
        if first >= self._ring.first:
            return self._ring.since(first)
        last = self._ring.first - 1
        batches = await self._read(lambda file: file.history(first=first, last=last, rows_max=_HISTORY_PAGE_ROWS))
        if not batches or batches[0].revision != first:
            raise errors.InvariantError(f"the history from revision {first} to {last} has a gap")
        return batches

    def _deliver(self, outcome: Outcome) -> None:
        """Changes first, then answers: who hears that a commit is done finds it in the watch."""
        for batch in outcome.changes:
            self._ring.add(batch)
        self._revision = outcome.revision
        self._wake()
        for answer in outcome.answers:
            future = answer.token
            assert isinstance(future, asyncio.Future)
            if future.done():
                continue
            if answer.error is not None:
                future.set_exception(answer.error)
            else:
                future.set_result(answer.result)

    def _break(self, cause: EngineFailedError) -> None:
        self._failure = cause
        self._end_waiting(cause)

    def _end_waiting(self, cause: errors.FleetError) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(cause)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _expire_leases(self) -> None:
        """Revoke leases as their time comes. Ends with the engine's failure, which every caller sees by itself.

        Who keeps them alive is in this process too: while it stands still nobody can, so that time is given to all."""
        until: float | None = None
        while True:
            self._lease_added.clear()
            now = self._clock.monotonic()
            if until is not None and now - until > _LATE_S:
                for known in self._leases.values():
                    known.deadline += now - until + _LATE_S
            for lease in [lease for lease, known in self._leases.items() if known.deadline <= now]:
                try:
                    await self.revoke(lease)
                except errors.StorageFullError:  # its keys stay until there is room; ask again in a while
                    self._leases[lease] = _Lease(1.0, self._clock.monotonic() + 1.0)
                except (EngineFailedError, errors.UnavailableError):
                    return
            until = min((known.deadline for known in self._leases.values()), default=None)
            await self._sleep_until(until)

    async def _sleep_until(self, deadline: float | None) -> None:
        """Until the deadline or a new lease."""
        waits: set[asyncio.Task[Any]] = {asyncio.create_task(self._lease_added.wait())}
        if deadline is not None:
            delay_s = max(0.0, deadline - self._clock.monotonic())
            waits.add(asyncio.create_task(_sleep(self._clock, delay_s)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


async def _sleep(clock: Clock, delay_s: float) -> None:
    await clock.sleep(delay_s)
