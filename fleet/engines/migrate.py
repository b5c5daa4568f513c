"""Moving a store into an empty etcd while its cluster goes on: most of it is copied before writers are asked to pause.

    first()   all that is there, while others write
    rest()    what they wrote meanwhile; nobody writes any more
    finish()  the marks without which the copy counts for nothing: whose it is, and how far the old revisions had got

What hangs on a lease is left behind: leases do not move. Versions do not move either, as etcd numbers its own; ``base`` lets
them go on growing, so a version that somebody read before the move is one that no object has any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fleet import errors
from fleet.engines.etcd_wire import EtcdTls, Gateway, decode, encode, range_end
from fleet.store.engine import CompactedError, Deleted, Engine, Entry

__all__ = ["StoreCopy"]

_OPS: Final = 100
_BYTES: Final = 1_000_000
_EVERYTHING: Final = "/"


class StoreCopy:
    """From ``source`` to ``prefix`` of the etcd at ``endpoint``."""

    def __init__(self, source: Engine, *, endpoint: str, tls: EtcdTls | None, prefix: str) -> None:
        self._source = source
        self._prefix = prefix.rstrip("/") + "/"
        self._gateway = Gateway([endpoint], tls=tls, timeout_s=10.0)
        self._at = 0
        self.objects = 0
        """How many keys were copied, counting those that were copied again."""

    async def aclose(self) -> None:
        await self._gateway.close()

    async def first(self) -> None:
        """Raises ``ConflictError`` if the target is not empty."""
        key, end = encode(self._prefix), encode(range_end(self._prefix))
        found = await self._gateway.call(
            "/v3/kv/range", {"key": key, "range_end": end, "limit": 1, "keys_only": True}, repeatable=True
        )
        if found.get("kvs"):
            raise errors.ConflictError(f"etcd has keys below {self._prefix} already")
        await self._copy_everything()

    async def rest(self) -> None:
        """Only after the last writer has stopped."""
        newest = (await self._source.list(_EVERYTHING + "none/")).revision
        if newest <= self._at:
            return
        try:
            changed: dict[str, Entry | Deleted] = {}
            async for batch in self._source.watch(_EVERYTHING, self._at + 1):
                for event in batch.events:
                    changed[event.key] = event
                if batch.revision >= newest:
                    break
            await self._write(changed.values())
            self._at = newest
        except CompactedError:  # it took so long that history was given up
            await self._write([Deleted(key) for key in await self._target_keys()])
            await self._copy_everything()

    async def finish(self, cluster_id: str) -> None:
        """Durable when it returns."""
        puts = {"owner": cluster_id, "base": str(self._at)}
        await self._send(
            [{"request_put": {"key": encode(self._prefix + k), "value": encode(v)}} for k, v in puts.items()]
        )

    async def _copy_everything(self) -> None:
        listing = await self._source.list(_EVERYTHING)
        await self._write(listing.entries)
        self._at = listing.revision

    async def _target_keys(self) -> list[str]:
        data = self._prefix + "data"
        listed = await self._gateway.call(
            "/v3/kv/range",
            {"key": encode(data), "range_end": encode(range_end(data)), "keys_only": True},
            repeatable=True,
        )
        return [decode(item["key"]).decode().removeprefix(data) for item in listed.get("kvs", [])]

    async def _write(self, events: Iterable[Entry | Deleted]) -> None:
        pack: list[dict[str, Any]] = []
        size = 0
        for event in events:
            key = encode(f"{self._prefix}data{event.key}")
            weight = len(event.key) if isinstance(event, Deleted) else len(event.key) + len(event.value)
            if pack and (len(pack) >= _OPS or size + weight > _BYTES):
                await self._send(pack)
                pack, size = [], 0
            if isinstance(event, Deleted):
                pack.append({"request_delete_range": {"key": key}})
            elif not event.lease:
                pack.append({"request_put": {"key": key, "value": encode(event.value)}})
            size += weight
            self.objects += 1
        if pack:
            await self._send(pack)

    async def _send(self, operations: list[dict[str, Any]]) -> None:
        # Repeatable: the same values at the same keys, and nobody reads them yet.
        await self._gateway.call("/v3/kv/txn", {"success": operations}, repeatable=True)
