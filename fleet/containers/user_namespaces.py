"""Which containers of this host get a user namespace of their own: root inside is then nobody on the host.

Asked for (``remap``), declined (``host``), or left to the host: then every container that can have one gets one, where kernel and
file system allow it. What a container is given beyond the ordinary (privileges, namespaces of the host, capabilities over it,
devices by number, files whose owners cannot be mapped) belongs to the host's users, and it keeps the host's ids. What shares
namespaces with other containers is in their user namespace, for only there it has rights over them.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.containers.ports import Runtime
from fleet.containers.record import Container
from fleet.containers.subids import IDS_MIN, IdRange, read_range
from fleet.errors import FleetError, UserError
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES, capability_mask
from fleet.node_runtime.overlay import mount_mapped_overlay
from fleet.node_runtime.syscalls import AT_FDCWD, OPEN_TREE_CLONE, idmap_mount, open_tree

__all__ = ["UserNamespaces"]

_OWN: Final = capability_mask((*DEFAULT_CAPABILITIES, "NET_ADMIN", "NET_BROADCAST", "SYS_PTRACE"))
"""Capabilities over what is the container's own, its network above all; the others are asked of the host's users."""
_HOST_SYSCTLS: Final = ("net.core.xfrm_", "net.ipv6.route.")
"""Which a network namespace of other users does not have (net/xfrm/xfrm_sysctl.c, net/ipv6/route.c)."""


class UserNamespaces:
    """The host's choice. Lives on one event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.by_default = False
        """Whether a container that does not say gets one."""
        self.why_not = "it was not asked for"
        """Why not, when ``by_default`` is False."""
        self._users = -1  # to try mounts with, when by_default

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
            os.close(users)
            self.why_not = (
                f"the file system of {directory}, or this kernel, cannot map owners (Linux 6.13 can): {cause.strerror}"
            )
            return
        self.by_default, self._users = True, users
        self.why_not = ""

    def close(self) -> None:
        """Idempotent."""
        if self._users >= 0:
            os.close(self._users)
            self._users = -1

    async def choose(
        self,
        config: ContainerConfig,
        *,
        user: str,
        find: Callable[[str], Container | None] = lambda _: None,
        sources: Collection[str] = (),
    ) -> IdRange | None:
        """The ids of a container to be made; None: the host's. ``user`` is what its first process will be, ``find`` knows the
        containers of this host by id, ``sources`` are paths of the host it will have mounted.

        Raises ``UserError`` when it must have its own and shares namespaces with containers that have the host's.
        """
        if config.userns_mode == "host" or not (config.userns_mode or self.by_default):
            return None
        if not config.userns_mode and (
            keeps_host_ids(config, user=user)
            or (sources and not await asyncio.to_thread(_can_map, self._users, sources))
        ):
            return None
        donors = donors_of(config)
        if donors:
            found = [find(donor) for donor in donors]
            ids = found[0].ids if found[0] is not None else None
            alike = all(donor is not None and donor.ids == ids for donor in found)
            if ids is not None and alike and len({_owner(donor, find) for donor in donors}) == 1:
                return ids
            if config.userns_mode:
                raise UserError(
                    "userns mode remap: the containers whose namespaces are shared must be in one user namespace, and of "
                    f"{', '.join(donor[:12] for donor in donors)} some have the host's user ids, or each its own"
                )
            return None
        return await asyncio.to_thread(read_range)

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
        or config.network_mode is NetworkMode.HOST
        # a network of its own would belong to another user namespace than the one it joins: no rights over it
        or (config.network_mode is not NetworkMode.CONTAINER and bool(donors_of(config)))
        or config.ipc_mode == "shareable"  # so those who join it have the same users, whatever else they need
        or "host" in (config.pid_mode, config.ipc_mode, config.uts_mode, config.cgroupns_mode)
        or bool(capability_mask(config.capabilities_add) & ~_OWN)
        or bool(config.devices or config.cdi_devices or config.device_cgroup_rules)
        or any(number.isdigit() and int(number) >= IDS_MIN for number in (uid, gid, *config.groups))
        or any(name.startswith(_HOST_SYSCTLS) for name in config.sysctls)
        # what the host mounts there later would come unmapped
        or any(m.bind_options and m.bind_options.propagation.endswith(("shared", "slave")) for m in config.mounts)
    )


def donors_of(config: ContainerConfig) -> Sequence[str]:
    """Pure. The containers (ids) whose namespaces it shares."""
    modes = (config.pid_mode.partition(":"), config.ipc_mode.partition(":"))
    shared = [other for kind, _, other in modes if kind == "container"]
    if config.network_mode is NetworkMode.CONTAINER:
        shared.append(config.network_container)
    return list(dict.fromkeys(shared))


def _owner(container_id: str, find: Callable[[str], Container | None]) -> str:
    """Whose start made the user namespace that the container is in."""
    while (container := find(container_id)) is not None and (donors := donors_of(container.config)):
        container_id = donors[0]  # they are all in one
    return container_id


def _can_map(users: int, sources: Collection[str]) -> bool:
    """Whether all of these can be mounted with mapped owners, but for what is mounted below them; the whole host cannot, for most
    of it is. Blocks. What is not there is told later."""
    for source in sources:
        if source == "/":
            return False
        try:
            mount = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
        except OSError:
            continue
        try:
            idmap_mount(mount, users)
        except OSError:
            return False
        finally:
            os.close(mount)
    return True


def _try_overlay(directory: Path, users: int, ids: IdRange) -> None:
    """Mount an overlay as a container's root is, and let go of it. Blocks. Raises ``OSError``."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".userns-") as root:
        lower, upper, work = Path(root, "lower"), Path(root, "upper"), Path(root, "work")
        for path in (lower, upper, work):
            path.mkdir()
        os.close(
            mount_mapped_overlay([str(lower)], upper=str(upper), work=str(work), users=users, first_id=ids.first_id)
        )
