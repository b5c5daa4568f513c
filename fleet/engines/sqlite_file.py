"""The SQLite file under the engine: opening it safely, its schema, and the statements on it.

One table holds every version of every key, as etcd does: ``id`` is ``revision << 10 | position``, so that a revision's
changes are one range of rows and new rows are appended to the end of the B-tree; ``value`` NULL marks a deletion.

Invariants, with ``compacted`` = the revision up to which history was dropped:
- rows with ``revision <= compacted``: at most one a key, none a deletion;
- the state as of any ``R >= compacted`` is, for each key, its newest row with ``revision <= R`` unless that is a deletion.

Write errors are two kinds (sqlite.org/rescode.html): SQLITE_FULL leaves the file usable, the transaction is rolled back;
anything else may mean that the page cache and the disk disagree, so the engine stops for good (fsync is never retried:
after a failed fsync Linux marks the pages clean, PostgreSQL's "fsyncgate").
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fleet import errors
from fleet.durable import sync_directory
from fleet.store.engine import FIRST_REVISION, CompactedError, Deleted, EngineFailedError, Entry, Listing, WatchBatch

__all__ = ["POSITION_BITS", "SqliteFile", "open_file"]

FORMAT_VERSION: Final = 1
APPLICATION_ID: Final = 0x666C6574
"""``flet``, in the file's header: tells our file from any other SQLite database."""

POSITION_BITS: Final = 10
"""Up to 1,024 changes a revision, which leaves 2^53 revisions."""

_FILE_NAME: Final = "state.db"
_LOCK_NAME: Final = "state.lock"

