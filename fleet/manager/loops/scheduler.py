"""The scheduler's loop: tasks that wait for a node are placed as soon as they, or room for them, appear.

It writes ``node_id`` and the states *pending* (with the reason) and *assigned*, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import write_all
from fleet.model.task import Task, TaskState, TaskStatus
from fleet.scheduler.node_view import FailureLog, build_views
from fleet.scheduler.place import Placements, place
from fleet.store import Change, Changes, Kind, Store, Transaction

__all__ = ["SchedulerLoop"]

log = get_logger("scheduler")


class SchedulerLoop:
    """One a leader."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._failures = FailureLog()

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.TASK, Kind.NODE) as subscription:
            for task in self._store.tasks.all():
                self._failures.record(task)
            await self._schedule()
            while True:
                changes = await changes_until(subscription, self._clock, None)
                self._note_failures(changes)
                if changes.resync or any(_gives_work_or_room(change) for change in changes):
                    await self._schedule()

    async def _schedule(self) -> None:
        tasks = self._store.tasks.all()
        waiting = [task for task in tasks if _waits(task)]
        if not waiting:
            return
        now = self._clock.now()
        views = build_views(self._store.nodes.all(), tasks, failures=self._failures.recent(now))
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
