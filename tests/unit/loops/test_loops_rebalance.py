"""Rebalancing over a real store: asked for, cut short, taken over by the next leader, and automatic."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import UTC, datetime

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.clock import SystemClock
from fleet.manager.control.api import ControlApi
from fleet.manager.loops import OrchestratorLoop, RebalanceLoop, SchedulerLoop
from fleet.manager.loops import rebalance as loop_module
from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.common import SECOND_NS
from fleet.model.ids import ClusterId
from fleet.model.node import Node
from fleet.model.service import Mount, Service, UpdateConfig
from fleet.model.task import Task, TaskState, is_runnable
from fleet.store import Kind, Store, Transaction

S = TaskState
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
START_FIRST = UpdateConfig(order="start-first", parallelism=2)


def a_cluster(mode: str = "") -> Cluster:
    labels = {"fleet.rebalance": mode} if mode else {}
    return Cluster(id=ClusterId("default"), created_at=NOW, updated_at=NOW, spec=SwarmSpec(labels=labels))


class Here:
    """A store, agents of a few lines, and how few tasks of a service ever ran at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.api = ControlApi(store, SystemClock(), os.urandom)
        self.fewest: dict[str, int] = {}
        self.stuck: set[str] = set()

    async def add(self, *objects: Service | Node | Task | Cluster) -> None:
        for obj in objects:
            await self.store.commit(Transaction().create(obj))

    def running(self, service: str) -> list[Task]:
        return [t for t in self.store.tasks.all() if t.service_name == service and _serves(t)]

    def spread(self, service: str = "web") -> dict[str, int]:
        return dict(Counter(t.node_id for t in self.running(service)))

    async def agents(self) -> None:
        with self.store.subscribe(Kind.TASK) as subscription:
            while True:
                for service in self.store.services.all():
                    name = service.spec.name
                    count = len(self.running(name))
                    self.fewest[name] = min(self.fewest.get(name, count), count)
                steps = [Transaction().replace(task) for task in map(self._step, self.store.tasks.all()) if task]
                if steps:
                    await self.store.commit_all(steps)
                await subscription.wait()

    def _step(self, task: Task) -> Task | None:
        state, desired = task.status.state, task.desired_state
        if state is S.NEW:
            state = S.PENDING
        elif state.is_terminal or state is S.PENDING:
            return None
        elif desired.rank > S.RUNNING.rank:
            state = S.SHUTDOWN
        elif task.node_id in self.stuck and state is S.ASSIGNED:
            state = S.FAILED
        elif state.rank < desired.rank:
            state = desired
        else:
            return None
        status = msgspec.structs.replace(task.status, state=state, timestamp=SystemClock().now())
        return msgspec.structs.replace(task, status=status)

    async def until(self, condition: object, what: str) -> None:
        assert callable(condition)
        with self.store.subscribe() as subscription:
            try:
                async with asyncio.timeout(20):
                    while not condition():
                        await subscription.wait()
            except TimeoutError:
                tasks = [(t.slot, t.node_id, t.desired_state, t.status.state, t.move) for t in self.store.tasks.all()]
                pytest.fail(f"never came true: {what}; tasks: {tasks}")

    def is_finished(self) -> bool:
        request = self.api.cluster.find().rebalance
        return request is not None and request.finished_at is not None


def _serves(task: Task) -> bool:
    return is_runnable(task) and task.status.state is S.RUNNING


def run(scenario: object, *objects: Service | Node | Task | Cluster) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        here = Here(store)
        await here.add(*objects)
        clock = SystemClock()
        try:
            async with asyncio.TaskGroup() as group:
                loops = [OrchestratorLoop(store, clock, os.urandom), SchedulerLoop(store, clock)]
                others = [group.create_task(work) for work in (*(loop.run() for loop in loops), here.agents())]
                assert callable(scenario)
                await scenario(here)
                for task in others:
                    task.cancel()
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())


def crowded(count: int = 6, *, node: str = "a", service: str = "web") -> list[Task]:
    return [a_task(service, slot=slot, node=node, state=S.RUNNING) for slot in range(1, count + 1)]


def test_tasks_go_to_nodes_that_joined_and_none_is_missed_meanwhile() -> None:
    async def scenario(here: Here) -> None:
        shown = here.api.rebalance.report().plan.moves
        assert {(each.source, each.target) for each in shown} == {("a", "b"), ("a", "c")}
        assert len(shown) == 4
        await here.api.rebalance.request()
        loop = asyncio.create_task(RebalanceLoop(here.store, SystemClock()).run())
        await here.until(lambda: here.is_finished() and not here.api.rebalance.report().under_way, "finished")
        loop.cancel()
        assert here.spread() == {"a": 2, "b": 2, "c": 2}
        assert here.fewest["web"] == 6

    service = a_service(replicas=6, update=START_FIRST)
    run(scenario, a_cluster(), a_node("a"), a_node("b"), a_node("c"), service, *crowded())


