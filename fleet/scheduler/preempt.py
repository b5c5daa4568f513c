"""Which running tasks give their room to a task of higher priority that waits. Pure; marking them is the manager's.

For each node that the task could take if others were not there: of the tasks that may yield, as many stay as can, those of the
highest priority first, and of equals those that reserve least. So no task yields in vain. Of all nodes the one is taken where the
fewest yield, then where these have the lowest priority, then the best by rank.

A task that is being stopped anyway counts as gone: where its room is enough, nobody yields. What may yield is said by the caller,
who knows how many tasks a service must keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fleet import errors
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.task import Task, is_runnable
from fleet.scheduler.filters import Demand, failing_filter
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.pool import NodePool
from fleet.scheduler.spread import Rank, rank
from fleet.scheduler.wishes import priority_of

__all__ = ["PREEMPTIONS_MAX", "Preemption", "Yielding", "plan_preemptions"]

PREEMPTIONS_MAX: Final = 8
"""Of one plan: each looks at every node with tasks that may yield. There may be more to do after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Yielding:
    """A service whose ``tasks`` may be stopped for tasks of higher ``priority``, ``at_once`` of them at a time."""

    priority: int
    tasks: Sequence[Task]
    at_once: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """``task`` fits on the node once the ``victims``, at least one, have stopped."""

    task: Task
    node_id: NodeId
    victims: tuple[Task, ...]


def plan_preemptions(
    waiting: Iterable[Task],
    pool: NodePool,
    *,
    yielding: Mapping[ServiceId, Yielding],
    make_demand: Callable[[Task], Demand],
    expected: Iterable[tuple[Task, NodeId]] = (),
    limit: int = PREEMPTIONS_MAX,
) -> list[Preemption]:
    """For tasks that were not placed, those of the highest priority first; no task yields twice. ``pool`` is not changed.

    ``expected``: tasks for which room is made already, and where.
    """
    plan = _Plan(pool, yielding)
    for task, node_id in expected:
        plan.expect(task, node_id)
    found: list[Preemption] = []
    for task in sorted(waiting, key=lambda t: (-priority_of(t.service_labels), t.created_at, t.slot, t.id)):
        if len(found) >= limit:
            break
        try:
            preemption = plan.next(task, make_demand(task))
        except errors.UserError:  # its constraints do not parse: it says so as its pending reason
            continue
        if preemption is not None:
            found.append(preemption)
    return found


class _Plan:
    def __init__(self, pool: NodePool, yielding: Mapping[ServiceId, Yielding]) -> None:
        self._pool = pool
        self._priority = {service_id: each.priority for service_id, each in yielding.items()}
        self._left = {service_id: each.at_once for service_id, each in yielding.items()}
        self._able: dict[NodeId, list[Task]] = {}
        for each in yielding.values():
            for task in each.tasks:
                self._able.setdefault(task.node_id, []).append(task)
        self._gone: set[TaskId] = set()
        self._come: dict[NodeId, list[Task]] = {}
        self._emptying = {node_id for node_id in pool if any(not _stays(task) for task in pool.tasks_on(node_id))}

    def expect(self, task: Task, node_id: NodeId) -> None:
        """The task is to come there: nobody else has the room it needs."""
        self._come.setdefault(node_id, []).append(task)

    def next(self, task: Task, demand: Demand) -> Preemption | None:
        nodes = [task.node_id] if task.node_id else list(self._pool)
        for node_id in nodes:
            if node_id in self._emptying and failing_filter(demand, self._view(node_id)) is None:
                self.expect(task, node_id)
                return None
        best: tuple[tuple[int, list[int], Rank], NodeId, list[Task]] | None = None
        for node_id in nodes:
            victims = self._victims(node_id, task, demand)
            if victims:
                priorities = sorted((self._priority[v.service_id] for v in victims), reverse=True)
                key = (len(victims), priorities, rank(self._pool[node_id], demand))
                if best is None or key < best[0]:
                    best = (key, node_id, victims)
        if best is None:
            return None
        _, node_id, victims = best
        for victim in victims:
            self._gone.add(victim.id)
            self._left[victim.service_id] -= 1
        self.expect(task, node_id)
        return Preemption(task=task, node_id=node_id, victims=tuple(victims))

    def _victims(self, node_id: NodeId, task: Task, demand: Demand) -> list[Task]:
        """Who must yield there; none when it is of no use."""
        able = self._yielding(node_id, below=priority_of(task.service_labels))
        if not able or node_id not in self._pool:
            return []
        out = {victim.id for victim in able}
        if failing_filter(demand, self._view(node_id, without=out)) is not None:
            return []
        for victim in able:
            if failing_filter(demand, self._view(node_id, without=out - {victim.id})) is None:
                out.remove(victim.id)
        return [victim for victim in able if victim.id in out]

    def _yielding(self, node_id: NodeId, *, below: int) -> list[Task]:
        """In the order in which they may stay; of each service no more than it can spare."""

        def worth(task: Task) -> tuple[int, int, int, TaskId]:
            reserved = task.spec.resources.reservations
            return (-self._priority[task.service_id], reserved.nano_cpus, reserved.memory_bytes, task.id)

        found: list[Task] = []
        spare = dict(self._left)
        for task in sorted(self._able.get(node_id, ()), key=worth, reverse=True):
            if self._priority[task.service_id] < below and task.id not in self._gone and spare[task.service_id] > 0:
                spare[task.service_id] -= 1
                found.append(task)
        return sorted(found, key=worth)

    def _view(self, node_id: NodeId, *, without: set[TaskId] | frozenset[TaskId] = frozenset()) -> NodeView:
        """The node once all who leave it have."""
        known = self._pool[node_id]
        view = NodeView(known.node, failures=known.failures)
        for task in self._pool.tasks_on(node_id):
            if _stays(task) and task.id not in self._gone and task.id not in without:
                view.add(task)
        for task in self._come.get(node_id, ()):
            view.assume(task)
        return view


def _stays(task: Task) -> bool:
    return is_runnable(task) and task.preempted is None
