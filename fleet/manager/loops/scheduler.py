"""The scheduler's loop: tasks that wait for a node are placed as soon as they, or room for them, appear.

It writes ``node_id`` and the states *pending* (with the reason) and *assigned*, and marks tasks as *preempted* that are to give
their room to one of higher priority; that they stop and are followed by others is the orchestrator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet import traces
from fleet.clock import Clock
from fleet.logs import about_requests, get_logger
from fleet.manager.figures import ManagerFigures
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import write_all
from fleet.manager.matching import cluster_quotas, cluster_strategy
from fleet.manager.preemption import marks, may_preempt, nominations, yielding
from fleet.model.cluster import Cluster
from fleet.model.ids import NetworkId, NodeId, TaskId
from fleet.model.node import Node, NodeState
from fleet.model.service import Service
from fleet.model.task import Task, TaskState, TaskStatus
from fleet.scheduler.filters import Holders, nobody
from fleet.scheduler.node_view import FailureLog
from fleet.scheduler.place import Placements, make_demand_of, place
from fleet.scheduler.pool import NodePool, build_views
from fleet.scheduler.preempt import Preemption, plan_preemptions
from fleet.scheduler.quotas import over_quota
from fleet.scheduler.wishes import priority_of
from fleet.store import Change, Kind, Store, Transaction

__all__ = ["SchedulerLoop"]

log = get_logger("scheduler")


_ARRIVAL_S: Final = 0.4
_ARRIVALS_S_MAX: Final = 5.0
"""After a change of leaders agents come back within some tenths of a second, thousands of them within seconds; until then nobody
knows which nodes still live. So they are waited for as long as one came within the last ``_ARRIVAL_S``: who is first
gets not all."""
_LOOK_S: Final = 0.1
_PREEMPT_S: Final = 2.0
"""A service may yield again once it is whole, which is not waited for; and looking means every task that might yield."""


class SchedulerLoop:
    """One a leader. ``is_connected``: whether a node has a session here. One that is *ready* and has none is passed over, and
    at the beginning of a term waited for: its state was written by the leader before. ``holders``: which nodes have an image."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        is_connected: Callable[[NodeId], bool] = lambda _node_id: True,
        holders: Holders = nobody,
        figures: ManagerFigures | None = None,
    ) -> None:
        self._figures = figures or ManagerFigures()
        self._store = store
        self._clock = clock
        self._is_connected = is_connected
        self._holders = holders
        self._again_at: datetime | None = None
        self._failures = FailureLog()
        self._pool = NodePool()
        self._waiting: dict[TaskId, Task] = {}
        self._victims: dict[TaskId, Task] = {}
        """Tasks marked as preempted that have not ended."""
        self._preempt_not_before = 0.0
        self._absent: dict[NodeId, Node] = {}
        """Nodes that say they are ready and have no session, as stored; the pool is told that they are disconnected."""
        self._term_began = 0.0
        self._last_arrival = 0.0

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.TASK, Kind.NODE, Kind.SERVICE, Kind.CLUSTER) as subscription:
            self._look_at_everything()
            self._term_began = self._last_arrival = self._clock.monotonic()
            await self._schedule()
            while True:
                changes = await changes_until(subscription, self._clock, self._again_at)
                if changes.resync:
                    self._look_at_everything()
                for change in changes:
                    self._note(change)
                due = self._again_at is not None and self._again_at <= self._clock.now()
                if due or changes.resync or any(_gives_work_or_room(change) for change in changes):
                    await self._schedule()

    async def _schedule(self) -> None:
        self._again_at = None
        if not self._waiting:
            return
        now, started = self._clock.now(), self._clock.monotonic()
        if self._tell_apart():
            self._again_at = now + timedelta(seconds=_LOOK_S)
            if self._expects_arrivals():
                return
        self._pool.set_quotas(cluster_quotas(self._store))
        self._pool.set_failures(self._failures.recent(now))
        nominated = nominations(self._victims.values())
        drivers = {network.id: network.spec.needed_plugin for network in self._store.networks.all()}
        waiting = [self._as_asked_now(task) for task in self._waiting.values()]
        placements = place(
            waiting,
            self._pool,
            network_drivers=drivers,
            strategy=cluster_strategy(self._store),
            holders=self._holders,
            nominated=nominated,
        )
        left = [task for task in waiting if task.id in placements.pending and task.id not in nominated]
        expected = [
            (task, nominated[task.id]) for task in waiting if task.id in placements.pending and task.id in nominated
        ]
        preempting = self._preempt(left, drivers, expected=expected, now=now)
        changed = list(_outcomes(waiting, placements, now=now))
        if preempting:
            await self._mark(preempting, now=now)
        if not changed:
            return
        # A task refused here was changed by somebody else, whose change brings us back.
        refused = 0
        try:
            refused = await write_all(self._store, [Transaction().replace(task) for task in changed])
        finally:
            for task in changed:  # what was assumed and not written is given back
                self._set_task(task.id, self._store.tasks.get(task.id))
        self._measure(changed, started)
        if refused < len(changed):
            log.info(
                "scheduled",
                assigned=len(placements.assignments),
                pending=len(placements.pending),
                refused=refused,
                reason=next(iter(placements.pending.values()), ""),
                **about_requests(task.request for task in changed),
            )

    def _preempt(
        self,
        left: list[Task],
        drivers: Mapping[NetworkId, str],
        *,
        expected: list[tuple[Task, NodeId]],
        now: datetime,
    ) -> list[Preemption]:
        """Who is to yield to tasks that are ``left`` without a place. At most once a while, as it looks at many tasks."""
        able = may_preempt(self._store, left) if left else []
        able = [task for task in able if over_quota(self._pool.budgets(task.service_labels), task) is None]
        if not able or self._absent:  # nodes that are away for a moment may have room
            return []
        self._look_again(now + timedelta(seconds=_PREEMPT_S))
        if self._clock.monotonic() < self._preempt_not_before:
            return []
        self._preempt_not_before = self._clock.monotonic() + _PREEMPT_S / 2
        highest = max(priority_of(task.service_labels) for task in able)
        return plan_preemptions(
            able,
            self._pool,
            yielding=yielding(self._store, below=highest, now=now),
            expected=expected,
            make_demand=make_demand_of(
                self._pool,
                network_drivers=drivers,
                strategy=cluster_strategy(self._store),
                holders=self._holders,
            ),
        )

    async def _mark(self, preempting: list[Preemption], *, now: datetime) -> None:
        refused = await write_all(self._store, marks(self._store, preempting, now=now))
        for each in preempting:
            for victim in each.victims:
                self._set_task(victim.id, self._store.tasks.get(victim.id))
        first = preempting[0]
        log.info(
            "making room",
            begun=len(preempting) - refused,
            refused=refused,
            node=first.node_id,
            task=f"{first.task.service_name}.{first.task.slot or first.task.id}",
            stops=[f"{victim.service_name}.{victim.slot or victim.id}" for victim in first.victims],
        )

    def _look_again(self, at: datetime) -> None:
        self._again_at = at if self._again_at is None else min(self._again_at, at)

    def _as_asked_now(self, task: Task) -> Task:
        """With the labels that its service has now: one that waits is helped by what was said after it was made."""
        service = self._store.services.get(task.service_id)
        if service is None or service.spec.labels == task.service_labels:
            return task
        return msgspec.structs.replace(task, service_labels=service.spec.labels)

    def _measure(self, written: Iterable[Task], started: float) -> None:
        """``written``: as this pass wanted them; one that somebody else changed meanwhile is not counted."""
        self._figures.scheduler_pass_s.observe(self._clock.monotonic() - started)
        now = self._clock.now()
        for task in written:
            present = self._store.tasks.get(task.id)
            if task.node_id and task.created_at and present is not None and present.node_id == task.node_id:
                self._figures.scheduler_wait_s.observe(max((now - task.created_at).total_seconds(), 0.0))
                traces.span(
                    "schedule", request=task.request, began=task.created_at, ended=now, task=task.id, node=task.node_id
                )

    def _look_at_everything(self) -> None:
        tasks = self._store.tasks.all()
        for task in tasks:
            self._failures.record(task)
        self._absent = {}
        self._victims = {task.id: task for task in tasks if _yields(task)}
        self._waiting = {task.id: task for task in tasks if _waits(task)}
        self._pool = build_views(self._store.nodes.all(), tasks)

    def _note(self, change: Change) -> None:
        """Take a change over from the tables as they are now, which may be newer than the change."""
        if change.kind is Kind.NODE:
            node_id = NodeId(change.id)
            self._absent.pop(node_id, None)
            node = self._store.nodes.get(node_id)
            if node is None:
                self._pool.remove_node(node_id)
            else:
                self._pool.set_node(node)
        elif change.kind is Kind.TASK:
            if isinstance(change.new, Task):
                self._failures.record(change.new)
            self._set_task(TaskId(change.id), self._store.tasks.get(TaskId(change.id)))

    def _set_task(self, task_id: TaskId, task: Task | None) -> None:
        if task is None:
            self._waiting.pop(task_id, None)
            self._victims.pop(task_id, None)
            self._pool.remove_task(task_id)
            return
        if _yields(task):
            self._victims[task_id] = task
        else:
            self._victims.pop(task_id, None)
        if _waits(task):
            self._waiting[task_id] = task
        else:
            self._waiting.pop(task_id, None)
        self._pool.set_task(task)

    def _expects_arrivals(self) -> bool:
        now = self._clock.monotonic()
        return now - self._last_arrival < _ARRIVAL_S and now - self._term_began < _ARRIVALS_S_MAX

    def _tell_apart(self) -> int:
        """Tell the pool of nodes without a session that they are *disconnected*, and of those back that they are as stored;
        returns how many say of themselves that they are ready and have none."""
        for node_id, stored in list(self._absent.items()):
            if self._is_connected(node_id):
                del self._absent[node_id]
                self._pool.set_node(stored)
                self._last_arrival = self._clock.monotonic()
        for node_id, view in list(self._pool.items()):
            node = view.node
            if node.status.state is NodeState.READY and not self._is_connected(node_id):
                status = msgspec.structs.replace(node.status, state=NodeState.DISCONNECTED)
                self._absent[node_id] = node
                self._pool.set_node(msgspec.structs.replace(node, status=status))
        return len(self._absent)


