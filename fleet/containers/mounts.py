"""From requested mounts to host paths: volumes are made and filled, bind sources checked, tmpfs options read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fleet.containers.config import normal_target
from fleet.containers.record import MountPoint
from fleet.containers.volumes import VolumeStore
from fleet.errors import RejectedFault, UnsupportedError, UserError
from fleet.model.service import Mount

__all__ = ["check_sources", "resolve_mounts"]

_PROPAGATIONS: Final = ("rprivate", "private", "rslave", "slave", "rshared", "shared")
_TMPFS_FLAGS: Final = frozenset({"exec", "noexec", "suid", "nosuid", "dev", "nodev"})


async def resolve_mounts(
    requests: Sequence[Mount], *, volumes: VolumeStore, layer_dirs: Sequence[Path], owner: str, made: list[str]
) -> tuple[MountPoint, ...]:
    """Resolve all mounts of the container ``owner``. Names of anonymous volumes that were made are put into ``made`` as
    they are, for the caller to undo.

    Raises ``RejectedFault`` for a missing bind source, ``UserError`` for bad options.
    """
    points = []
    for request in requests:
        match request.type:
            case "bind":
                points.append(_bind(request))
            case "tmpfs":
                points.append(_tmpfs(request))
            case _:
                points.append(await _volume(request, volumes=volumes, layer_dirs=layer_dirs, owner=owner, made=made))
    return tuple(points)


def check_sources(points: Sequence[MountPoint]) -> None:
    """Blocks. Raises ``RejectedFault`` naming the first bind source that is not there (any more)."""
    for point in points:
        if point.source and not os.path.lexists(point.source):
            raise RejectedFault(_missing(point.source))


def _missing(source: str) -> str:
    return f'invalid mount config for type "bind": bind source path does not exist: {source}'


def _bind(request: Mount) -> MountPoint:
    options = request.bind_options
    propagation = (options.propagation if options else "") or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise UserError(f"mount {request.target}: invalid propagation {propagation!r}: use {', '.join(_PROPAGATIONS)}")
    source = os.path.normpath(request.source)
    if not os.path.lexists(source):
        if not (options and options.create_mountpoint):
            raise RejectedFault(_missing(source))
        os.makedirs(source, mode=0o755, exist_ok=True)  # noqa: PTH103 - Docker's -v, one call, no Path needed
    return MountPoint(
        kind="bind",
        target=normal_target(request.target),
        source=source,
        read_only=request.read_only,
        propagation=propagation,
        recursive=not (options and options.non_recursive),
    )


async def _volume(
    request: Mount, *, volumes: VolumeStore, layer_dirs: Sequence[Path], owner: str, made: list[str]
) -> MountPoint:
    options = request.volume_options
    if options and options.subpath:
        # A container that shares the volume could swap a directory on the way for a link between check and mount.
        raise UnsupportedError(f"mount {request.target}: volume subpath is not supported: mount the whole volume")
    driver = options.driver_config if options else None
    volume = await volumes.create(
        request.source,
        driver=driver.name if driver else "local",
        labels=options.labels if options else None,
        options=driver.options if driver else None,
        owner="" if request.source else owner,
    )
    if not request.source:
        made.append(volume.name)
    if not (options and options.no_copy):
        await volumes.fill(volume, layer_dirs=layer_dirs, source=request.target)
    return MountPoint(
        kind="volume",
        target=normal_target(request.target),
        source=str(volumes.path(volume)),
        name=volume.name,
        read_only=request.read_only,
        anonymous=not request.source,
    )


def _tmpfs(request: Mount) -> MountPoint:
    options = request.tmpfs_options
    flags = []
    for words in options.options if options else ():
        text = "=".join(words)
        if text not in _TMPFS_FLAGS:
            raise UnsupportedError(
                f"mount {request.target}: tmpfs option {text!r} is not supported: use {', '.join(sorted(_TMPFS_FLAGS))}"
            )
        flags.append(text)
    size_bytes = options.size_bytes if options else 0
    if size_bytes < 0:
        raise UserError(f"mount {request.target}: tmpfs size cannot be negative")
    return MountPoint(
        kind="tmpfs",
        target=normal_target(request.target),
        read_only=request.read_only,
        size_bytes=size_bytes,
        mode=options.mode if options else 0,
        options=tuple(flags),
    )
