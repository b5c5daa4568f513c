"""The autoscale loop over a real store: what it reads, writes, and does not undo."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from support.clocks import START, SetClock
from support.decision_builders import a_service, a_task
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.api.dispatch import TaskUsage, Usage
from fleet.manager.loops.autoscale import AutoscaleLoop
from fleet.manager.usage import TaskLoads
from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.ids import ClusterId, NodeId, ServiceId, TaskId
from fleet.model.service import Limits, Resources, Service, UpdateStatus
from fleet.model.task import TaskState
from fleet.store import Store, Transaction

NODE = NodeId("n1")
replace = msgspec.structs.replace


def web(replicas: int = 2, *, stack: str = "", **labels: str) -> Service:
    given = {"max": "10", "cpu": "50", "interval": "10s", "warmup": "0s", "down-window": "30s", **labels}
    named = {f"fleet.autoscale.{name.replace('_', '-')}": text for name, text in given.items()}
    if stack:
        named["com.docker.stack.namespace"] = stack
    service = a_service(replicas=replicas)
    template = replace(service.spec.task_template, resources=Resources(limits=Limits(nano_cpus=500_000_000)))
    return replace(service, spec=replace(service.spec, labels=named, task_template=template))


class Here:
    """A store, a clock, tasks that use what the test says, and a leader."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, SetClock()
        self.loads = TaskLoads(store, self.clock)
        self.answers: list[float | errors.UnavailableError] = []
        self.used: dict[TaskId, float] = {}
        self.leaders: list[asyncio.Task[None]] = []

    async def ask(self, address: str, query: str) -> float:
        assert (address, query) == ("http://p:9090", "sum(waiting)")
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, errors.UnavailableError):
            raise found
        return found

    def lead(self) -> AutoscaleLoop:
        loop = AutoscaleLoop(self.store, self.clock, loads=self.loads, ask=self.ask)
        self.leaders.append(asyncio.create_task(loop.run()))
        return loop

    @property
    def service(self) -> Service:
        found = self.store.services.get(ServiceId("web"))
        assert found is not None
        return found

    async def run_tasks(self, count: int, *, state: TaskState = TaskState.RUNNING, **more: Any) -> None:
        for slot in range(1, count + 1):
            task = a_task(slot=slot, node=NODE, state=state, task_id=f"t{slot}{state}", **more)
            status = replace(task.status, running_since=START if state is TaskState.RUNNING else None)
            await self.store.commit(Transaction().create(replace(task, status=status)))

    async def pass_by(self, seconds: int, *, cores: float | None = None) -> None:
        """The time, with readings of all tasks each second, in steps in which the loop looks."""
        for _ in range(seconds):
            self.clock.go(1)
            if cores is not None:
                tasks = [task for task in self.store.tasks.all() if task.node_id == NODE]
                for task in tasks:
                    self.used[task.id] = self.used.get(task.id, 0) + cores
                usage = tuple(TaskUsage(task.id, int(self.used[task.id] * 1e9), 1 << 20) for task in tasks)
                self.loads.note(NODE, Usage(at_ns=int(self.clock.monotonic() * 1e9), tasks=usage))
            for _ in range(12):
                await asyncio.sleep(0)


def run(scenario: Callable[[Here], Awaitable[None]], service: Service) -> None:
    async def body() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        try:
            await store.commit(Transaction().create(service))
            here = Here(store)
            await scenario(here)
        finally:
            for leader in here.leaders:
                leader.cancel()
            await asyncio.gather(*here.leaders, return_exceptions=True)
            await store.close()
            await engine.close()

    asyncio.run(body())


def test_it_grows_with_what_tasks_use_and_says_so_and_shrinks_after_the_window() -> None:
    async def scenario(here: Here) -> None:
        await here.run_tasks(2)
        here.lead()
        before = here.service
        await here.pass_by(12, cores=0.5)
        assert here.service.spec.replicas == 4
        assert here.service.previous_spec == before.previous_spec
        assert here.service.task_spec_version == before.task_spec_version, "no task is replaced for it"
        assert here.service.spec_version == before.spec_version + 1
        status = here.service.autoscale
        assert status is not None
        (scaling,) = status.scalings
        assert (scaling.before, scaling.after) == (2, 4)
        assert scaling.reason.startswith("2 -> 4: CPU 100%, 50% wanted")
        await here.pass_by(25, cores=0.05)
        assert here.service.spec.replicas == 4
        await here.pass_by(30, cores=0.05)
        assert here.service.spec.replicas == 3, "two run, two that start count as on target"

    run(scenario, web())


def test_a_leader_that_hears_of_no_figures_takes_nothing_away() -> None:
    async def scenario(here: Here) -> None:
        await here.run_tasks(5)
        loop = here.lead()
        await here.pass_by(90)
        assert here.service.spec.replicas == 5
        decision = loop.last(ServiceId("web"))
        assert decision is not None and "no figures of some running tasks" in decision.reason
        assert here.service.autoscale is not None and here.service.autoscale.held == decision.held
        await here.pass_by(18, cores=0.01)
        assert here.service.spec.replicas == 5, "and nothing within a window after that"
        await here.pass_by(30, cores=0.01)
        assert here.service.spec.replicas == 1
        assert here.service.autoscale.held == ""

    run(scenario, web(5))


def test_a_new_leader_begins_the_window_anew() -> None:
    async def scenario(here: Here) -> None:
        await here.run_tasks(4)
        here.lead()
        await here.pass_by(28, cores=0.01)
        here.leaders.pop().cancel()
        here.lead()
        await here.pass_by(27, cores=0.01)
        assert here.service.spec.replicas == 4
        await here.pass_by(15, cores=0.01)
        assert here.service.spec.replicas == 1

    run(scenario, web(4))