def _waits(task: Task) -> bool:
    return task.status.state is TaskState.PENDING and task.desired_state.rank <= TaskState.RUNNING.rank


def _yields(task: Task) -> bool:
    return task.preempted is not None and not task.status.state.is_terminal


def _gives_work_or_room(change: Change) -> bool:
    """Nodes may have changed in any way, services and the cluster in their labels; tasks matter when they begin to wait, get a
    node (others may want to be near), cease to be wanted, end or go."""
    new, old = change.new, change.old
    if isinstance(new, Cluster):
        return not isinstance(old, Cluster) or new.spec.labels != old.spec.labels
    if isinstance(new, Service):
        return isinstance(old, Service) and new.spec.labels != old.spec.labels
    if not isinstance(new, Task):
        return change.kind is not Kind.SERVICE
    if _waits(new):
        return not isinstance(old, Task) or not _waits(old)
    if not isinstance(old, Task):
        return False
    ended = new.status.state.is_terminal and not old.status.state.is_terminal
    return ended or new.desired_state is not old.desired_state or _waits(old)


def _outcomes(waiting: Iterable[Task], placements: Placements, *, now: datetime) -> Iterable[Task]:
    """Tasks as they should be written; a task that still waits for the reason it already shows is left out."""
    for task in waiting:
        node_id = placements.assignments.get(task.id)
        if node_id is not None:
            yield msgspec.structs.replace(
                task,
                node_id=node_id,
                assigned_generic_resources=placements.generic_resources.get(task.id, ()),
                status=TaskStatus(timestamp=now, state=TaskState.ASSIGNED, message="scheduler assigned task to node"),
                updated_at=now,
            )
        elif task.status.err != placements.pending[task.id]:
            status = msgspec.structs.replace(
                task.status, timestamp=now, message="pending task scheduling", err=placements.pending[task.id]
            )
            yield msgspec.structs.replace(task, status=status, updated_at=now)
