"""What the supervisor writes down about each container, so that a successor finds everything again:
``<state_dir>/<id>/``.

    spec      what was started: cgroup, log, terminal; written before anything is made, so no crash leaves something un-findable
    running   pid, its start time, the boot, when it started; written right after the clone
    reaped    its wait status, written by a keeper while no supervisor lived (`keeper`)
    exit      how it ended; written and synced to disk before anybody is told

``spec``, ``running`` and ``reaped`` are not synced: they matter only while the kernel that ran the container is up, and its page
cache survives any process. ``exit`` is: it is one line ending in a newline, in a new file; a line cut short by a
power failure has no newline and counts as not written, and as it was then not announced either, nothing is taken
back. (fsync of a new file makes its name durable too on ext4, xfs and btrfs.)

Read: spec only = the start never finished, clean up. running without exit = alive, or died unwatched. exit = over.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["StateDir", "boot_id", "start_ticks"]

_RECORD_BYTES_MAX = 1 << 20


def boot_id() -> str:
    """Identifies this boot of the kernel; process ids mean nothing across it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc_pid_stat(5) field 22): with the pid, its identity.
    None if there is none.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return int(text[text.rindex(b")") + 2 :].split()[19])


class StateDir:
    """Records below one directory. Raises OSError as the file system does."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)

    def create(self, container: str, spec: dict[str, Any]) -> None:
        """Make the directory and write ``spec``. Raises FileExistsError when there is one."""
        os.mkdir(f"{self.path}/{container}", 0o700)
        os.close(self._write(container, "spec", spec))

    def write_running(self, container: str, record: dict[str, Any]) -> None:
        """Write ``running``."""
        os.close(self._write(container, "running", record))

    def write_reaped(self, container: str, record: dict[str, Any]) -> None:
        """Write ``reaped``. Raises FileNotFoundError when the container was removed meanwhile."""
        os.close(self._write(container, "reaped", record))

    def write_exit(self, container: str, record: dict[str, Any]) -> int:
        """Write ``exit``; the descriptor is the caller's to sync and close."""
        return self._write(container, "exit", record)

    def _write(self, container: str, name: str, record: dict[str, Any]) -> int:
        fd = os.open(f"{self.path}/{container}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(record).encode() + b"\n")
        except OSError:
            os.close(fd)
            raise
        return fd

    def read(self, container: str, name: str) -> dict[str, Any] | None:
        """A record, or None when it is absent or was cut short."""
        try:
            with open(f"{self.path}/{container}/{name}", "rb") as file:
                data = file.read(_RECORD_BYTES_MAX)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not data.endswith(b"\n"):
            return None
        try:
            record = json.loads(data)
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    def sync(self, container: str, name: str) -> None:
        """Make a record durable that may not be; absence is ignored."""
        try:
            fd = os.open(f"{self.path}/{container}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, container: str) -> None:
        """Forget the container. Idempotent; ``spec`` goes first, so a removal cut short is seen as one."""
        directory = f"{self.path}/{container}"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in sorted(names, key=lambda name: name != "spec"):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)

    def list(self) -> list[str]:
        """Ids on record."""
        return sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False))
