"""Nodes: list, inspect, change role, availability and labels, remove."""

from __future__ import annotations

from typing import Final

import msgspec

from fleet import errors
from fleet.api.http import Filters
from fleet.manager.control.context import Context, required_version
from fleet.manager.control.filters import any_prefix, has_labels, one_of
from fleet.manager.control.service_spec import check_labels
from fleet.model.node import Node, NodeRole, NodeSpec, NodeState
from fleet.model.taints import check_taints
from fleet.store import Transaction

__all__ = ["NodeControl"]

FILTERS: Final = frozenset({"id", "name", "label", "node.label", "membership", "role"})


class NodeControl:
    """``managers_max``: how many managers the state engine serves; promotion beyond it is refused."""

    def __init__(self, context: Context, *, managers_max: int) -> None:
        self._context = context
        self._store = context.store
        self._managers_max = managers_max

    def find(self, text: str) -> Node:
        """By id, name or host name, or unique prefix of the id; removed nodes are not found."""
        return self._store.nodes.find(text)

    def list(self, filters: Filters | None = None) -> list[Node]:
        """Filters: ``id``, ``name`` (prefixes), ``label`` (the host's), ``node.label``, ``role``, ``membership``."""
        wanted = filters or {}
        return [node for node in self._store.nodes.all() if not node.removed and _fits(node, wanted)]

    async def update(self, text: str, spec: NodeSpec, *, version: int | None) -> Node:
        """Replace the node's spec. An empty name keeps the node's host name as its name.

        Raises ``UserError`` (last manager demoted, a taint that is none), ``UnsupportedError`` (more managers than the engine
        serves), ``OutOfSequenceError``.
        """
        read_at = required_version(version, what="node")
        check_labels(spec.labels, what="node")
        check_taints(spec.labels)
        node = self.find(text)

        def attempt() -> Transaction:
            now = self.find(node.id)
            self._check_role(now, spec.role)
            if now.version != read_at:
                raise errors.OutOfSequenceError(f"update out of sequence: node {text} changed since it was read")
            return Transaction().replace(msgspec.structs.replace(now, spec=spec, updated_at=self._context.now()))

        await self._context.guarded(attempt)
        return self.find(node.id)

    async def remove(self, text: str, *, force: bool = False) -> None:
        """Forget a node that is down (or, with ``force``, any worker). A tombstone keeps its certificate refused.

        Raises ``UserError`` if it is not down, or a manager.
        """
        found = self.find(text)

        def attempt() -> Transaction:
            node = self.find(found.id)
            name = node.description.hostname or node.id
            if node.spec.role is NodeRole.MANAGER or node.manager_status is not None:
                raise errors.UserError(
                    f"node {name} is a cluster manager and is a member of the state engine: demote it to worker before removal"
                )
            if node.status.state is not NodeState.DOWN and not force:
                raise errors.UserError(
                    f"node {name} is not down and can't be removed: let it leave the swarm, or stop it, or use --force"
                )
            now = self._context.now()
            status = msgspec.structs.replace(node.status, state=NodeState.DOWN, message="the node was removed")
            tx = Transaction().replace(
                msgspec.structs.replace(
                    node, removed=True, status=status, down_since=node.down_since or now, updated_at=now
                )
            )
            for guest in self._store.guests.all():
                if guest.node_id == node.id:
                    tx.delete(guest)
            return tx

        await self._context.guarded(attempt)

    def _check_role(self, node: Node, role: NodeRole) -> None:
        if role is node.spec.role:
            return
        managers = [
            other for other in self._store.nodes.all() if not other.removed and other.spec.role is NodeRole.MANAGER
        ]
        name = node.description.hostname or node.id
        if role is NodeRole.WORKER and len(managers) <= 1:
            raise errors.UserError(f"attempting to demote the last manager of the swarm: {name}")
        if role is NodeRole.MANAGER and len(managers) >= self._managers_max:
            raise errors.UnsupportedError(
                f"cannot promote node {name}: this cluster's state engine serves {self._managers_max} manager(s)"
            )


def _fits(node: Node, filters: Filters) -> bool:
    return (
        any_prefix(filters, "id", node.id)
        and any_prefix(filters, "name", node.spec.name, node.description.hostname)
        and has_labels(filters, "label", node.description.engine.labels)
        and has_labels(filters, "node.label", node.spec.labels)
        and one_of(filters, "role", node.spec.role.value)
        and one_of(filters, "membership", "accepted")
    )
