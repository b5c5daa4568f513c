"""A whole host for kernel tests: real supervisor, image store, network and engine in folders of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fleet.containers import Container, ContainerConfig, ContainerEngine, ExitStatus
from fleet.containers.apparmor import AppArmor
from fleet.images import ImageStore
from fleet.network.host import HostNetwork
from fleet.network.topology import NetworkSpec
from fleet.node_runtime.client import RuntimeClient
from fleet.node_runtime.spec import ProcessSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.images import busybox_rootfs_tar
from support.pace import stretched

BRIDGE = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.29.0.0/24", gateway="172.29.0.1")


async def file_stream(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


class RealHost:
    """One host; ``opened`` may be entered again and again, as a daemon restarts."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.cgroup_parent = f"/fleet-test-{name}"
        self.runtime: RuntimeClient = None  # type: ignore[assignment]
        self.images: ImageStore = None  # type: ignore[assignment]
        self.network: HostNetwork = None  # type: ignore[assignment]
        self.engine: ContainerEngine = None  # type: ignore[assignment]

    @property
    def exec_root(self) -> Path:
        return self.root / "x"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ContainerEngine]:
        async with contextlib.AsyncExitStack() as stack:
            self.runtime = await RuntimeClient.open(
                state_dir=self.root / "d/runtime", run_dir=self.exec_root / "runtime", cgroup_parent=self.cgroup_parent
            )
            stack.push_async_callback(self.runtime.close)
            self.images = await ImageStore.open(self.root / "d/images")
            stack.push_async_callback(self.images.close)
            self.network = HostNetwork(
                run_dir=self.exec_root / "network",
                state_dir=self.root / "d/network",
                owner=self.name,
                underlay_address="127.0.0.1",
                pool_size=1,
                open_namespace=self.runtime.open_network_namespace,
            )
            await self.network.open()
            stack.push_async_callback(self.network.close)
            await self.network.ensure_network(BRIDGE)
            self.engine = await ContainerEngine.open(
                data_root=self.root / "d",
                exec_root=self.exec_root,
                runtime=self.runtime,
                images=self.images,
                network=self.network,
                user_namespaces=True,
                apparmor=AppArmor(self.root / "d/apparmor"),
            )
            stack.push_async_callback(self.engine.close)
            yield self.engine

    async def add_image(self, reference: str, *changes: str, extra_files: dict[str, bytes] | None = None) -> None:
        path = self.root / "rootfs.tar"
        busybox_rootfs_tar(path, extra_files=extra_files or {})
        await self.images.import_tar(file_stream(path), reference=reference, changes=changes)
        path.unlink()

    async def run(self, *command: str, **fields: Any) -> tuple[Container, ExitStatus, str]:
        """Create, start and wait; (container, how it ended, what it wrote)."""
        made = await self.engine.create(ContainerConfig(image="busybox", command=command, **fields))
        await self.engine.start(made.id)
        async with asyncio.timeout(stretched(30)):
            status = await self.engine.wait(made.id)
        return self.engine.get(made.id), status, await self.output(made.id)

    async def inside(self, name: str, script: str) -> tuple[int, bytes]:
        """Exit code and output of a shell script in a running container."""
        return await self.runtime.exec_capture(name, ProcessSpec(args=("sh", "-c", script)), timeout_s=stretched(30))

    async def output(self, name: str) -> str:
        return b"".join([line.data async for line in self.engine.logs(name)]).decode()

    async def clear(self) -> None:
        """Leave nothing: containers, sandboxes, supervisor, mounts."""
        async with self.opened() as engine:
            await engine.recover()
            for container in engine.list():
                await engine.remove(container.id, force=True, volumes=True)
            await self.runtime.shutdown()
            await self.network.destroy()
            await engine.destroy()


def on_real_host(story: Callable[[RealHost], Awaitable[None]], *, unique: str, opened: bool = True) -> None:
    """Run a story on a fresh host with the image ``busybox``, and clean up whatever happens."""
    root = Path(tempfile.mkdtemp(prefix=f"f{unique}-", dir="/tmp"))
    root.chmod(0o755)
    host = RealHost(root, unique)

    async def main() -> None:
        try:
            async with asyncio.timeout(stretched(120)):
                async with host.opened() as engine:
                    await host.add_image("busybox", 'CMD ["sh"]')
                    await engine.recover()
                    if opened:
                        await story(host)
                if not opened:
                    await story(host)
        finally:
            await host.clear()

    try:
        asyncio.run(main())
    finally:
        shutil.rmtree(root, ignore_errors=os.environ.get("FLEET_TEST_KEEP") is None)
