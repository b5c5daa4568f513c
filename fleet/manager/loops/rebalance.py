"""The rebalancer's loop: tasks are marked to move, a few at a time, when a person asks or where that is automatic.

It writes ``Task.move`` to begin one, and the end of what was asked for on the cluster. It waits for the moves under way before it
plans again, so each batch is planned from what is; a batch that never ends is ended by the orchestrator (``orchestrator.moves``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import write_all
from fleet.manager.rebalancing import AT_ONCE_MAX, plan_rebalancing, under_way_until, wants_automatic
from fleet.model.cluster import Cluster
from fleet.model.ids import TaskId
from fleet.model.node import Node
from fleet.model.task import Task
from fleet.store import Change, Changes, Kind, Store, Transaction

__all__ = ["RebalanceLoop"]

log = get_logger("rebalancer")

_SETTLE: Final = timedelta(seconds=15)
"""Automatic moves wait until no node has come, gone or changed for so long: a node that comes and goes attracts nothing, and its
tasks' replacements have their places first."""
_SHARE: Final = 20
"""Planning costs a look at every task: it may take one part in so many of the time."""
_PERIOD: Final = timedelta(seconds=60)
"""Where it is automatic: services become whole again, and given-up moves old, without an event that is waited for."""
_PAUSE_MIN: Final = timedelta(milliseconds=200)


class RebalanceLoop:
    """One a leader."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._under_way: dict[TaskId, datetime] = {}
        """Tasks that are part of a move, with when they are waited for no longer."""
        self._is_due = True
        """Something changed since the last plan that may make another one of use."""
        self._look_again_at: datetime | None = None
        self._nodes_changed_at = clock.now()
        self._not_before = clock.now()

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        kinds = (Kind.NODE, Kind.TASK, Kind.SERVICE, Kind.CLUSTER)
        with self._store.subscribe(*kinds) as subscription:
            self._look_at_everything()
            self._nodes_changed_at = self._clock.now()
            while True:
                again_at = await self._step()
                self._note(await changes_until(subscription, self._clock, again_at))

    async def _step(self) -> datetime | None:
        """Begin what is to begin; returns when to look again though nothing happens."""
        now = self._clock.now()
        self._under_way = {task_id: until for task_id, until in self._under_way.items() if now < until}
        if self._under_way:
            return min(self._under_way.values())
        if self._look_again_at is not None and now >= self._look_again_at:
            self._is_due, self._look_again_at = True, None
        if not self._is_due:
            return self._look_again_at
        if now < self._not_before:
            return self._not_before
        cluster = next(iter(self._store.clusters.all()), None)
        request = cluster.rebalance if cluster is not None else None
        is_asked = request is not None and request.finished_at is None
        if not is_asked:
            if not wants_automatic(self._store, cluster):
                self._is_due = False
                return None
            settled_at = self._nodes_changed_at + _SETTLE
            if now < settled_at:
                return settled_at
        began = self._clock.monotonic()
        plan = plan_rebalancing(self._store, cluster, now=now, is_asked=is_asked, limit=4 * AT_ONCE_MAX)
        self._not_before = now + max(_PAUSE_MIN, timedelta(seconds=_SHARE * (self._clock.monotonic() - began)))
        moves = plan.first()
        if moves:
            refused = await write_all(self._store, [plan.mark(each, now=now) for each in moves])
            log.info("moving tasks", begun=len(moves) - refused, refused=refused, reason=moves[0].reason)
            return self._not_before
        self._is_due = False
        self._look_again_at = now + _PERIOD
        if is_asked and cluster is not None:
            await self._finish(cluster, now=now)
        return self._look_again_at

    async def _finish(self, cluster: Cluster, *, now: datetime) -> None:
        assert cluster.rebalance is not None
        finished = msgspec.structs.replace(cluster.rebalance, finished_at=now, outcome="nothing is left to move")
        changed = msgspec.structs.replace(cluster, rebalance=finished, updated_at=now)
        if await write_all(self._store, [Transaction().replace(changed)]):
            self._is_due = True  # somebody else changed the cluster; its change wakes us

    def _look_at_everything(self) -> None:
        found = ((task.id, under_way_until(task)) for task in self._store.tasks.all())
        self._under_way = {task_id: until for task_id, until in found if until is not None}
        self._is_due = True

    def _note(self, changes: Changes) -> None:
        if changes.resync:
            self._look_at_everything()
        for change in changes:
            if change.kind is Kind.TASK:
                self._note_task(change)
            elif change.kind is not Kind.NODE or _matters(change.old, change.new):
                self._is_due = True
                if change.kind is Kind.NODE:
                    self._nodes_changed_at = self._clock.now()

    def _note_task(self, change: Change) -> None:
        task_id = TaskId(change.id)
        until = under_way_until(change.new) if isinstance(change.new, Task) else None
        if until is not None:
            self._under_way[task_id] = until
        elif self._under_way.pop(task_id, None) is not None:
            self._is_due = True


def _matters(old: object, new: object) -> bool:
    """Whether a node changed in what placing looks at."""
    if not isinstance(old, Node) or not isinstance(new, Node):
        return True
    return (old.spec, old.description, old.status.state, old.removed) != (
        new.spec,
        new.description,
        new.status.state,
        new.removed,
    )
