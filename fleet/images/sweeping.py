"""When content is swept: while nothing is being added, so that adding never needs to announce what it is about to use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fleet.images.threads import in_thread

__all__ = ["SweepGate"]


class SweepGate:
    """``sweep`` blocks, and returns the chain ids of the layers that went; it is not kept here, for the store it belongs to is
    let go of when nobody has it. A sweep owed while something is added is done by the last addition.
    """

    def __init__(self) -> None:
        self._gate = asyncio.Lock()
        """Held while content is swept and while an addition starts: they exclude each other."""
        self._adding = 0
        self._owed = False

    @asynccontextmanager
    async def addition(self, sweep: Callable[[], list[str]], *, keep_on_failure: bool = False) -> AsyncIterator[None]:
        """Content may be added, or read without being swept. What a failed one leaves is swept, unless it is kept."""
        async with self._gate:
            self._adding += 1
        try:
            yield
        except BaseException:
            self._owed = self._owed or not keep_on_failure
            raise
        finally:
            self._adding -= 1
            if self._owed:
                await self.collect(sweep)

    def owe(self) -> None:
        """What an addition made is garbage already."""
        self._owed = True

    async def collect(self, sweep: Callable[[], list[str]], *, first: Callable[[], None] | None = None) -> list[str]:
        """Sweep if nothing is being added; else the next removal, or opening, does. ``first`` is done only then, before it."""
        async with self._gate:
            self._owed = self._adding > 0
            if self._owed:
                return []
            if first is not None:
                await in_thread(first)
            return await in_thread(sweep)
