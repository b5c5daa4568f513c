"""What tasks use, told to the manager that asked: only of the services it named, every few seconds, while the session is up.

A reading costs one question to the supervisor a task. What is not sent in time is not sent at all: the next reading is newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from fleet import errors
from fleet.agent.worker import Worker
from fleet.api.dispatch import USAGE_MAX, Measure, TaskUsage, Usage
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.model.task import Task, task_name

__all__ = ["UsageReporter", "nothing_used", "usage_reader"]

Read = Callable[[Collection[str]], Awaitable[tuple[TaskUsage, ...]]]
"""What the running tasks of these services use."""

_AT_ONCE: Final = 16
_PERIOD_MIN_S: Final = 0.5
"""However often a manager asks."""


class UsageReporter:
    """``ask`` on the manager's ``Measure``; ``run`` while a session is up."""

    def __init__(self, clock: Clock, read: Read) -> None:
        self._clock = clock
        self._read = read
        self._asked = Measure()
        self._changed = asyncio.Event()

    def ask(self, wanted: Measure) -> None:
        """From now on these services; one of none ends it."""
        self._asked = wanted
        self._changed.set()

    async def run(self, send: Callable[[Usage], Awaitable[None]]) -> None:
        """Until cancelled or ``send`` raises."""
        while True:
            self._changed.clear()
            if not self._asked.services:
                await self._changed.wait()
                continue
            tasks = await self._read(frozenset(self._asked.services))
            if tasks:
                await send(Usage(at_ns=int(self._clock.monotonic() * 1e9), tasks=tasks[:USAGE_MAX]))
            await self._clock.sleep(max(self._asked.period_s, _PERIOD_MIN_S))


async def nothing_used(_services: Collection[str]) -> tuple[TaskUsage, ...]:
    """Of a host without containers."""
    return ()


def usage_reader(worker: Worker, engine: ContainerEngine) -> Read:
    """Of this host's containers; those that end meanwhile are left out."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(task: Task) -> TaskUsage | None:
        async with room:
            try:
                stats = await engine.stats(task_name(task))
            except errors.FleetError:
                return None
        if stats is None:
            return None
        memory = max(stats.memory_usage_bytes - stats.memory_inactive_file_bytes, 0)
        return TaskUsage(task.id, stats.cpu_usage_ns, memory)

    async def read(services: Collection[str]) -> tuple[TaskUsage, ...]:
        tasks = worker.running_tasks(services)[:USAGE_MAX]
        found = await asyncio.gather(*(one(task) for task in tasks))
        return tuple(usage for usage in found if usage is not None)

    return read
