"""Whom a change of the tables concerns: whose assignment set may be another one by it.

A manager with thousands of sessions cannot look at all of them for each change. What is not said here is not sent, so each rule
names all that ``Assembler.items_for`` reads of a kind. Pure over the change and the tables as they are now.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.model.guest import Guest
from fleet.model.ids import NodeId
from fleet.model.network import Network
from fleet.model.node import Node
from fleet.model.publishing import source_of
from fleet.model.service import PublishMode, Service
from fleet.model.task import Task, TaskState
from fleet.store import Change, Kind, Store

__all__ = ["Audience", "audience_of"]

_OF_NODES = frozenset({Kind.SECRET, Kind.CONFIG, Kind.LOGIN})


@dataclass(slots=True)
class Audience:
    """``nodes`` by id; those whose sets have one of ``networks``, or one of ``items`` (keys); or ``everyone``."""

    everyone: bool = False
    nodes: set[NodeId] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)


def audience_of(change: Change, store: Store, found: Audience) -> None:
    """Add those whom the change concerns to ``found``."""
    for old, new in ((change.old, change.new), (change.new, change.old)):
        match old:
            case Task():
                _of_task(old, new if isinstance(new, Task) else None, found)
            case Node():
                _of_node(old, new if isinstance(new, Node) else None, store, found)
            case Service():
                _of_service(old, new if isinstance(new, Service) else None, found)
            case Network():
                found.networks.add(old.id)
                found.everyone |= old.spec.ingress
            case Guest():
                found.nodes.add(old.node_id)
                found.networks.add(old.network_id)
            case _:
                pass
    if change.kind in _OF_NODES:  # a new one is used by nobody yet: what uses it is written later
        found.items.add(f"{change.kind.value}/{change.id}")
    elif change.kind is Kind.AUTHORITY:
        found.everyone = True


def _of_task(task: Task, other: Task | None, found: Audience) -> None:
    """A task that goes on as its own node reports is no news for that node; for others on its networks it may be."""
    if not task.node_id:
        return
    if other is None or _for_its_node(task) != _for_its_node(other):
        found.nodes.add(task.node_id)
    if task.network_attachments and (other is None or _for_others(task) != _for_others(other)):
        found.networks.update(each.network_id for each in task.network_attachments)


def _for_its_node(task: Task) -> tuple[object, ...]:
    state = task.status.state
    is_told = state.rank >= TaskState.ASSIGNED.rank
    return (task.node_id, task.desired_state, is_told, state.is_terminal, task.network_attachments)


def _for_others(task: Task) -> tuple[object, ...]:
    return (task.node_id, task.desired_state, task.status.state, task.network_attachments)


def _of_node(node: Node, other: Node | None, store: Store, found: Audience) -> None:
    if other is None or _own(node) != _own(other):
        found.nodes.add(node.id)
    is_elsewhere = other is None or _whereabouts(node) != _whereabouts(other)
    if is_elsewhere or (other is not None and node.attachments != other.attachments):
        found.networks.update(each.network_id for each in node.attachments)
    if is_elsewhere or (other is not None and node.status.state is not other.status.state):
        for task in store.tasks.by_node(node.id):
            found.networks.update(each.network_id for each in task.network_attachments)
        found.networks.update(guest.network_id for guest in store.guests.all() if guest.node_id == node.id)


def _whereabouts(node: Node) -> tuple[object, ...]:
    return (node.removed, node.status.addr, node.description.tunnel_key)


def _own(node: Node) -> tuple[object, ...]:
    return (node.removed, node.attachments, node.spec.role, node.manager_status)


def _of_service(service: Service, other: Service | None, found: Audience) -> None:
    if other is not None and _told_of(service) == _told_of(other):
        return
    found.networks.update(target.target for target in service.spec.all_networks)
    found.everyone |= any(port.publish_mode is PublishMode.INGRESS for port in service.endpoint.ports)


def _told_of(service: Service) -> tuple[object, ...]:
    mode = service.spec.endpoint_spec.mode if service.spec.endpoint_spec else None
    sources = [source_of(service.spec.labels, port) for port in service.endpoint.ports]
    return (service.pending_delete, service.spec.name, service.spec.all_networks, service.endpoint, mode, sources)
