"""Whether the engine itself starts a container again, and after how long. Pure; rules and numbers are moby's
``restartmanager``.
"""

from __future__ import annotations

from typing import Final

from fleet.containers.config import RestartName, RestartRule

__all__ = ["next_delay_s", "should_restart", "should_start_at_boot"]

_DELAY_FIRST_S: Final = 0.1
_DELAY_MAX_S: Final = 60.0
_STEADY_S: Final = 10.0
"""A run as long as this forgives the failures before it."""


def should_restart(rule: RestartRule, *, exit_code: int, stopped_by_hand: bool, restart_count: int) -> bool:
    """After an exit while the engine runs. A container somebody stopped stays stopped under every rule."""
    if stopped_by_hand:
        return False
    match rule.name:
        case RestartName.ALWAYS | RestartName.UNLESS_STOPPED:
            return True
        case RestartName.ON_FAILURE:
            return exit_code != 0 and (rule.retries_max == 0 or restart_count < rule.retries_max)
        case RestartName.NO:
            return False


def should_start_at_boot(rule: RestartRule, *, ever_started: bool, exit_code: int, stopped_by_hand: bool) -> bool:
    """After the host or the engine came back and the container does not run."""
    if not ever_started:
        return False
    match rule.name:
        case RestartName.ALWAYS:
            return True
        case RestartName.UNLESS_STOPPED:
            return not stopped_by_hand
        case RestartName.ON_FAILURE:
            return not stopped_by_hand and exit_code != 0
        case RestartName.NO:
            return False


def next_delay_s(previous_s: float, *, ran_s: float) -> float:
    """Seconds to wait before the next start: 0.1, doubling up to 60; a steady run starts over."""
    if previous_s <= 0 or ran_s >= _STEADY_S:
        return _DELAY_FIRST_S
    return min(previous_s * 2, _DELAY_MAX_S)
