"""The loops over a real store on an engine in memory, with an allocator and agents of a few lines."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import pytest
from support.decision_builders import NOW, a_node, a_service, a_task, a_task_spec
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.clock import SystemClock
from fleet.manager.loops import OrchestratorLoop, ReaperLoop, SchedulerLoop
from fleet.manager.preemption import yielding
from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.common import MILLISECOND_NS
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import Availability, Node, NodeState
from fleet.model.service import (
    ContainerSpec,
    Mount,
    ReplicatedMode,
    RestartCondition,
    RestartPolicy,
    Service,
    ServiceMode,
    UpdateConfig,
)
from fleet.model.task import Task, TaskState, is_runnable
from fleet.store import Kind, Store, Transaction

S = TaskState


class Lab:
    """A store with the loops over it."""

    def __init__(self, store: Store, engine: MemoryEngine) -> None:
        self.store = store
        self.engine = engine

    async def add(self, *objects: Service | Node | Task) -> None:
        for obj in objects:
            await self.store.commit(Transaction().create(obj))

    async def change_service(self, **fields: object) -> None:
        (service,) = self.store.services.all()
        await self.store.commit(Transaction().replace(msgspec.structs.replace(service, **fields)))

    async def change_node(self, name: str, change: Callable[[Node], Node]) -> None:
        node = self.store.nodes.get(name)
        assert node is not None
        await self.store.commit(Transaction().replace(change(node)))

    async def scale(self, replicas: int) -> None:
        (service,) = self.store.services.all()
        mode = ServiceMode(replicated=ReplicatedMode(replicas=replicas))
        await self.change_service(
            spec=msgspec.structs.replace(service.spec, mode=mode), spec_version=service.spec_version + 1
        )

    def running(self) -> list[Task]:
        return [t for t in self.store.tasks.all() if is_runnable(t) and t.status.state is S.RUNNING]

    async def observe(self, task: Task, state: TaskState) -> None:
        current = self.store.tasks.get(task.id)
        assert current is not None
        status = msgspec.structs.replace(current.status, state=state, timestamp=SystemClock().now())
        await self.store.commit(Transaction().replace(msgspec.structs.replace(current, status=status)))

    async def until(self, condition: Callable[[], object], what: str) -> None:
        with self.store.subscribe() as subscription:
            try:
                async with asyncio.timeout(5):
                    while not condition():
                        await subscription.wait()
            except TimeoutError:
                tasks = [(t.id[:4], t.slot, t.node_id, t.desired_state, t.status.state) for t in self.store.tasks.all()]
                pytest.fail(f"never came true: {what}; tasks: {tasks}")

    async def everybody_else(self) -> None:
        """Allocator and agents."""
        with self.store.subscribe(Kind.TASK) as subscription:
            while True:
                steps = [Transaction().replace(task) for task in map(self._step, self.store.tasks.all()) if task]
                if steps:
                    await self.store.commit_all(steps)
                await subscription.wait()

    def _step(self, task: Task) -> Task | None:
        state, desired = task.status.state, task.desired_state
        node = self.store.nodes.get(task.node_id)
        if state is S.NEW:
            state = S.PENDING
        elif state.is_terminal or state is S.PENDING or node is None or node.status.state is not NodeState.READY:
            return None
        elif desired.rank > S.RUNNING.rank:
            state = S.SHUTDOWN
        elif state.rank < desired.rank:
            state = desired
        else:
            return None
        status = msgspec.structs.replace(task.status, state=state, timestamp=SystemClock().now())
        return msgspec.structs.replace(task, status=status)


def run(scenario: Callable[[Lab], Awaitable[None]], *, left_behind: Iterable[Service | Node | Task] = ()) -> None:
    """The scenario beside the loops; fails if a loop does. ``left_behind`` is there before the loops start."""

    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        lab = Lab(store, engine)
        await lab.add(*left_behind)
        clock = SystemClock()
        try:
            async with asyncio.TaskGroup() as group:
                others = [
                    group.create_task(work)
                    for work in (
                        OrchestratorLoop(store, clock, os.urandom).run(),
                        SchedulerLoop(store, clock).run(),
                        ReaperLoop(store, clock).run(),
                        lab.everybody_else(),
                    )
                ]
                await scenario(lab)
                for task in others:
                    task.cancel()
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())


def unavailable(node: Node) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, availability=Availability.DRAIN))


def down(node: Node) -> Node:
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, state=NodeState.DOWN))


def test_service_runs_grows_and_shrinks() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_node("b"), a_service(replicas=4))
        await lab.until(lambda: len(lab.running()) == 4, "four run")
        assert sorted(t.node_id for t in lab.running()) == ["a", "a", "b", "b"]
        await lab.scale(6)
        await lab.until(lambda: len(lab.running()) == 6, "six run")
        await lab.scale(2)
        await lab.until(lambda: len(lab.store.tasks) == 2, "two are left and the others forgotten")
        assert sorted(t.node_id for t in lab.running()) == ["a", "b"]

    run(scenario)


def test_hundred_tasks_are_created_and_placed_in_few_transactions() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(*(a_node(f"n{i}") for i in range(5)))
        before = lab.engine.revision
        await lab.add(a_service(replicas=100))
        await lab.until(lambda: len(lab.running()) == 100, "a hundred run")
        # the service; create, allocate, assign, run
        assert lab.engine.revision - before <= 1 + 4 * 3

    run(scenario)


def test_task_without_a_node_says_why_and_is_placed_when_one_comes() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(spec=a_task_spec(constraints=["node.labels.disk==ssd"])))
        await lab.until(lambda: any(t.status.err for t in lab.store.tasks.all()), "the task says why it is pending")
        (task,) = lab.store.tasks.all()
        assert task.status.err == "no suitable node (scheduling constraints not satisfied on 1 node)"
        assert task.status.state is S.PENDING
        await lab.add(a_node("b", labels={"disk": "ssd"}))
        await lab.until(lambda: [t.node_id for t in lab.running()] == ["b"], "it runs on the new node")
        (task,) = lab.running()
        assert task.status.err == ""

    run(scenario)


def test_waiting_task_is_placed_when_its_service_begins_to_tolerate_the_taint() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a", labels={"fleet.taint.gpu": "x:no-schedule"}), a_service())
        await lab.until(lambda: any(t.status.err for t in lab.store.tasks.all()), "the task says why it is pending")
        (task,) = lab.store.tasks.all()
        assert task.status.err == "no suitable node (taints not tolerated on 1 node)"
        (service,) = lab.store.services.all()
        labels = {"fleet.placement.toleration": "gpu"}
        spec = msgspec.structs.replace(service.spec, labels=labels)
        await lab.store.commit(Transaction().replace(msgspec.structs.replace(service, spec=spec)))
        await lab.until(lambda: [t.id for t in lab.running()] == [task.id], "the same task runs")
        (task,) = lab.running()
        assert task.service_labels == labels

    run(scenario)


def test_task_beyond_a_quota_is_placed_when_the_quota_grows_and_when_others_end() -> None:
    async def scenario(lab: Lab) -> None:
        cluster = Cluster(id=ClusterId("default"), created_at=NOW, updated_at=NOW, spec=limited(2))
        web = a_service(replicas=4)
        spec = msgspec.structs.replace(web.spec, labels={"team": "red"})
        await lab.add(a_node("a"), cluster, msgspec.structs.replace(web, spec=spec))
        await lab.until(lambda: len(lab.running()) == 2, "two run")
        await lab.until(lambda: errs(lab) == ["beyond quota label=team=red (tasks=2)"] * 2, "two say why they wait")
        (cluster,) = lab.store.clusters.all()
        await lab.store.commit(Transaction().replace(msgspec.structs.replace(cluster, spec=limited(3))))
        await lab.until(lambda: len(lab.running()) == 3, "one more runs")
        await lab.until(lambda: errs(lab) == ["beyond quota label=team=red (tasks=3)"], "the other says why it waits")
        gone = lab.running()[0]
        status = msgspec.structs.replace(gone.status, state=S.FAILED)
        await lab.store.commit(Transaction().replace(msgspec.structs.replace(gone, status=status)))
        await lab.until(lambda: len(lab.running()) == 3 and gone.id not in {t.id for t in lab.running()}, "it has room")

    def limited(tasks: int) -> SwarmSpec:
        return SwarmSpec(labels={"fleet.quota.label=team=red": f"tasks={tasks}"})

    def errs(lab: Lab) -> list[str]:
        return [t.status.err for t in lab.store.tasks.all() if t.status.state is S.PENDING]

    run(scenario)


def prioritised(name: str, priority: int, replicas: int, *, cpus: float = 1) -> Service:
    service = a_service(name, replicas=replicas, spec=a_task_spec(cpus=cpus))
    labels = {"fleet.placement.priority": str(priority)}
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, labels=labels))


def test_task_of_higher_priority_takes_the_room_of_one_of_less_and_no_service_comes_below_its_floor() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a", cpus=3), prioritised("low", -1, 3))
        await lab.until(lambda: len(lab.running()) == 3, "the node is full")
        await lab.add(prioritised("high", 5, 2))

        def running(name: str) -> int:
            return len([t for t in lab.running() if t.service_name == name])

        await lab.until(lambda: running("high") == 1 and running("low") == 2, "one took the room of another")
        marked = [t for t in lab.store.tasks.all() if t.preempted is not None]
        assert [(t.service_name, t.preempted.service) for t in marked if t.preempted] == [("low", "high")]
        assert all(t.desired_state is S.SHUTDOWN for t in marked)
        waits = [
            t.status.err for t in lab.store.tasks.all() if t.status.state is S.PENDING and t.service_name == "high"
        ]
        assert waits == ["no suitable node (insufficient resources on 1 node)"]
        await lab.add(a_node("b", cpus=1))
        await lab.until(lambda: running("high") == 2 and running("low") == 2, "the next room goes to the higher one")
        await lab.add(a_node("c", cpus=1))
        await lab.until(lambda: running("low") == 3, "what was stopped runs again where there is room")
        assert len([t for t in lab.store.tasks.all() if t.preempted is not None]) == 1

    run(scenario)


def test_only_services_whose_tasks_are_made_again_and_may_be_fewer_yield() -> None:
    async def scenario(lab: Lab) -> None:
        never = RestartPolicy(condition=RestartCondition.NONE)
        data = ContainerSpec(image="app:1", mounts=(Mount(type="volume", source="data", target="/data"),))
        services = [
            prioritised("yields", 0, 3),
            prioritised("single", 0, 1),
            prioritised("equal", 7, 3),
            a_service("startfirst", replicas=3, update=UpdateConfig(order="start-first")),
            a_service("once", replicas=3, spec=a_task_spec(restart=never)),
            a_service("data", replicas=3, spec=msgspec.structs.replace(a_task_spec(), container_spec=data)),
            a_service("everywhere", is_global=True),
        ]
        await lab.add(a_node("a", cpus=64), *services)
        await lab.until(lambda: len(lab.running()) == 17, "all run")
        found = yielding(lab.store, below=7, now=NOW)
        assert {service_id: (len(each.tasks), each.at_once) for service_id, each in found.items()} == {"yields": (3, 1)}

    run(scenario)


def test_task_that_wants_to_be_near_another_service_is_placed_once_that_runs() -> None:
    async def scenario(lab: Lab) -> None:
        web = a_service("web")
        web = msgspec.structs.replace(
            web, spec=msgspec.structs.replace(web.spec, labels={"fleet.placement.affinity": "cache"})
        )
        await lab.add(a_node("a"), a_node("b"), web)
        await lab.until(
            lambda: any("affinity" in t.status.err for t in lab.store.tasks.all()), "it says what it waits for"
        )
        await lab.add(a_service("cache"))
        await lab.until(lambda: len(lab.running()) == 2, "both run")
        assert len({task.node_id for task in lab.running()}) == 1

    run(scenario)


def test_waiting_task_is_placed_when_another_ends() -> None:
    async def scenario(lab: Lab) -> None:
        spec = a_task_spec(cpus=1, restart=RestartPolicy(delay_ns=0))
        await lab.add(a_node("a", cpus=1), a_service(replicas=2, spec=spec))
        await lab.until(
            lambda: any("insufficient resources" in t.status.err for t in lab.store.tasks.all()), "one has no room"
        )
        await lab.scale(1)
        await lab.until(lambda: len(lab.running()) == 1 and len(lab.store.tasks) == 1, "one runs, none waits")

    run(scenario)


def test_failed_task_is_replaced_after_its_delay() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(spec=a_task_spec(restart=RestartPolicy(delay_ns=200 * MILLISECOND_NS))))
        await lab.until(lab.running, "it runs")
        (task,) = lab.running()
        began = SystemClock().monotonic()
        await lab.observe(task, S.FAILED)
        await lab.until(lambda: [t.id for t in lab.running()] not in ([], [task.id]), "another runs")
        assert 0.2 <= SystemClock().monotonic() - began < 1

    run(scenario)


def test_tasks_of_a_lost_node_move_without_delay() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_node("b"), a_service(replicas=2))
        await lab.until(lambda: len(lab.running()) == 2, "two run")
        began = SystemClock().monotonic()
        await lab.change_node("a", down)
        await lab.until(lambda: [t.node_id for t in lab.running()] == ["b", "b"], "both run on the node that is left")
        assert SystemClock().monotonic() - began < 1

    run(scenario)


def test_global_service_follows_nodes() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(is_global=True))
        await lab.until(lambda: [t.node_id for t in lab.running()] == ["a"], "it runs on the one node")
        await lab.add(a_node("b"))
        await lab.until(lambda: sorted(t.node_id for t in lab.running()) == ["a", "b"], "it runs on both")
        await lab.change_node("a", unavailable)
        await lab.until(lambda: [t.node_id for t in lab.running()] == ["b"], "it left the drained one")

    run(scenario)


def test_update_rolls_through_and_is_called_complete() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(replicas=3, update=UpdateConfig(monitor_ns=50 * MILLISECOND_NS)))
        await lab.until(lambda: len(lab.running()) == 3, "three run")
        (service,) = lab.store.services.all()
        spec = msgspec.structs.replace(service.spec, task_template=a_task_spec(image="app:2"))
        await lab.change_service(spec=spec, previous_spec=service.spec, spec_version=2, task_spec_version=2)

        def completed() -> bool:
            (now,) = lab.store.services.all()
            return now.update_status is not None and now.update_status.state == "completed"

        await lab.until(completed, "the update completes")
        assert [t.spec.container_spec.image for t in lab.running()] == ["app:2"] * 3

    run(scenario)


def test_removed_service_and_its_tasks_are_forgotten() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(replicas=3))
        await lab.until(lambda: len(lab.running()) == 3, "three run")
        await lab.change_service(pending_delete=True)
        await lab.until(lambda: not lab.store.services.all() and not lab.store.tasks.all(), "nothing is left")

    run(scenario)


def test_crash_loop_keeps_a_bounded_history() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(spec=a_task_spec(restart=RestartPolicy(delay_ns=0))))
        ended: set[str] = set()
        for _ in range(12):
            await lab.until(lambda: {t.id for t in lab.running()} - ended, "the next one runs")
            (task,) = lab.running()
            ended.add(task.id)
            await lab.observe(task, S.FAILED)
        await lab.until(lambda: len(lab.running()) == 1 and len(lab.store.tasks) == 5, "five tasks are kept")

    run(scenario)


def test_service_that_keeps_failing_on_a_node_is_tried_on_another() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_node("b"), a_service(spec=a_task_spec(restart=RestartPolicy(delay_ns=0))))
        where = []
        for _ in range(6):
            await lab.until(lambda: len(lab.running()) == 1, "it runs")
            (task,) = lab.running()
            where.append(task.node_id)
            await lab.observe(task, S.FAILED)
        assert where == ["a"] * 5 + ["b"]

    run(scenario)


def test_store_that_fails_ends_the_loop_with_its_reason() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        await store.commit(Transaction().create(a_service()))
        engine.refuse = errors.StorageFullError("the disk is full")
        with pytest.raises(errors.StorageFullError, match="the disk is full"):
            await OrchestratorLoop(store, SystemClock(), os.urandom).run()
        await store.close()
        await engine.close()

    asyncio.run(main())


def test_new_leader_continues_where_the_old_one_stopped() -> None:
    """Whatever half-done state the tables hold when the loops start, they bring it to its end."""
    spec = a_task_spec(restart=RestartPolicy(delay_ns=50 * MILLISECOND_NS))

    async def scenario(lab: Lab) -> None:
        await lab.until(lambda: len(lab.running()) == 3 and len(lab.store.tasks) == 4, "three run, one is history")
        assert sorted(t.slot for t in lab.running()) == [1, 2, 3]

    left_behind = (
        a_node("a"),
        a_service(replicas=3, spec=spec),
        a_task(slot=1, state=S.NEW, spec=spec),
        a_task(slot=2, node="a", state=S.FAILED, spec=spec),
        a_task("vanished", slot=1, node="a", state=S.RUNNING),
    )
    run(scenario, left_behind=left_behind)


def test_quiet_loops_write_nothing() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.add(a_node("a"), a_service(replicas=3))
        await lab.until(lambda: len(lab.running()) == 3, "three run")
        await asyncio.sleep(0.05)
        before = lab.engine.revision
        await lab.change_node("a", lambda node: msgspec.structs.replace(node, cluster_addr="10.0.0.9:2377"))
        await asyncio.sleep(0.1)
        assert lab.engine.revision == before + 1

    run(scenario)


def test_a_ready_node_without_a_session_is_waited_for_and_then_passed_over() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        lab = Lab(store, engine)
        connected: set[str] = set()
        await lab.add(a_node("n1"), a_node("n2"))
        await lab.add(a_service("web"))
        await lab.add(*(a_task(slot=number + 1) for number in range(4)))
        scheduler = asyncio.create_task(SchedulerLoop(store, SystemClock(), is_connected=connected.__contains__).run())
        await asyncio.sleep(0.2)
        assert all(not task.node_id for task in store.tasks.all())  # nobody is known to live yet
        connected.add("n1")
        await lab.until(lambda: all(task.node_id == "n1" for task in store.tasks.all()), "all are on the one that came")
        connected.add("n2")
        await lab.add(a_task(slot=9))
        await lab.until(
            lambda: any(task.node_id == "n2" for task in store.tasks.all()), "the other is used when it is back"
        )
        scheduler.cancel()
        await asyncio.gather(scheduler, return_exceptions=True)
        await store.close()
        await engine.close()

    asyncio.run(main())


def test_nodes_that_come_back_one_after_the_other_all_get_their_share() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        lab = Lab(store, engine)
        names = [NodeId(f"n{number}") for number in range(4)]
        connected: set[str] = set()
        await lab.add(*(a_node(name) for name in names))
        await lab.add(a_service("web"))
        await lab.add(*(a_task(slot=number + 1) for number in range(8)))
        scheduler = asyncio.create_task(SchedulerLoop(store, SystemClock(), is_connected=connected.__contains__).run())
        for name in names:
            connected.add(name)
            await asyncio.sleep(0.25)
        await lab.until(lambda: all(task.node_id for task in store.tasks.all()), "all have a node")
        assert Counter(task.node_id for task in store.tasks.all()) == dict.fromkeys(names, 2)
        scheduler.cancel()
        await asyncio.gather(scheduler, return_exceptions=True)
        await store.close()
        await engine.close()

    asyncio.run(main())


def test_steps_of_a_start_lead_to_no_plan_but_running_and_every_wish_do() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        loop = OrchestratorLoop(store, SystemClock(), os.urandom)
        task = a_task("t1", state=S.ASSIGNED)
        await store.commit(Transaction().create(task))

        async def affected(**fields: object) -> set[str]:
            found = store.tasks.get(task.id)
            assert found is not None
            with store.subscribe(Kind.TASK) as subscription:
                await store.commit(Transaction().replace(msgspec.structs.replace(found, **fields)))
                return set(loop._affected(subscription.take()))

        def status(state: TaskState) -> object:
            return msgspec.structs.replace(task.status, state=state)

        try:
            for state in (S.ACCEPTED, S.PREPARING, S.READY, S.STARTING):
                assert await affected(status=status(state)) == set()
            assert await affected(desired_state=S.SHUTDOWN) == {task.service_id}
            assert await affected(status=status(S.RUNNING)) == {task.service_id}
            assert await affected(status=status(S.FAILED)) == {task.service_id}
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())