_LOG_BYTES_KEPT: Final = 64 * 1024 * 1024
"""The write-ahead log is cut back to this size when it starts over, and made to start over beyond it."""
_PAGE_BYTES: Final = 4096

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, created INTEGER NOT NULL, lease INTEGER NOT NULL);
CREATE UNIQUE INDEX entry_key ON entry (key, id);
CREATE INDEX entry_lease ON entry (lease) WHERE lease != 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
"""

_NEWEST: Final = "SELECT id, created, value IS NULL FROM entry WHERE key = ? ORDER BY id DESC LIMIT 1"

_LIST: Final = """
SELECT key, value, id, created, lease FROM entry AS e
WHERE key >= :low AND key < :high AND id < :end AND value IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM entry WHERE key = e.key AND id > e.id AND id < :end)
ORDER BY key
"""

_SUPERSEDED: Final = """
DELETE FROM entry WHERE id IN (
  SELECT (SELECT max(id) FROM entry WHERE key = new.key AND id < new.id) FROM entry AS new WHERE new.id >= :low AND new.id < :end
)
"""


def _id(revision: int, position: int = 0) -> int:
    return revision << POSITION_BITS | position


def _after(prefix: str) -> str:
    """The least text greater than everything with the prefix."""
    return prefix + "\U0010ffff"


class SqliteFile:
    """Two connections to one file: ``writer`` for the writer thread, ``reader`` for the reader thread; never shared."""

    def __init__(
        self, writer: sqlite3.Connection, reader: sqlite3.Connection, lock: int, *, log_bytes_max: int = _LOG_BYTES_KEPT
    ) -> None:
        self._log_pages_max = log_bytes_max // _PAGE_BYTES
        self._turnstile = threading.Lock()
        """Passed by a reader on its way in: whoever holds it is next to be ``_inside``, so readers cannot starve the writer."""
        self._inside = threading.Lock()
        self.writer = writer
        self.reader = reader
        self._lock = lock

    def close(self) -> None:
        """Write the log back into the file and let go. Call with no thread using the connections."""
        try:
            self.reader.close()
            if not self.writer.in_transaction:
                with contextlib.suppress(
                    sqlite3.OperationalError
                ):  # full or failing: the log is read at the next start
                    self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.writer.close()
        finally:
            os.close(self._lock)

    # -- writer thread

    def load_counters(self) -> tuple[int, int]:
        """(revision, compacted)."""
        return int(self.meta("revision") or FIRST_REVISION), int(self.meta("compacted") or 0)

    def meta(self, name: str) -> str | None:
        row = self.writer.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_meta(self, name: str, value: str) -> None:
        self.writer.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value)
        )

    def newest(self, key: str) -> tuple[int, int]:
        """(mod_revision, create_revision) of a key; (0, 0) if it does not exist."""
        row = self.writer.execute(_NEWEST, (key,)).fetchone()
        if row is None or row[2]:
            return 0, 0
        return row[0] >> POSITION_BITS, row[1]

    def insert(self, revision: int, changes: Sequence[Entry | Deleted]) -> None:
        """One revision's changes."""
        self.writer.executemany(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
            [
                (_id(revision, position), change.key, None, 0, 0)
                if isinstance(change, Deleted)
                else (_id(revision, position), change.key, change.value, change.create_revision, change.lease)
                for position, change in enumerate(changes)
            ],
        )

    def compact(self, *, previous: int, upto: int) -> None:
        """Drop what no reader at ``upto`` or later can see, given that ``previous`` was compacted before.

        Each row of the step drops its immediate predecessor, which is enough because older ones are gone already:
        the work is linear in the step, however often one key was written.
        """
        bounds = {"low": _id(previous + 1), "end": _id(upto + 1)}
        self.writer.execute(_SUPERSEDED, bounds)
        self.writer.execute("DELETE FROM entry WHERE id >= :low AND id < :end AND value IS NULL", bounds)
        self.set_meta("compacted", str(upto))

    def history_sizes(self, *, after: int) -> list[tuple[int, int]]:
        """(revision, bytes) of each revision after ``after``."""
        rows = self.writer.execute(
            f"SELECT id >> {POSITION_BITS}, sum(length(key) + coalesce(length(value), 0)) FROM entry"  # noqa: S608
            f" WHERE id >= ? GROUP BY id >> {POSITION_BITS} ORDER BY 1",
            (_id(after + 1),),
        )
        return rows.fetchall()

    def leases(self) -> list[tuple[int, int]]:
        """(id, ttl in ms)."""
        return self.writer.execute("SELECT id, ttl_ms FROM lease").fetchall()

    def lease_exists(self, lease: int) -> bool:
        return self.writer.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone() is not None

    def add_lease(self, lease: int, *, ttl_ms: int) -> None:
        self.writer.execute("INSERT INTO lease VALUES (?, ?)", (lease, ttl_ms))

    def drop_lease(self, lease: int) -> None:
        self.writer.execute("DELETE FROM lease WHERE id = ?", (lease,))

    def lease_keys(self, lease: int) -> list[str]:
        """Keys whose present value hangs on the lease."""
        rows = self.writer.execute(
            "SELECT key FROM entry AS e WHERE lease = ? AND value IS NOT NULL"
            " AND NOT EXISTS (SELECT 1 FROM entry WHERE key = e.key AND id > e.id) ORDER BY key",
            (lease,),
        )
        return [row[0] for row in rows]

    def checkpoint(self) -> None:
        """Move the log's pages into the file, so that the log can start over.

        Readers keep the log from starting over while they read; if that let it grow too long, let the one inside finish and
        keep the next one out for a moment. A full disk only postpones all this; other errors are raised.
        """
        try:
            _, pages, _ = self.writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > self._log_pages_max:
                with self._turnstile, self._inside:
                    self.writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        except sqlite3.OperationalError as cause:
            if not is_full(cause):
                raise

    # -- reader thread

    def get(self, key: str) -> Entry | None:
        """The key now."""
        with self._reading():
            row = self.reader.execute(
                "SELECT value, id, created, lease FROM entry WHERE key = ? ORDER BY id DESC LIMIT 1", (key,)
            ).fetchone()
        if row is None or row[0] is None:
            return None
        return Entry(key, row[0], row[1] >> POSITION_BITS, row[2], row[3])

    def list(self, prefix: str, *, at_revision: int | None) -> Listing:
        """See ``Engine.list``. One read transaction, so that revision and rows belong together."""
        with self._reading() as (revision, compacted):
            wanted = revision if at_revision is None else at_revision
            if wanted < compacted:
                raise CompactedError(wanted, oldest=compacted)
            if wanted > revision:
                raise errors.UnavailableError(f"revision {wanted} is not here yet, the newest is {revision}")
            rows = self.reader.execute(_LIST, {"low": prefix, "high": _after(prefix), "end": _id(wanted + 1)})
            entries = tuple(Entry(r[0], r[1], r[2] >> POSITION_BITS, r[3], r[4]) for r in rows)
            return Listing(entries, wanted)

    def history(self, *, first: int, last: int, rows_max: int) -> Sequence[WatchBatch]:
        """The batches of revisions ``first..last``, whole revisions, about ``rows_max`` rows. Raises ``CompactedError``."""
        with self._reading() as (_, compacted):
            if first <= compacted:
                raise CompactedError(first, oldest=compacted + 1)
            rows = self.reader.execute(
                "SELECT id, key, value, created, lease FROM entry WHERE id >= ? AND id < ? ORDER BY id",
                (_id(first), _id(last + 1)),
            )
            return _batches(rows, rows_max=rows_max)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[int, int]]:
        """A read transaction; gives (revision, compacted) as of it."""
        with self._turnstile:
            self._inside.acquire()
        try:
            self.reader.execute("BEGIN")
            try:
                meta = dict(self.reader.execute("SELECT name, value FROM meta WHERE name IN ('revision', 'compacted')"))
                yield int(meta.get("revision", FIRST_REVISION)), int(meta.get("compacted", 0))
            finally:
                self.reader.execute("ROLLBACK")
        finally:
            self._inside.release()


