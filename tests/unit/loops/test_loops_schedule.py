"""The schedules' loop over a real store: leaders that come and go, and two that believe they lead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
from support.clocks import START, SetClock
from support.decision_builders import a_service, a_task
from support.memory_engine import MemoryEngine

from fleet.manager.loops.schedule import ScheduleLoop
from fleet.model.service import JobMode, JobStatus, Service, ServiceMode
from fleet.model.task import TaskState
from fleet.store import Store, Transaction


def a_job() -> Service:
    service = a_service("tick")
    mode = ServiceMode(replicated_job=JobMode(total_completions=1))
    labels = {"fleet.schedule.cron": "* * * * *", "fleet.schedule.deadline": "10m"}
    spec = msgspec.structs.replace(service.spec, mode=mode, labels=labels)
    return msgspec.structs.replace(service, spec=spec, created_at=START, job_status=JobStatus(scheduled=START))


class Here:
    """A store, a clock, and leaders."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, SetClock()
        self.leaders: list[asyncio.Task[None]] = []

    def lead(self) -> asyncio.Task[None]:
        self.leaders.append(asyncio.create_task(ScheduleLoop(self.store, self.clock).run()))
        return self.leaders[-1]

    def status(self) -> JobStatus:
        service = self.store.services.get(a_job().id)
        assert service is not None and service.job_status is not None
        return service.job_status

    async def until(self, condition: Callable[[], object]) -> None:
        with self.store.subscribe() as subscription:
            async with asyncio.timeout(5):
                while not condition():
                    await subscription.wait()

    async def end_run(self) -> None:
        service = self.store.services.get(a_job().id)
        assert service is not None
        spec, iteration = service.spec.task_template, service.job_iteration
        done = a_task("tick", spec=spec, state=TaskState.COMPLETE, job_iteration=iteration)
        await self.store.commit(Transaction().create(done))


def run(scenario: Callable[[Here], Awaitable[None]]) -> None:
    async def body() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        here = Here(store)
        try:
            await store.commit(Transaction().create(a_job()))
            await scenario(here)
        finally:
            for leader in here.leaders:
                leader.cancel()
            await asyncio.gather(*here.leaders, return_exceptions=True)
            await store.close()
            await engine.close()

    asyncio.run(body())


def test_a_run_ends_in_the_history_when_its_task_does() -> None:
    async def scenario(here: Here) -> None:
        here.lead()
        here.clock.go(60)
        await here.until(lambda: here.status().runs)
        assert here.status().runs[0].outcome == "running"
        await here.end_run()
        await here.until(lambda: here.status().runs[0].outcome == "succeeded")

    run(scenario)


def test_leaders_that_fall_between_runs_neither_double_nor_lose_one() -> None:
    async def scenario(here: Here) -> None:
        for number in range(1, 6):
            leader = here.lead()
            here.clock.go(60)
            await here.until(lambda number=number: len(here.status().runs) == number)
            leader.cancel()
            await here.end_run()
            again = here.lead()
            await here.until(lambda number=number: here.status().runs[number - 1].outcome == "succeeded")
            again.cancel()
        runs = here.status().runs
        assert [run.scheduled for run in runs] == [START + timedelta(minutes=n) for n in range(1, 6)]
        assert [run.iteration for run in runs] == [1, 2, 3, 4, 5]

    run(scenario)


def test_two_that_believe_they_lead_begin_one_run() -> None:
    async def scenario(here: Here) -> None:
        here.lead()
        here.lead()
        for number in range(1, 4):
            here.clock.go(60)
            await here.until(lambda number=number: len(here.status().runs) >= number)
            await here.end_run()
            await here.until(lambda number=number: here.status().runs[number - 1].outcome == "succeeded")
        assert [run.iteration for run in here.status().runs] == [1, 2, 3]

    run(scenario)
