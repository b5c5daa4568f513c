"""What the supervisor answers, as values and errors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from fleet.errors import ConflictError, NotFoundError, RejectedFault, RuntimeFault, UserError
from fleet.node_runtime.events import ContainerProcess, ContainerState, ContainerStats
from fleet.node_runtime.faults import CommandFault

__all__ = ["fault_of", "figures_of", "instant", "state_of"]


def figures_of(processes: Sequence[ContainerProcess]) -> ContainerStats:
    """What these use together, where no cgroup says it."""
    cpu_ns = int(sum(process.cpu_time_s for process in processes) * 1e9)
    resident = sum(process.resident_bytes for process in processes)
    return ContainerStats(
        read_at=datetime.now(UTC),
        cpu_usage_ns=cpu_ns,
        memory_usage_bytes=resident,
        memory_anonymous_bytes=resident,
        pids=len(processes),
    )


def instant(time_ns: int) -> datetime:
    """Of nanoseconds since 1970."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC)


def state_of(entry: dict[str, Any]) -> ContainerState:
    """An entry of ``list``."""
    return ContainerState(
        id=entry["id"],
        status=entry["status"],
        pid=entry["pid"],
        started_at=instant(entry["started_at_ns"]),
        exit_code=entry["exit_code"],
        oom_killed=entry["oom_killed"],
        finished_at=None if entry["finished_at_ns"] is None else instant(entry["finished_at_ns"]),
        lost=entry["lost"],
        tty=entry["tty"],
        log_dropped_bytes=entry["log_dropped_bytes"],
    )


_FAULTS: dict[str, Callable[[str], Exception]] = {
    "user": UserError,
    "missing": NotFoundError,
    "conflict": ConflictError,
    "rejected": RejectedFault,
}


def fault_of(error: dict[str, Any]) -> Exception:
    """A refusal, as what is raised for it."""
    if error["kind"] == "command":
        return CommandFault(error["text"], container_exit_code=error["code"])
    if error["kind"] == "fault" and error["code"] == errno.ESRCH:
        return ConflictError(error["text"])
    return _FAULTS.get(error["kind"], RuntimeFault)(error["text"])
