"""Replacing the key that the state is sealed with at rest, while everything runs, in three steps:

1. *spread*: the new key is in the state, sealed with the old one; every manager keeps it on its disk and says so.
2. *seal*: everything is written with the new key, and what lies there with the old one is written again.
3. *done*: nothing needs the old key any more; every manager forgets it.

A manager that is down holds the first step up: it could open nothing any more. Which key a value is written with is read from
the tables, and each such commit is refused where that has changed since (``store.transaction``): so when step 2 has found all
of it in the new form, nothing in the old one can come later, however slow the network is.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.managers import change_node
from fleet.model.cluster import SEALING_AUTHORITY, Authority, Cluster, SealingKey
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeRole
from fleet.store import Store, Transaction
from fleet.store.sealing import AesSealer, key_digest

__all__ = [
    "begin_sealing_rotation",
    "is_rotating",
    "keep_sealing_keys",
    "next_sealing_key",
    "next_sealing_steps",
    "waits_for",
]

log = get_logger("sealing")


def begin_sealing_rotation(
    authority: Authority | None, cluster: Cluster, key: bytes, now: datetime
) -> tuple[Cluster, Transaction]:
    """The cluster object as it should be written, and the rest of the transaction that begins the rotation to ``key``
    (32 random bytes). Raises ``ConflictError`` while another goes on."""
    if is_rotating(authority):
        raise errors.ConflictError(
            "the sealing key is being rotated already: see 'fleet swarm sealing-key'; managers that are down hold it up until "
            "they return, are demoted or removed"
        )
    present = authority.sealing if authority is not None and authority.sealing is not None else SealingKey()
    sealing = msgspec.structs.replace(present, next_digest=key_digest(key), next_key=b64encode(key).decode())
    if authority is None:
        tx = Transaction().create(
            Authority(
                id=SEALING_AUTHORITY, created_at=now, updated_at=now, certificate_pem="", key_pem="", sealing=sealing
            )
        )
    else:
        tx = Transaction().replace(msgspec.structs.replace(authority, sealing=sealing, updated_at=now))
    return msgspec.structs.replace(cluster, sealing_key_rotation_in_progress=True), tx


def is_rotating(authority: Authority | None) -> bool:
    """Whether a rotation goes on."""
    return authority is not None and authority.sealing is not None and bool(authority.sealing.next_key)


def next_sealing_key(sealing: SealingKey) -> bytes | None:
    """The key that every manager is to keep besides the present one; None without a rotation."""
    return b64decode(sealing.next_key) if sealing.next_key else None


async def keep_sealing_keys(
    store: Store, sealer: AesSealer, clock: Clock, node_id: NodeId, *, save: Callable[[bytes], Awaitable[None]]
) -> None:
    """Make this manager's keys those that the tables ask for, on its disk (``save``, durable when it returns) and in use, and say
    so. Raises ``UnavailableError`` or ``ConflictError`` if it could not be said: to be called again, as after every change."""
    authority = store.authorities.get(SEALING_AUTHORITY)
    if authority is None or authority.sealing is None:
        return
    sealing = authority.sealing
    key = next_sealing_key(sealing)
    keys = sealer.only(sealing.digest)
    if (
        key is not None
    ):  # and none of an earlier rotation, whose end this manager may see together with the next one's begin
        keys += key
    if keys != sealer.keys:
        if key is not None:  # at once: one that was demoted just now is not waited for, and still follows the state
            sealer.change(keys)
        await save(keys)
        sealer.change(keys)
        log.info("sealing keys kept", keys=list(sealer.digests))
    newest = sealing.next_digest or sealing.digest

    def told(node: Node) -> Node:
        if node.manager_status is None or node.manager_status.sealing_key == newest:
            return node
        return msgspec.structs.replace(
            node, manager_status=msgspec.structs.replace(node.manager_status, sealing_key=newest)
        )

    await change_node(store, clock, node_id, told)


def waits_for(sealing: SealingKey, nodes: Iterable[Node]) -> tuple[str, ...]:
    """Host names of the managers that have not said yet that they keep the new key."""
    return tuple(
        sorted(
            node.description.hostname or node.id
            for node in nodes
            if node.spec.role is NodeRole.MANAGER
            and not node.removed
            and (node.manager_status is None or node.manager_status.sealing_key != sealing.next_digest)
        )
    )


async def next_sealing_steps(store: Store, now: datetime) -> AsyncIterator[list[Transaction]]:
    """What to write next, some at a time, each transaction by itself; nothing while managers are missing, or no rotation goes on.
    For the leader, who asks again until nothing comes: what changed meanwhile is found the next time."""
    authority = store.authorities.get(SEALING_AUTHORITY)
    if authority is None or authority.sealing is None or not authority.sealing.next_key:
        return
    sealing = authority.sealing
    if not sealing.is_sealing:
        if not waits_for(sealing, store.nodes.all()):
            flipped = msgspec.structs.replace(sealing, is_sealing=True)
            yield [Transaction().replace(msgspec.structs.replace(authority, sealing=flipped, updated_at=now))]
        return
    is_sealed = True
    async for stale in store.sealed_otherwise():
        is_sealed = False
        yield [Transaction().replace(obj) for obj in stale]
    if is_sealed:
        cluster = next(iter(store.clusters.all()))
        done = SealingKey(digest=sealing.next_digest)
        shown = msgspec.structs.replace(
            cluster,
            sealing_key_rotation_in_progress=False,
            sealing_key_digest=done.digest,
            sealing_key_rotated_at=now,
            updated_at=now,
        )
        ended = msgspec.structs.replace(authority, sealing=done, updated_at=now)
        yield [Transaction().replace(ended).replace(shown)]
