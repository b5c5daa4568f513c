"""The managers' loop: shows who leads and who can be reached, and ends the management of nodes that are to be workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.managers import standing
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeRole
from fleet.store import Kind, Store, Transaction

__all__ = ["ManagersLoop"]

log = get_logger("managers")


async def _nothing(node: Node) -> None:
    return


class ManagersLoop:
    """One a leader, which is node ``node_id``. ``release`` frees the cluster's state of a node before it ceases to be a
    manager; it may raise ``UnavailableError`` and is then asked again."""

    def __init__(
        self, store: Store, clock: Clock, *, node_id: NodeId, release: Callable[[Node], Awaitable[None]] = _nothing
    ) -> None:
        self._store = store
        self._clock = clock
        self._node_id = node_id
        self._release = release

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.NODE) as subscription:
            while True:
                for node in list(self._store.nodes.all()):
                    await self._settle(node)
                await changes_until(subscription, self._clock, None)

    async def _settle(self, node: Node) -> None:
        if node.manager_status is None:
            return
        if node.removed or node.spec.role is not NodeRole.MANAGER:
            await self._release(node)
            changed = msgspec.structs.replace(node, manager_status=None, updated_at=self._clock.now())
            log.info("no longer a manager", node=node.id, hostname=node.description.hostname)
        else:
            changed = standing(node, leader=self._node_id, now=self._clock.now())
        if changed is not node:
            # Refused if the node changed meanwhile; then its change brings us back.
            await self._store.commit_all([Transaction().replace(changed)])
