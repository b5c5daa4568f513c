"""How the supervisor's account of an end becomes the record's."""

from __future__ import annotations

from typing import Final

from fleet.containers.record import UNKNOWN_EXIT, ExitStatus
from fleet.node_runtime.events import ContainerState, Exited

__all__ = ["UNSEEN", "exit_of"]

UNSEEN: Final = "the container ended while nobody watched: exit code unknown"


def exit_of(seen: ContainerState | Exited) -> ExitStatus:
    """The supervisor's notes on an ended container."""
    if seen.exit_code is None or seen.lost:
        return ExitStatus(
            code=UNKNOWN_EXIT,
            oom_killed=seen.oom_killed,
            error="the supervisor lost the exit code",
            finished_at=seen.finished_at,
        )
    return ExitStatus(code=seen.exit_code, oom_killed=seen.oom_killed, finished_at=seen.finished_at)
