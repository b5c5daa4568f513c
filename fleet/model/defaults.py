"""Docker's defaults for what a spec leaves out; each with its row of the engine's documentation."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from fleet.model.common import SECOND_NS
from fleet.model.service import RestartCondition, RestartPolicy, TaskSpec

__all__ = [
    "DEFAULT_RESTART_DELAY_NS",
    "DEFAULT_STOP_GRACE_NS",
    "nanoseconds",
    "restart_condition",
    "restart_delay",
    "stop_grace",
]

DEFAULT_RESTART_DELAY_NS: Final = 5 * SECOND_NS
DEFAULT_STOP_GRACE_NS: Final = 10 * SECOND_NS


def nanoseconds(duration_ns: int) -> timedelta:
    """Docker's nanoseconds as a timedelta (microseconds are kept, the rest cut)."""
    return timedelta(microseconds=duration_ns // 1000)


def _policy(spec: TaskSpec) -> RestartPolicy:
    return spec.restart_policy or RestartPolicy()


def restart_condition(spec: TaskSpec) -> RestartCondition:
    """*any* unless told otherwise."""
    return _policy(spec).condition


def restart_delay(spec: TaskSpec) -> timedelta:
    """5 s unless told otherwise (RST-02)."""
    delay_ns = _policy(spec).delay_ns
    return nanoseconds(DEFAULT_RESTART_DELAY_NS if delay_ns is None else delay_ns)


def stop_grace(spec: TaskSpec) -> timedelta:
    """From the stop signal to SIGKILL: 10 s unless told otherwise."""
    grace_ns = spec.container_spec.stop_grace_period_ns
    return nanoseconds(DEFAULT_STOP_GRACE_NS if grace_ns is None else grace_ns)