def test_stop_first_keeps_the_floor_and_a_leader_goes_on_with_what_another_began() -> None:
    async def scenario(here: Here) -> None:
        await here.api.rebalance.request()
        for _ in range(4):  # each leader dies once it has begun something
            loop = asyncio.create_task(RebalanceLoop(here.store, SystemClock()).run())
            revision = len(here.spread())
            await here.until(
                lambda: here.is_finished() or any(t.toward for t in here.store.tasks.all()), f"begun {revision}"
            )
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
        loop = asyncio.create_task(RebalanceLoop(here.store, SystemClock()).run())
        await here.until(lambda: here.is_finished() and here.spread() == {"a": 3, "b": 3}, "balanced")
        loop.cancel()
        assert here.fewest["web"] >= 5

    run(scenario, a_cluster(), a_node("a"), a_node("b"), a_service(replicas=6), *crowded())


def test_move_that_fails_leaves_the_task_where_it_is_and_is_not_tried_again() -> None:
    async def scenario(here: Here) -> None:
        here.stuck.add("b")
        await here.api.rebalance.request()
        loop = asyncio.create_task(RebalanceLoop(here.store, SystemClock()).run())
        await here.until(lambda: here.is_finished() and not here.api.rebalance.report().under_way, "finished")
        loop.cancel()
        assert here.spread() == {"a": 4}
        assert here.fewest["web"] == 4
        given_up = [task.move.ended for task in here.api.rebalance.report().given_up if task.move]
        assert given_up
        assert all("ended (failed)" in reason for reason in given_up)

    service = a_service(replicas=4, update=START_FIRST)
    run(scenario, a_cluster(), a_node("a"), a_node("b"), service, *crowded(4))


def test_automatic_moves_by_itself_what_may_move_and_manual_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_SETTLE", loop_module._PAUSE_MIN)

    async def scenario(here: Here) -> None:
        loop = asyncio.create_task(RebalanceLoop(here.store, SystemClock()).run())
        await here.until(lambda: here.spread() == {"a": 2, "b": 2}, "web is balanced")
        loop.cancel()
        assert here.spread("still") == {"a": 4}

    web = a_service(replicas=4, update=START_FIRST)
    still = a_service("still", replicas=4, update=START_FIRST)
    labels = {"fleet.rebalance": "manual"}
    still = msgspec.structs.replace(still, spec=msgspec.structs.replace(still.spec, labels=labels))
    nodes = (a_node("a"), a_node("b"))
    run(scenario, a_cluster("automatic"), *nodes, web, still, *crowded(4), *crowded(4, service="still"))


def test_strategy_of_the_cluster_reaches_placing_and_is_no_reason_to_move() -> None:
    async def scenario(here: Here) -> None:
        await here.until(lambda: len(here.running("web")) == 4, "four run")
        assert len(here.spread()) == 1
        assert not here.api.rebalance.report().plan.moves
        assert here.api.placement.explain("web").strategy == "binpack"

    cluster = a_cluster()
    packs = msgspec.structs.replace(cluster.spec, labels={"fleet.placement.strategy": "binpack"})
    cluster = msgspec.structs.replace(cluster, spec=packs)
    run(scenario, cluster, a_node("a"), a_node("b"), a_service(replicas=4))


def test_plan_says_what_stays_and_why() -> None:
    async def scenario(here: Here) -> None:
        assert here.api.rebalance.report().plan.stays == {
            "off": "rebalancing is off",
            "data": "its volume files would stay behind (label fleet.rebalance on the service allows it)",
            "one": "its only task would stop for a while (update order start-first avoids that)",
            "ill": "1 of its 2 tasks run undisturbed",
        }
        with pytest.raises(errors.UserError, match="no rebalancing is at work"):
            await here.api.rebalance.cancel()
        await here.api.rebalance.request()
        await here.api.rebalance.cancel()
        request = here.api.cluster.find().rebalance
        assert request is not None
        assert request.outcome == "cancelled"

    off = a_service("off", replicas=1)
    off = msgspec.structs.replace(off, spec=msgspec.structs.replace(off.spec, labels={"fleet.rebalance": "off"}))
    data = a_service("data", replicas=1)
    template = data.spec.task_template
    container = msgspec.structs.replace(
        template.container_spec, mounts=(Mount(type="volume", source="files", target="/f"),)
    )
    template = msgspec.structs.replace(template, container_spec=container)
    data = msgspec.structs.replace(data, spec=msgspec.structs.replace(data.spec, task_template=template))
    ill = a_service("ill", replicas=2, update=msgspec.structs.replace(START_FIRST, monitor_ns=SECOND_NS))

    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        here = Here(store)
        await here.add(a_cluster(), a_node("a"), a_node("b"), off, data, a_service("one"), ill)
        for name in ("off", "one", "ill"):
            await here.add(a_task(name, node="a", state=S.RUNNING))
        await here.add(a_task("data", node="a", state=S.RUNNING, spec=template))
        try:
            await scenario(here)
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())
