"""Sessions: what agents are told, when their reports count, and when they are called silent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.clocks import SleepingTimers
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_network, make_node, make_service, make_task

from fleet import errors
from fleet.api import dispatch
from fleet.identity.authority import create_root
from fleet.manager.dispatcher import Dispatcher
from fleet.manager.leases import Tolerances
from fleet.manager.sessions import ChannelClosed
from fleet.model.cluster import Authority
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeDescription, NodeState
from fleet.model.task import Attachment, Task, TaskState, TaskStatus
from fleet.store import Store, Transaction


class SteppedClock(SleepingTimers):
    """Time moves only when the test says so; sleepers wake in order."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, duration_s: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + duration_s, future))
        await future

    async def advance(self, duration_s: float, *, step_s: float = 0.05) -> None:
        end = self.time + duration_s
        while self.time < end - 1e-9:
            self.time = min(end, self.time + step_s)
            due = [f for t, f in self._sleepers if t <= self.time + 1e-9]
            self._sleepers = [(t, f) for t, f in self._sleepers if t > self.time + 1e-9]
            for future in due:
                if not future.done():
                    future.set_result(None)
            await settle()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)
    await asyncio.sleep(0.002)
    for _ in range(30):
        await asyncio.sleep(0)


class Wire:
    """The agent's end of a session."""

    def __init__(self) -> None:
        self.to_manager: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.got: list[dispatch.ManagerMessage] = []
        self.closed = ""

    async def send(self, frame: bytes) -> None:
        if self.closed:
            raise ChannelClosed(self.closed)
        self.got.append(dispatch.decode_manager(frame))

    async def receive(self) -> bytes:
        frame = await self.to_manager.get()
        if frame is None:
            raise ChannelClosed("gone")
        return frame

    async def close(self, reason: str) -> None:
        self.closed = reason
        self.to_manager.put_nowait(None)

    def say(self, message: dispatch.AgentMessage) -> None:
        self.to_manager.put_nowait(dispatch.encode(message))

    def hello(self) -> None:
        self.say(dispatch.Hello(description=NodeDescription(hostname="w1"), address="10.0.0.9", cluster_port=2377))

    def assigns(self) -> list[dispatch.Assign]:
        return [m for m in self.got if isinstance(m, dispatch.Assign)]


class Scene:
    def __init__(self, store: Store, engine: MemoryEngine, clock: SteppedClock) -> None:
        self.store = store
        self.engine = engine
        self.clock = clock
        self._numbers = itertools.count()
        self.tasks: list[asyncio.Task[None]] = []
        self.dispatcher = self.begin()

    def begin(self, *, nodes_a_second: int = 1_000) -> Dispatcher:
        """A term; the one before is over."""
        for task in self.tasks:
            task.cancel()
        self.dispatcher = Dispatcher(
            self.store,
            self.clock,
            new_session_id=lambda: f"s{next(self._numbers)}",
            manager_addresses=lambda: ("10.0.0.1:2377",),
            tolerances=Tolerances(
                startup_grace_s=10, daemon_grace_s=15, daemon_suspect_s=5, nodes_a_second=nodes_a_second
            ),
        )
        self.tasks.append(asyncio.create_task(self.dispatcher.run()))
        return self.dispatcher

    async def connect(self, node_id: str = "node-w1") -> Wire:
        wire = Wire()
        wire.hello()
        self.tasks.append(asyncio.create_task(self.dispatcher.serve(wire, NodeId(node_id))))
        await settle()
        await self.clock.advance(0.05)
        return wire

    def state(self) -> NodeState:
        node = self.store.nodes.get("node-w1")
        assert node is not None
        return node.status.state

    def task(self) -> Task:
        task = self.store.tasks.get("task1")
        assert task is not None
        return task

    async def alive(self, wire: Wire, duration_s: float) -> None:
        for _ in range(round(duration_s / 0.5)):
            wire.say(dispatch.Beat())
            await settle()
            await self.clock.advance(0.5)