def _batches(rows: sqlite3.Cursor, *, rows_max: int) -> list[WatchBatch]:
    result: list[WatchBatch] = []
    events: list[Entry | Deleted] = []
    current = 0
    for count, (id_, key, value, created, lease) in enumerate(rows):
        revision = id_ >> POSITION_BITS
        if revision != current:
            if events:
                result.append(WatchBatch(current, tuple(events)))
            if count >= rows_max:
                return result
            current, events = revision, []
        events.append(Deleted(key) if value is None else Entry(key, value, revision, created, lease))
    if events:
        result.append(WatchBatch(current, tuple(events)))
    return result


def is_full(cause: sqlite3.Error) -> bool:
    """Whether the disk (or the configured page limit) is full, which leaves the file intact."""
    return getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


def open_file(directory: Path, *, cluster_id: str, pages_max: int | None = None) -> SqliteFile:
    """Open or create the state in ``directory`` (mode 0700) for this cluster, exclusively.

    Raises ``UserError`` if it is another cluster's, another program's or a newer fleet's, ``ConflictError`` if another
    process has it open, ``EngineFailedError`` if it is damaged, ``StorageFullError``.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _take_lock(directory)
    connections: list[sqlite3.Connection] = []
    try:
        path = directory / _FILE_NAME
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        writer = _connect(path)
        connections.append(writer)
        if pages_max is not None:
            writer.execute(f"PRAGMA max_page_count = {pages_max:d}")
        _prepare(writer, cluster_id=cluster_id, path=path)
        sync_directory(directory)
        reader = _connect(path)
        connections.append(reader)
        reader.execute("PRAGMA query_only = ON")
        return SqliteFile(writer, reader, lock)
    except BaseException as cause:
        for connection in connections:
            connection.close()
        os.close(lock)
        if isinstance(cause, sqlite3.Error):
            raise _translate(cause, directory) from cause
        raise


def _translate(cause: sqlite3.Error, directory: Path) -> errors.FleetError:
    if is_full(cause):
        return errors.StorageFullError(f"cannot open the cluster state in {directory}: the disk is full")
    return EngineFailedError(f"cannot open the cluster state in {directory}: {cause}; restore it from a backup")


def _take_lock(directory: Path) -> int:
    lock = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise errors.ConflictError(f"the cluster state in {directory} is in use by another process") from None
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    """Autocommit mode: transactions are ours to begin and end. Each connection stays with one thread after opening."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10, cached_statements=64)
    try:
        _set(connection, "journal_mode", "WAL", expect="wal")
        _set(connection, "synchronous", "FULL", expect=2)
        _set(connection, "wal_autocheckpoint", "0", expect=0)  # ours: the automatic one hides write errors
        _set(connection, "journal_size_limit", str(_LOG_BYTES_KEPT), expect=_LOG_BYTES_KEPT)
        _set(connection, "trusted_schema", "OFF", expect=0)
        _set(connection, "cache_size", "-16384", expect=-16384)
        _set(connection, "temp_store", "MEMORY", expect=2)
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: sqlite3.Connection, name: str, value: str, *, expect: object) -> None:
    """Set a PRAGMA and check that it took: an unknown or refused one is silently ignored otherwise."""
    connection.execute(f"PRAGMA {name} = {value}").fetchall()
    row = connection.execute(f"PRAGMA {name}").fetchone()
    if row is None or row[0] != expect:
        raise EngineFailedError(
            f"SQLite {sqlite3.sqlite_version} refuses PRAGMA {name} = {value} (it has {row and row[0]})"
        )


def _prepare(connection: sqlite3.Connection, *, cluster_id: str, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == 0 and tables == 0:
        _create(connection, cluster_id=cluster_id)
        return
    if application != APPLICATION_ID:
        raise errors.UserError(f"{path} is a database of another program; choose an empty directory")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT_VERSION:
        raise errors.UserError(
            f"{path} has format {version}, this fleet reads format {FORMAT_VERSION}; use the fleet that wrote it"
        )
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise EngineFailedError(f"{path} is damaged ({damage}); restore it from a backup")
    owner = connection.execute("SELECT value FROM meta WHERE name = 'cluster'").fetchone()
    if owner is None or owner[0] != cluster_id:
        raise errors.UserError(
            f"{path} belongs to cluster {owner[0] if owner else '(unknown)'}, not to {cluster_id}; choose another directory"
        )


def _create(connection: sqlite3.Connection, *, cluster_id: str) -> None:
    """All in one transaction: after a crash the file is either empty or complete."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('cluster', ?)", (cluster_id,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    connection.execute("COMMIT")
