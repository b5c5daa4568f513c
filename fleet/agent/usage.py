"""What tasks and the host use, told to the manager that asked: what it asked for, every few seconds, while the session is up.

A reading costs one question to the supervisor a task, and a few small files for the host. What is not sent in time is not sent at
all: the next reading is newer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

from fleet import errors
from fleet.agent.worker import Worker
from fleet.api.dispatch import USAGE_MAX, HostUsage, Measure, TaskUsage, Usage
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.model.task import Task, task_name

__all__ = ["UsageReporter", "busy_ns", "host_reader", "memory_taken_bytes", "nothing_used", "usage_reader"]

Read = Callable[[Collection[str] | None], Awaitable[tuple[TaskUsage, ...]]]
"""What the running tasks of these services use; of all with None."""
ReadHost = Callable[[], Awaitable[HostUsage | None]]
"""What the host uses; None where that cannot be read."""

_AT_ONCE: Final = 16
_PERIOD_MIN_S: Final = 0.5
"""However often a manager asks."""


async def nothing_used(_services: Collection[str] | None) -> tuple[TaskUsage, ...]:
    """Of a host without containers."""
    return ()


async def _no_host() -> HostUsage | None:
    return None


class UsageReporter:
    """``ask`` on the manager's ``Measure``; ``run`` while a session is up."""

    def __init__(self, clock: Clock, read: Read, read_host: ReadHost = _no_host) -> None:
        self._clock = clock
        self._read = read
        self._read_host = read_host
        self._asked = Measure()
        self._changed = asyncio.Event()

    def ask(self, wanted: Measure) -> None:
        """From now on this; one of nothing ends it."""
        self._asked = wanted
        self._changed.set()

    async def run(self, send: Callable[[Usage], Awaitable[None]]) -> None:
        """Until cancelled or ``send`` raises."""
        while True:
            self._changed.clear()
            asked = self._asked
            if asked.is_nothing:
                await self._changed.wait()
                continue
            tasks: tuple[TaskUsage, ...] = ()
            if asked.every or asked.services:
                tasks = await self._read(None if asked.every else frozenset(asked.services))
            host = await self._read_host() if asked.host else None
            if tasks or host is not None:
                await send(Usage(at_ns=int(self._clock.monotonic() * 1e9), tasks=tasks[:USAGE_MAX], host=host))
            await self._clock.sleep(_PERIOD_MIN_S)
            if asked.period_s > _PERIOD_MIN_S:
                await self._wait(asked.period_s - _PERIOD_MIN_S)

    async def _wait(self, period_s: float) -> None:
        """For so long, or until something else is asked: whoever looks now does not want to wait for a slow period's end."""
        timer = self._clock.call_later(period_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()


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

    async def read(services: Collection[str] | None) -> tuple[TaskUsage, ...]:
        tasks = worker.running_tasks(services)[:USAGE_MAX]
        found = await asyncio.gather(*(one(task) for task in tasks))
        return tuple(usage for usage in found if usage is not None)

    return read


def host_reader(engine: ContainerEngine, proc: Path = Path("/proc")) -> ReadHost:
    """Of this host, from ``proc``, and of its containers together."""

    def read_files() -> tuple[int, int] | None:
        try:
            return (
                busy_ns((proc / "stat").read_text(), ticks=os.sysconf("SC_CLK_TCK")),
                memory_taken_bytes((proc / "meminfo").read_text()),
            )
        except (OSError, ValueError, IndexError, KeyError):
            return None

    async def read() -> HostUsage | None:
        of_host = await asyncio.to_thread(read_files)
        try:
            containers = await engine.stats_of_all()
        except errors.FleetError:
            return None
        if of_host is None:
            return None
        memory = max(containers.memory_usage_bytes - containers.memory_inactive_file_bytes, 0)
        return HostUsage(*of_host, containers.cpu_usage_ns, memory)

    return read


def busy_ns(stat: str, *, ticks: int) -> int:
    """Time that all processors together did something, from ``/proc/stat`` (proc_stat(5)): user, nice, system, irq, softirq and
    steal, not idle and iowait; guests are in user already. ``ticks`` a second."""
    fields = [int(field) for field in stat.splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, *others = fields
    return (user + nice + system + sum(others)) * 1_000_000_000 // ticks


def memory_taken_bytes(meminfo: str) -> int:
    """What could not be given to a new process: ``MemTotal`` less ``MemAvailable`` of ``/proc/meminfo`` (proc_meminfo(5))."""
    found = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return max(0, int(found["MemTotal"].split()[0]) - int(found["MemAvailable"].split()[0])) * 1024
