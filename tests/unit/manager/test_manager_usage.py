"""What agents say that tasks use: whom to ask, what is believed, and what is known when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
from support.clocks import SleepingTimers
from support.decision_builders import a_service, a_task
from support.memory_engine import MemoryEngine

from fleet.api.dispatch import Measure, TaskUsage, Usage, decode_agent, encode
from fleet.manager.usage import TaskLoad, TaskLoads
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.service import Service
from fleet.model.task import TaskState
from fleet.store import Changes, Store, Transaction

NODE, SERVICE, TASK = NodeId("n1"), ServiceId("web"), TaskId("t1")
SPAN = timedelta(seconds=15)


class StillClock(SleepingTimers):
    time = 1000.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        return datetime(2026, 5, 1, tzinfo=UTC)

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError


def service(name: str = "web", **labels: str) -> Service:
    found = a_service(name)
    named = {f"fleet.autoscale.{key}": text for key, text in labels.items()}
    return msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, labels=named))


def over(body: Callable[[TaskLoads, Store, StillClock], None], *services: Service) -> None:
    async def scenario() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        try:
            task = a_task(node=NODE, state=TaskState.RUNNING, task_id=TASK)
            tx = Transaction().create(task)
            for each in services or (service(max="5", cpu="50"),):
                tx.create(each)
            await store.commit(tx)
            clock = StillClock()
            body(TaskLoads(store, clock), store, clock)
        finally:
            await store.close()
            await engine.close()

    asyncio.run(scenario())


def say(
    loads: TaskLoads, clock: StillClock, cpu_s: float, *, after: float = 0, node: NodeId = NODE, memory: int = 7
) -> None:
    clock.time += after
    loads.note(node, Usage(at_ns=int(clock.time * 1e9), tasks=(TaskUsage(TASK, int(cpu_s * 1e9), memory),)))


def test_only_services_whose_policy_needs_it_are_asked_for() -> None:
    services = (
        service("web", max="5", cpu="50"),
        service("fast", max="5", memory="50", interval="3s"),
        service("queue", max="5", query="x", prometheus="http://p", **{"query-target": "2"}),
        service("plain"),
        service("bad", max="five"),
    )

    def body(loads: TaskLoads, _store: Store, _clock: StillClock) -> None:
        names = [ServiceId(each.spec.name) for each in services]
        assert loads.wanted(names) == Measure(services=(ServiceId("fast"), SERVICE), period_s=1.0)
        assert loads.wanted([SERVICE]).period_s == 5.0
        assert loads.wanted([ServiceId("plain")]) == Measure()

    over(body, *services)


def test_cpu_is_the_difference_of_two_readings_by_the_nodes_own_clock() -> None:
    def body(loads: TaskLoads, _store: Store, clock: StillClock) -> None:
        assert loads.of(TASK, SERVICE, span=SPAN) is None
        say(loads, clock, 100)
        assert loads.of(TASK, SERVICE, span=SPAN) == TaskLoad(nano_cpus=None, memory_bytes=7)
        say(loads, clock, 102.5, after=5)
        assert loads.of(TASK, SERVICE, span=SPAN) == TaskLoad(nano_cpus=500_000_000, memory_bytes=7)
        for _ in range(4):
            say(loads, clock, 102.5, after=5)
        assert loads.of(TASK, SERVICE, span=SPAN) == TaskLoad(nano_cpus=0, memory_bytes=7), "of the last 15 s alone"

    over(body)


def test_what_was_said_long_ago_is_not_known() -> None:
    def body(loads: TaskLoads, _store: Store, clock: StillClock) -> None:
        say(loads, clock, 1)
        say(loads, clock, 2, after=5)
        clock.time += 17
        assert loads.of(TASK, SERVICE, span=SPAN) is None

    over(body)


def test_a_node_is_believed_about_its_own_tasks_and_not_too_often() -> None:
    def body(loads: TaskLoads, _store: Store, clock: StillClock) -> None:
        say(loads, clock, 1, node=NodeId("other"))
        assert loads.of(TASK, SERVICE, span=SPAN) is None
        say(loads, clock, 1, memory=-5)
        assert loads.of(TASK, SERVICE, span=SPAN) is None
        say(loads, clock, 1, after=1)
        say(loads, clock, 9, after=0.01)
        assert loads.of(TASK, SERVICE, span=SPAN) == TaskLoad(nano_cpus=None, memory_bytes=7)

    over(body)


def test_a_counter_that_falls_back_begins_anew() -> None:
    def body(loads: TaskLoads, _store: Store, clock: StillClock) -> None:
        say(loads, clock, 50)
        say(loads, clock, 1, after=5)
        assert loads.of(TASK, SERVICE, span=SPAN) == TaskLoad(nano_cpus=None, memory_bytes=7)

    over(body)


def test_what_is_known_of_tasks_that_are_gone_is_forgotten() -> None:
    def body(loads: TaskLoads, store: Store, clock: StillClock) -> None:
        say(loads, clock, 1)
        gone = store.tasks.get(TASK)
        store.tasks.drop_row(TASK)
        loads.follow(Changes((), resync=True))
        assert gone is not None
        store.tasks.put_row(gone)
        assert loads.of(TASK, SERVICE, span=SPAN) is None

    over(body)


def test_a_reading_is_small_on_the_wire() -> None:
    tasks = tuple(TaskUsage(TaskId(f"{number:025}"), 10**15 + number, 10**9) for number in range(2_000))
    frame = encode(Usage(at_ns=10**18, tasks=tasks))
    assert len(frame) < 2_000 * 48
    assert decode_agent(frame) == Usage(at_ns=10**18, tasks=tasks)


def test_a_look_shortens_no_span_that_a_service_is_scaled_by() -> None:
    def body(loads: TaskLoads, _store: Store, clock: StillClock) -> None:
        for second in range(0, 600, 2):
            say(loads, clock, min(300, second), after=2)
        whole = loads.of(TASK, SERVICE, span=timedelta(minutes=10))
        assert whole is not None and whole.nano_cpus is not None
        assert 490_000_000 < whole.nano_cpus < 510_000_000, "half of the ten minutes it was busy"

    over(body, service(max="5", cpu="50", interval="600s"))


def test_all_tasks_are_asked_for_while_somebody_looks_and_no_longer() -> None:
    class Clock(StillClock):
        async def sleep(self, duration_s: float) -> None:
            self.time += duration_s

    async def scenario() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        try:
            task = a_task(node=NODE, state=TaskState.RUNNING, task_id=TASK)
            await store.commit(Transaction().create(task).create(service("plain")))
            clock = Clock()
            loads = TaskLoads(store, clock)
            plain = [ServiceId("plain")]
            assert loads.wanted(plain).is_nothing
            loads.watch()
            await loads.watch_turned()
            assert loads.wanted(plain) == Measure(every=True, period_s=2.0)
            for second in range(8):
                say(loads, clock, second, after=2)
            assert loads.of(TASK, SERVICE, span=timedelta()) == TaskLoad(nano_cpus=500_000_000, memory_bytes=7)
            loads.watch()
            before = clock.time
            await loads.watch_turned()
            assert clock.time - before == 30
            assert loads.wanted(plain).is_nothing
        finally:
            await store.close()
            await engine.close()

    asyncio.run(scenario())
