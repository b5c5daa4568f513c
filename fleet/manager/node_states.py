"""What a session says of its node, and what its silence says: the writes of nodes that are the dispatcher's.

Another manager's write of the same node meanwhile (its spec, its standing) is not lost: ``change_node`` reads again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fleet.api import dispatch
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.figures import ManagerFigures
from fleet.manager.managers import change_node
from fleet.manager.tunnel_keys import with_own_key
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeDescription, NodeState, NodeStatus
from fleet.store import Store

__all__ = ["NodeStates"]

log = get_logger("dispatcher")


class NodeStates:
    """Each write does nothing for a node that is no member, or is so already; raises ``ConflictError`` if it keeps changing."""

    def __init__(self, store: Store, clock: Clock, figures: ManagerFigures) -> None:
        self._store = store
        self._clock = clock
        self._figures = figures

    async def register(self, node_id: NodeId, hello: dispatch.Hello) -> None:
        """A session begins: the node is ready, and what and where it says it is."""
        description = with_own_key(self._store, node_id, hello.description)

        def registered(node: Node) -> Node:
            return msgspec.structs.replace(
                node,
                description=description,
                status=NodeStatus(state=NodeState.READY, addr=hello.address),
                cluster_addr=f"{hello.address}:{hello.cluster_port}",
                down_since=None,
            )

        await self._change(node_id, registered)

    async def describe(self, node_id: NodeId, description: NodeDescription) -> None:
        """The node is something else than it said before."""
        description = with_own_key(self._store, node_id, description)

        def described(node: Node) -> Node:
            return msgspec.structs.replace(node, description=description)

        await self._change(node_id, described)

    async def set_state(self, node_id: NodeId, state: NodeState, message: str) -> None:
        """``message`` says why. Only a ready node becomes disconnected: one that is down, or was never there, stays so."""
        now = self._clock.now()

        def changed(node: Node) -> Node:
            if node.status.state is state:
                return node
            if state is NodeState.DISCONNECTED and node.status.state is not NodeState.READY:
                return node
            return msgspec.structs.replace(
                node,
                status=msgspec.structs.replace(node.status, state=state, message=message),
                down_since=now if state is NodeState.DOWN else None,
            )

        await self._change(node_id, changed)

    async def _change(self, node_id: NodeId, change: Callable[[Node], Node]) -> None:
        before = await change_node(self._store, self._clock, node_id, change)
        if before is None:
            return
        after = change(before)
        if after.status.state is not before.status.state:
            self._figures.node_states.inc(after.status.state.value)
            log.info(
                "node changed",
                node=node_id,
                hostname=after.description.hostname,
                state=f"{before.status.state} -> {after.status.state}",
                cause=after.status.message,
            )
