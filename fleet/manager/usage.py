"""What tasks use, as agents told the leader: a few readings a task, in memory only, and which tasks to ask for.

Asked for are the tasks of services that are scaled by it and, for as long as somebody looks (``watch``), all.
A new leader knows nothing and asks at once; after two readings of a task it knows its CPU again. An agent is believed about
tasks of its own node alone.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from fleet.api.dispatch import USAGE_MAX, Measure, Usage
from fleet.clock import Clock
from fleet.model.autoscale import has_policy, policy_of
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.service import Service
from fleet.model.task import Task
from fleet.store import Changes, Store

__all__ = ["TaskLoad", "TaskLoads"]

_READINGS_MAX: Final = 64
_READINGS_LOOKED_AT: Final = 3
"""Of tasks that are read because somebody looks: nobody asks for their past."""
_WATCH_S: Final = 30.0
"""How long a look lasts, unless there is another."""
_WATCH_PERIOD_S: Final = 2.0
_TASKS_A_PERIOD: Final = 1_000
"""With more tasks the period of a look grows."""
_FRESH_PERIODS: Final = 3.0
_EARLY: Final = 0.95
"""Of a period: a reading that comes sooner was made for somebody else."""
_GAP_MIN_S: Final = 0.25
"""Frames of one node that come sooner are not read."""
_PERIOD_S: Final = (1.0, 10.0)
"""Shortest and longest time between two readings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLoad:
    """``nano_cpus``: CPU time a second, in billionths of a core; None after a single reading."""

    nano_cpus: int | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Reading:
    heard_at: float
    at_ns: int
    cpu_ns: int
    memory_bytes: int


class TaskLoads:
    """One a leader's term; fed by the dispatcher."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._readings: dict[TaskId, deque[_Reading]] = {}
        self._heard: dict[NodeId, float] = {}
        self._periods: dict[ServiceId, float] = {}
        """Of services to be measured, the seconds between two readings."""
        self._watched_until = -math.inf
        self._watch_period_s = _WATCH_PERIOD_S
        self._is_watched = False
        self._watch_begun = asyncio.Event()
        self.follow(Changes((), resync=True))

    # Whom to ask ----------------------------------------------------------------------------------------------

    def follow(self, changes: Changes) -> set[ServiceId]:
        """The tables changed: other services want to be measured, or tasks are no more. Returns the services of which agents are
        to be asked something else now.
        """
        before = dict(self._periods)
        if changes.resync:
            self._periods.clear()
            for service in self._store.services.all():
                self._look(service)
            for task_id in [task_id for task_id in self._readings if self._store.tasks.get(task_id) is None]:
                del self._readings[task_id]
        for change in changes:
            if isinstance(change.new, Service):
                self._look(change.new)
            elif change.new is None and isinstance(change.old, Service):
                self._periods.pop(change.old.id, None)
            elif change.new is None and isinstance(change.old, Task):
                self._readings.pop(change.old.id, None)
        if before == self._periods:
            return set()
        return {each for each in before.keys() | self._periods.keys() if before.get(each) != self._periods.get(each)}

    def _look(self, service: Service) -> None:
        policy = policy_of(service.spec) if has_policy(service.spec.labels) else None
        if policy is None or not policy.measures_tasks or service.pending_delete:
            self._periods.pop(service.id, None)
        else:
            self._periods[service.id] = min(max(policy.interval.total_seconds() / 3, _PERIOD_S[0]), _PERIOD_S[1])

    def wanted(self, service_ids: Iterable[ServiceId]) -> Measure:
        """What to ask a node that has tasks of these services; nothing for most, while nobody looks."""
        found = sorted(set(service_ids) & self._periods.keys()) if self._periods else []
        periods = [self._periods[service_id] for service_id in found]
        if self._is_watched:
            periods.append(self._watch_period_s)
        if not periods:
            return Measure()
        return Measure(services=tuple(found), period_s=min(periods), every=self._is_watched)

    def watch(self) -> None:
        """Somebody looks at what tasks use: for a while all are to be read."""
        self._watched_until = self._clock.monotonic() + _WATCH_S
        self._watch_period_s = _WATCH_PERIOD_S * max(1, math.ceil(len(self._store.tasks.all()) / _TASKS_A_PERIOD))
        self._watch_begun.set()

    async def watch_turned(self) -> None:
        """Returns when a look has begun, or the last one has ended, and ``wanted`` is something else. Cancels safely."""
        if not self._is_watched:
            await self._watch_begun.wait()
            self._is_watched = True
            return
        while (left_s := self._watched_until - self._clock.monotonic()) > 0:
            await self._clock.sleep(left_s)
        self._watch_begun.clear()
        self._is_watched = False

    # What they said -------------------------------------------------------------------------------------------

    def note(self, node_id: NodeId, said: Usage) -> None:
        """An agent's answer. What is not about its own tasks, or comes too often or in too great a number, is not read."""
        now = self._clock.monotonic()
        if now - self._heard.get(node_id, -_GAP_MIN_S) < _GAP_MIN_S:
            return
        self._heard[node_id] = now
        for usage in said.tasks[:USAGE_MAX]:
            task = self._store.tasks.get(usage.task_id)
            if task is None or task.node_id != node_id or usage.cpu_ns < 0 or usage.memory_bytes < 0:
                continue
            kept = _READINGS_MAX if task.service_id in self._periods else _READINGS_LOOKED_AT
            readings = self._readings.get(usage.task_id)
            if readings is None or readings.maxlen != kept:
                readings = self._readings[usage.task_id] = deque(readings or (), maxlen=kept)
            if readings and (said.at_ns <= readings[-1].at_ns or usage.cpu_ns < readings[-1].cpu_ns):
                readings.clear()  # the host started anew
            period_s = self._periods.get(task.service_id, 0.0)
            if readings and now - readings[-1].heard_at < _EARLY * period_s:
                continue  # 64 readings have to hold the longest span that is scaled by
            readings.append(_Reading(now, said.at_ns, usage.cpu_ns, usage.memory_bytes))

    def of(self, task_id: TaskId, service_id: ServiceId, *, span: timedelta) -> TaskLoad | None:
        """Over the last ``span``, or as much of it as is known; None when nothing was heard of the task lately."""
        readings = self._readings.get(task_id)
        now = self._clock.monotonic()
        period_s = self._periods.get(service_id, max(_PERIOD_S[1], self._watch_period_s))
        if not readings or now - readings[-1].heard_at > _FRESH_PERIODS * period_s + 1:
            return None
        newest = readings[-1]
        begin = now - max(span.total_seconds(), 2 * period_s)
        oldest = next((reading for reading in readings if reading.heard_at >= begin), newest)
        elapsed_ns = newest.at_ns - oldest.at_ns
        cpus = (newest.cpu_ns - oldest.cpu_ns) * 1_000_000_000 // elapsed_ns if elapsed_ns > 0 else None
        return TaskLoad(nano_cpus=cpus, memory_bytes=newest.memory_bytes)
