"""The engine of a cluster whose state is kept in etcd (3.4 or later), spoken to through its JSON gateway.

Below ``prefix`` lie ``owner`` (the cluster's id), ``base``, ``holder/<client>``, ``slot/<client>/<n>`` and ``data`` + the
caller's key. Revisions are etcd's own plus ``base``: where the state was moved from an engine that had got that far, so that
they go on growing. They start later than 1 and skip numbers when others write to the same etcd.

**Lost answers.** Every transaction that puts something also moves a slot from the mark it had to a fresh one. When the
answer to it is lost, a second transaction moves the slot on: if it finds the fresh mark, the first one happened, at the
slot's revision; else the first one did not, and can no longer, since the slot is not what it requires. So a write is
either acknowledged or known not to have happened, unless etcd stays away: then ``OutcomeUnknownError``, and the slot is
left unused. A transaction that only deletes moves no slot (it must not change the revision when nothing is deleted).

Every transaction requires that ``holder/<client>`` is still this engine: starting takes it from a former process of that
name, whose late writes then fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

from fleet import errors
from fleet.cancellation import cancel_and_wait
from fleet.engines.etcd_wire import (
    EtcdTls,
    Gateway,
    OutcomeUnknownError,
    RevisionGoneError,
    decode,
    encode,
    range_end,
)
from fleet.store.engine import (
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

__all__ = ["EtcdEngine", "EtcdTls", "OutcomeUnknownError"]

T = TypeVar("T")

_OWN_OPS: Final = 2
"""Conditions we add to a transaction: the holder and the slot."""
_IN_FLIGHT_MAX: Final = 64
_PAGE_KEYS: Final = 1000
_RECONNECT_S: Final = 0.2


class EtcdEngine:
    """``Engine`` on ``endpoints``; see the module and ``fleet.store.engine``.

    ``prefix`` separates clusters that share an etcd. Leases are whole seconds, and etcd makes short ones longer
    (3/2 of its election timeout). ``start`` raises ``UserError`` if the prefix is another cluster's, or nobody's although
    the state is known to be kept in the etcd ``known_at``; ``claimed`` is called once the prefix is known to be ours.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        cluster_id: str,
        prefix: str = "/fleet-cluster/",
        client: str = "manager",
        tls: EtcdTls | None = None,
        timeout_s: float = 5.0,
        known_at: str = "",
        claimed: Callable[[], None] = lambda: None,
    ) -> None:
        if not endpoints:
            raise errors.UserError("etcd: no address given, expected such as https://10.0.0.5:2379")
        self._prefix = prefix.rstrip("/") + "/"
        self._data = self._prefix + "data"
        self._slots = f"{self._prefix}slot/{client}/"
        self._holder = f"{self._prefix}holder/{client}"
        self._nonce = secrets.token_hex(8)
        self._changed = 0
        self._base = 0
        self.raft_term = 0
        """etcd's, as last heard: it grows with each election."""
        self._cluster_id = cluster_id
        self._known_at = known_at
        self._claimed = claimed
        self._endpoints = tuple(endpoints)
        self._gateway = Gateway(endpoints, tls=tls, timeout_s=timeout_s)
        self._stopped = asyncio.Event()
        self._started = False
        self._free: asyncio.LifoQueue[tuple[str, str]] = asyncio.LifoQueue()

    @property
    def ops_max(self) -> int:
        return OPS_MAX - _OWN_OPS

    async def start(self) -> None:
        """See ``Engine.start``."""
        await self._claim()
        await asyncio.to_thread(self._claimed)
        found = (await self._call("/v3/kv/range", {"key": encode(self._prefix + "base")}, repeatable=True)).get("kvs")
        self._base = int(decode(found[0].get("value"))) if found else 0
        await self._take_place()
        await self._call(
            "/v3/kv/deleterange",
            {"key": encode(self._slots), "range_end": encode(range_end(self._slots))},
            repeatable=True,
        )
        for number in range(_IN_FLIGHT_MAX):
            self._free.put_nowait((f"{self._slots}{number}", ""))
        self._started = True

    async def _take_place(self) -> None:
        """Become the holder, on the condition that nobody did since we looked: what a predecessor that was killed had on its way
        (etcd keeps it while it has no majority) would otherwise take the place back."""
        key = encode(self._holder)
        while True:
            found = (await self._call("/v3/kv/range", {"key": key}, repeatable=True)).get("kvs")
            if found and decode(found[0].get("value")).decode(errors="replace") == self._nonce:
                return
            seen = str(found[0]["mod_revision"]) if found else "0"
            body = {
                "compare": [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": seen}],
                "success": [{"request_put": {"key": key, "value": encode(self._nonce)}}],
            }
            if (await self._call("/v3/kv/txn", body, repeatable=True)).get("succeeded"):
                return

    async def close(self) -> None:
        """See ``Engine.close``."""
        if not self._stopped.is_set():
            self._stopped.set()
            await self._gateway.close()

    async def erase(self) -> None:
        """Delete the whole prefix, if this engine still is its holder; nothing can be written through it afterwards."""
        self._check()
        gone = {"key": encode(self._prefix), "range_end": encode(range_end(self._prefix))}
        body = {
            "compare": [
                {"key": encode(self._holder), "target": "VALUE", "result": "EQUAL", "value": encode(self._nonce)}
            ],
            "success": [{"request_delete_range": gone}],
            "failure": [{"request_range": {**gone, "limit": 1, "keys_only": True}}],
        }
        answer = await self._call("/v3/kv/txn", body, repeatable=True)
        # Found empty: an earlier sending of the same deletion was answered by nobody.
        if not answer.get("succeeded") and answer["responses"][0]["response_range"].get("kvs"):
            raise errors.UnavailableError("another process has taken this manager's place in etcd; nothing was deleted")

    async def commit(self, txn: Txn) -> int:
        """See ``Engine.commit``; also ``OutcomeUnknownError``."""
        txn.check(ops_max=self.ops_max)
        self._check()
        if not txn.puts:
            try:
                return await self._apply(txn, slot=None, mark="", fresh="", repeatable=not txn.deletes)
            except errors.StorageFullError as full:  # made or not, as below, with no slot to tell
                raise OutcomeUnknownError(f"{full}; the deletion may have happened", retry_after_s=1.0) from full
        slot, mark = await self._free.get()
        fresh = secrets.token_hex(8)
        # A slot whose state is not known (cancelled, no answer) is replaced by one of a new name.
        after = (f"{self._slots}{secrets.token_hex(8)}", "")
        try:
            try:
                revision = await self._apply(txn, slot=slot, mark=mark, fresh=fresh, repeatable=False)
                after = (slot, fresh)
            except OutcomeUnknownError as lost:
                revision, now = await self._resolve(slot, mark=mark, fresh=fresh, lost=lost)
                after = (slot, now)
                if not revision:
                    raise errors.UnavailableError(
                        f"the write was not made: {lost}".replace("; it may have happened", ""), retry_after_s=1.0
                    ) from lost
            except errors.StorageFullError as full:
                revision = await self._revision_if_made(slot, fresh=fresh, full=full)
                after = (slot, fresh if revision else mark)
                if not revision:
                    raise
            except (CompareFailed, LeaseLostError, errors.TooLargeError):
                after = (slot, mark)
                raise
            return revision
        finally:
            self._free.put_nowait(after)

    async def get(self, key: str) -> Entry | None:
        """See ``Engine.get``."""
        answer = await self._read("/v3/kv/range", {"key": encode(self._data + key)})
        found = answer.get("kvs", [])
        return self._entry(found[0]) if found else None

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        """See ``Engine.list``: pages, all of the first one's revision."""
        first = (self._data + prefix).encode()
        end = encode(range_end(self._data + prefix))
        if at_revision and at_revision <= self._base:
            raise CompactedError(at_revision, oldest=self._base + 1)
        revision = at_revision - self._base if at_revision else 0
        entries: list[Entry] = []
        while True:
            body = {"key": encode(first), "range_end": end, "limit": _PAGE_KEYS, "revision": str(revision)}
            try:
                answer = await self._read("/v3/kv/range", body)
            except RevisionGoneError as cause:
                raise CompactedError(revision + self._base, oldest=await self._oldest()) from cause
            revision = revision or int(answer["header"]["revision"])
            page = answer.get("kvs", [])
            entries.extend(self._entry(item) for item in page)
            if not page or not answer.get("more"):
                return Listing(tuple(entries), revision + self._base)
            first = decode(page[-1]["key"]) + b"\0"

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """See ``Engine.watch``. Reconnects, to the next member, at the last revision given + 1. Ends on ``close``."""
        following = max(1, from_revision)
        self._check()
        while not self._stopped.is_set():
            request = {
                "key": encode(self._data + prefix),
                "range_end": encode(range_end(self._data + prefix)),
                "start_revision": str(max(1, following - self._base)),
            }
            messages = self._gateway.stream("/v3/watch", {"create_request": request})
            try:
                while (message := await self._unless_stopped(anext(messages))) is not None:
                    oldest = int(message.get("compact_revision", 0))
                    if oldest:
                        raise CompactedError(following, oldest=oldest + self._base)
                    if message.get("canceled"):
                        break
                    for batch in self._batches(message.get("events", []), first=following):
                        following = batch.revision + 1
                        yield batch
            except RevisionGoneError as cause:
                raise CompactedError(following, oldest=await self._oldest()) from cause
            except (errors.UnavailableError, StopAsyncIteration):
                self._gateway.next_endpoint()
            finally:
                await messages.aclose()  # type: ignore[attr-defined]
            await self._unless_stopped(asyncio.sleep(_RECONNECT_S))

    async def grant(self, ttl_s: float) -> int:
        """See ``Engine.grant``. The id is chosen here, so asking again cannot make two."""
        if ttl_s <= 0:
            raise errors.InvariantError(f"a lease of {ttl_s} s")
        self._check()
        lease = secrets.randbits(62) + 1
        await self._call("/v3/lease/grant", {"TTL": str(math.ceil(ttl_s)), "ID": str(lease)}, repeatable=False)
        return lease

    async def keep_alive(self, lease: int) -> None:
        """See ``Engine.keep_alive``."""
        answer = await self._read("/v3/lease/keepalive", {"ID": str(lease)})
        if int(answer.get("result", {}).get("TTL", 0)) <= 0:
            raise LeaseLostError(f"lease {lease} has ended")

    async def revoke(self, lease: int) -> None:
        """See ``Engine.revoke``."""
        with contextlib.suppress(LeaseLostError):
            await self._read("/v3/lease/revoke", {"ID": str(lease)})

    # -- inner workings

    def _check(self) -> None:
        if self._stopped.is_set() or not self._started:
            raise errors.UnavailableError("the state engine is not running")

    async def _call(self, path: str, body: dict[str, Any], *, repeatable: bool) -> dict[str, Any]:
        answer = await self._gateway.call(path, body, repeatable=repeatable)
        self.raft_term = int(answer.get("header", {}).get("raft_term", self.raft_term))
        return answer

    async def _read(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        return await self._call(path, body, repeatable=True)

    async def _claim(self) -> None:
        """Take the prefix unless its state is known to exist, or find that it is ours; repeating it is harmless."""
        key = encode(self._prefix + "owner")
        if self._known_at and not (await self._call("/v3/kv/range", {"key": key}, repeatable=True)).get("kvs"):
            way_out = (
                f"start fleetd with --store {self._known_at}, or restore that etcd from a backup"
                if self._known_at.startswith("etcd://")
                else f"{self._known_at} has lost it; demote this node on another manager and promote it again"
            )
            raise errors.UserError(
                f"the etcd at {', '.join(self._endpoints)} does not hold the state of cluster {self._cluster_id}: {way_out}"
            )
        body = {
            "compare": [{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
            "success": [{"request_put": {"key": key, "value": encode(self._cluster_id)}}],
            "failure": [{"request_range": {"key": key}}],
        }
        answer = await self._call("/v3/kv/txn", body, repeatable=True)
        if not answer.get("succeeded"):
            owner = decode(answer["responses"][0]["response_range"]["kvs"][0].get("value")).decode(errors="replace")
            if owner != self._cluster_id:
                raise errors.UserError(
                    f"etcd prefix {self._prefix} belongs to cluster {owner}, not to {self._cluster_id}; choose another prefix"
                )

    async def _apply(self, txn: Txn, *, slot: str | None, mark: str, fresh: str, repeatable: bool) -> int:
        compares = [
            {"key": encode(self._holder), "target": "VALUE", "result": "EQUAL", "value": encode(self._nonce)},
            *(
                {
                    "key": encode(self._data + compare.key),
                    "target": "MOD",
                    "result": "EQUAL",
                    "mod_revision": str(self._bare(compare.mod_revision)),
                }
                for compare in txn.compares
            ),
        ]
        changes: list[dict[str, Any]] = [
            {"request_put": {"key": encode(self._data + p.key), "value": encode(p.value), "lease": str(p.lease)}}
            for p in txn.puts
        ]
        changes += [{"request_delete_range": {"key": encode(self._data + key)}} for key in txn.deletes]
        if slot is not None:
            compares.append(_slot_is(slot, mark))
            changes.append({"request_put": {"key": encode(slot), "value": encode(fresh)}})
        lookups = [
            {"request_range": {"key": encode(self._holder)}},
            *({"request_range": {"key": encode(self._data + c.key), "keys_only": True}} for c in txn.compares),
        ]
        body = {"compare": compares, "success": changes, "failure": lookups}
        answer = await self._call("/v3/kv/txn", body, repeatable=repeatable)
        revision = int(answer["header"]["revision"]) + self._base
        if answer.get("succeeded"):
            removed = any("deleted" in item.get("response_delete_range", {}) for item in answer.get("responses", []))
            if txn.deletes and not txn.puts and not removed:
                # etcd's newest revision may be another cluster's, which no watch of ours would ever show
                return self._changed or revision
            if txn.puts or removed:
                self._changed = max(self._changed, revision)
            return revision
        holders, *found = [item["response_range"].get("kvs", []) for item in answer["responses"]]
        if not holders or decode(holders[0].get("value")).decode(errors="replace") != self._nonce:
            raise errors.UnavailableError("another process has taken this manager's place in etcd; nothing was changed")
        actual = {
            compare.key: int(kvs[0]["mod_revision"]) + self._base if kvs else 0
            for compare, kvs in zip(txn.compares, found, strict=True)
        }
        wrong = {c.key: actual[c.key] for c in txn.compares if actual[c.key] != c.mod_revision}
        if not wrong:
            raise errors.InvariantError(f"slot {slot} in etcd is not as this process left it")
        raise CompareFailed(wrong, revision=revision)

    async def _resolve(self, slot: str, *, mark: str, fresh: str, lost: OutcomeUnknownError) -> tuple[int, str]:
        """Did the transaction happen: its revision, or 0 and never will. Second: the slot's mark now."""
        fence = secrets.token_hex(8)
        body = {
            "compare": [_slot_is(slot, mark)],
            "success": [{"request_put": {"key": encode(slot), "value": encode(fence)}}],
            "failure": [{"request_range": {"key": encode(slot)}}],
        }
        try:
            answer = await self._call("/v3/kv/txn", body, repeatable=True)
        except errors.UnavailableError as cause:
            raise lost from cause
        if answer.get("succeeded"):
            return 0, fence
        found = answer["responses"][0]["response_range"].get("kvs", [])
        now = decode(found[0].get("value")).decode() if found else ""
        if now == fresh:
            return int(found[0]["mod_revision"]) + self._base, fresh
        if now == fence:  # the fence itself was sent twice
            return 0, fence
        raise lost

    async def _revision_if_made(self, slot: str, *, fresh: str, full: errors.StorageFullError) -> int:
        """Of a transaction that etcd refused for its quota, or 0: the one that reaches the quota is applied and answered so all
        the same (etcd's ``quotaApplierV3``). Nothing of it is on its way any more, so that reading is enough."""
        try:
            answer = await self._call("/v3/kv/range", {"key": encode(slot)}, repeatable=True)
        except errors.UnavailableError as cause:
            raise OutcomeUnknownError(f"{full}, or it may have happened: {cause}", retry_after_s=1.0) from cause
        found = answer.get("kvs", [])
        if not found or decode(found[0].get("value")).decode() != fresh:
            return 0
        return int(found[0]["mod_revision"]) + self._base

    def _bare(self, revision: int) -> int:
        """etcd's own number; one from before the state was moved here is no revision of any key."""
        if revision == 0:
            return 0
        return revision - self._base if revision > self._base else -1

    def _batches(self, events: Sequence[dict[str, Any]], *, first: int) -> Sequence[WatchBatch]:
        grouped: dict[int, list[Entry | Deleted]] = {}
        for event in events:
            item = event["kv"]
            revision = int(item["mod_revision"]) + self._base
            deleted = event.get("type") == "DELETE"
            grouped.setdefault(revision, []).append(Deleted(self._key(item)) if deleted else self._entry(item))
        return [WatchBatch(revision, tuple(found)) for revision, found in sorted(grouped.items()) if revision >= first]

    def _key(self, item: dict[str, Any]) -> str:
        return decode(item["key"]).decode().removeprefix(self._data)

    def _entry(self, item: dict[str, Any]) -> Entry:
        return Entry(
            self._key(item),
            decode(item.get("value")),
            int(item["mod_revision"]) + self._base,
            int(item["create_revision"]) + self._base,
            int(item.get("lease", 0)),
        )

    async def _oldest(self) -> int:
        """The oldest revision kept: what a watch from the beginning is refused with."""
        request = {"key": encode(self._data), "start_revision": "1"}
        messages = self._gateway.stream("/v3/watch", {"create_request": request})
        try:
            async for message in messages:
                if "compact_revision" in message:
                    return int(message["compact_revision"]) + self._base
                if not message.get("created"):
                    break
        finally:
            await messages.aclose()  # type: ignore[attr-defined]
        raise errors.UnavailableError("etcd does not tell its oldest revision", retry_after_s=1.0)

    async def _unless_stopped(self, work: Any) -> Any:
        """The result, or None once the engine is closed."""
        step = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({step, stop}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stopped.is_set() else step.result()
        finally:
            await cancel_and_wait(step, stop)


def _slot_is(slot: str, mark: str) -> dict[str, Any]:
    if mark:
        return {"key": encode(slot), "target": "VALUE", "result": "EQUAL", "value": encode(mark)}
    return {"key": encode(slot), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
