"""The managers' loop: shows who leads and who can be reached, and ends the management of nodes that are to be workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.managers import standing
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeRole
from fleet.store import Kind, Store, Transaction

__all__ = ["ManagersLoop"]

log = get_logger("managers")

_AGAIN_S: Final = 2.0


async def _nothing(node: Node) -> None:
    return


class ManagersLoop:
    """One a leader, which is node ``node_id``. ``release`` frees the cluster's state of a node before it ceases to be a
    manager; it may raise ``UnavailableError`` and is then asked again. ``step_down``: called when it is the leader itself that
    is to be a worker; another then does the rest."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        node_id: NodeId,
        release: Callable[[Node], Awaitable[None]] | None = None,
        step_down: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._node_id = node_id
        self._release = release or _nothing
        self._step_down = step_down

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.NODE) as subscription:
            while True:
                again: datetime | None = None
                for node in list(self._store.nodes.all()):
                    try:
                        await self._settle(node)
                    except errors.UnavailableError as cause:
                        log.warning("manager not released yet", node=node.id, cause=str(cause))
                        again = self._clock.now() + timedelta(seconds=_AGAIN_S)
                await changes_until(subscription, self._clock, again)

    async def _settle(self, node: Node) -> None:
        if node.manager_status is None:
            return
        if node.removed or node.spec.role is not NodeRole.MANAGER:
            if node.id == self._node_id:
                self._step_down()
                return
            await self._release(node)
            changed = msgspec.structs.replace(node, manager_status=None, updated_at=self._clock.now())
            log.info("no longer a manager", node=node.id, hostname=node.description.hostname)
        else:
            changed = standing(node, leader=self._node_id, now=self._clock.now())
        if changed is not node:
            # Refused if the node changed meanwhile; then its change brings us back.
            await self._store.commit_all([Transaction().replace(changed)])
