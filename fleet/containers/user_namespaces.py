"""Which containers of this host get a user namespace of their own: root inside is then nobody on the host.

Asked for (``remap``), declined (``host``), or left to the host: then every container that can have one gets one, where kernel and
file system allow it. What a container is given beyond the ordinary (privileges, namespaces of others, capabilities, devices by
number) belongs to the host's users, and it keeps the host's ids.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Final

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.containers.ports import Runtime
from fleet.containers.subids import IDS_MIN, IdRange, read_range
from fleet.errors import FleetError
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES, capability_mask
from fleet.node_runtime.overlay import mount_mapped_overlay

__all__ = ["UserNamespaces"]

_ORDINARY: Final = capability_mask(DEFAULT_CAPABILITIES)


class UserNamespaces:
    """The host's choice. Lives on one event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.by_default = False
        """Whether a container that does not say gets one."""
        self.why_not = "it was not asked for"
        """Why not, when ``by_default`` is False."""

    async def enable(self, directory: Path) -> None:
        """From now on by default, if it is possible for files below ``directory``; else ``why_not`` says why it is not."""
        ids = await asyncio.to_thread(read_range)
        try:
            users = await self._runtime.open_user_namespace(first_id=ids.first_id, count=ids.count)
        except FleetError as cause:
            self.why_not = f"the kernel allows no user namespace: {cause}"
            return
        try:
            await asyncio.to_thread(_try_overlay, directory, users, ids)
        except OSError as cause:
            self.why_not = (
                f"the file system of {directory}, or this kernel, cannot map owners (Linux 6.13 can): {cause.strerror}"
            )
            return
        finally:
            os.close(users)
        self.by_default = True
        self.why_not = ""

    async def choose(self, config: ContainerConfig, *, user: str) -> IdRange | None:
        """The ids of a container to be made; None: the host's. ``user`` is what its first process will be."""
        wanted = config.userns_mode == "remap" or (
            self.by_default and not config.userns_mode and not keeps_host_ids(config, user=user)
        )
        return await asyncio.to_thread(read_range) if wanted else None

    async def open(self, ids: IdRange | None) -> int:
        """A descriptor of a user namespace with these ids, for mounts; the caller's. -1 for None."""
        if ids is None:
            return -1
        return await self._runtime.open_user_namespace(first_id=ids.first_id, count=ids.count)


def keeps_host_ids(config: ContainerConfig, *, user: str) -> bool:
    """Pure. Whether the container, left to the host, would not work in a user namespace, or not be what was asked for."""
    uid, _, gid = user.partition(":")
    return (
        config.privileged
        or config.network_mode in (NetworkMode.HOST, NetworkMode.CONTAINER)
        or config.pid_mode not in ("", "private")
        or config.ipc_mode not in ("", "private", "none")
        or config.uts_mode == "host"
        or config.cgroupns_mode == "host"
        or bool(capability_mask(config.capabilities_add) & ~_ORDINARY)
        or bool(config.devices or config.cdi_devices or config.device_cgroup_rules)
        or any(number.isdigit() and int(number) >= IDS_MIN for number in (uid, gid, *config.groups))
    )


def _try_overlay(directory: Path, users: int, ids: IdRange) -> None:
    """Mount an overlay as a container's root is, and let go of it. Blocks. Raises ``OSError``."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".userns-") as root:
        lower, upper, work = Path(root, "lower"), Path(root, "upper"), Path(root, "work")
        for path in (lower, upper, work):
            path.mkdir()
        os.close(
            mount_mapped_overlay([str(lower)], upper=str(upper), work=str(work), users=users, first_id=ids.first_id)
        )
