"""A host: containers, a disk, a clock, and a ``fleetd`` on them that is the real manager and the real agent.

Simulated is what those stand on: the state engine, the wires, the container engine, the disk. Containers outlive their
``fleetd`` and end with the power.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fleet import errors
from fleet.agent.controller import Exit, Progress
from fleet.agent.network_sync import NetworkSync
from fleet.agent.reporter import Reporter
from fleet.agent.session import Session
from fleet.agent.worker import Worker
from fleet.api import dispatch
from fleet.manager.role import ManagerRole, NotLeadingError
from fleet.manager.sealing_rotation import keep_sealing_keys
from fleet.manager.sessions import ChannelClosed
from fleet.model.ids import NodeId, TaskId
from fleet.model.node import NodeDescription, NodeResources
from fleet.model.task import ContainerStatus, Task, TaskState, TaskStatus
from fleet.network.topology import NetworkSpec, NetworkState, PublishedPort
from fleet.store import AesSealer, Kind, Store
from simulation.engine import SimEngine
from simulation.loop import Process, SimLoop
from simulation.network import Listener, ManagerEnd

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["FIRST_KEY", "Container", "Host", "SimClock"]

FIRST_KEY = b"k" * 32
"""What the managers' state is sealed with from the beginning."""

_EPOCH = datetime(2026, 5, 1, 12, tzinfo=UTC)
_RESTART_S = 1.0


class SimClock:
    """``jump_s`` is how far the host's wall clock is off."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.jump_s = 0.0

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._loop.time() + self.jump_s)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)

    def call_later(self, duration_s: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(duration_s, call)


@functools.cache
def _names(keys: bytes) -> tuple[str, ...]:
    return AesSealer(keys).digests


@dataclass(eq=False)
class Container:
    """``image`` decides how it behaves: see ``_LIFE``."""

    task: Task
    state: str = "created"
    code: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def image(self) -> str:
        return self.task.spec.container_spec.image.partition(":")[0]

    def end(self, code: int) -> None:
        if self.state == "running":
            self.state, self.code = "exited", code
            self.ended.set()


class Runtime:
    """``fleet.agent.controller.TaskRuntime`` over the host's containers.

    Images: ``good`` runs until stopped; ``stubborn`` needs its whole grace to stop; ``crashing`` ends with 1 after a moment;
    ``job`` ends with 0; ``missing`` cannot be had; ``sick`` never becomes healthy; ``flaky`` does any of it now and then.
    """

    def __init__(self, host: Host, process: Process) -> None:
        self._host = host
        self._process = process
        self._chance = host.world.chance

    async def fetch_data(self, task: Task, progress: Progress) -> None:
        """Over a wire that takes its time, from a host that must have power and a daemon."""
        if task.id in self._host.containers:
            return
        assert task.moved_from is not None
        await self._work(0.1, 2.0)
        source = next(host for host in self._host.world.hosts if host.node_id == task.moved_from.node)
        self._reach(source)
        progress("copied", True)
        while self._runs_there(source, task.moved_from.task):
            await self._work(0.05, 0.1)
        await self._work(0.05, 0.5)
        self._reach(source)
        if self._chance.random() < 0.1:
            raise errors.RejectedFault("the disk is full")
        self._host.fetched[task.id] = task.moved_from.task

    def _reach(self, source: Host) -> None:
        if source.process is None or not source.has_power:
            raise errors.UnavailableError(f"{source.name} cannot be reached")

    def _runs_there(self, source: Host, task_id: str) -> bool:
        self._reach(source)
        old = source.containers.get(task_id)
        if old is None:
            raise errors.RejectedFault(f"the container of {task_id} is gone")
        truth = self._host.world.checkers.objects[Kind.TASK].get(task_id)
        is_unwanted = truth is None or truth.desired_state.rank > TaskState.RUNNING.rank
        return old.state == "running" or not (is_unwanted or truth.status.state.is_terminal)

    async def prepare(self, task: Task) -> str:
        await self._work(0.02, 0.6)
        image = task.spec.container_spec.image.partition(":")[0]
        if image == "missing":
            raise errors.RejectedFault("no such image")
        if self._chance.random() < 0.03:
            raise errors.UnavailableError("the image cannot be fetched now")
        self._host.containers.setdefault(task.id, Container(task))
        return f"c-{task.id}"

    async def start(self, task: Task) -> ContainerStatus:
        await self._work(0.005, 0.1)
        container = self._host.containers.get(task.id)
        if container is None:
            raise errors.RuntimeFault("the container is gone")
        if container.state == "created":
            self._host.world.before_start(self._host, container)
            container.state = "running"
            self._plan_its_end(container)
        return ContainerStatus(container_id=f"c-{task.id}", pid=1)

    def _plan_its_end(self, container: Container) -> None:
        loop, chance = self._host.world.loop, self._chance
        life = {"crashing": (1, 0.1, 2.0), "job": (0, 0.5, 4.0)}.get(container.image)
        if container.image == "flaky" and chance.random() < 0.3:
            life = (1, 0.2, 8.0)
        if life is not None:
            code, shortest, longest = life
            loop.later(chance.uniform(shortest, longest), lambda: container.end(code))

    async def wait_healthy(self, task: Task) -> bool:
        container = self._host.containers[task.id]
        if container.image != "sick" and not (container.image == "flaky" and self._chance.random() < 0.1):
            await asyncio.sleep(self._chance.uniform(0.0, 0.3))
            return container.state == "running"
        await asyncio.sleep(1.0)
        container.end(137)
        return False

    async def watch(self, task: Task) -> Exit:
        container = self._host.containers.get(task.id)
        if container is None:
            return Exit(code=137, detail="the container is gone")
        if container.state == "created":
            raise errors.RuntimeFault("watched before it was started")
        await container.ended.wait()
        await self._work(0.001, 0.01)
        return Exit(code=container.code, unhealthy=container.image == "sick")

    async def stop(self, task: Task) -> Exit | None:
        container = self._host.containers.get(task.id)
        if container is None:
            return None
        await self._work(0.005, 0.05)
        if container.state == "running":
            await asyncio.sleep(3.0 if container.image == "stubborn" else self._chance.uniform(0.01, 0.2))
            container.end(0)
        if container.state == "created":
            container.state = "exited"
            container.ended.set()
        return Exit(code=container.code)

    async def remove(self, task: Task) -> None:
        await self._work(0.005, 0.05)
        container = self._host.containers.get(task.id)
        if container is not None:
            container.end(137)
            del self._host.containers[task.id]

    async def _work(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._chance.uniform(least_s, most_s) * self._host.slowness)


class Disk:
    """``fleet.agent.local_state.LocalState``: not synced, so what was written last may be lost with the power; it can be full."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.is_full = False
        self._synced: tuple[list[dispatch.Item], dict[TaskId, TaskStatus]] = ([], {})
        self._written = self._synced

    def load(self) -> tuple[list[dispatch.Item], dict[TaskId, TaskStatus]]:
        return list(self._written[0]), dict(self._written[1])

    def save(self, items: Any, statuses: dict[TaskId, TaskStatus]) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        if self._chance.random() < 0.5:
            self.written_back()
        self._written = ([i for i in items if not isinstance(i, dispatch.SecretItem)], dict(statuses))

    def lose_power(self) -> None:
        self._written = self._synced

    def written_back(self) -> None:
        """The kernel has got round to it."""
        self._synced = self._written


