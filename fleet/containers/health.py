"""HEALTHCHECK: runs a command inside the container now and then, and says whether the container is starting, healthy or
unhealthy.

Rules are Docker's (moby ``daemon/health.go``): the first probe comes one interval after the start (one *start interval*
while the start period
lasts), failures inside the start period do not count until the first success, ``retries`` failures in a row make it
unhealthy, one
success makes it healthy. A probe that takes longer than its timeout is killed and counts as a failure.

``judge`` is the rule, pure; ``HealthMonitor`` is the loop around it, one task per container, owned by the engine and
cancelled at exit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, NamedTuple

from fleet.clock import Clock
from fleet.containers.record import HealthResult, HealthState
from fleet.errors import FleetError
from fleet.model.common import SECOND_NS
from fleet.model.service import HealthConfig

__all__ = ["HealthMonitor", "Probe", "ProbeOutcome", "judge"]

_RESULTS_KEPT: Final = 5
OUTPUT_MAX: Final = 4096
"""Bytes of a probe's output that are kept (moby ``maxOutputLen``)."""

_INTERVAL_NS: Final = 30 * SECOND_NS
_TIMEOUT_NS: Final = 30 * SECOND_NS
_START_INTERVAL_NS: Final = 5 * SECOND_NS
_RETRIES: Final = 3


class ProbeOutcome(NamedTuple):
    """What one probe gave: exit code (-1: it did not end by itself) and the first bytes it wrote."""

    exit_code: int
    output: str


Probe = Callable[[tuple[str, ...], float], Awaitable[ProbeOutcome]]
"""Runs arguments in the container for at most so many seconds."""


def judge(before: HealthState, result: HealthResult, *, retries: int, in_start_period: bool) -> HealthState:
    """The state after one more result."""
    log = (*before.log, result)[-_RESULTS_KEPT:]
    if result.exit_code == 0:
        return HealthState(status="healthy", failing_streak=0, log=log)
    if in_start_period and before.status == "starting":
        return HealthState(status="starting", failing_streak=before.failing_streak, log=log)
    streak = before.failing_streak + 1
    return HealthState(status="unhealthy" if streak >= retries else before.status, failing_streak=streak, log=log)


class HealthMonitor:
    """Probes one container until cancelled. ``report`` is called, in the loop, with each new state."""

    def __init__(
        self,
        config: HealthConfig,
        *,
        started_at: datetime,
        state: HealthState,
        probe: Probe,
        report: Callable[[HealthState], None],
        clock: Clock,
    ) -> None:
        self._config = config
        self._started_at = started_at
        self._state = state
        self._probe = probe
        self._report = report
        self._clock = clock

    async def run(self) -> None:
        """Loop for ever; ends when cancelled."""
        config = self._config
        interval_s = (config.interval_ns or _INTERVAL_NS) / SECOND_NS
        start_interval_s = (config.start_interval_ns or _START_INTERVAL_NS) / SECOND_NS
        timeout_s = (config.timeout_ns or _TIMEOUT_NS) / SECOND_NS
        while True:
            starting = self._state.status == "starting" and self._in_start_period(self._clock.now())
            await self._clock.sleep(min(interval_s, start_interval_s) if starting else interval_s)
            start = self._clock.now()
            try:
                outcome = await self._probe(config.test[1:], timeout_s)
            except FleetError as cause:
                outcome = ProbeOutcome(-1, str(cause))
            result = HealthResult(
                start=start, end=self._clock.now(), exit_code=outcome.exit_code, output=outcome.output
            )
            self._state = judge(
                self._state,
                result,
                retries=config.retries or _RETRIES,
                in_start_period=self._in_start_period(start),
            )
            self._report(self._state)

    def _in_start_period(self, now: datetime) -> bool:
        return (now - self._started_at).total_seconds() * SECOND_NS < self._config.start_period_ns
