"""What the runtime's kernel tests share: one node with its own directories and cgroup parent, a busybox image, and
proof that nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet.node_runtime.cgroup_layout import detect_layout
from fleet.node_runtime.client import RuntimeClient
from fleet.node_runtime.events import Exited, RuntimeEvent
from fleet.node_runtime.logs import read_log
from fleet.node_runtime.spec import ContainerSpec, LogSpec, ProcessSpec, ResourceLimits, RootFs
from tests.support.pace import stretched

TEST_TIMEOUT_S = stretched(300)

APPLETS = [
    "cat",
    "echo",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mknod",
    "mount",
    "pwd",
    "rm",
    "sed",
    "seq",
    "sh",
    "sleep",
    "sort",
    "stat",
    "stty",
    "tail",
    "test",
    "touch",
    "true",
    "false",
    "tty",
    "umount",
    "uname",
    "unshare",
    "wc",
    "yes",
    "dd",
    "nohup",
    "setsid",
    "ps",
    "trap",
    "env",
    "awk",
    "chroot",
    "ip",
]


def build_image(directory: Path) -> Path:
    """A busybox root with two users."""
    shutil.copytree("/etc/skel", directory, dirs_exist_ok=True)
    for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "run", "root", "home", "var"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    for applet in APPLETS:
        with contextlib.suppress(FileExistsError):
            (directory / "bin" / applet).symlink_to("/bin/busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:web:/home:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nwww:x:1001:\nextra:x:2000:web\nops:x:3000:\n")
    return directory


class Node:
    """A runtime client, and specs for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cgroup_parent = f"/fleet-test-{uuid.uuid4().hex[:10]}"
        self.image = build_image(directory / "image")
        self.client: RuntimeClient = None  # type: ignore[assignment]
        self._events: AsyncIterator[RuntimeEvent] = None  # type: ignore[assignment]
        self._seen: list[RuntimeEvent] = []
        self._number = 0
        self.supervisors: set[int] = set()

    async def connect(self) -> RuntimeClient:
        self.client = await RuntimeClient.open(
            state_dir=self.directory / "state", run_dir=self.directory / "run", cgroup_parent=self.cgroup_parent
        )
        self.supervisors.add(self.client.supervisor_pid)
        self._events = self.client.subscribe()
        return self.client

    def spec(self, *args: str, **changes: Any) -> ContainerSpec:
        """A container of the busybox image; keywords of ProcessSpec go to the process."""
        self._number += 1
        name = f"c{self._number}"
        root = changes.pop("root", None)
        if root is None:
            for kind in ("upper", "work"):
                (self.directory / f"{name}.{kind}").mkdir()
            root = RootFs(
                lower_dirs=(str(self.image),),
                upper_dir=str(self.directory / f"{name}.upper"),
                work_dir=str(self.directory / f"{name}.work"),
            )
        process = ProcessSpec(args=args)
        own = {key: changes.pop(key) for key in list(changes) if hasattr(process, key)}
        spec = ContainerSpec(
            id=name,
            root=root,
            process=replace(process, **own),
            log=LogSpec(path=str(self.directory / f"{name}.log")),
            resources=ResourceLimits(memory_bytes=256 << 20, pids_limit=128),
        )
        return replace(spec, **changes)

    async def event(self, wanted: Callable[[RuntimeEvent], bool], *, timeout_s: float = 90) -> RuntimeEvent:
        for index, seen in enumerate(self._seen):
            if wanted(seen):
                return self._seen.pop(index)
        async with asyncio.timeout(stretched(timeout_s)):
            async for event in self._events:
                if wanted(event):
                    return event
                self._seen.append(event)
        raise AssertionError("events ended")

    async def exited(self, container_id: str) -> Exited:
        event = await self.event(lambda event: isinstance(event, Exited) and event.id == container_id)
        assert isinstance(event, Exited)
        return event

    async def run(self, spec: ContainerSpec, **fds: int) -> tuple[int, str]:
        """Start, wait for the end, (exit code, stdout and stderr as logged)."""
        await self.client.start(spec, **fds)
        return (await self.exited(spec.id)).exit_code, await self.log(spec)

    async def log(self, spec: ContainerSpec) -> str:
        assert spec.log is not None
        return b"".join([line.data async for line in read_log(spec.log.path)]).decode()

    def leftovers(self) -> list[str]:
        """Cgroups, mounts and processes that still speak of this node."""
        layout = detect_layout()
        roots = {*layout.v1.values(), layout.unified} - {""}
        found = [root + self.cgroup_parent for root in roots if Path(root + self.cgroup_parent).exists()]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.directory) in line]
        for pid in self.supervisors:
            with contextlib.suppress(OSError):
                if str(self.directory) in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(f"supervisor {pid}")
        return found


@contextlib.asynccontextmanager
async def node() -> AsyncIterator[Node]:
    """A node that is taken down whatever happens, and checked for leftovers when the test itself succeeded."""
    directory = Path(tempfile.mkdtemp(prefix="fleet-rt-"))
    own = Node(directory)
    succeeded = False
    try:
        await own.connect()
        yield own
        succeeded = True
    finally:
        for pid in own.supervisors:  # a test may have failed while it had stopped one
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        try:
            if own.client is None or own.client._closed:
                await own.connect()
            for state in await own.client.list():
                await own.client.remove(state.id)
            await own.client.shutdown()
            if succeeded:
                assert own.leftovers() == []
        finally:
            for pid in own.supervisors:
                with contextlib.suppress(OSError):
                    if str(directory) in Path(f"/proc/{pid}/cmdline").read_text():
                        os.kill(pid, signal.SIGKILL)
            shutil.rmtree(directory, ignore_errors=True)


def on_node(test: Callable[[Node], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test with a node of its own."""

    async def inner() -> None:
        async with node() as own, asyncio.timeout(TEST_TIMEOUT_S):
            await test(own)

    def run() -> None:
        asyncio.run(inner())

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run


async def eventually(check: Callable[[], Awaitable[bool]] | Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Wait for a condition, asked every 20 ms."""
    async with asyncio.timeout(stretched(timeout_s)):
        while True:
            result = check()
            if await result if not isinstance(result, bool) else result:
                return
            await asyncio.sleep(0.02)
