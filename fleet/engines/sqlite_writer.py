"""The writer thread: takes what has queued up, applies each job, makes all of it durable with one fsync, then answers.

Group commit: while one fsync runs, the next jobs queue; under load a batch is as large as what arrived meanwhile, alone
a job waits for nobody. Jobs stay atomic and independent: each checks its conditions before its first write, so a failed
one leaves nothing behind inside the batch. If the batch as a whole cannot be written, nothing of it is kept or answered
as done.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fleet import errors
from fleet.engines.sqlite_file import SqliteFile, is_full
from fleet.store.engine import CompareFailed, Deleted, EngineFailedError, Entry, LeaseLostError, Txn, WatchBatch

__all__ = ["Answer", "HistoryLimits", "Inbox", "Job", "Outcome", "Writer"]

_BATCH_JOBS_MAX: Final = 256
_BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
_CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
"""The log is moved into the file after about this much; SQLite's own default is 1,000 pages of 4 KiB."""
_COMMIT_COST_BYTES: Final = 8192
_COMPACT_STEP: Final = 512
"""Revisions compacted at once: a few milliseconds of the writer's time."""
_LEASE_KEYS_STEP: Final = 512
"""Keys of an ended lease deleted at one revision (the file's format allows 1,024 changes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLimits:
    """How much history watches and lists at a revision may reach back into; whichever bound is met first.

    ``memory_*``: how much of it is also kept in memory, for watches that keep up (up to twice that, between trimmings).
    """

    revisions: int = 10_000
    data_bytes: int = 64 * 1024 * 1024
    memory_revisions: int = 2048
    memory_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """``work`` runs on the writer thread inside a transaction; ``token`` comes back with its result."""

    work: Callable[[Writer], Any]
    token: object
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    token: object
    result: Any
    error: errors.FleetError | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A durable batch: ``changes`` are consecutive revisions up to ``revision``."""

    revision: int
    compacted: int
    changes: tuple[WatchBatch, ...]
    answers: tuple[Answer, ...]


class Inbox(Protocol):
    """Where the writer reports to, from its thread."""

    def done(self, outcome: Outcome) -> None: ...

    def broken(self, cause: EngineFailedError) -> None: ...