def test_a_query_scales_and_one_without_an_answer_is_told_and_keeps_what_is_there() -> None:
    async def scenario(here: Here) -> None:
        here.answers = [errors.UnavailableError("Prometheus at http://p:9090 cannot be asked: refused")]
        here.lead()
        await here.pass_by(60)
        assert here.service.spec.replicas == 6
        assert here.service.autoscale is not None
        assert here.service.autoscale.held == "Prometheus at http://p:9090 cannot be asked: refused"
        here.answers = [160.0]
        await here.pass_by(11)
        assert here.service.spec.replicas == 8
        assert "the query gives 160, 20 a task are wanted" in here.service.autoscale.scalings[-1].reason
        here.answers = [0.0]
        await here.pass_by(45)
        assert here.service.spec.replicas == 1

    service = web(6, query="sum(waiting)", query_target="20", prometheus="http://p:9090")
    del service.spec.labels["fleet.autoscale.cpu"]
    run(scenario, service)


def test_one_prometheus_that_hangs_keeps_no_other_service_waiting_and_a_dead_one_is_left_alone() -> None:
    async def scenario(here: Here) -> None:
        asked: list[float] = []

        async def ask(_address: str, _query: str) -> float:
            asked.append(here.clock.monotonic())
            if len(asked) == 1:
                await asyncio.get_running_loop().create_future()
            raise errors.UnavailableError("dead", retry_after_s=25)

        here.ask = ask  # type: ignore[method-assign]
        other = replace(web(), id=ServiceId("other"), spec=replace(web().spec, name="other"))
        tx = Transaction().create(other)
        for slot in (1, 2):
            task = a_task("other", slot=slot, node=NODE, state=TaskState.RUNNING, task_id=f"o{slot}")
            tx.create(replace(task, status=replace(task.status, running_since=START)))
        await here.store.commit(tx)
        here.lead()
        await here.pass_by(15, cores=0.5)
        found = here.store.services.get(other.id)
        assert found is not None and found.spec.replicas == 4
        assert (len(asked), here.service.spec.replicas) == (1, 6)
        here.leaders.pop().cancel()
        loop = here.lead()
        await here.pass_by(66, cores=0.5)
        assert [round(later - earlier) for earlier, later in itertools.pairwise(asked[1:])] == [30, 30]
        decision = loop.last(ServiceId("web"))
        assert decision is not None and decision.held == "dead"

    service = web(6, query="sum(waiting)", query_target="20", prometheus="http://p:9090")
    del service.spec.labels["fleet.autoscale.cpu"]
    run(scenario, service)


def test_numbers_out_of_bounds_come_back_at_once_and_a_stopped_service_stays() -> None:
    async def scenario(here: Here) -> None:
        here.lead()
        await here.pass_by(1)
        assert here.service.spec.replicas == 10
        stopped = replace(here.service.spec, mode=replace(here.service.spec.mode, replicated=replace(
            here.service.spec.mode.replicated, replicas=0)))  # fmt: skip
        await here.store.commit(Transaction().replace(replace(here.service, spec=stopped)))
        await here.pass_by(60)
        assert here.service.spec.replicas == 0

    run(scenario, web(50))


def test_a_paused_update_is_left_alone() -> None:
    async def scenario(here: Here) -> None:
        await here.run_tasks(2)
        here.lead()
        await here.pass_by(40, cores=0.5)
        assert here.service.spec.replicas == 2
        assert here.service.update_status == UpdateStatus(state="paused")
        assert here.service.autoscale is not None and "its update is paused" in here.service.autoscale.held
        await here.store.commit(Transaction().replace(replace(here.service, update_status=None)))
        await here.pass_by(21, cores=0.5)
        assert here.service.spec.replicas == 4

    run(scenario, replace(web(), update_status=UpdateStatus(state="paused")))


def test_tasks_that_wait_and_quotas_hold_it_back() -> None:
    async def scenario(here: Here) -> None:
        labels = {"fleet.quota.stack=shop": "tasks=3"}
        cluster = Cluster(id=ClusterId("c"), created_at=START, updated_at=START, spec=SwarmSpec(labels=labels))
        await here.store.commit(Transaction().create(cluster))
        await here.run_tasks(2, service_labels={"com.docker.stack.namespace": "shop"})
        here.lead()
        await here.pass_by(12, cores=0.5)
        assert here.service.spec.replicas == 3
        waiting = a_task(slot=3, task_id="late")
        waiting = replace(waiting, status=replace(waiting.status, err="no suitable node (2 CPUs)"))
        await here.store.commit(Transaction().create(waiting))
        await here.pass_by(30, cores=0.5)
        assert here.service.spec.replicas == 3
        assert here.service.autoscale is not None
        assert here.service.autoscale.held == "no further tasks while some wait: no suitable node (2 CPUs)"

    run(scenario, web(stack="shop"))


def test_a_policy_that_is_taken_away_ends_it() -> None:
    async def scenario(here: Here) -> None:
        await here.run_tasks(2)
        loop = here.lead()
        await here.pass_by(1)
        assert loop.last(ServiceId("web")) is not None
        spec = replace(here.service.spec, labels={})
        await here.store.commit(Transaction().replace(replace(here.service, spec=spec)))
        await here.pass_by(30, cores=0.5)
        assert here.service.spec.replicas == 2
        assert loop.last(ServiceId("web")) is None

    run(scenario, web())
