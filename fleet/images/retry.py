"""Trying again: how long to wait after a failure that may go away by itself."""

from __future__ import annotations

import random

from fleet.errors import UnavailableError

__all__ = ["ATTEMPTS", "back_off_s"]

ATTEMPTS = 5
"""Tries of one thing, without progress between them."""

_FIRST_S = 0.25
_MAX_S = 10.0
_ASKED_MAX_S = 60.0  # what a registry may ask for (Retry-After) and somebody at a terminal still waits for


def back_off_s(attempt: int, error: UnavailableError, rng: random.Random) -> float:
    """Seconds before try ``attempt + 1`` (from 0 on): doubling, spread over half its length, and at least as long as the
    other side asked for.
    """
    delay_s: float = min(_MAX_S, _FIRST_S * 2**attempt) * rng.uniform(0.5, 1.0)
    if error.retry_after_s is not None:
        delay_s = max(delay_s, min(error.retry_after_s, _ASKED_MAX_S))
    return delay_s
