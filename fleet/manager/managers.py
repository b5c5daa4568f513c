"""Who the managers are: their addresses, what each one's standing is, and which role a node's certificate may name.

A node becomes a manager in two steps: its spec says so (join token, promotion), then it has opened the cluster's state and
registered, which is when it has a *manager status*. It ceases to be one in two as well: the spec says worker, then the leader
takes the status away, once nothing of the cluster's state depends on the node any more. Its certificate follows the second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.manager.leadership import Leader
from fleet.model.ids import NodeId
from fleet.model.node import ManagerStatus, Node, NodeRole, NodeState, Reachability
from fleet.store import Store, Transaction

__all__ = ["MANAGERS_MAX", "certified_role", "change_node", "manager_addresses", "standing"]

_TRIES: Final = 8
MANAGERS_MAX: Final = 7
"""More managers make every write slower and no failure less likely; Docker's advice, too."""


def manager_addresses(store: Store, leader: Leader | None) -> tuple[str, ...]:
    """host:port of all managers' cluster listeners, the leader's first, then those that are reachable."""
    found = [
        (
            leader is None or node.id != leader.node_id,
            node.manager_status.reachability is not Reachability.REACHABLE,
            node.manager_status.addr,
        )
        for node in store.nodes.all()
        if not node.removed and node.manager_status is not None and node.manager_status.addr
    ]
    return tuple(address for *_, address in sorted(found))


def certified_role(node: Node) -> NodeRole:
    """The role its certificate is to name: a manager that is being demoted stays one until its status is taken away."""
    return NodeRole.MANAGER if node.manager_status is not None else node.spec.role


async def change_node(store: Store, clock: Clock, node_id: NodeId, change: Callable[[Node], Node]) -> Node | None:
    """Write what ``change`` makes of the node, again if it changed meanwhile; returns the node as it was before, or None if
    nothing was written: it is no member, or already so. Raises ``ConflictError`` if it keeps changing."""
    for _ in range(_TRIES):
        node = store.nodes.get(node_id)
        if node is None or node.removed:
            return None
        changed = change(node)
        if changed == node:
            return None
        with contextlib.suppress(errors.OutOfSequenceError):
            await store.commit(Transaction().replace(msgspec.structs.replace(changed, updated_at=clock.now())))
            return node
    raise errors.ConflictError(f"node {node_id} kept changing while its state was written")


def standing(node: Node, *, leader: NodeId, now: datetime) -> Node:
    """The manager as its session shows it; the very node if nothing changed."""
    if node.manager_status is None:
        return node
    is_leader = node.id == leader
    is_heard = is_leader or node.status.state is NodeState.READY
    status = ManagerStatus(
        leader=is_leader,
        reachability=Reachability.REACHABLE if is_heard else Reachability.UNREACHABLE,
        addr=node.manager_status.addr,
        sealing_key=node.manager_status.sealing_key,
    )
    if status == node.manager_status:
        return node
    return msgspec.structs.replace(node, manager_status=status, updated_at=now)
