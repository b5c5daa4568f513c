"""What the runtime tells: values of listings, events and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = [
    "ContainerProcess",
    "ContainerState",
    "ContainerStats",
    "ExecStarted",
    "Exited",
    "Oom",
    "RuntimeEvent",
    "Started",
    "SupervisorRestarted",
]


@dataclass(frozen=True, slots=True)
class Started:
    """A container whose command is running. ``terminal_fd``, when it has a terminal, is the master and belongs to the
    caller.
    """

    id: str
    pid: int
    started_at: datetime
    terminal_fd: int | None = None


@dataclass(frozen=True, slots=True)
class ExecStarted:
    """A process that joined; ``terminal_fd`` as in `Started`."""

    exec_id: str
    pid: int
    terminal_fd: int | None = None


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One line of `RuntimeClient.list`. ``exit_code`` and ``finished_at`` are set iff ``status`` is exited."""

    id: str
    status: Literal["running", "paused", "exited"]
    pid: int
    started_at: datetime
    exit_code: int | None
    oom_killed: bool
    finished_at: datetime | None
    lost: bool = False
    """The exit code is 255 because nobody saw the real one."""
    tty: bool = False
    log_dropped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Exited:
    """The container's first process has ended, and with it all others. On disk before it is told."""

    id: str
    exit_code: int
    oom_killed: bool
    finished_at: datetime
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Oom:
    """The kernel killed a process of the container for want of memory; the container may live on."""

    id: str


@dataclass(frozen=True, slots=True)
class SupervisorRestarted:
    """A new supervisor has taken over; containers were not touched, exec'd processes are no longer watched."""

    pid: int


RuntimeEvent = Exited | Oom | SupervisorRestarted


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    """Use of resources since the start. Times in nanoseconds; a limit of 0 is none; block figures count what reached
    a device.
    """

    read_at: datetime
    cpu_usage_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_periods: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_ns: int = 0
    memory_usage_bytes: int = 0
    """With page cache; `docker stats` shows this minus ``memory_inactive_file_bytes``."""
    memory_peak_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_inactive_file_bytes: int = 0
    memory_anonymous_bytes: int = 0
    memory_file_bytes: int = 0
    oom_kills: int = 0
    pids: int = 0
    pids_limit: int = 0
    block_read_bytes: int = 0
    block_write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ContainerProcess:
    """A line of ``top``; ids are the host's."""

    pid: int
    parent_pid: int
    uid: int
    start_time: datetime
    cpu_time_s: float
    resident_bytes: int
    state: str
    command: str