def on_scene(body: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        task = make_task(node_id="node-w1", state=TaskState.ASSIGNED)
        await store.commit(Transaction().create(make_node("w1", state=NodeState.UNKNOWN)).create(task))
        scene = Scene(store, engine, SteppedClock())
        await settle()
        try:
            await body(scene)
        finally:
            for running in scene.tasks:
                running.cancel()
            await asyncio.gather(*scene.tasks, return_exceptions=True)
            await store.close()
            await engine.close()

    asyncio.run(main())


def test_a_session_begins_with_a_complete_set_and_goes_on_with_increments() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        assert isinstance(wire.got[0], dispatch.Welcome)
        assert scene.state() is NodeState.READY
        first = wire.assigns()[0]
        assert first.complete
        assert [item.task.id for item in first.items if isinstance(item, dispatch.TaskItem)] == ["task1"]
        changed = msgspec.structs.replace(scene.task(), desired_state=TaskState.SHUTDOWN)
        await scene.store.commit(Transaction().replace(changed).create(make_task("task2", node_id="elsewhere")))
        await scene.clock.advance(0.1)
        second = wire.assigns()[1]
        assert not second.complete
        assert (second.applies_to, second.results_in) == (first.results_in, first.results_in + 1)
        assert [i.task.desired_state for i in second.items if isinstance(i, dispatch.TaskItem)] == [TaskState.SHUTDOWN]

    on_scene(body)


def test_a_node_is_asked_what_tasks_use_while_a_policy_needs_it_and_is_heard() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        asked = lambda: [m for m in wire.got if isinstance(m, dispatch.Measure)]  # noqa: E731
        hosts = dispatch.Measure(host=True, period_s=10.0)
        assert asked() == [hosts]
        labels = {"fleet.autoscale.max": "5", "fleet.autoscale.cpu": "50", "fleet.autoscale.interval": "6s"}
        service = make_service()
        service = msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, labels=labels))
        await scene.store.commit(Transaction().create(service))
        await scene.clock.advance(0.1)
        assert asked() == [hosts, dispatch.Measure(services=(service.id,), period_s=2.0, host=True)]
        for second in (2, 4):
            usage = dispatch.TaskUsage(scene.task().id, second * 250_000_000, 5)
            wire.say(dispatch.Usage(at_ns=second * 1_000_000_000, tasks=(usage,)))
            await scene.alive(wire, 2)
        load = scene.dispatcher.loads.of(scene.task().id, service.id, span=timedelta(seconds=6))
        assert load is not None and (load.nano_cpus, load.memory_bytes) == (250_000_000, 5)
        other = await scene.connect()
        assert [m for m in other.got if isinstance(m, dispatch.Measure)] == asked()[1:], "each session is asked"
        service = scene.store.services.get(service.id) or service
        plain = msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, labels={}))
        await scene.store.commit(Transaction().replace(plain))
        await scene.clock.advance(0.1)
        assert [m for m in other.got if isinstance(m, dispatch.Measure)][-1] == hosts

    on_scene(body)


def test_every_task_is_asked_for_when_somebody_looks_and_hosts_are_heard() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        scene.dispatcher.loads.watch()
        await scene.clock.advance(0.1)
        asked = [m for m in wire.got if isinstance(m, dispatch.Measure)]
        assert asked[-1] == dispatch.Measure(every=True, host=True, period_s=2.0)
        for second in (1, 2):
            host = dispatch.HostUsage(second * 500_000_000, 7, second * 250_000_000, 5)
            wire.say(dispatch.Usage(at_ns=second * 1_000_000_000, host=host))
            await scene.alive(wire, 1)
        load = scene.dispatcher.hosts.now(scene.task().node_id)
        assert load is not None and load[1:] == (500_000_000, 7, 250_000_000, 5)

    on_scene(body)


def report(state: TaskState, number: int = 1) -> dispatch.Report:
    task = make_task()
    return dispatch.Report(
        number=number, tasks=(dispatch.TaskReport(task_id=task.id, status=TaskStatus(timestamp=NOW, state=state)),)
    )


def test_a_report_is_acknowledged_after_it_is_stored_and_states_only_grow() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        wire.say(report(TaskState.RUNNING, 1))
        wire.say(report(TaskState.PREPARING, 2))
        await settle()
        assert scene.task().status.state is TaskState.RUNNING
        assert scene.task().status.applied_by == "node-w1"
        assert scene.task().status.running_since == scene.task().status.applied_at is not None
        assert [m.number for m in wire.got if isinstance(m, dispatch.Reported)] == [1, 2]

    on_scene(body)


def test_a_node_can_not_report_another_nodes_task() -> None:
    async def body(scene: Scene) -> None:
        await scene.store.commit(Transaction().create(make_node("w2", state=NodeState.UNKNOWN)))
        wire = await scene.connect("node-w2")
        wire.say(report(TaskState.FAILED))
        await settle()
        assert scene.task().status.state is TaskState.ASSIGNED

    on_scene(body)


def test_a_report_that_can_not_be_stored_is_not_acknowledged() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        engine = scene.store._engine
        assert isinstance(engine, MemoryEngine)
        engine.refuse = errors.StorageFullError("disk full")
        wire.say(report(TaskState.RUNNING))
        await settle()
        assert not [m for m in wire.got if isinstance(m, dispatch.Reported)]
        assert wire.closed

    on_scene(body)