class HostNetwork:
    """``fleet.agent.network_sync.HostNetworkLike`` that takes a moment."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def ensure_network(self, network: NetworkSpec) -> None:
        await asyncio.sleep(self._chance.uniform(0.001, 0.05))

    async def remove_network(self, network_id: str) -> None:
        await asyncio.sleep(0.01)

    async def apply_state(self, state: NetworkState) -> None:
        await asyncio.sleep(0.001)

    async def apply_published(self, ports: tuple[PublishedPort, ...]) -> None:
        await asyncio.sleep(0.001)


class Host:
    """``start`` and ``kill`` its fleetd; ``lose_power`` and ``boot`` the whole of it."""

    def __init__(self, world: World, name: str, *, is_manager: bool) -> None:
        self.world = world
        self.name = name
        self.node_id = NodeId(f"node-{name}")
        self.is_manager = is_manager
        self.clock = SimClock(world.loop)
        self.disk = Disk(world.chance)
        self.sealing_keys = FIRST_KEY if is_manager else b""
        """As its disk has them, durably."""
        self.containers: dict[str, Container] = {}
        self.fetched: dict[str, str] = {}
        """Task -> whose data it has, complete."""
        self.slowness = 1.0
        self.has_power = True
        self.process: Process | None = None
        self.role: ManagerRole | None = None
        self.session: Session | None = None
        self.worker: Worker | None = None
        self.terms: list[str] = []
        self.managers: tuple[str, ...] = world.manager_addresses

    @property
    def address(self) -> str:
        return f"{self.name}:2377"

    @property
    def sealing_names(self) -> tuple[str, ...]:
        return _names(self.sealing_keys)

    def start(self) -> None:
        if self.process is None and self.has_power:
            self.process = Process(self.name)
            self.world.loop.spawn(self._fleetd(self.process), self.process)

    def kill(self, *, silent: bool = False) -> None:
        """SIGKILL for its fleetd."""
        process, self.process = self.process, None
        self.role = self.session = None
        if process is None:
            return
        self.world.loop.kill(process)
        self.world.network.listeners.pop(self.name, None)
        self.world.network.end_of_process(process, silent=silent)

    def lose_power(self) -> None:
        self.has_power = False
        self.world.network.off.add(self.name)
        self.kill(silent=True)
        self.disk.lose_power()
        for container in self.containers.values():
            container.end(137)

    def boot(self) -> None:
        if not self.has_power:
            self.has_power = True
            self.world.network.off.discard(self.name)
            self.start()

    # -- fleetd

    async def _fleetd(self, process: Process) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._agent(process))
                if self.is_manager:
                    group.create_task(self._manager(process))
        except* errors.InvariantError as group_of:
            first = _first(group_of)
            self.world.fail(f"{self.name}: {first}", cause=first)
        except* Exception as group_of:  # noqa: BLE001 - whatever ends fleetd is looked at
            first = _first(group_of)
            self.world.note(f"{self.name}: fleetd ends: {type(first).__name__}: {first}")
            if not isinstance(first, errors.FleetError):
                self.world.fail(f"{self.name}: {type(first).__name__}: {first}", cause=first)
        if not process.is_dead:
            self.kill()
            self.world.loop.later(_RESTART_S, self.start)

    async def _manager(self, process: Process) -> None:
        world = self.world
        engine = SimEngine(world.truth, self.name, lambda: world.reaches_majority(self.name))
        sealer = AesSealer(self.sealing_keys, entropy=world.nonces.randbytes)
        while True:
            try:
                await engine.start()
                store = await Store.open(engine, sealer=sealer)
                break
            except errors.UnavailableError:
                await self.clock.sleep(1.0)
        role = ManagerRole(
            store,
            engine,
            self.clock,
            node_id=self.node_id,
            cluster_addr=self.address,
            has_external_store=True,
            suspects_leader=lambda: self.session is not None and not self.session.connected.is_set(),
            probe=lambda address: world.network.refuses(self.name, address),
            entropy=world.chance.randbytes,
        )
        self.role = role

        async def serve(channel: ManagerEnd, who: str) -> None:
            try:
                await role.dispatcher.serve(channel, NodeId(who))
            except NotLeadingError as elsewhere:
                try:
                    await channel.receive()
                    await channel.send(
                        dispatch.encode(dispatch.Redirect(leader=elsewhere.leader, managers=role.addresses()))
                    )
                    await channel.close(str(elsewhere))
                except ChannelClosed:
                    return
            except ChannelClosed:
                return
            except errors.FleetError as cause:
                await channel.close(str(cause))

        world.network.listeners[self.name] = Listener(self.name, process, serve)
        async with asyncio.TaskGroup() as group:
            group.create_task(role.run())
            group.create_task(self._keep_keys(store, sealer))

    async def _keep_keys(self, store: Store, sealer: AesSealer) -> None:
        async def save(keys: bytes) -> None:
            await asyncio.sleep(self.world.chance.uniform(0.001, 0.05))
            self.sealing_keys = keys

        with store.subscribe(Kind.AUTHORITY, Kind.NODE) as changes:
            while True:
                try:
                    await keep_sealing_keys(store, sealer, self.clock, self.node_id, save=save)
                except (errors.UnavailableError, errors.ConflictError):
                    await self.clock.sleep(1.0)
                    continue
                await changes.wait()

    async def _agent(self, process: Process) -> None:
        world = self.world
        reporter = Reporter(self.clock)
        worker = Worker(
            runtime=lambda _worker: Runtime(self, process),
            network_sync=NetworkSync(HostNetwork(world.chance), self.clock),
            reporter=reporter,
            local_state=self.disk,  # type: ignore[arg-type]
            clock=self.clock,
        )

        def managers_changed(managers: tuple[str, ...]) -> None:
            self.managers = managers

        self.worker = worker
        self.session = Session(
            worker=worker,
            reporter=reporter,
            clock=self.clock,
            dial=world.network.dialer(self.name, process, self.node_id),
            managers=self.managers,
            managers_changed=managers_changed,
            trust_changed=lambda _trust: None,
            hello=self._hello,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            group.create_task(self.session.run())

    def _hello(self) -> dispatch.Hello:
        description = NodeDescription(
            hostname=self.name, resources=NodeResources(nano_cpus=4_000_000_000, memory_bytes=8 << 30)
        )
        address = f"10.1.0.{self.world.hosts.index(self) + 1}"
        return dispatch.Hello(description=description, address=address, cluster_port=2377, images=())

    def running(self) -> dict[str, Container]:
        return {name: c for name, c in self.containers.items() if c.state == "running"}


def _first(cause: BaseException) -> BaseException:
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


Starter = Callable[[Host, Container], None]
