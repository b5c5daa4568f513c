"""What tasks use, told when asked: which, how often, and not after the asking has ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.objects import make_task

from fleet import errors
from fleet.agent.usage import UsageReporter, host_reader, usage_reader
from fleet.api.dispatch import HostUsage, Measure, TaskUsage, Usage
from fleet.clock import SystemClock, Timer
from fleet.model.ids import ServiceId, TaskId

WEB = ServiceId("service-web")


class QuickClock(SystemClock):
    """Remembers what is slept and does not."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        await asyncio.sleep(0)

    def call_later(self, duration_s: float, call: Callable[[], object]) -> Timer:
        self.slept.append(duration_s)
        return asyncio.get_running_loop().call_soon(call)


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
        assert clock.slept[:4] == [0.5, 2.5] * 2

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


def test_a_look_is_not_kept_waiting_by_the_slow_period_of_before() -> None:
    async def main() -> None:
        sent: list[Usage] = []

        async def reading(services: Collection[str] | None) -> tuple[TaskUsage, ...]:
            assert services is None
            return (TaskUsage(TaskId("t"), 1, 7),)

        async def read_host() -> HostUsage:
            return HostUsage(4, 3, 2, 1)

        async def send(usage: Usage) -> None:
            sent.append(usage)

        reporter = UsageReporter(SystemClock(), reading, read_host)
        reporter.ask(Measure(host=True, period_s=3600))
        running = asyncio.create_task(reporter.run(send))
        async with asyncio.timeout(30):
            while not sent:
                await asyncio.sleep(0.01)
            assert (sent[0].host, sent[0].tasks) == (HostUsage(4, 3, 2, 1), ())
            reporter.ask(Measure(host=True, every=True, period_s=3600))
            while len(sent) < 2:
                await asyncio.sleep(0.01)
        assert sent[1].tasks == (TaskUsage(TaskId("t"), 1, 7),)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_host_is_read_from_proc_and_its_containers_from_their_group(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 4000 50 6 7 8 90 10\ncpu0 1 2 3 4\n")
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n")

    class Engine:
        async def stats_of_all(self) -> Any:
            return SimpleNamespace(cpu_usage_ns=5, memory_usage_bytes=100, memory_inactive_file_bytes=40)

    read = host_reader(Engine(), tmp_path)  # type: ignore[arg-type]
    found = asyncio.run(read())
    assert found is not None
    assert found.cpu_ns == (100 + 20 + 30 + 6 + 7 + 8) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert (found.memory_bytes, found.containers_cpu_ns) == (600 * 1024, 5)
    assert found.containers_memory_bytes == 60
    (tmp_path / "meminfo").write_text("")
    assert asyncio.run(read()) is None
