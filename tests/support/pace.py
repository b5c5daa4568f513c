"""How slow this machine is, compared with one that the tests' deadlines were chosen on."""

from __future__ import annotations

import os

__all__ = ["SLOWNESS", "stretched"]

SLOWNESS = "FLEET_TEST_SLOWNESS"
"""Environment variable: a factor, set by ``scripts/test-elsewhere`` where a processor is emulated; 1 when it is not there."""


def stretched(seconds: float) -> float:
    """A deadline as it is here."""
    return seconds * max(1.0, float(os.environ.get(SLOWNESS) or 1.0))
