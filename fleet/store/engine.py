"""The engine protocol: a revisioned key-value store with compare-and-swap, watch and lease.

The interface is what etcd offers, cut down to what fleet needs, so that one manager (SQLite) and several (etcd) mean the
same. Rules every engine keeps, and the contract tests check:

- *Revision*: one counter for the whole store, 1 before the first write. Every transaction that changes something adds
  exactly 1; all its changes carry that number.
- *Atomic*: all compares hold and everything is written, or nothing is.
- *Durable before acknowledged*: when ``commit`` returns, no crash loses it.
- *Linearizable*: ``get`` and ``list`` see every commit that returned before they were called.
- *Watch without gaps*: one batch per revision that touched the prefix, in order, each once.
- A key occurs at most once among a transaction's puts and deletes. Deleting an absent key is no change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fleet import errors

__all__ = [
    "FIRST_REVISION",
    "OPS_MAX",
    "TXN_BYTES_MAX",
    "CompactedError",
    "Compare",
    "CompareFailed",
    "Deleted",
    "Engine",
    "EngineFailedError",
    "Entry",
    "LeaseLostError",
    "Listing",
    "Put",
    "Txn",
    "WatchBatch",
]

FIRST_REVISION: Final = 1
"""The revision of an empty store, as in etcd; the first change is 2."""

OPS_MAX: Final = 128
"""etcd's default ``--max-txn-ops``: the bound on compares, and apart from it on puts and deletes together."""

TXN_BYTES_MAX: Final = 1_400_000
"""Keys and values of one transaction; etcd refuses requests over 1.5 MiB, framing included."""


class CompareFailed(errors.ConflictError):
    """Some compared keys are not at the expected revision; nothing was written.

    ``actual``: the failed keys and the revision each is really at (0 = absent). ``revision``: the store's revision then.
    """

    def __init__(self, actual: Mapping[str, int], *, revision: int) -> None:
        super().__init__("changed meanwhile: " + ", ".join(sorted(actual)))
        self.actual = dict(actual)
        self.revision = revision


class CompactedError(errors.FleetError):
    """The wanted revision is older than the history kept; list again and watch from there."""

    def __init__(self, wanted: int, *, oldest: int) -> None:
        super().__init__(f"revision {wanted} is compacted away, the oldest kept is {oldest}")
        self.oldest = oldest


class LeaseLostError(errors.UnavailableError):
    """The lease does not exist (any more)."""


class EngineFailedError(errors.FleetError):
    """Storage failed in a way that must not be retried (a write or fsync error); the process has to start anew."""


@dataclass(frozen=True, slots=True)
class Compare:
    """True while ``key`` was last written at ``mod_revision``; 0 = while it does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``key``; it lives as long as ``lease`` (0 = for ever). Writing again replaces the lease too."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Txn:
    """If all ``compares`` hold, all ``puts`` and ``deletes`` happen at one revision."""

    compares: tuple[Compare, ...] = ()
    puts: tuple[Put, ...] = ()
    deletes: tuple[str, ...] = ()

    def check(self, *, ops_max: int) -> None:
        """Raises ``TooLargeError`` over the bounds and ``InvariantError`` for a key written twice."""
        changes = len(self.puts) + len(self.deletes)
        if changes > ops_max or len(self.compares) > ops_max:
            raise errors.TooLargeError(
                f"transaction of {changes} changes and {len(self.compares)} conditions is larger than the limit of {ops_max}"
            )
        size = sum(len(put.key) + len(put.value) for put in self.puts)
        if size > TXN_BYTES_MAX:
            raise errors.TooLargeError(f"transaction of {size} bytes is larger than the limit of {TXN_BYTES_MAX}")
        keys = {put.key for put in self.puts}.union(self.deletes)
        if len(keys) != changes:
            raise errors.InvariantError("a transaction writes one key twice")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it is (or was, at the revision asked for). ``0 < create_revision <= mod_revision``."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key that a transaction removed."""

    key: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries in key order, all as of ``revision``."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """What one transaction did under the watched prefix: written entries and deleted keys."""

    revision: int
    events: tuple[Entry | Deleted, ...]


class Engine(Protocol):
    """See the module. All methods belong to the event loop that called ``start``.

    Every method raises ``EngineFailedError`` once storage has failed, ``UnavailableError`` when stopped or out of quorum.
    """

    @property
    def ops_max(self) -> int:
        """Most compares, and most changes, of one transaction."""
        ...

    async def start(self) -> None:
        """Open the storage. Raises ``UserError`` if it belongs to another cluster or a newer format."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and let go; idempotent. Watches end."""
        ...

    async def commit(self, txn: Txn) -> int:
        """Apply atomically; returns the revision (the unchanged one if nothing changed).

        Raises ``CompareFailed``, ``LeaseLostError``, ``StorageFullError`` (nothing kept in any of these cases),
        ``TooLargeError``. When cancelled, the transaction may or may not happen.
        """
        ...

    async def get(self, key: str) -> Entry | None:
        """The key now, or None."""
        ...

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        """All keys with the prefix, now or as they were. Raises ``CompactedError``."""
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """Changes from ``from_revision`` (inclusive) on, for ever. Raises ``CompactedError`` when that is too old."""
        ...

    async def grant(self, ttl_s: float) -> int:
        """A new lease: unless kept alive it ends after ``ttl_s`` and its keys are deleted. Returns its id, not 0."""
        ...

    async def keep_alive(self, lease: int) -> None:
        """Start the lease's time anew. Raises ``LeaseLostError``."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys now. Absent is fine."""
        ...
