"""Time as a dependency: pure code gets instants as arguments, the rest asks a ``Clock``, so tests can be the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "Timer"]


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self, /) -> object:
        """It comes no more; idempotent."""
        ...


class Clock(Protocol):
    """Wall time, monotonic time, sleeping and timers."""

    def now(self) -> datetime:
        """Wall time, timezone-aware UTC; goes into replicated state and onto terminals."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin that never go back; for intervals and deadlines."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Sleep; cancels safely."""
        ...

    def call_later(self, duration_s: float, call: Callable[[], object]) -> Timer:
        """Call it then, from the running loop. Cheaper than a task that sleeps."""
        ...


class SystemClock:
    """The real clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)

    def call_later(self, duration_s: float, call: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(duration_s, call)
