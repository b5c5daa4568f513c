"""A host made of small fakes: a supervisor that remembers across engines, images of plain folders, sandboxes that are names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.clocks import SleepingTimers

from fleet.containers.engine import ContainerEngine
from fleet.errors import ConflictError, NotFoundError, RejectedFault, RuntimeFault
from fleet.images.config import ImageConfig
from fleet.network.desired import with_attachments
from fleet.network.topology import AttachmentSpec, Interface, NetworkSpec, Sandbox, SandboxSpec
from fleet.node_runtime.events import ContainerState, ExecStarted, Exited, Started
from fleet.node_runtime.spec import ContainerSpec, ProcessSpec, ResourceLimits

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeRun:
    spec: ContainerSpec
    id: str
    status: str = "running"
    pid: int = 100
    started_at: datetime | None = START
    exit_code: int | None = None
    oom_killed: bool = False
    finished_at: datetime | None = None


class FakeRuntime:
    """Refuses what the real one refuses: a second start of one id, signals to what does not run."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.specs: list[ContainerSpec] = []
        self.given_input: dict[str, bytes] = {}
        """What standard input gave at the start of a container; b"" for its end. Absent where it was just empty."""
        self.signals: list[tuple[str, int]] = []
        self.fail_start: Exception | None = None
        self.exit_at_start: int | None = None
        self.hold_start: asyncio.Event | None = None
        self.starts_in_flight = 0
        self.starts_in_flight_max = 0
        self.on_signal: Callable[[str, int], None] = lambda key, number: self.end(key, 128 + number)
        self.exec_result: Callable[[ProcessSpec], int] = lambda _process: 0
        self._queues: list[asyncio.Queue[Any]] = []

    async def start(self, spec: ContainerSpec, *, netns_fd: int | None = None, **_fds: Any) -> Started:
        assert spec.id not in self.runs, "the supervisor still knows this id"
        assert (spec.network == "fd") == (netns_fd is not None)
        self.starts_in_flight += 1
        self.starts_in_flight_max = max(self.starts_in_flight_max, self.starts_in_flight)
        try:
            if self.hold_start is not None:
                await self.hold_start.wait()
            await asyncio.sleep(0)
            if self.fail_start is not None:
                raise self.fail_start
        finally:
            self.starts_in_flight -= 1
        stdin_fd: int | None = _fds.get("stdin_fd")
        if stdin_fd is not None:
            os.set_blocking(stdin_fd, False)
            try:
                self.given_input[spec.id] = os.read(stdin_fd, 100)
            except BlockingIOError:
                self.given_input.pop(spec.id, None)
        self.specs.append(spec)
        self.runs[spec.id] = FakeRun(spec=spec, id=spec.id)
        if self.exit_at_start is not None:
            self.end(spec.id, self.exit_at_start)
            await asyncio.sleep(0.01)
        return Started(spec.id, 100, START)

    def end(self, key: str, code: int, *, oom: bool = False) -> None:
        run = self.runs[key]
        run.status, run.exit_code, run.finished_at, run.oom_killed = "exited", code, START, oom
        self.tell(Exited(key, code, oom, START))

    def tell(self, event: object) -> None:
        for queue in self._queues:
            queue.put_nowait(event)

    def _running(self, key: str) -> FakeRun:
        run = self.runs.get(key)
        if run is None or run.status == "exited":
            raise NotFoundError(f"container {key} is not running")
        return run

    async def signal(self, key: str, number: int) -> None:
        self._running(key)
        self.signals.append((key, number))
        if number == 9:
            self.end(key, 137)
        else:
            self.on_signal(key, number)

    async def pause(self, key: str) -> None:
        self._running(key).status = "paused"

    async def resume(self, key: str) -> None:
        self._running(key).status = "running"

    async def update(self, key: str, limits: ResourceLimits) -> None:
        self._running(key)

    async def stats(self, key: str) -> Any:
        return None

    async def stats_of_all(self) -> Any:
        return None

    async def processes(self, key: str) -> list[Any]:
        return []

    async def exec(self, key: str, process: ProcessSpec, **_fds: Any) -> ExecStarted:
        self._running(key)
        return ExecStarted(str(self.exec_result(process)), 2**22 + 1)

    async def exec_capture(
        self, key: str, process: ProcessSpec, *, timeout_s: float, output_bytes_max: int = 0
    ) -> tuple[int, bytes]:
        self._running(key)
        return self.exec_result(process), b"said something\n"

    async def wait_exec(self, exec_id: str) -> int:
        return int(exec_id)

    async def list(self) -> list[ContainerState]:
        return [
            ContainerState(r.id, r.status, r.pid, START, r.exit_code, r.oom_killed, r.finished_at)  # type: ignore[arg-type]
            for r in self.runs.values()
        ]

    async def remove(self, key: str) -> None:
        self.runs.pop(key, None)

    def subscribe(self) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queues.append(queue)
        return self._iterate(queue)

    async def _iterate(self, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        while True:
            yield await queue.get()


@dataclass(frozen=True)
class FakeImage:
    id: str
    references: tuple[str, ...]
    config: ImageConfig
    layer_dirs: tuple[Path, ...] = ()


class FakeImages:
    def __init__(self) -> None:
        self.known: dict[str, FakeImage] = {}

    def add(self, reference: str, layer_dirs: tuple[Path, ...] = (), **config: Any) -> FakeImage:
        image = FakeImage(
            "sha256:" + reference.encode().hex().ljust(64, "0"), (reference,), ImageConfig(**config), layer_dirs
        )
        self.known[reference] = self.known[image.id] = image
        return image

    def get(self, name_or_id: str) -> FakeImage:
        try:
            return self.known[name_or_id]
        except KeyError:
            raise NotFoundError(f"no such image: {name_or_id}") from None


class FakeNetworks:
    def __init__(self) -> None:
        self.open: dict[str, SandboxSpec] = {}
        self.networks: dict[str, NetworkSpec] = {}
        self.fail = False

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        if self.fail:
            raise RuntimeFault("network bridge: all 253 addresses are in use")
        self.open[spec.id] = spec
        return self._described(spec)

    @staticmethod
    def _described(spec: SandboxSpec) -> Sandbox:
        interfaces = tuple(
            Interface(
                network_id=a.network_id,
                name=f"eth{n}",
                address=a.address or f"172.17.0.{n + 2}",
                prefix_len=16,
                mac="02:42:ac:11:00:02",
                gateway="172.17.0.1",
                address6=a.address6 or "",
                prefix_len6=64 if a.address6 else 0,
                gateway6="fd00:9::1" if a.address6 else "",
            )
            for n, a in enumerate(spec.attachments)
        )
        return Sandbox(id=spec.id, netns_path="", interfaces=interfaces, resolv_conf="nameserver 127.0.0.11\n")

    async def ensure_network(self, spec: NetworkSpec) -> None:
        self.networks[spec.id] = spec

    async def remove_network(self, network_id: str) -> None:
        self.networks.pop(network_id, None)

    async def connect(self, sandbox_id: str, attachment: AttachmentSpec) -> Interface:
        if self.fail:
            raise ConflictError(f"network net: address {attachment.address} is in use")
        spec = self.open[sandbox_id]
        self.open[sandbox_id] = with_attachments(spec, (*spec.attachments, attachment))
        return (await self.sandbox(sandbox_id)).interfaces[-1]

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        spec = self.open[sandbox_id]
        kept = tuple(a for a in spec.attachments if a.network_id != network_id)
        self.open[sandbox_id] = with_attachments(spec, kept)

    async def sandbox(self, sandbox_id: str) -> Sandbox:
        return self._described(self.open[sandbox_id])

    async def remove_sandbox(self, sandbox_id: str) -> None:
        self.open.pop(sandbox_id, None)

    async def sandboxes(self) -> list[str]:
        return [*self.open]

    def open_netns(self, sandbox_id: str) -> int:
        assert sandbox_id in self.open
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


class StepClock(SleepingTimers):
    """Time that moves when somebody sleeps; sleeping yields to the loop."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed)

    def monotonic(self) -> float:
        return self.elapsed

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.elapsed += duration_s
        await asyncio.sleep(0.001)


@dataclass
class Host:
    """One host whose engine can be closed, or lost, and opened again."""

    root: Path
    runtime: FakeRuntime = field(default_factory=FakeRuntime)
    images: FakeImages = field(default_factory=FakeImages)
    network: FakeNetworks = field(default_factory=FakeNetworks)
    clock: StepClock = field(default_factory=StepClock)

    async def engine(self) -> ContainerEngine:
        return await ContainerEngine.open(
            data_root=self.root / "data",
            exec_root=self.root / "exec",
            runtime=self.runtime,
            images=self.images,
            network=self.network,
            clock=self.clock,
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ContainerEngine]:
        engine = await self.engine()
        try:
            yield engine
        finally:
            await engine.close()

    def run(self, story: Callable[[ContainerEngine], Awaitable[None]]) -> None:
        """Run a story with an engine, in a fresh loop."""

        async def main() -> None:
            async with asyncio.timeout(20), self.opened() as engine:
                await story(engine)

        asyncio.run(main())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    # Unit tests do not mount: the directory stands in for the tmpfs, whose use kernel tests look at.
    monkeypatch.setattr("fleet.containers.secretfs._is_memory", lambda _path: True)
    made = Host(tmp_path)
    made.images.add("app", cmd=("/bin/app",), env=("PATH=/bin", "A=1"))
    return made


@pytest.fixture
def rejected() -> type[RejectedFault]:
    return RejectedFault
