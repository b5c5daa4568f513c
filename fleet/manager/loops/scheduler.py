"""The scheduler's loop: tasks that wait for a node are placed as soon as they, or room for them, appear.

It writes ``node_id`` and the states *pending* (with the reason) and *assigned*, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import write_all
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeState
from fleet.model.task import Task, TaskState, TaskStatus
from fleet.scheduler.node_view import FailureLog, build_views
from fleet.scheduler.place import Placements, place
from fleet.store import Change, Changes, Kind, Store, Transaction

__all__ = ["SchedulerLoop"]

log = get_logger("scheduler")


_ARRIVAL_S: Final = 0.4
"""After a change of leaders agents come back within some tenths of a second; until then nobody knows which nodes still live."""
_LOOK_S: Final = 0.1


class SchedulerLoop:
    """One a leader. ``is_connected``: whether a node has a session here. One that is *ready* and has none is passed over, and
    at the beginning of a term waited for: its state was written by the leader before."""

    def __init__(
        self, store: Store, clock: Clock, *, is_connected: Callable[[NodeId], bool] = lambda _node_id: True
    ) -> None:
        self._store = store
        self._clock = clock
        self._is_connected = is_connected
        self._again_at: datetime | None = None
        self._failures = FailureLog()

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.TASK, Kind.NODE) as subscription:
            for task in self._store.tasks.all():
                self._failures.record(task)
            began = self._clock.monotonic()
            await self._schedule(began)
            while True:
                changes = await changes_until(subscription, self._clock, self._again_at)
                self._note_failures(changes)
                due = self._again_at is not None and self._again_at <= self._clock.now()
                if due or changes.resync or any(_gives_work_or_room(change) for change in changes):
                    await self._schedule(began)

    async def _schedule(self, began: float) -> None:
        self._again_at = None
        tasks = self._store.tasks.all()
        waiting = [task for task in tasks if _waits(task)]
        if not waiting:
            return
        now = self._clock.now()
        nodes, missing = self._nodes()
        if missing:
            self._again_at = now + timedelta(seconds=_LOOK_S)
            if self._clock.monotonic() - began < _ARRIVAL_S:
                return
        views = build_views(nodes, tasks, failures=self._failures.recent(now))
        drivers = {network.id: network.spec.driver for network in self._store.networks.all()}
        placements = place(waiting, views, network_drivers=drivers)
        changed = list(_outcomes(waiting, placements, now=now))
        if not changed:
            return
        # A task refused here was changed by somebody else, whose change brings us back.
        refused = await write_all(self._store, [Transaction().replace(task) for task in changed])
        if refused < len(changed):
            log.info(
                "scheduled",
                assigned=len(placements.assignments),
                pending=len(placements.pending),
                refused=refused,
                reason=next(iter(placements.pending.values()), ""),
            )

    def _nodes(self) -> tuple[list[Node], int]:
        """All nodes, those without a session as *disconnected*; and how many of these say of themselves that they are ready."""
        nodes, missing = [], 0
        for node in self._store.nodes.all():
            if node.status.state is NodeState.READY and not node.removed and not self._is_connected(node.id):
                missing += 1
                status = msgspec.structs.replace(node.status, state=NodeState.DISCONNECTED)
                nodes.append(msgspec.structs.replace(node, status=status))
            else:
                nodes.append(node)
        return nodes, missing

    def _note_failures(self, changes: Changes) -> None:
        for change in changes:
            if isinstance(change.new, Task):
                self._failures.record(change.new)


def _waits(task: Task) -> bool:
    return task.status.state is TaskState.PENDING and task.desired_state.rank <= TaskState.RUNNING.rank


def _gives_work_or_room(change: Change) -> bool:
    """Nodes may have changed in any way; tasks matter when they begin to wait, cease to be wanted, end or go."""
    new, old = change.new, change.old
    if not isinstance(new, Task):
        return True
    if _waits(new):
        return not isinstance(old, Task) or not _waits(old)
    if not isinstance(old, Task):
        return False
    ended = new.status.state.is_terminal and not old.status.state.is_terminal
    return ended or new.desired_state is not old.desired_state


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
