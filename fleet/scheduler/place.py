"""The decision: tasks without a node -> nodes, or the reason why there is none yet.

Like tasks (one version of one service) are placed as a group from indexes that outlive the pass: no node is looked at but
those that changed since and those that are chosen (SCH-13). Tasks that come with a node (global services) are validated
first, because nothing else can take their place (SCH-16). Tasks that are moved to a node (``rebalance``) get that, or else are
placed like others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from fleet import errors
from fleet.model.common import GenericResource
from fleet.model.ids import NetworkId, NodeId, ServiceId, TaskId
from fleet.model.service import PortConfig
from fleet.model.task import Task
from fleet.scheduler.filters import Demand, Holders, explain_pending, failing_filter, failing_filter_after, nobody
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.pool import NodePool
from fleet.scheduler.quotas import over_quota
from fleet.scheduler.spread import SpreadTree
from fleet.scheduler.wishes import Strategy, priority_of

__all__ = ["Placements", "make_demand_of", "place"]


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
    pool: NodePool,
    *,
    network_drivers: Mapping[NetworkId, str] | None = None,
    strategy: Strategy = Strategy.SPREAD,
    holders: Holders = nobody,
    nominated: Mapping[TaskId, NodeId] | None = None,
) -> Placements:
    """Place as many of ``tasks`` as fit, higher priority first, oldest first within a service. They count in ``pool`` at once.

    ``strategy``: of services that say none. ``holders``: nodes that have an image, rather taken of several alike.
    ``nominated``: where room is made for tasks that wait; what is free there is kept from those after them.
    """
    pool.refresh()
    make_demand = make_demand_of(pool, network_drivers=network_drivers, strategy=strategy, holders=holders)
    result = Placements()
    room = _Room(pool, nominated or {})
    preassigned: list[Task] = []
    directed: list[Task] = []
    groups: dict[tuple[ServiceId, int, tuple[PortConfig, ...]], list[Task]] = {}
    for task in sorted(tasks, key=lambda task: (task.created_at, task.slot, task.id)):
        if task.node_id:
            preassigned.append(task)
        elif (
            task.id in room.nominated
        ):  # to where its room was made, or another would be short of what it takes elsewhere
            directed.append(msgspec.structs.replace(task, toward=room.nominated[task.id]))
        elif task.toward:
            directed.append(task)
        else:
            groups.setdefault((task.service_id, task.spec_version, task.ports), []).append(task)
    for task in sorted(preassigned, key=_urgency):
        _guarded(_validate, [task], pool, make_demand, result)
        room.keep(task, result)
    for task in sorted(directed, key=_urgency):
        _guarded(_place_toward, [task], pool, make_demand, result)
        room.keep(task, result)
    for group in sorted(groups.values(), key=lambda group: _urgency(group[0])):
        _guarded(_place_group, group, pool, make_demand, result)
    room.give_back()
    return result


def make_demand_of(
    pool: NodePool,
    *,
    network_drivers: Mapping[NetworkId, str] | None = None,
    strategy: Strategy = Strategy.SPREAD,
    holders: Holders = nobody,
) -> Callable[[Task], Demand]:
    """What ``place`` takes a task to demand, by the same arguments. Raises ``UserError`` as ``Demand``."""
    return functools.partial(_demand_of, pool=pool, drivers=network_drivers or {}, strategy=strategy, holders=holders)


def _urgency(task: Task) -> int:
    return -priority_of(task.service_labels)


class _Room:
    """Room that is made for tasks that still wait: they are counted as if they were there, until the pass is over."""

    def __init__(self, pool: NodePool, nominated: Mapping[TaskId, NodeId]) -> None:
        self._pool = pool
        self.nominated = nominated
        self._kept: list[TaskId] = []

    def keep(self, task: Task, result: Placements) -> None:
        if task.id not in self.nominated or task.id not in result.pending:
            return
        view = self._pool.get(self.nominated[task.id])
        if view is not None:
            self._pool.assumed(task, view, view.assume(task))
            self._pool.touch_all(task.service_id, {view.node.id})
            self._kept.append(task.id)
            result.pending[task.id] += f"; room is made on {view.node.description.hostname or view.node.id}"

    def give_back(self) -> None:
        for task_id in self._kept:
            self._pool.remove_task(task_id)
        if self._kept:
            self._pool.refresh()


_Step = Callable[[list[Task], NodePool, Demand, Placements], None]


def _guarded(
    step: _Step,
    group: list[Task],
    pool: NodePool,
    make_demand: Callable[[Task], Demand],
    result: Placements,
) -> None:
    """One service that is wrong (its constraints do not parse) must not keep the others from being placed."""
    try:
        step(group, pool, make_demand(group[0]), result)
    except errors.UserError as error:
        result.pending.update(
            {task.id: f"no suitable node ({error})" for task in group if task.id not in result.assignments}
        )


def _demand_of(
    task: Task, *, pool: NodePool, drivers: Mapping[NetworkId, str], strategy: Strategy, holders: Holders
) -> Demand:
    networks = (attachment.network_id for attachment in task.network_attachments)
    known = [drivers[network] for network in networks if network in drivers]
    return Demand(task, network_drivers=known, service_id_of=pool.service_id_of, strategy=strategy, holders=holders)


def _validate(tasks: list[Task], pool: NodePool, demand: Demand, result: Placements) -> None:
    for task in tasks:
        view = pool.get(task.node_id)
        over = over_quota(pool.budgets(task.service_labels), task)
        if over is not None:
            result.pending[task.id] = over
        elif view is None:
            result.pending[task.id] = f"no suitable node (node {task.node_id} is gone)"
        elif failing_filter(demand, view) is not None:
            result.pending[task.id] = explain_pending(demand, [view])
        else:
            _assume(task, view, pool, result)
            pool.touch_all(task.service_id, {view.node.id})


def _place_toward(tasks: list[Task], pool: NodePool, demand: Demand, result: Placements) -> None:
    (task,) = tasks
    view = pool.get(task.toward)
    if (
        over_quota(pool.budgets(task.service_labels), task) is not None
        or view is None
        or failing_filter(demand, view) is not None
    ):
        _place_group(tasks, pool, demand, result)
        return
    _assume(task, view, pool, result)
    pool.touch_all(task.service_id, {view.node.id})


def _place_group(tasks: list[Task], pool: NodePool, demand: Demand, result: Placements) -> None:
    candidates = pool.candidates(demand)
    special = pool.special(demand.service_id, demand.spec_version, also=demand.holders)
    tree = SpreadTree(pool, candidates, special, demand)
    used: set[NodeId] = set()
    budgets = pool.budgets(tasks[0].service_labels)
    over: str | None = None
    may_fill = bool(demand.shrinking_filters)
    for done, task in enumerate(tasks):
        over = over_quota(budgets, task)
        view = tree.take() if over is None else None
        if view is None:
            left = tasks[done:]
            break
        _assume(task, view, pool, result)
        for budget in budgets:
            budget.take(task)
        used.add(view.node.id)
        if may_fill and failing_filter_after(demand, view) is not None:
            tree.drop()
        else:
            tree.put_back(view)
    else:
        left = []
    tree.close()
    pool.touch_all(demand.service_id, used)
    if left and over is not None:
        result.pending.update((task.id, over) for task in left)
    elif left:
        candidates = pool.candidates(demand)
        reason = candidates.explain(full=len(candidates))  # any that could still take it have all they may have of it
        result.pending.update((task.id, reason) for task in left)


def _assume(task: Task, view: NodeView, pool: NodePool, result: Placements) -> None:
    picked = view.assume(task)
    pool.assumed(task, view, picked)
    result.assignments[task.id] = view.node.id
    if picked:
        result.generic_resources[task.id] = picked
