"""What a move of a container to another host needs of the engine: which can go, how one is told, how one is put in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fleet.containers.config import ContainerConfig, NetworkMode, RestartName, RestartRule, normal_target
from fleet.containers.record import Container, remove_tree
from fleet.errors import ConflictError, UnsupportedError
from fleet.images.beneath import sync_filesystem
from fleet.model.service import Mount

if TYPE_CHECKING:
    from fleet.containers.core import Core
    from fleet.containers.entry import Entry

__all__ = ["check_movable", "hold", "let_go", "portable_config", "put_in_place"]

TASK_LABEL = "com.docker.swarm.task.id"


def check_movable(container: Container) -> None:
    """Refuse what another host could not continue. Raises ``ConflictError``, ``UnsupportedError``."""
    config, name = container.config, container.name
    if TASK_LABEL in container.labels:
        service = container.labels.get("com.docker.swarm.service.name", "a service")
        raise ConflictError(
            f"container {name} is a task of service {service}: the scheduler chooses its node, and would start another "
            "here; have the task moved with its data (fleet task move TASK HOST)"
        )
    if config.network_mode is NetworkMode.CONTAINER:
        raise ConflictError(f"container {name} uses the network of another container here: it cannot be moved alone")
    for mode in (config.pid_mode, config.ipc_mode):
        if mode.startswith("container:"):
            raise ConflictError(f"container {name} shares a namespace with another container: it cannot be moved alone")
    if config.files:
        raise UnsupportedError(f"container {name} has secrets or configs, which stay on their host")


def portable_config(container: Container) -> ContainerConfig:
    """The configuration for another host: with the name it has now, and what ``--volumes-from`` came to spelt out."""
    config = container.config
    named = {normal_target(target) for target in (*(m.target for m in config.mounts), *config.volume_targets)}
    borrowed = tuple(
        Mount(
            type=point.kind,
            source=point.name or point.source,
            target=point.target,
            read_only=point.read_only,
        )
        for point in container.mounts
        if not point.anonymous and point.target not in named
    )
    return msgspec.structs.replace(
        config, name=container.name, mounts=(*config.mounts, *borrowed), volumes_from=()
    ).without_data()


async def hold(core: Core, entry: Entry) -> None:
    """Nothing but a person starts or removes it from now on: no restart rule, no ``--rm``. Durable."""
    async with entry.lock:
        config = msgspec.structs.replace(
            entry.record.config, restart=RestartRule(name=RestartName.NO), auto_remove=False
        )
        entry.change(config=config)
        await core.save(entry)


async def let_go(core: Core, entry: Entry, *, restart: RestartRule, auto_remove: bool) -> None:
    """Undo ``hold``."""
    async with entry.lock:
        entry.change(config=msgspec.structs.replace(entry.record.config, restart=restart, auto_remove=auto_remove))
        await core.save(entry)


def put_in_place(arrived: Path, target: Path) -> None:
    """The directory ``arrived`` instead of ``target``; both on one file system. Blocks; durable when it returns."""
    old = arrived.with_name(arrived.name + ".old")
    target.rename(old)
    arrived.rename(target)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(fd)
    finally:
        os.close(fd)
    remove_tree(old)
