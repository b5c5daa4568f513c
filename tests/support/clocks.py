"""Clocks whose time is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = ["START", "SetClock", "SleepingTimers"]

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


class _Sleeps(Protocol):
    async def sleep(self, duration_s: float) -> None: ...


class SleepingTimers:
    """Timers for a clock that can sleep."""

    def call_later(self: _Sleeps, duration_s: float, call: Callable[[], object]) -> asyncio.Task[None]:
        async def later() -> None:
            await self.sleep(duration_s)
            call()

        return asyncio.ensure_future(later())


class SetClock(SleepingTimers):
    """Its time stands still but for ``go``; whoever sleeps is woken when it has come."""

    def __init__(self) -> None:
        self.time = START
        self._moved = asyncio.Event()

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - START).total_seconds() + 1000

    async def sleep(self, duration_s: float) -> None:
        until = self.time + timedelta(seconds=duration_s)
        while self.time < until:
            await self._moved.wait()

    def go(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self._moved.set()
        self._moved = asyncio.Event()
