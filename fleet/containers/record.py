"""A container as the engine knows it, and how that survives a crash.

One directory per container, ``<data_root>/containers/<id>/``, holds its record ``config.json`` beside its writable
layer and log. The
record is the truth for what fleet decided; the supervisor (``fleet.node_runtime``) is the truth for what runs.
``fleet.containers.engine``
writes the record before each step whose effect could otherwise not be told apart from its absence.

What a crash leaves, and how ``open`` tells:

``containers/.new-*``              a creation that was never acknowledged: removed
``containers/<id>/config.json``    a container
``trash/<id>``                     a removal whose rename happened: the rest is deleted
``config.json.tmp``                an interrupted write; the old record is whole beside it, and the file is overwritten
                                   by the next write
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from fleet.containers.config import ContainerConfig
from fleet.containers.subids import IdRange
from fleet.durable import sync_directory, write_durably, write_through
from fleet.errors import InvariantError, RuntimeFault, StorageFullError
from fleet.model import wire
from fleet.model.service import HealthConfig
from fleet.model.wire import Value

__all__ = [
    "Container",
    "ExitStatus",
    "HealthResult",
    "HealthState",
    "MountPoint",
    "NetworkAddress",
    "RecordStore",
    "RunState",
    "Status",
    "UNKNOWN_EXIT",
]

_RECORD: Final = "config.json"
UNKNOWN_EXIT: Final = 255
"""Exit code when nobody saw the end: the host lost power, or the supervisor and its notes vanished (Docker's number)."""

_NO_SPACE: Final = (28, 122)  # ENOSPC, EDQUOT


class Status(enum.StrEnum):
    """Docker's container states."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class ExitStatus(Value, frozen=True, kw_only=True):
    """How a container ended. ``code`` is the exit code, or 128 + signal; ``error`` is set when there was more to say."""

    code: int = 0
    oom_killed: bool = False
    error: str = ""
    finished_at: datetime | None = None


class HealthResult(Value, frozen=True, kw_only=True):
    """One run of a health check. ``exit_code`` -1 means that it timed out or could not be started."""

    start: datetime
    end: datetime
    exit_code: int
    output: str = ""


class HealthState(Value, frozen=True, kw_only=True):
    """``status``: starting, healthy, unhealthy. ``log`` has the last five results, oldest first."""

    status: str = "starting"
    failing_streak: int = 0
    log: tuple[HealthResult, ...] = ()


class RunState(Value, frozen=True, kw_only=True):
    """Where the container is in its life. Times are None until they happened; ``exit`` belongs to the last run.

    ``starting_boot`` is set from before the supervisor is asked to start it until that is known to have worked or
    failed: it holds the
    host's boot id, so that after a crash one can tell "never started" (same boot) from "ran until the power went" (another boot).
    """

    status: Status = Status.CREATED
    pid: int = 0
    started_at: datetime | None = None
    exit: ExitStatus | None = None
    error: str = ""
    starting_boot: str = ""
    health: HealthState | None = None
    restart_count: int = 0
    remove_volumes: bool = False
    """While *removing*: whether its anonymous volumes go too."""
    stopped_by_hand: bool = False
    """Somebody called stop (or kill): a restart rule other than *always* is suspended until the next start."""


class MountPoint(Value, frozen=True, kw_only=True):
    """A mount as it was resolved: ``source`` is the host path (empty for tmpfs), ``name`` the volume's."""

    kind: str
    target: str
    source: str = ""
    name: str = ""
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    anonymous: bool = False
    size_bytes: int = 0
    mode: int = 0
    options: tuple[str, ...] = ()


class NetworkAddress(Value, frozen=True, kw_only=True):
    """The container's place on one network, while it runs."""

    network_id: str
    address: str = ""
    prefix_len: int = 0
    mac: str = ""
    gateway: str = ""
    address6: str = ""
    prefix_len6: int = 0
    gateway6: str = ""


class Container(Value, frozen=True, kw_only=True):
    """A snapshot of a container; the engine replaces it at every change. ``args`` is the whole argument vector."""

    id: str
    name: str
    created_at: datetime
    config: ContainerConfig
    image_id: str
    image_name: str = ""
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    healthcheck: HealthConfig | None = None
    exposed_ports: tuple[str, ...] = ()
    mounts: tuple[MountPoint, ...] = ()
    ids: IdRange | None = None
    """Of a container with a user namespace of its own; kept, for its writable layer holds them on disk."""
    networks: tuple[NetworkAddress, ...] = ()
    apparmor: str = ""
    """The AppArmor profile of its processes, chosen at each start; '' when nothing was asked of the kernel."""
    state: RunState = RunState()

    @property
    def is_up(self) -> bool:
        """Whether it has a process."""
        return self.state.status in (Status.RUNNING, Status.PAUSED)

    @property
    def hostname(self) -> str:
        return self.config.hostname or self.id[:12]


class RecordStore:
    """The directories and files; every method blocks and is called in a thread, one at a time per container."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root
        self.containers = data_root / "containers"
        self._trash = data_root / "trash"

    def open(self) -> tuple[list[Container], list[str]]:
        """Make the directories, drop what interrupted work left, read all records.

        A record that cannot be read is left where it is, and described by a sentence in the second result: somebody
        must look at it.
        """
        for directory in (self._root, self.containers, self._trash):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.empty_trash()
        records: list[Container] = []
        problems: list[str] = []
        for entry in sorted(self.containers.iterdir()):
            if entry.name.startswith(".new-"):
                remove_tree(entry)
                continue
            try:
                record = wire.decode((entry / _RECORD).read_bytes(), Container)
            except FileNotFoundError:
                problems.append(f"{entry}: no {_RECORD}: not a container of fleet's; left alone")
                continue
            except InvariantError as cause:
                problems.append(f"{entry / _RECORD}: {cause}; left alone")
                continue
            if record.id != entry.name:
                problems.append(f"{entry}: the record inside is of container {record.id}; left alone")
                continue
            records.append(record)
        return records, problems

    def directory(self, container_id: str) -> Path:
        """The container's own directory."""
        return self.containers / container_id

    def create(self, record: Container) -> None:
        """Make the directory with record, writable layer and log directory appear in one step."""
        fresh = self.containers / f".new-{record.id}"
        try:
            for directory in (fresh, fresh / "work", fresh / "log"):
                directory.mkdir(mode=0o700)
            (fresh / "upper").mkdir(mode=0o755)
            (fresh / "upper").chmod(0o755)  # becomes the container's root directory: the umask must not show in it
            write_through(fresh / _RECORD, wire.encode(record))
            sync_directory(fresh)
            fresh.rename(self.directory(record.id))
            sync_directory(self.containers)
        except OSError as cause:
            with contextlib.suppress(OSError):
                remove_tree(fresh)
            raise _storage_fault(f"container {record.id[:12]}: write {fresh}", cause) from cause

    def save(self, record: Container) -> None:
        """Replace the record; the old or the new one is whole at any time, the new one after return."""
        path = self.directory(record.id) / _RECORD
        try:
            write_durably(path, wire.encode(record))
        except OSError as cause:
            raise _storage_fault(f"container {record.id[:12]}: write {path}", cause) from cause

    def discard(self, container_id: str) -> None:
        """The moment of removal: the container is gone for good when this returns. ``empty_trash`` frees the space."""
        try:
            self.directory(container_id).rename(self._trash / container_id)
            sync_directory(self.containers)
        except FileNotFoundError:
            return
        except OSError as cause:
            raise _storage_fault(
                f"container {container_id[:12]}: remove {self.directory(container_id)}", cause
            ) from cause

    def empty_trash(self) -> None:
        """Delete what ``discard`` put away. Idempotent; may be called by several threads."""
        for entry in self._trash.iterdir():
            remove_tree(entry)


def remove_tree(path: Path) -> None:
    """Delete a tree that hostile programs wrote: never follows a symbolic link (``shutil.rmtree`` works by
    descriptors); absence is fine.

    Immutable files of a container that had CAP_LINUX_IMMUTABLE make it raise ``OSError``.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            remove_tree(path)
    except NotADirectoryError:
        path.unlink(missing_ok=True)


def _storage_fault(what: str, cause: OSError) -> RuntimeFault | StorageFullError:
    if cause.errno in _NO_SPACE:
        return StorageFullError(f"{what}: {cause.strerror}: free some space and try again")
    return RuntimeFault(f"{what}: {cause.strerror}")
