"""The decision: tasks without a node -> nodes, or the reason why there is none yet.

Like tasks (one version of one service) are placed as a group: nodes are filtered once, ranked in heaps, and after each
placement only the chosen node is looked at again (SCH-13). Tasks that come with a node (global services) are validated
first, because nothing else can take their place (SCH-16). Nothing is ever moved or preempted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fleet import errors
from fleet.model.common import GenericResource
from fleet.model.ids import NetworkId, NodeId, ServiceId, TaskId
from fleet.model.service import PortConfig
from fleet.model.task import Task
from fleet.scheduler.filters import Demand, explain_pending, failing_filter
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.spread import SpreadTree, parse_preferences

__all__ = ["Placements", "place"]


@dataclass(frozen=True, slots=True)
class Placements:
    """``assignments`` and ``pending`` (why not) share no task and together hold every task given.

    ``generic_resources`` has the units picked for those assigned tasks that reserve any.
    """

    assignments: dict[TaskId, NodeId] = field(default_factory=dict)
    pending: dict[TaskId, str] = field(default_factory=dict)
    generic_resources: dict[TaskId, tuple[GenericResource, ...]] = field(default_factory=dict)


def place(
    tasks: Iterable[Task],
    views: Mapping[NodeId, NodeView],
    *,
    network_drivers: Mapping[NetworkId, str] | None = None,
) -> Placements:
    """Place as many of ``tasks`` as fit, oldest first within a service. ``views`` are changed: placed tasks count."""
    drivers = network_drivers or {}
    result = Placements()
    preassigned: list[Task] = []
    groups: dict[tuple[ServiceId, int, tuple[PortConfig, ...]], list[Task]] = {}
    for task in sorted(tasks, key=lambda task: (task.created_at, task.slot, task.id)):
        if task.node_id:
            preassigned.append(task)
        else:
            groups.setdefault((task.service_id, task.spec_version, task.ports), []).append(task)
    for task in preassigned:
        _guarded(_validate, [task], views, drivers, result)
    for group in groups.values():
        _guarded(_place_group, group, views, drivers, result)
    return result


_Step = Callable[[list[Task], Mapping[NodeId, NodeView], Demand, Placements], None]


def _guarded(
    step: _Step,
    group: list[Task],
    views: Mapping[NodeId, NodeView],
    drivers: Mapping[NetworkId, str],
    result: Placements,
) -> None:
    """One service that is wrong (its constraints do not parse) must not keep the others from being placed."""
    networks = (attachment.network_id for attachment in group[0].network_attachments)
    try:
        demand = Demand(group[0], network_drivers=[drivers[n] for n in networks if n in drivers])
        step(group, views, demand, result)
    except errors.UserError as error:
        result.pending.update(
            {task.id: f"no suitable node ({error})" for task in group if task.id not in result.assignments}
        )


def _validate(tasks: list[Task], views: Mapping[NodeId, NodeView], demand: Demand, result: Placements) -> None:
    for task in tasks:
        view = views.get(task.node_id)
        if view is None:
            result.pending[task.id] = f"no suitable node (node {task.node_id} is gone)"
        elif failing_filter(demand, view) is not None:
            result.pending[task.id] = explain_pending(demand, [view])
        else:
            _assume(task, view, result)


def _place_group(tasks: list[Task], views: Mapping[NodeId, NodeView], demand: Demand, result: Placements) -> None:
    readers = parse_preferences(tasks[0].spec.placement.preferences)
    everything = list(views.values())
    tree = SpreadTree(
        everything,
        candidates=frozenset(view.node.id for view in everything if failing_filter(demand, view) is None),
        readers=readers,
        service_id=demand.service_id,
        spec_version=demand.spec_version,
    )
    waiting = iter(tasks)
    for task in waiting:
        view = tree.take()
        if view is None:
            reason = explain_pending(demand, everything)
            result.pending[task.id] = reason
            result.pending.update({other.id: reason for other in waiting})
            return
        _assume(task, view, result)
        if failing_filter(demand, view) is None:
            tree.put_back(view)
        else:
            tree.drop()


def _assume(task: Task, view: NodeView, result: Placements) -> None:
    picked = view.assume(task)
    result.assignments[task.id] = view.node.id
    if picked:
        result.generic_resources[task.id] = picked
