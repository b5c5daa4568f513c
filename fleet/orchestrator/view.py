"""One service as planning sees it: the service, all its tasks with their history, the nodes. A snapshot, never changed.

A *slot* is what successive tasks fill: a number for replicated services, a node for global ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from fleet.model.ids import NodeId, TaskId
from fleet.model.node import Node
from fleet.model.service import Service, TaskSpec
from fleet.model.task import Task, TaskState, is_runnable

__all__ = ["ServiceView", "Slot", "SlotKey", "ended_by_itself", "group_slots", "slot_key", "wanted_spec"]

SlotKey = int | NodeId


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    """``tasks`` are all tasks of the service; ``nodes`` all nodes of the cluster, tombstones included.

    ``fits`` says whether a node satisfies the constraints of a task spec; the manager lends it from the scheduler,
    which this package does not know.
    """

    service: Service
    tasks: Sequence[Task]
    nodes: Mapping[NodeId, Node]
    fits: Callable[[TaskSpec, Node], bool]

    @functools.cached_property
    def tasks_by_id(self) -> Mapping[TaskId, Task]:
        """The same tasks, to be found."""
        return {task.id: task for task in self.tasks}

    def slots(self) -> dict[SlotKey, Slot]:
        """Slots that exist, by key. One all of whose tasks are to be removed is free and does not exist."""
        found = group_slots(self.tasks)
        return {key: slot for key, slot in found.items() if slot.newest.desired_state is not TaskState.REMOVE}

    def is_stale(self, task: Task) -> bool:
        """Whether the task must be replaced to be as the service asks now (UPD-01).

        A task made from an older version is not stale if that task would come out the same today: after a rollback, or
        when only its placement changed and its node satisfies the new one.
        """
        service = self.service
        if task.spec_version >= service.task_spec_version:
            return False
        wanted = wanted_spec(service)
        if msgspec.structs.replace(task.spec, placement=wanted.placement) != wanted:
            return True
        if task.ports != service.endpoint.ports:
            return True
        if task.spec.placement == wanted.placement:
            return False
        node = self.nodes.get(task.node_id)  # without one it still waits for what its own placement says
        return node is None or not self.fits(wanted, node)


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot's tasks, oldest first; at least one."""

    key: SlotKey
    tasks: tuple[Task, ...]

    @property
    def newest(self) -> Task:
        return self.tasks[-1]

    @property
    def runnable(self) -> tuple[Task, ...]:
        """Tasks that count for the slot, oldest first."""
        return tuple(task for task in self.tasks if is_runnable(task))


def slot_key(task: Task) -> SlotKey:
    """The slot number, or the node for a global service's task."""
    return task.slot or task.node_id


def group_slots(tasks: Sequence[Task]) -> dict[SlotKey, Slot]:
    """Tasks of one service by slot."""
    by_key: dict[SlotKey, list[Task]] = {}
    for task in tasks:
        by_key.setdefault(task.slot or task.node_id, []).append(task)
    return {
        key: Slot(key, tuple(sorted(found, key=_age) if len(found) > 1 else found)) for key, found in by_key.items()
    }


def _age(task: Task) -> tuple[bool, object, str]:
    # What is to be removed comes first: the newest of the others decides about the slot.
    return (task.desired_state is not TaskState.REMOVE, task.created_at, task.id)


def ended_by_itself(task: Task) -> bool:
    """Its container ended, or could not be made, without anyone having asked: what restart policies are about."""
    return task.status.state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED) and not task.told_to_stop


def wanted_spec(service: Service) -> TaskSpec:
    """The task spec of new tasks: the template, with the networks also when given in the deprecated place."""
    template = service.spec.task_template
    if template.networks == service.spec.all_networks:
        return template
    return msgspec.structs.replace(template, networks=service.spec.all_networks)
