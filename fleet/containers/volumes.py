"""Named volumes on this host: directories that outlive containers (driver ``local``).

``<data_root>/volumes/<name>/_data`` is what containers see; ``volume.json`` beside it is the record. The options of
Docker's local driver
are honoured as far as they describe a bind (``type=none,o=bind,device=/path``) or a mount the kernel can do by itself
(``type=tmpfs`` and
others are refused with a sentence). A volume is made in ``.new-*`` and renamed, so a crash leaves none by halves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from fleet.clock import Clock
from fleet.containers.config import is_volume_name
from fleet.containers.layerview import copy_image_directory
from fleet.containers.names import new_volume_name
from fleet.containers.record import remove_tree
from fleet.durable import sync_directory, write_durably
from fleet.errors import (
    ConflictError,
    InvariantError,
    NotFoundError,
    RejectedFault,
    RuntimeFault,
    UnsupportedError,
    UserError,
)
from fleet.model import wire
from fleet.model.wire import Value

__all__ = ["ANONYMOUS_LABEL", "Volume", "VolumeStore"]

ANONYMOUS_LABEL: Final = "com.docker.volume.anonymous"
"""Set, with an empty value, on volumes nobody named; ``volume prune`` takes only those unless told ``all``."""

_VOLUMES_MAX: Final = 10_000
_BIND_OPTIONS: Final = frozenset({"type", "o", "device"})


class Volume(Value, frozen=True, kw_only=True):
    """One volume. ``device`` is the host directory a bind-like volume stands for, else empty."""

    name: str
    created_at: datetime
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, str] = msgspec.field(default_factory=dict)
    device: str = ""
    owner: str = ""
    """Id of the container an anonymous volume was made for; it goes with that container unless it is kept."""

    @property
    def is_anonymous(self) -> bool:
        return ANONYMOUS_LABEL in self.labels


class VolumeStore:
    """All volumes of this host. ``in_use`` tells which containers (ids) use a volume; the engine supplies it."""

    def __init__(self, root: Path, *, clock: Clock, in_use: Callable[[str], Collection[str]]) -> None:
        self._root = root
        self._clock = clock
        self._in_use = in_use
        self._volumes: dict[str, Volume] = {}
        self._lock = asyncio.Lock()

    async def open(self) -> list[str]:
        """Read what is there; sentences about what could not be read."""
        self._volumes, problems = await asyncio.to_thread(_load, self._root)
        return problems

    def all(self) -> Sequence[Volume]:
        """All volumes by name."""
        return [self._volumes[name] for name in sorted(self._volumes)]

    def get(self, name: str) -> Volume:
        """Raises ``NotFoundError``."""
        try:
            return self._volumes[name]
        except KeyError:
            raise NotFoundError(f"get {name}: no such volume") from None

    def path(self, volume: Volume) -> Path:
        """The host directory that is mounted into containers."""
        return Path(volume.device) if volume.device else self._root / volume.name / "_data"

    def place_of(self, name: str) -> Path:
        """Where the data of a volume are; of one that is not there, the directory in which they would be."""
        return self.path(self._volumes[name]) if name in self._volumes else self._root

    def users(self, name: str) -> Collection[str]:
        """Ids of containers that mount it."""
        return self._in_use(name)

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        owner: str = "",
    ) -> Volume:
        """Make a volume, or return the one that is there (Docker's rule: creating twice is no error).

        Raises ``UserError`` for a bad name or option, ``ConflictError`` when it exists with other options.
        """
        if driver not in ("", "local"):
            raise UnsupportedError(f"volume driver {driver!r} is not available: only local is")
        labels, options = dict(labels or {}), dict(options or {})
        if not name:
            name = new_volume_name()
            labels.setdefault(ANONYMOUS_LABEL, "")
        if not is_volume_name(name):
            raise UserError(
                f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'
            )
        device = _bind_device(name, options)
        async with self._lock:
            found = self._volumes.get(name)
            if found is not None:
                if options and options != found.options:
                    raise ConflictError(
                        f"volume {name} already exists with other options: remove it or choose another name"
                    )
                return found
            if len(self._volumes) >= _VOLUMES_MAX:
                raise RuntimeFault(
                    f"this host has {_VOLUMES_MAX} volumes already: remove unused ones with volume prune"
                )
            volume = Volume(
                name=name, created_at=self._clock.now(), labels=labels, options=options, device=device, owner=owner
            )
            await asyncio.to_thread(_make, self._root, volume)
            self._volumes[name] = volume
            return volume

    async def fill(self, volume: Volume, *, layer_dirs: Sequence[Path], source: str) -> None:
        """Copy the image's ``source`` directory into a volume that is still empty (VOL-01); volumes over a device are
        left alone.
        """
        if not volume.device:
            async with self._lock:  # two containers made at once must not both find it empty
                await asyncio.to_thread(_fill, self.path(volume), layer_dirs, source)

    async def keep(self, name: str) -> None:
        """An anonymous volume outlives its container from now on, until it is pruned."""
        async with self._lock:
            volume = self._volumes.get(name)
            if volume is not None and volume.owner:
                volume = msgspec.structs.replace(volume, owner="")
                path = self._root / name / "volume.json"
                await asyncio.to_thread(write_durably, path, wire.encode(volume))
                self._volumes[name] = volume

    async def remove_orphans(self, containers: Collection[str]) -> Sequence[str]:
        """Remove volumes whose container was never finished, or was removed together with them, when a crash came between."""
        orphans = [v.name for v in self.all() if v.owner and v.owner not in containers]
        for name in orphans:
            await self.remove(name, force=True)
        return orphans

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its data. Raises ``ConflictError`` while a container uses it; ``force`` forgives only absence."""
        async with self._lock:
            if name not in self._volumes:
                if force:
                    return
                raise NotFoundError(f"get {name}: no such volume")
            users = self._in_use(name)
            if users:
                listed = ", ".join(sorted(users)[:5])
                raise ConflictError(f"remove {name}: volume is in use - [{listed}]")
            try:
                await asyncio.to_thread(_unmake, self._root, name)
            except OSError as cause:
                raise RuntimeFault(f"remove volume {name}: {cause.strerror}: {cause.filename}") from cause
            del self._volumes[name]

    async def prune(self, *, include_named: bool, keep: Callable[[Volume], bool]) -> tuple[list[str], int]:
        """Remove what no container uses; (names, bytes freed)."""
        removed: list[str] = []
        freed_bytes = 0
        for volume in self.all():
            if (volume.is_anonymous or include_named) and not self._in_use(volume.name) and not keep(volume):
                size_bytes = await asyncio.to_thread(directory_size, self.path(volume)) if not volume.device else 0
                with contextlib.suppress(ConflictError, NotFoundError):
                    await self.remove(volume.name)
                    removed.append(volume.name)
                    freed_bytes += size_bytes
        return removed, freed_bytes


def directory_size(path: Path) -> int:
    """Bytes of the files below ``path``, by allocated blocks; blocks. What vanishes meanwhile is not counted."""
    total = 0
    stack = [path]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(Path(entry.path))
    return total


def _bind_device(name: str, options: Mapping[str, str]) -> str:
    """The host directory of a bind-like volume. Raises ``UserError`` for options this driver does not know."""
    if not options:
        return ""
    unknown = sorted(set(options) - _BIND_OPTIONS)
    if unknown:
        raise UserError(f"volume {name}: invalid option: {unknown[0]!r}: the local driver knows type, o and device")
    kind, device = options.get("type", "none"), options.get("device", "")
    flags = options.get("o", "").split(",")
    if kind != "none" or not {"bind", "rbind"} & set(flags):
        raise UnsupportedError(
            f"volume {name}: type={kind} o={options.get('o', '')} is not supported: use type=none,o=bind,device=/path, "
            "or mount the file system on the host and bind it"
        )
    if not device.startswith("/"):
        raise UserError(f"volume {name}: option device must be an absolute path, not {device!r}")
    return device


def _load(root: Path) -> tuple[dict[str, Volume], list[str]]:
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    volumes: dict[str, Volume] = {}
    problems: list[str] = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".new-") or entry.name.startswith(".old-"):
            remove_tree(entry)
            continue
        try:
            volume = wire.decode((entry / "volume.json").read_bytes(), Volume)
        except (OSError, InvariantError) as cause:
            problems.append(f"volume {entry}: {cause}; left alone")
            continue
        volumes[entry.name] = volume
    return volumes, problems


def _make(root: Path, volume: Volume) -> None:
    if volume.device and not Path(volume.device).is_dir():
        raise RejectedFault(f"volume {volume.name}: device {volume.device} does not exist or is not a directory")
    fresh = root / f".new-{volume.name}"
    try:
        remove_tree(fresh)
        fresh.mkdir(mode=0o711)
        data = fresh / "_data"
        data.mkdir()
        data.chmod(0o755)
        write_durably(fresh / "volume.json", wire.encode(volume))
        fresh.rename(root / volume.name)
        sync_directory(root)
    except OSError as cause:
        raise RuntimeFault(f"create volume {volume.name}: {cause.strerror}: {cause.filename}") from cause


def _unmake(root: Path, name: str) -> None:
    old = root / f".old-{name}"
    with contextlib.suppress(FileNotFoundError):
        (root / name).rename(old)
    remove_tree(old)


def _fill(data: Path, layer_dirs: Sequence[Path], source: str) -> None:
    with os.scandir(data) as entries:
        if next(entries, None) is not None:
            return
    copy_image_directory(layer_dirs, source, data)
