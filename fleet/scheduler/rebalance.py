"""Which running tasks would lie better on other nodes, and why. Pure; doing it, gradually, is the manager's.

Each move takes a task from the node where its service is worst off to the one where the scheduler would put its next task, and
only if that makes things better by this order, which no later move undoes, so that there is an end:

1. the weight of constraints preferred (``fleet.placement.prefer``), less that of taints to avoid, grows, or stays and
2. the service's tasks are more even over the values of each spread preference, then over nodes (strategy *spread*), or stay and
3. all tasks are more even over nodes, or stay and (strategy *balanced*)
4. the shares of nodes that are reserved are more even, by more than the odd percent.

Even means a lower sum of squares. Services with strategy *binpack* do not ask for balance and are left alone. A target passes
all filters, has no recent failures of the service, loses no weight of affinities, and no other service's strict affinity is
broken at either end. No task is in a plan twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from fleet import errors
from fleet.model.ids import NetworkId, NodeId, ServiceId
from fleet.model.node import Availability, NodeState
from fleet.model.task import Task
from fleet.scheduler.filters import Demand, failing_filter, holds
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.pool import NodePool
from fleet.scheduler.spread import SpreadTree, parse_preferences
from fleet.scheduler.wishes import Strategy, parse_wishes

__all__ = ["MOVES_MAX", "Relocation", "plan_moves"]

MOVES_MAX: Final = 1000
"""Of one plan. There may be more to gain after it."""
_GAIN_PERMILLE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """``reason`` is a sentence about before the move."""

    task: Task
    source: NodeId
    target: NodeId
    reason: str


def plan_moves(
    movable: Mapping[ServiceId, Sequence[Task]],
    pool: NodePool,
    *,
    labels: Mapping[ServiceId, tuple[str, Mapping[str, str]]],
    network_drivers: Mapping[NetworkId, str] | None = None,
    strategy: Strategy = Strategy.SPREAD,
    limit: int = MOVES_MAX,
) -> list[Relocation]:
    """At most ``limit`` moves in an order in which each is an improvement.

    ``movable``: running tasks by service. ``labels``: name and labels of every service, whose affinities are kept. ``pool``
    is changed to what will be. ``strategy``: of services that say none.
    """
    pool.refresh()
    watchers = _watchers(labels, pool)
    services = []
    for service_id, tasks in movable.items():
        demand = _demand_of(tasks, pool, network_drivers or {}, strategy)
        if demand is not None and demand.strategy is not Strategy.BINPACK:
            services.append(_Service(demand, tasks, watchers.get(service_id, ())))
    services.sort(key=lambda service: (service.tasks[0].service_name, service.demand.service_id))
    found: list[Relocation] = []
    is_over = False
    while not is_over:
        is_over = True
        for service in services:
            if len(found) >= limit:
                return found
            relocation = service.next_move(pool)
            if relocation is not None:
                found.append(relocation)
                is_over = False
    return found


def _demand_of(
    tasks: Sequence[Task], pool: NodePool, drivers: Mapping[NetworkId, str], strategy: Strategy
) -> Demand | None:
    """None for a service that has nothing to move, or whose constraints do not parse."""
    if not tasks:
        return None
    networks = (attachment.network_id for attachment in tasks[0].network_attachments)
    try:
        known = [drivers[network] for network in networks if network in drivers]
        demand = Demand(tasks[0], network_drivers=known, service_id_of=pool.service_id_of, strategy=strategy)
        parse_preferences(demand.preferences)
    except errors.UserError:
        return None
    return demand


_Watcher = tuple[ServiceId, bool]
"""A service that must be (or, True, must not be) on the same nodes as the watched one."""


def _watchers(
    labels: Mapping[ServiceId, tuple[str, Mapping[str, str]]], pool: NodePool
) -> dict[ServiceId, tuple[_Watcher, ...]]:
    found: dict[ServiceId, tuple[_Watcher, ...]] = {}
    for service_id, (name, text) in labels.items():
        try:
            wishes = parse_wishes(text, service_name=name)
        except errors.UserError:
            continue
        for affinity in wishes.affinities:
            watched = pool.service_id_of(affinity.service)
            if watched is not None and watched != service_id and not affinity.weight:
                found[watched] = (*found.get(watched, ()), (service_id, affinity.is_against))
    return found


class _Service:
    """One service whose tasks may move."""

    def __init__(self, demand: Demand, tasks: Sequence[Task], watchers: Sequence[_Watcher]) -> None:
        self.demand = demand
        self.tasks = tuple(tasks)
        self._watchers = watchers
        self._readers = parse_preferences(demand.preferences)
        self._left: dict[NodeId, list[Task]] = {}
        for task in sorted(tasks, key=lambda task: (task.created_at, task.id)):
            self._left.setdefault(task.node_id, []).append(task)  # the youngest goes first

    def next_move(self, pool: NodePool) -> Relocation | None:
        """The best there is, counted in the pool at once; None when nothing is to be gained."""
        target = self._target(pool)
        if target is None:
            return None
        counts = self._branch_counts(pool)
        for source in self._sources(pool, counts):
            reason = self._gain(source, target, counts)
            if reason is None:
                return None
            if not self._disturbs(source, target):
                return self._move(source.node.id, target, pool, reason)
        return None

    def _target(self, pool: NodePool) -> NodeView | None:
        demand = self.demand
        tree = SpreadTree(pool, pool.candidates(demand), pool.special(demand.service_id, demand.spec_version), demand)
        view = tree.take()
        tree.close()
        if view is None:
            return None
        pool.touch_all(demand.service_id, {view.node.id})  # it was taken out of its heap
        is_failing = view.recent_failures(demand.service_id, demand.spec_version) > 0
        return None if is_failing or failing_filter(demand, view) is not None else view

    def _branch_counts(self, pool: NodePool) -> Counter[tuple[str, ...]]:
        counts: Counter[tuple[str, ...]] = Counter()
        if self._readers:
            for view in pool.special(self.demand.service_id, self.demand.spec_version):
                branch = self._branch(view)
                for depth in range(1, len(branch) + 1):
                    counts[branch[:depth]] += view.count(self.demand.service_id)
        return counts

    def _branch(self, view: NodeView) -> tuple[str, ...]:
        return tuple(reader(view.node) for reader in self._readers)

    def _sources(self, pool: NodePool, counts: Counter[tuple[str, ...]]) -> list[NodeView]:
        """Nodes with tasks that may move, the worst first."""
        views = [pool[node_id] for node_id, tasks in self._left.items() if tasks and node_id in pool]
        steady = [
            view
            for view in views
            if view.node.status.state is NodeState.READY and view.node.spec.availability is Availability.ACTIVE
        ]

        def how_bad(view: NodeView) -> tuple[object, ...]:
            branch = self._branch(view)
            levels = tuple(-counts[branch[:depth]] for depth in range(1, len(branch) + 1))
            if self.demand.strategy is Strategy.SPREAD:
                load = (-view.count(self.demand.service_id), -view.tasks_total)
            else:
                load = (-view.reserved_permille(), -view.tasks_total)
            return (self._preferred(view), *levels, *load, view.node.id)

        return sorted(steady, key=how_bad)

    def _preferred(self, view: NodeView) -> int:
        return self.demand.preferred(view)

    def _affinity(self, view: NodeView) -> int:
        return sum(a.weight for id_, a in self.demand.affinities if a.weight and holds(id_, a, view))

    def _gain(self, source: NodeView, target: NodeView, counts: Counter[tuple[str, ...]]) -> str | None:
        """Why the move makes things better; None when it does not."""
        if source.node.id == target.node.id or self._affinity(target) < self._affinity(source):
            return None
        here, there = _name(source), _name(target)
        before, after = self._preferred(source), self._preferred(target)
        if before != after:
            return f"{there} is preferred by weight {after}, {here} by {before}" if after > before else None
        one, other = self._branch(source), self._branch(target)
        for depth in range(1, len(one) + 1):
            if one[:depth] == other[:depth]:
                continue
            difference = counts[one[:depth]] - counts[other[:depth]]
            if difference >= 2:
                shares = f"{counts[one[:depth]]} of its tasks, {other[depth - 1]!r} {counts[other[:depth]]}"
                return f"{one[depth - 1]!r} has {shares}"
            if difference < 1:
                return None
        name = self.tasks[0].service_name
        if self.demand.strategy is Strategy.SPREAD:
            own, its = source.count(self.demand.service_id), target.count(self.demand.service_id)
            if own - its >= 2:
                return f"{here} has {own} tasks of {name}, {there} {its}"
            if own - its < 1:
                return None
        totals = source.tasks_total - target.tasks_total
        if self.demand.strategy is Strategy.BALANCED and totals >= 1:
            is_worse, is_better = self._evened(source, target)
            if is_better:
                was = [view.reserved_permille() / 10 for view in (source, target)]
                return f"{here} is reserved to {was[0]:g}%, {there} to {was[1]:g}%"
            if is_worse:
                return None
        return f"{here} has {source.tasks_total} tasks, {there} {target.tasks_total}" if totals >= 2 else None

    def _evened(self, source: NodeView, target: NodeView) -> tuple[bool, bool]:
        """Whether the reserved shares would be less even, and whether clearly more."""
        was, its = source.reserved_permille(), target.reserved_permille()
        left, then = self._with(source, -1), self._with(target, +1)
        change = left * left + then * then - was * was - its * its
        return change > 0, change < 0 and then + _GAIN_PERMILLE <= was

    def _with(self, view: NodeView, tasks: int) -> int:
        """The node's reserved permille with so many tasks of the service more."""
        resources = view.node.description.resources
        shares = (
            (resources.nano_cpus - view.nano_cpus_free + tasks * self.demand.nano_cpus, resources.nano_cpus),
            (
                resources.memory_bytes - view.memory_free_bytes + tasks * self.demand.memory_bytes,
                resources.memory_bytes,
            ),
        )
        return max((used * 1000 // total for used, total in shares if total > 0), default=0)

    def _disturbs(self, source: NodeView, target: NodeView) -> bool:
        """Whether another service must not be beside this one there, or needs the only one here."""
        is_last = source.count(self.demand.service_id) == 1
        return any(
            target.count(other) > 0 if is_against else is_last and source.count(other) > 0
            for other, is_against in self._watchers
        )

    def _move(self, source: NodeId, target: NodeView, pool: NodePool, reason: str) -> Relocation:
        task = self._left[source].pop()
        pool.remove_task(task.id)
        there = msgspec.structs.replace(task, node_id=target.node.id, assigned_generic_resources=())
        pool.assumed(there, target, target.assume(there))
        pool.touch_all(task.service_id, {target.node.id})
        pool.refresh()
        return Relocation(task=task, source=source, target=target.node.id, reason=reason)


def _name(view: NodeView) -> str:
    return view.node.description.hostname or view.node.id