class Writer(threading.Thread):
    """See the module. ``submit`` and ``stop`` may be called from any thread, the rest is the thread's own."""

    def __init__(self, file: SqliteFile, inbox: Inbox, *, limits: HistoryLimits) -> None:
        super().__init__(name="fleet-state-writer", daemon=True)
        self._file = file
        self._inbox = inbox
        self._limits = limits
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.revision, self._compacted = file.load_counters()
        self.compacted = self._compacted
        self._sizes: deque[tuple[int, int]] = deque(file.history_sizes(after=self._compacted))
        self._history_bytes = sum(size for _, size in self._sizes)
        self._changes: list[WatchBatch] = []
        self._uncheckpointed = 0

    def submit(self, job: Job) -> None:
        """Queue a job; its answer comes through the inbox unless the writer breaks."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        self._jobs.put(None)

    def run(self) -> None:
        try:
            running = True
            while running:
                jobs, running = self._take()
                if jobs:
                    self._run_batch(jobs)
                    self._tidy()
        except sqlite3.Error as cause:
            self._inbox.broken(
                EngineFailedError(f"writing the cluster state failed: {cause}; restart fleetd on a healthy disk")
            )
        except Exception as cause:  # noqa: BLE001 - a thread has no caller; whatever it is, nothing more may be acknowledged
            self._inbox.broken(EngineFailedError(f"the state writer failed: {cause!r}"))

    # -- jobs: run inside the batch's transaction; raise FleetError only before the first write

    def apply(self, txn: Txn) -> int:
        """See ``Engine.commit``."""
        known = {compare.key: self._file.newest(compare.key) for compare in txn.compares}
        actual = {c.key: known[c.key][0] for c in txn.compares if known[c.key][0] != c.mod_revision}
        if actual:
            raise CompareFailed(actual, revision=self.revision)
        for lease in {put.lease for put in txn.puts if put.lease}:
            if not self._file.lease_exists(lease):
                raise LeaseLostError(f"lease {lease} has ended")
        revision = self.revision + 1
        events: list[Entry | Deleted] = []
        for put in txn.puts:
            _, created = known.get(put.key) or self._file.newest(put.key)
            events.append(Entry(put.key, put.value, revision, created or revision, put.lease))
        for key in txn.deletes:
            present, _ = known.get(key) or self._file.newest(key)
            if present:
                events.append(Deleted(key))
        if events:
            self._record(WatchBatch(revision, tuple(events)))
        return self.revision

    def grant(self, lease: int, *, ttl_ms: int) -> int:
        """See ``Engine.grant``; the id is the caller's choice."""
        self._file.add_lease(lease, ttl_ms=ttl_ms)
        return lease

    def revoke(self, lease: int) -> None:
        """See ``Engine.revoke``."""
        keys = self._file.lease_keys(lease)
        for start in range(0, len(keys), _LEASE_KEYS_STEP):
            step = keys[start : start + _LEASE_KEYS_STEP]
            self._record(WatchBatch(self.revision + 1, tuple(Deleted(key) for key in step)))
        self._file.drop_lease(lease)

    def _record(self, batch: WatchBatch) -> None:
        self._file.insert(batch.revision, batch.events)
        self.revision = batch.revision
        self._changes.append(batch)

    # -- batches

    def _take(self) -> tuple[list[Job], bool]:
        """Wait for a job, then take what else is there; False with it once stopped."""
        jobs: list[Job] = []
        size = 0
        while len(jobs) < _BATCH_JOBS_MAX and size < _BATCH_BYTES_MAX:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
            size += job.size
        return jobs, True

    def _run_batch(self, jobs: list[Job]) -> None:
        try:
            answers = self._attempt(jobs)
        except sqlite3.Error as cause:
            if not is_full(cause):
                raise
            self._make_room()
            for job in jobs:
                self._run_alone(job)
            return
        self._report(answers)

    def _run_alone(self, job: Job) -> None:
        """After the disk was found full: a small job may still fit where a batch did not."""
        try:
            answers = self._attempt([job])
        except sqlite3.Error as cause:
            if not is_full(cause):
                raise
            error = errors.StorageFullError(
                "the disk of the cluster state is full: free some space; nothing was changed"
            )
            answers = [Answer(job.token, None, error)]
        self._report(answers)

    def _attempt(self, jobs: list[Job]) -> list[Answer]:
        """Apply and commit; on an error everything is as before."""
        before = self.revision
        self._changes = []
        answers: list[Answer] = []
        connection = self._file.writer
        connection.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                try:
                    answers.append(Answer(job.token, job.work(self)))
                except errors.FleetError as cause:
                    answers.append(Answer(job.token, None, cause))
            if self.revision != before:
                self._file.set_meta("revision", str(self.revision))
            connection.execute("COMMIT")
        except BaseException:
            self.revision = before
            self._changes = []
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return answers

    def _report(self, answers: list[Answer]) -> None:
        for batch in self._changes:
            size = sum(len(e.key) + (len(e.value) if isinstance(e, Entry) else 0) for e in batch.events)
            self._sizes.append((batch.revision, size))
            self._history_bytes += size
            self._uncheckpointed += 2 * size
        self._uncheckpointed += _COMMIT_COST_BYTES
        outcome = Outcome(self.revision, self._compacted, tuple(self._changes), tuple(answers))
        self._changes = []
        self._inbox.done(outcome)

    # -- upkeep, after the answers are out

    def _tidy(self) -> None:
        over = len(self._sizes) > self._limits.revisions + _COMPACT_STEP
        if over or self._history_bytes > self._limits.data_bytes:
            self._compact(keep_revisions=self._limits.revisions, keep_bytes=self._limits.data_bytes * 3 // 4)
        if self._uncheckpointed > _CHECKPOINT_BYTES:
            self._file.checkpoint()
            self._uncheckpointed = 0

    def _make_room(self) -> None:
        """The disk is full: give up all history, which frees pages inside the file, and empty the log."""
        self._file.checkpoint()
        self._compact(keep_revisions=0, keep_bytes=0)
        self._file.checkpoint()
        self._uncheckpointed = 0

    def _compact(self, *, keep_revisions: int, keep_bytes: int) -> None:
        """Drop the oldest history down to both bounds. A full disk only postpones it."""
        count, size = len(self._sizes), self._history_bytes
        dropped: list[tuple[int, int]] = []
        for revision, revision_size in self._sizes:
            if count <= keep_revisions and size <= keep_bytes:
                break
            count, size = count - 1, size - revision_size
            dropped.append((revision, revision_size))
        if not dropped:
            return
        connection = self._file.writer
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._file.compact(previous=self._compacted, upto=dropped[-1][0])
            connection.execute("COMMIT")
        except sqlite3.Error as cause:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not is_full(cause):
                raise
            return
        self._compacted = dropped[-1][0]
        for _ in dropped:
            self._sizes.popleft()
        self._history_bytes = size
