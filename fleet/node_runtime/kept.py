"""What a client keeps of a running container while no supervisor may be there: its exit status and its unread output.

Nothing is ever read here. The kernel answers through the pidfd how the container ended, and what it wrote last waits in the
pipes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fleet.node_runtime.spec import ContainerSpec
from fleet.node_runtime.state import start_ticks
from fleet.node_runtime.wire import FDS_MAX

__all__ = ["Kept", "greetings"]


@dataclasses.dataclass(slots=True)
class Kept:
    """Descriptors are the client's own; -1: none."""

    pidfd: int = -1
    terminal_fd: int = -1
    stdout_fd: int = -1
    stderr_fd: int = -1
    exit_told: bool = False
    spec: ContainerSpec | None = None

    def hold(self, pid: int, *, run_dir: Path, container_id: str) -> None:
        """Its pidfd and its output pipes."""
        self.pidfd = _lifted(_open_pidfd(pid))
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(FileNotFoundError):  # a terminal has no pipes
                path = run_dir / f"{container_id}.{stream}"
                setattr(self, f"{stream}_fd", _lifted(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)))

    def let_go(self) -> None:
        """Close them. Idempotent."""
        for name in ("pidfd", "terminal_fd", "stdout_fd", "stderr_fd"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def reap_if_child(self) -> int | None:
        """If the orphaned process became ours (this process is a subreaper) and has ended: reap it and return its wait
        status.
        """
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except OSError as error:
            if error.errno in (errno.ECHILD, errno.EBADF):
                return None
            raise
        if result is None:
            return None
        return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status & 0x7F


def _lifted(fd: int) -> int:
    """The same, numbered above 1023 where the limit allows. libnftables, which shares this process, waits by select(2) and
    aborts it when its socket's number is higher; so what is kept by the thousand leaves the low numbers free.
    """
    if fd < 0:
        return fd
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 1024)
    except OSError:  # EINVAL: the limit is lower; EMFILE: no room above
        return fd
    os.close(fd)
    return high


def _open_pidfd(pid: int) -> int:
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return -1
    if start_ticks(pid) is None:
        os.close(fd)
        return -1
    return fd


def greetings(known: Mapping[str, Kept]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Requests, at least one, and their descriptors, that give all of it to a supervisor that may be new."""
    reaped: dict[str, int] = {}
    keepers: list[tuple[str, int]] = []
    terminals: list[tuple[str, int]] = []
    for container_id, kept in known.items():
        if kept.pidfd >= 0 and not kept.exit_told:
            status = kept.reap_if_child()
            if status is not None:
                reaped[container_id] = status
            keepers.append((container_id, kept.pidfd))
        if kept.terminal_fd >= 0 and not kept.exit_told:
            terminals.append((container_id, kept.terminal_fd))
    room = FDS_MAX // 2
    for start in range(0, max(len(keepers), len(terminals), 1), room):
        pids, masters = keepers[start : start + room], terminals[start : start + room]
        yield (
            {"op": "hello", "pidfds": [i for i, _ in pids], "terminals": [i for i, _ in masters], "reaped": reaped},
            [fd for _, fd in pids + masters],
        )
        reaped = {}
