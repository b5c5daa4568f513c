"""What tasks use, told when asked: which, how often, and not after the asking has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from support.objects import make_task

from fleet import errors
from fleet.agent.usage import UsageReporter, usage_reader
from fleet.api.dispatch import Measure, TaskUsage, Usage
from fleet.clock import SystemClock
from fleet.model.ids import ServiceId, TaskId

WEB = ServiceId("service-web")


class QuickClock(SystemClock):
    """Remembers what is slept and does not."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        await asyncio.sleep(0)


def test_it_is_said_while_it_is_asked_for_at_the_period_that_was_asked() -> None:
    async def main() -> None:
        clock, sent, read = QuickClock(), [], []

        async def reading(services: Collection[str]) -> tuple[TaskUsage, ...]:
            read.append(set(services))
            return (TaskUsage(TaskId("t"), len(read), 7),)

        async def send(usage: Usage) -> None:
            sent.append(usage)
            if len(sent) == 3:
                reporter.ask(Measure())

        reporter = UsageReporter(clock, reading)
        running = asyncio.create_task(reporter.run(send))
        for _ in range(20):
            await asyncio.sleep(0)
        assert sent == []
        reporter.ask(Measure(services=(WEB,), period_s=3))
        for _ in range(50):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert read == [{WEB}] * 3
        assert [usage.tasks[0].cpu_ns for usage in sent] == [1, 2, 3]
        assert clock.slept[:2] == [3, 3]

    asyncio.run(main())


def test_a_manager_that_asks_without_pause_is_answered_twice_a_second() -> None:
    async def main() -> None:
        clock = QuickClock()

        async def reading(_services: Collection[str]) -> tuple[TaskUsage, ...]:
            return ()

        async def send(_usage: Usage) -> None:
            raise AssertionError("there is nothing to say")

        reporter = UsageReporter(clock, reading)
        reporter.ask(Measure(services=(WEB,), period_s=0))
        running = asyncio.create_task(reporter.run(send))
        for _ in range(10):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert set(clock.slept) == {0.5}

    asyncio.run(main())


def test_a_reading_leaves_page_cache_out_and_skips_what_ended() -> None:
    async def main() -> None:
        tasks = [make_task(f"t{number}") for number in (1, 2, 3)]

        class Worker:
            def running_tasks(self, services: Collection[str]) -> list[Any]:
                assert services == {WEB}
                return tasks

        class Engine:
            async def stats(self, name: str) -> Any:
                if name.endswith("t2"):
                    return None
                if name.endswith("t3"):
                    raise errors.NotFoundError(name)
                return SimpleNamespace(cpu_usage_ns=5, memory_usage_bytes=100, memory_inactive_file_bytes=40)

        read = usage_reader(Worker(), Engine())  # type: ignore[arg-type]
        assert await read({WEB}) == (TaskUsage(TaskId("t1"), 5, 60),)

    asyncio.run(main())
