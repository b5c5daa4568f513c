"""The store: typed tables fed by the engine's watch, and the only way to change them.

Life: ``open`` lists everything at one revision, then follows the watch from there. ``commit`` resolves once the tables
show the change, so a caller reads its own writes. If the watch falls behind the engine's history (possible after a long
disconnection), the tables are listed anew, and subscribers get the difference and ``resync``. If the engine fails, the
store fails: waiters and subscribers get the error, ``failed`` completes, and the process has to start anew.

One event loop owns all of it. Reads are plain calls; between two awaits they show one revision. Subscribing is a plain
call too, so "look, then subscribe" has no gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from fleet import errors
from fleet.cancellation import TaskGroup, cancel_and_wait
from fleet.metrics import Counter, Histogram
from fleet.model import wire
from fleet.model.access import Token, User
from fleet.model.cluster import SEALING_AUTHORITY, Authority, Cluster, Guard
from fleet.model.common import Version
from fleet.model.guest import Guest
from fleet.model.network import Network
from fleet.model.node import Node
from fleet.model.secret import Config, Login, Secret
from fleet.model.service import Service
from fleet.store.engine import (
    CompactedError,
    Compare,
    CompareFailed,
    Deleted,
    Engine,
    EngineFailedError,
    Entry,
    Txn,
    WatchBatch,
)
from fleet.store.feed import PENDING_MAX, Action, Change, Subscription
from fleet.store.kinds import ROOT, TYPE_OF, Kind, Stored
from fleet.store.table import Table, TaskTable
from fleet.store.transaction import Compiled, Op, Step, Transaction, compile_transaction, explain_conflict

__all__ = ["Sealer", "Store"]

_CATCH_UP_S: Final = 5.0
"""How long a commit waits for the tables to reach a version its caller has seen elsewhere (another manager)."""

_REMOVAL_S: Final = 0.25

_FEED_S: Final = 5.0
_FEED_TRIES: Final = 6
"""A feed that shows for so many times so long not what the engine has confirmed, while the engine answers, is stuck."""

_ANY_TRIES: Final = 16
"""Rounds of a ``replace_any`` against concurrent writers before giving up."""

_PACKS_IN_FLIGHT: Final = 8

_RESEALED_AT_ONCE: Final = 1000
"""Objects of ``sealed_otherwise`` decoded without a pause for others: some 10 ms."""


class Sealer(Protocol):
    """Encryption of the state at rest; the key is bound to the value, so values cannot be swapped."""

    def seal(self, key: str, plain: bytes, digest: str = "") -> bytes:
        """What is stored; ``digest`` names the key to seal with."""
        ...

    def is_sealed_with(self, digest: str, sealed: bytes) -> bool:
        """Whether that key was used."""
        ...

    def unseal(self, key: str, sealed: bytes) -> bytes:
        """The plain bytes. Raises ``FleetError`` if they were tampered with."""
        ...


_SEALING_PLACE: Final = f"{Kind.AUTHORITY.prefix}{SEALING_AUTHORITY}"


class Store:
    """See the module. Build with ``open``."""

    def __init__(self, engine: Engine, *, sealer: Sealer | None = None) -> None:
        self._engine = engine
        self._sealer = sealer
        self.services: Table[Service] = Table(Kind.SERVICE)
        self.tasks = TaskTable()
        self.nodes: Table[Node] = Table(Kind.NODE)
        self.networks: Table[Network] = Table(Kind.NETWORK)
        self.secrets: Table[Secret] = Table(Kind.SECRET)
        self.configs: Table[Config] = Table(Kind.CONFIG)
        self.clusters: Table[Cluster] = Table(Kind.CLUSTER)
        self.authorities: Table[Authority] = Table(Kind.AUTHORITY)
        self.guards: Table[Guard] = Table(Kind.GUARD)
        self.logins: Table[Login] = Table(Kind.LOGIN)
        self.guests: Table[Guest] = Table(Kind.GUEST)
        self.users: Table[User] = Table(Kind.USER)
        self.tokens: Table[Token] = Table(Kind.TOKEN)
        tables = (
            self.services,
            self.tasks,
            self.nodes,
            self.networks,
            self.secrets,
            self.configs,
            self.clusters,
            self.authorities,
            self.guards,
            self.logins,
            self.guests,
            self.users,
            self.tokens,
        )
        self._tables: dict[Kind, Table[Any]] = {table.kind: table for table in tables}
        self.fence: Compare | None = None
        """Added to every commit while set (a leader's lease key): once it fails, commits raise ``UnavailableError``."""
        self.revision = 0
        """The revision the tables show."""
        self._reached: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = 0
        self._written: dict[str, tuple[bytes, Stored]] = {}
        self._subscriptions: dict[Subscription, None] = {}
        self._follower: asyncio.Task[None] | None = None
        self.commit_s = Histogram(
            "fleet_store_commit_seconds", "From sending a transaction to the state engine until it is durable"
        )
        self.refusals = Counter("fleet_store_commit_failures_total", "Transactions that were not made", ("cause",))
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(cls, engine: Engine, *, sealer: Sealer | None = None) -> Store:
        """Load the tables from a started engine and follow it. The engine stays the caller's to close, after the store."""
        store = cls(engine, sealer=sealer)
        await store._load(notify=False)
        store._follower = asyncio.create_task(store._follow(), name="store feed")
        return store

    async def close(self) -> None:
        """Stop following; subscriptions end, waiters get ``UnavailableError``. Idempotent."""
        self._closed = True
        await cancel_and_wait(self._follower)
        self._follower = None
        self._release(errors.UnavailableError("the store is closed"), failure=None)

    async def failed(self) -> BaseException:
        """Waits until the store has failed (engine broken, data that does not decode) and returns why."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    def table(self, kind: Kind) -> Table[Any]:
        """The table of a kind."""
        return self._tables[kind]

    def subscribe(self, *kinds: Kind, pending_max: int = PENDING_MAX) -> Subscription:
        """Changes of these kinds (all if none given) from exactly the revision the tables show now."""
        subscription = Subscription(frozenset(kinds or Kind), pending_max=pending_max, on_close=self._unsubscribed)
        if self._closed or self._failure is not None:
            subscription.fail(self._failure)
        else:
            self._subscriptions[subscription] = None
        return subscription

    def _unsubscribed(self, subscription: Subscription) -> None:
        self._subscriptions.pop(subscription, None)

    async def commit(self, tx: Transaction) -> int:
        """All steps or none; returns the revision, which the tables show by then.

        Raises ``OutOfSequenceError``, ``ConflictError`` (name or id taken), ``NotFoundError`` (``replace_any`` of an
        absent object), ``TooLargeError``, ``StorageFullError``, ``UnavailableError``. If cancelled, it may or may not happen.
        """
        await self._catch_up(tx)
        for _ in range(_ANY_TRIES):
            compiled = compile_transaction(tx, self)
            try:
                return await self._send(compiled)
            except CompareFailed as failed:
                if self.fence is not None and self.fence.key in failed.actual:
                    raise errors.UnavailableError("this manager is no longer the leader", retry_after_s=1) from failed
                await self._reach(failed)
                if _SEALING_PLACE in failed.actual and all(key != _SEALING_PLACE for key, _ in tx):
                    continue  # sealed with a key that is not the one any more: sealed again
                if not _only_replace_any(tx, failed):
                    raise explain_conflict(tx, failed) from failed
        raise errors.UnavailableError("the object changes faster than it can be written", retry_after_s=1)

    async def commit_all(self, txs: Iterable[Transaction]) -> Sequence[int | errors.FleetError]:
        """Commit transactions that do not depend on each other, many to one engine transaction; one result each, in order.

        A conflict fails the transactions it belongs to and no other. Storage errors are raised, as from ``commit``.
        """
        todo = list(txs)
        results: dict[int, int | errors.FleetError] = {}
        limit = asyncio.Semaphore(_PACKS_IN_FLIGHT)

        async def send(pack: list[int]) -> None:
            async with limit:
                await self._commit_pack(todo, pack, results)

        try:
            async with TaskGroup() as group:
                for pack in self._packs(todo):
                    group.create_task(send(pack))
        except BaseExceptionGroup as causes:
            raise causes.exceptions[0] from causes
        return [results[index] for index in range(len(todo))]

    async def wait_revision(self, revision: int) -> None:
        """Returns once the tables show ``revision``. Raises when the store is closed or has failed first."""
        if self.revision >= revision:
            return
        self._check_open()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ticket += 1
        heapq.heappush(self._reached, (revision, self._ticket, future))
        await future

    def seal(self, key: str, plain: bytes) -> bytes:
        """The stored form of an encoded object."""
        return self._sealer.seal(key, plain, self._present_key()) if self._sealer else plain

    def sealing_condition(self) -> Compare | None:
        """Holds while values are to be sealed with the key that ``seal`` uses: a part of every commit that writes any. None where
        nothing is sealed."""
        if self._sealer is None:
            return None
        authority = self.authorities.get(SEALING_AUTHORITY)
        return Compare(_SEALING_PLACE, authority.version.index if authority is not None else 0)

    def _present_key(self) -> str:
        authority = self.authorities.get(SEALING_AUTHORITY)
        return authority.sealing.present if authority is not None and authority.sealing is not None else ""

    async def sealed_otherwise(self) -> AsyncIterator[tuple[Stored, ...]]:
        """Objects whose stored form is of another key than ``seal`` uses, some at a time, as the engine has them now."""
        assert self._sealer is not None
        digest = self._present_key()
        for kind in Kind:
            listing = await self._engine.list(kind.prefix)
            entries = [entry for entry in listing.entries if not self._sealer.is_sealed_with(digest, entry.value)]
            for at in range(0, len(entries), _RESEALED_AT_ONCE):
                yield tuple(self._decode(kind, entry) for entry in entries[at : at + _RESEALED_AT_ONCE])

    # -- writing

    async def _catch_up(self, tx: Transaction) -> None:
        newest = max((op.obj.version.index for _, op in tx), default=0)
        if newest > self.revision:
            try:
                async with asyncio.timeout(_CATCH_UP_S):
                    await self.wait_revision(newest)
            except TimeoutError:
                raise errors.UnavailableError(
                    f"this manager has state up to version {self.revision}, the request names {newest}", retry_after_s=1
                ) from None

    async def _reach(self, failed: CompareFailed) -> None:
        """Wait until the tables show what stood in the way, so that whoever tries again sees it. Where that is a removal, the
        engine's newest revision may be of a key that no watch of ours shows: then a moment has to do."""
        removed = not all(failed.actual.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMOVAL_S if removed else _CATCH_UP_S):
                await self.wait_revision(failed.revision if removed else max(failed.actual.values()))

    async def _send(self, compiled: Compiled) -> int:
        self._check_open()
        txn = compiled.txn
        if self.fence is not None:
            txn = Txn(compares=(*txn.compares, self.fence), puts=txn.puts, deletes=txn.deletes)
        txn.check(ops_max=self._engine.ops_max)
        self._written.update(compiled.written)
        try:
            began = time.perf_counter()
            revision = await self._engine.commit(txn)
            self.commit_s.observe(time.perf_counter() - began)
        except BaseException as cause:
            self.refusals.inc("conflict" if isinstance(cause, CompareFailed) else type(cause).__name__)
            for key, (value, _) in compiled.written.items():
                if self._written.get(key, (b"", None))[0] is value:
                    del self._written[key]
            raise
        if txn.puts or txn.deletes:  # else the revision may be one that the watch never shows
            await self._show(revision)
        return revision

    async def _show(self, revision: int) -> None:
        """Wait for the tables. Where the feed is stuck the store fails, so that another manager takes over (RFT-11); an engine
        that does not answer is waited for: it may be cut off, and everything is read from the tables until it is back."""
        answers = 0
        while answers < _FEED_TRIES:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FEED_S):
                    return await self.wait_revision(revision)
            try:
                await self._engine.list(_SEALING_PLACE)
            except errors.UnavailableError:
                answers = 0
            else:
                answers += 1
        stuck = EngineFailedError(f"its feed is stuck at revision {self.revision}, {revision} was confirmed")
        self._fail(stuck)
        raise stuck

    def _packs(self, txs: Sequence[Transaction]) -> Iterable[list[int]]:
        """Indexes in order, packed within the engine's bounds; no two of a pack touch one object."""
        pack: list[int] = []
        keys: set[str] = set()
        room = self._engine.ops_max - (self.fence is not None) - (self._sealer is not None)
        weight = 0
        for index, tx in enumerate(txs):
            mine = {key for key, _ in tx}
            cost = sum(_cost(op) for _, op in tx)
            if pack and (weight + cost > room or not keys.isdisjoint(mine)):
                yield pack
                pack, keys, weight = [], set(), 0
            pack.append(index)
            keys |= mine
            weight += cost
        if pack:
            yield pack

    async def _commit_pack(
        self, txs: Sequence[Transaction], pack: list[int], results: dict[int, int | errors.FleetError]
    ) -> None:
        """Together if that works; else each alone, so that every one gets its own verdict."""
        if len(pack) > 1:
            merged = Transaction()
            for index in pack:
                merged.merge(txs[index])
            try:
                revision = await self.commit(merged)
            except (errors.ConflictError, errors.NotFoundError, errors.TooLargeError):
                pass
            else:
                results.update(dict.fromkeys(pack, revision))
                return
        for index in pack:
            try:
                results[index] = await self.commit(txs[index])
            except (errors.ConflictError, errors.NotFoundError, errors.TooLargeError) as cause:
                results[index] = cause

    # -- following

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    async for batch in self._engine.watch(ROOT, self.revision + 1):
                        self._apply(batch)
                except CompactedError:
                    await self._load(notify=True)
                else:
                    raise errors.UnavailableError("the engine was closed under the store")
        except asyncio.CancelledError:
            raise
        except Exception as cause:  # noqa: BLE001 - whatever ends the feed makes every later read stale: fail loudly
            self._fail(cause)

    def _fail(self, cause: BaseException) -> None:
        self._failure = cause
        self._failed.set()
        self._release(EngineFailedError(f"the state store failed: {cause}"), failure=cause)

    def _release(self, error: errors.FleetError, *, failure: BaseException | None) -> None:
        for _, _, future in self._reached:
            if not future.done():
                future.set_exception(error)
        self._reached = []
        for subscription in list(self._subscriptions):
            subscription.fail(failure)
        self._subscriptions.clear()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise EngineFailedError(f"the state store failed: {self._failure}") from self._failure
        if self._closed:
            raise errors.UnavailableError("the store is closed")

    async def _load(self, *, notify: bool) -> None:
        """Make the tables equal to the engine, kind by kind at one revision, then tell subscribers to look anew."""
        revision: int | None = None
        loaded: list[tuple[Kind, tuple[Entry, ...]]] = []
        for kind in Kind:
            listing = await self._engine.list(kind.prefix, at_revision=revision)
            revision = listing.revision
            loaded.append((kind, listing.entries))
        assert revision is not None
        for kind, entries in loaded:
            table = self._tables[kind]
            present = {entry.key.removeprefix(kind.prefix) for entry in entries}
            for gone in [row.id for row in table.all() if row.id not in present]:
                table.drop_row(gone)
            for entry in entries:
                known = table.get(entry.key.removeprefix(kind.prefix))
                if known is None or known.version.index != entry.mod_revision:
                    table.put_row(self._decode(kind, entry))
        self._advance(revision)
        if notify:
            for subscription in self._subscriptions:
                subscription.lose_track()

    def _apply(self, batch: WatchBatch) -> None:
        for event in batch.events:
            kind = _kind_of(event.key)
            if kind is None:
                continue
            table = self._tables[kind]
            new: Stored | None = None
            if isinstance(event, Deleted):
                id_ = event.key.removeprefix(kind.prefix)
                old = table.drop_row(id_)
                if old is None:
                    continue
            else:
                new = self._decode(kind, event)
                id_ = new.id
                old = table.put_row(new)
            action = Action.CREATE if old is None else Action.REMOVE if new is None else Action.UPDATE
            self._publish(Change(kind=kind, action=action, id=id_, old=old, new=new, revision=batch.revision))
        self._advance(batch.revision)

    def _publish(self, change: Change) -> None:
        for subscription in self._subscriptions:
            subscription.add(change)

    def _advance(self, revision: int) -> None:
        self.revision = revision
        while self._reached and self._reached[0][0] <= revision:
            future = heapq.heappop(self._reached)[2]
            if not future.done():
                future.set_result(None)

    def _decode(self, kind: Kind, entry: Entry) -> Stored:
        version = Version(index=entry.mod_revision)
        mine = self._written.pop(entry.key, None)
        if mine is not None and mine[0] == entry.value:
            return msgspec.structs.replace(mine[1], version=version)
        data = entry.value
        if self._sealer is not None:
            data = self._sealer.unseal(entry.key, data)
        obj = wire.decode(data, TYPE_OF[kind])
        return msgspec.structs.replace(obj, version=version)


def _cost(op: Op) -> int:
    """Engine operations of a step, at most: the object and, where names are unique, its old name and its new one."""
    return 1 if op.step is Step.REQUIRE or op.kind in (Kind.TASK, Kind.NODE) else 3


def _kind_of(key: str) -> Kind | None:
    word = key.removeprefix(ROOT).partition("/")[0]
    try:
        return Kind(word)
    except ValueError:
        return None


def _only_replace_any(tx: Transaction, failed: CompareFailed) -> bool:
    """Whether all that stood in the way are objects whose version does not matter, and they are still there."""
    indifferent = {key for key, op in tx if op.step is Step.REPLACE_ANY}
    return indifferent.issuperset(failed.actual) and all(failed.actual.values())
