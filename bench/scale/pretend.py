"""A node's tasks without containers: the assignment set is kept as the manager numbers it, each step only takes its time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from fleet.agent.reporter import Reporter
from fleet.agent.task_machine import Step, next_step
from fleet.agent.worker import OutOfStepError
from fleet.api import dispatch
from fleet.clock import Clock, SystemClock
from fleet.model.ids import TaskId
from fleet.model.node import NodeDescription, NodeResources
from fleet.model.task import ContainerStatus, Task, TaskState, TaskStatus

__all__ = ["CountingReporter", "PretendWorker", "Tally", "describe"]

_TAKES_S: Final = {Step.PREPARE: 0.10, Step.START: 0.05, Step.STOP: 0.05}
"""An image that is there, a container's start, the end of one that heeds SIGTERM: about what real ones take."""


class Tally:
    """What the nodes of one process hold together."""

    def __init__(self) -> None:
        self.assigned = 0
        """Tasks that have ever come."""
        self.running: set[TaskId] = set()
        """Running, wanted to, and the manager has said that it has this durably."""
        self.updated: set[TaskId] = set()
        """Those among them whose spec says so (``force_update``)."""


class CountingReporter(Reporter):
    """Tells of every report that a manager has made durable."""

    def __init__(self, clock: Clock, acknowledged: Callable[[TaskId, TaskStatus], None]) -> None:
        super().__init__(clock)
        self._acknowledged = acknowledged

    def acknowledge(self, number: int) -> None:
        for task_id, status in self._sent.get(number, {}).items():
            self._acknowledged(task_id, status)
        super().acknowledge(number)


class _Held:
    __slots__ = ("busy", "status", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.status = task.status
        self.busy = False


class PretendWorker:
    """What ``fleet.agent.session.Session`` asks of a ``Worker``."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._clock = SystemClock()
        self.reporter = CountingReporter(self._clock, self._acknowledged)
        self._sequence = 0
        self._others: set[str] = set()
        self._held: dict[TaskId, _Held] = {}
        self.ready = asyncio.Event()
        self.ready.set()

    def apply(self, message: dispatch.Assign) -> None:
        """Raises ``OutOfStepError`` as the agent's does."""
        keys = {dispatch.key_of(item): item for item in message.items}
        if message.complete:
            gone = [task_id for task_id in self._held if f"task/{task_id}" not in keys]
            self._others = set()
        else:
            if message.applies_to != self._sequence:
                raise OutOfStepError(f"assignment {message.applies_to} -> {message.results_in} on {self._sequence}")
            gone = [TaskId(key.removeprefix("task/")) for key in message.removed if key.startswith("task/")]
            self._others.difference_update(message.removed)
        self._sequence = message.results_in
        for task_id in gone:
            if self._held.pop(task_id, None) is not None:
                self._forget(task_id)
                self.reporter.forget(task_id)
        for key, item in keys.items():
            if not isinstance(item, dispatch.TaskItem):
                self._others.add(key)
                continue
            held = self._held.get(item.task.id)
            if held is None:
                held = self._held[item.task.id] = _Held(item.task)
                self._tally.assigned += 1
            elif item.task.desired_state.rank > held.task.desired_state.rank:
                held.task = item.task
            self._go_on(held)

    async def network_applied(self) -> None:
        """There is no network to wait for."""

    def report_all(self) -> None:
        """As the agent does at the beginning of a session."""
        for task_id, held in self._held.items():
            self.reporter.note(task_id, held.status)

    def _go_on(self, held: _Held) -> None:
        if held.busy:
            return
        match next_step(held.status.state, held.task.desired_state):
            case Step.ACCEPT:
                self._enter(held, TaskState.ACCEPTED)
                self._go_on(held)
            case Step.PREPARE:
                self._enter(held, TaskState.PREPARING)
                self._later(held, Step.PREPARE, TaskState.READY)
            case Step.START:
                self._enter(held, TaskState.STARTING)
                self._later(held, Step.START, TaskState.RUNNING)
            case Step.STOP:
                self._forget(held.task.id)
                self._later(held, Step.STOP, TaskState.SHUTDOWN)
            case Step.WATCH | Step.NOTHING:
                return

    def _later(self, held: _Held, step: Step, state: TaskState) -> None:
        held.busy = True

        def done() -> None:
            held.busy = False
            if self._held.get(held.task.id) is not held:
                return
            wished = held.task.desired_state.rank >= TaskState.SHUTDOWN.rank
            if step is Step.STOP or not wished:
                self._enter(held, state)
            self._go_on(held)

        asyncio.get_running_loop().call_later(_TAKES_S[step] * random.uniform(0.7, 1.3), done)

    def _enter(self, held: _Held, state: TaskState) -> None:
        container = held.status.container_status
        if state is TaskState.STARTING:
            container = ContainerStatus(container_id=f"{held.task.id:0>64}", pid=1)
        held.status = TaskStatus(
            timestamp=self._clock.now(), state=state, message=state.value, container_status=container
        )
        self.reporter.note(held.task.id, held.status)

    def _acknowledged(self, task_id: TaskId, status: TaskStatus) -> None:
        held = self._held.get(task_id)
        if held is None or status.state is not TaskState.RUNNING:
            return
        if held.task.desired_state.rank > TaskState.RUNNING.rank:
            return
        self._tally.running.add(task_id)
        if held.task.spec.force_update:
            self._tally.updated.add(task_id)

    def _forget(self, task_id: TaskId) -> None:
        self._tally.running.discard(task_id)
        self._tally.updated.discard(task_id)


def describe(hostname: str) -> dispatch.Hello:
    """A node of 16 processors and 64 GiB, whose address nobody will ever connect to (RFC 2544's range for benchmarks)."""
    number = int(hostname.rpartition("-")[2])
    description = NodeDescription(
        hostname=hostname, resources=NodeResources(nano_cpus=16 * 10**9, memory_bytes=64 << 30)
    )
    return dispatch.Hello(
        description=description,
        address=f"198.18.{number >> 8}.{number & 255}",
        cluster_port=2377,
        images=(),
    )