def test_silence_makes_a_node_suspect_then_down_and_a_beat_brings_it_back() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        await scene.alive(wire, 5)
        assert scene.state() is NodeState.READY
        await scene.clock.advance(1.9)
        assert scene.state() is NodeState.DISCONNECTED
        wire.say(dispatch.Beat())
        await settle()
        assert scene.state() is NodeState.READY
        await scene.clock.advance(3.4)
        assert scene.state() is NodeState.DOWN
        assert wire.closed
        await scene.connect()
        assert scene.state() is NodeState.READY

    on_scene(body)


def test_many_nodes_are_asked_for_fewer_beats_and_each_is_judged_by_what_it_was_told() -> None:
    async def body(scene: Scene) -> None:
        await scene.store.commit(Transaction().create(make_node("w2")).create(make_node("w3")))
        crowded = scene.begin(nodes_a_second=1)
        await settle()
        wires = [await scene.connect(f"node-w{number}") for number in (1, 2, 3)]
        welcomes = [each.got[0] for each in wires]
        assert [w.beat_period_s for w in welcomes if isinstance(w, dispatch.Welcome)] == [1.0, 1.0, 2.0]
        wires[0].say(dispatch.Beat())
        await settle()
        told = [m.beat_period_s for m in wires[0].got if isinstance(m, dispatch.BeatReply)]
        assert told == [3.0], "an older session hears of the longer period with the answer to its beat"
        for _ in range(8):  # eight seconds in which only the first is silent: not yet three of its beats
            await scene.clock.advance(1.0)
            for each in wires[1:]:
                each.say(dispatch.Beat())
            await settle()
        assert crowded.sessions == 3
        await scene.clock.advance(2.0)
        assert scene.state() is NodeState.DOWN
        assert crowded.sessions == 2

    on_scene(body)


def test_a_beat_is_answered_once_a_period() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        await scene.alive(wire, 4.0)
        answers = sum(isinstance(message, dispatch.BeatReply) for message in wire.got)
        assert 3 <= answers <= 5

    on_scene(body)


def test_a_daemon_that_is_restarted_has_time_and_its_containers_keep_their_traffic() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        wire.to_manager.put_nowait(None)
        await scene.clock.advance(4)
        assert scene.state() is NodeState.READY
        await scene.clock.advance(4)
        assert scene.state() is NodeState.DISCONNECTED
        await scene.clock.advance(8)
        assert scene.state() is NodeState.DOWN

    on_scene(body)


def test_a_stall_of_the_manager_is_not_silence_of_its_nodes() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        await scene.alive(wire, 2)
        await scene.clock.advance(10, step_s=10)
        assert scene.state() is NodeState.READY

    on_scene(body)


def test_a_removed_node_gets_no_session() -> None:
    async def body(scene: Scene) -> None:
        wire = Wire()
        wire.hello()
        with pytest.raises(errors.ForbiddenError, match="not a member"):
            await scene.dispatcher.serve(wire, NodeId("stranger"))

    on_scene(body)


def test_a_peer_that_does_not_say_hello_is_refused() -> None:
    async def body(scene: Scene) -> None:
        wire = Wire()
        wire.say(dispatch.Beat())
        with pytest.raises(errors.UserError, match="expected Hello"):
            await scene.dispatcher.serve(wire, NodeId("node-w1"))

    on_scene(body)


def test_nodes_are_found_by_the_images_they_told_of() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        wire.say(dispatch.Describe(description=NodeDescription(hostname="w1"), images=("docker.io/fleet/hello:1",)))
        await settle()
        assert [n.id for n in scene.dispatcher.holders_of("docker.io/fleet/hello:1")] == ["node-w1"]
        assert scene.dispatcher.holders_of("docker.io/fleet/hello:2") == []

    on_scene(body)


def test_trust_is_told_at_the_start_and_when_it_changes_and_a_removed_nodes_session_ends() -> None:
    async def body(scene: Scene) -> None:
        root = create_root(ClusterId("c" * 25), NOW)
        authority = Authority(created_at=NOW, updated_at=NOW, certificate_pem=root.cert_pem, key_pem=root.key_pem)
        await scene.store.commit(Transaction().create(authority).create(make_node("w2", state=NodeState.READY)))
        await settle()
        wire, other = await scene.connect(), await scene.connect("node-w2")
        told = [m for m in wire.got if isinstance(m, dispatch.Trust)]
        assert [(t.roots_pem, t.removed) for t in told] == [(root.cert_pem, ())]
        removed = scene.store.nodes.get("node-w2")
        assert removed is not None
        await scene.store.commit(Transaction().replace(msgspec.structs.replace(removed, removed=True)))
        await scene.clock.advance(0.1)
        told = [m for m in wire.got if isinstance(m, dispatch.Trust)]
        assert [t.removed for t in told] == [(), ("node-w2",)]
        assert "removed" in other.closed
        assert not wire.closed
        assert not any(isinstance(m, dispatch.Trust) and root.key_pem in m.roots_pem for m in wire.got)

    on_scene(body)


