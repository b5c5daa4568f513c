"""What the engine needs of the three packages below it, as protocols: the real ones fit, and so do small fakes in unit tests.

``Runtime``   ``fleet.node_runtime.client.RuntimeClient``
``Images``    ``fleet.images.store.ImageStore`` (the part the engine uses)
``Networks``  ``fleet.network.host.HostNetwork``
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from fleet.images.config import ImageConfig
from fleet.network.topology import AttachmentSpec, Interface, NetworkSpec, Sandbox, SandboxSpec
from fleet.node_runtime.events import (
    ContainerProcess,
    ContainerState,
    ContainerStats,
    ExecStarted,
    RuntimeEvent,
    Started,
)
from fleet.node_runtime.spec import ContainerSpec, ProcessSpec, ResourceLimits

__all__ = ["ImageView", "Images", "Networks", "Overlays", "Runtime"]


class Runtime(Protocol):
    """Starts and supervises; outlives the engine."""

    async def start(
        self,
        spec: ContainerSpec,
        *,
        netns_fd: int | None = None,
        stdin_fd: int | None = None,
        attach_fd: int | None = None,
    ) -> Started: ...
    async def signal(self, container_id: str, signum: int) -> None: ...
    async def pause(self, container_id: str) -> None: ...
    async def resume(self, container_id: str) -> None: ...
    async def update(self, container_id: str, limits: ResourceLimits) -> None: ...
    async def attach(self, container_id: str, fd: int) -> None: ...
    async def open_terminal(self, container_id: str) -> int: ...
    async def open_user_namespace(self, *, first_id: int, count: int) -> int: ...
    async def resize(self, container_id: str, *, rows: int, columns: int) -> None: ...
    async def stats(self, container_id: str) -> ContainerStats: ...
    async def processes(self, container_id: str) -> Sequence[ContainerProcess]: ...
    async def exec(
        self,
        container_id: str,
        process: ProcessSpec,
        *,
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
        tty: bool = False,
        privileged: bool = False,
        seccomp: str = "default",
    ) -> ExecStarted: ...
    async def exec_capture(
        self, container_id: str, process: ProcessSpec, *, timeout_s: float, output_bytes_max: int = 1 << 16
    ) -> tuple[int, bytes]: ...
    async def wait_exec(self, exec_id: str) -> int: ...
    async def signal_exec(self, exec_id: str, signum: int) -> None: ...
    async def list(self) -> Sequence[ContainerState]: ...
    async def remove(self, container_id: str) -> None: ...
    def subscribe(self) -> AsyncIterator[RuntimeEvent]: ...


class ImageView(Protocol):
    """What the engine reads of an image."""

    @property
    def id(self) -> str: ...
    @property
    def references(self) -> tuple[str, ...]: ...
    @property
    def config(self) -> ImageConfig: ...
    @property
    def layer_dirs(self) -> tuple[Path, ...]: ...


class Images(Protocol):
    """Finds images that are on this host."""

    def get(self, name_or_id: str) -> ImageView: ...


class Networks(Protocol):
    """Makes and closes network sandboxes; they outlive the engine."""

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox: ...
    async def remove_sandbox(self, sandbox_id: str) -> None: ...
    async def ensure_network(self, spec: NetworkSpec) -> None: ...
    async def remove_network(self, network_id: str) -> None: ...
    async def connect(self, sandbox_id: str, attachment: AttachmentSpec) -> Interface: ...
    async def disconnect(self, sandbox_id: str, network_id: str) -> None: ...
    async def sandbox(self, sandbox_id: str) -> Sandbox: ...
    async def sandboxes(self) -> Sequence[str]: ...
    def open_netns(self, sandbox_id: str) -> int: ...


class Overlays(Protocol):
    """The cluster's networks, for containers that no service made; there is none while the host is in no cluster."""

    async def find(self, name: str) -> str:
        """The id of an attachable network. Raises ``NotFoundError``, ``ForbiddenError``, ``UnavailableError``."""
        ...

    async def join(self, container_id: str, attachment: AttachmentSpec, *, names: Sequence[str]) -> AttachmentSpec:
        """The attachment with the address the managers gave; the network is on this host then. Repeats safely."""
        ...

    def left(self) -> None:
        """Some container may be on some network no more."""
        ...

    def name_of(self, network_id: str) -> str | None:
        """What people call the network, if it is on this host."""
        ...