def test_a_silent_session_is_closed_even_when_its_end_cannot_be_written() -> None:
    """Else the agent goes on talking to a session that nobody serves any more."""

    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        scene.engine.refuse = errors.UnavailableError("no quorum")
        await scene.clock.advance(4)
        assert wire.closed

    on_scene(body)


def test_an_agent_that_speaks_only_when_the_term_is_over_gets_no_session() -> None:
    async def body(scene: Scene) -> None:
        wire = Wire()
        serving = asyncio.create_task(scene.dispatcher.serve(wire, NodeId("node-w1")))
        await settle()
        scene.tasks[0].cancel()
        await settle()
        wire.hello()
        with pytest.raises(errors.UnavailableError, match="leads no more"):
            async with asyncio.timeout(20):
                await serving
        assert not scene.dispatcher.is_connected(NodeId("node-w1"))

    on_scene(body)


# Leaving before stopping -------------------------------------------------------------------------------------------


async def two_hosts_on_a_network(scene: Scene) -> tuple[Wire, Wire]:
    """A task runs on w1, is to stop, and another of w2 shares its network."""
    network = make_network("front")
    attached = (Attachment(network_id=network.id, addresses=("10.0.1.5/24",)),)
    other = make_task("task2", node_id="node-w2", state=TaskState.RUNNING, slot=2)
    other = msgspec.structs.replace(
        other, network_attachments=(Attachment(network_id=network.id, addresses=("10.0.1.6/24",)),)
    )
    running = msgspec.structs.replace(
        scene.task(), network_attachments=attached, status=TaskStatus(timestamp=NOW, state=TaskState.RUNNING)
    )
    tx = Transaction().create(network).create(other).create(make_node("w2", state=NodeState.UNKNOWN)).replace(running)
    await scene.store.commit(tx)
    wires = await scene.connect("node-w1"), await scene.connect("node-w2")
    await scene.clock.advance(0.1)
    await scene.store.commit(
        Transaction().replace(msgspec.structs.replace(scene.task(), desired_state=TaskState.SHUTDOWN))
    )
    await settle()
    await scene.clock.advance(0.05)
    return wires


def stop_was_sent(wire: Wire) -> bool:
    tasks = [item.task for assign in wire.assigns() for item in assign.items if isinstance(item, dispatch.TaskItem)]
    return any(task.id == "task1" and task.desired_state is TaskState.SHUTDOWN for task in tasks)


def asked(wire: Wire) -> int:
    """The newest set that is to be confirmed; it leads nobody to the task any more."""
    (assign,) = [assign for assign in wire.assigns() if assign.confirm]
    assert [(i.task_id, i.ready) for i in assign.items if isinstance(i, dispatch.EndpointItem)] == [("task1", False)]
    return assign.results_in


def test_a_task_is_told_to_stop_when_every_host_leads_nobody_to_it_any_more() -> None:
    async def body(scene: Scene) -> None:
        one, two = await two_hosts_on_a_network(scene)
        two.say(dispatch.Applied(number=asked(two) - 1))
        one.say(dispatch.Applied(number=asked(one)))
        await scene.clock.advance(0.3)
        assert not stop_was_sent(one), "w2 has confirmed an older set only"
        two.say(dispatch.Applied(number=asked(two)))
        await scene.clock.advance(0.05)
        assert not stop_was_sent(one), "what was connected last is still to be accepted"
        await scene.clock.advance(0.2)
        assert stop_was_sent(one)
        assert not stop_was_sent(two)

    on_scene(body)


def test_a_host_that_confirms_nothing_holds_no_stop_up_for_long() -> None:
    async def body(scene: Scene) -> None:
        one, _two = await two_hosts_on_a_network(scene)
        one.say(dispatch.Applied(number=asked(one)))
        await scene.clock.advance(0.8)
        assert not stop_was_sent(one)
        await scene.clock.advance(0.4)
        assert stop_was_sent(one)

    on_scene(body)


def test_a_host_that_has_gone_is_not_waited_for() -> None:
    async def body(scene: Scene) -> None:
        one, two = await two_hosts_on_a_network(scene)
        one.say(dispatch.Applied(number=asked(one)))
        await two.close("gone")
        await scene.clock.advance(0.3)
        assert stop_was_sent(one)

    on_scene(body)


def test_a_task_that_nobody_is_led_to_is_told_to_stop_at_once() -> None:
    async def body(scene: Scene) -> None:
        wire = await scene.connect()
        await scene.store.commit(
            Transaction().replace(msgspec.structs.replace(scene.task(), desired_state=TaskState.SHUTDOWN))
        )
        await settle()
        await scene.clock.advance(0.05)
        assert stop_was_sent(wire)

    on_scene(body)
