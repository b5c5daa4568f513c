"""Status upward: newest per task, coalesced, repeated until a manager has made it durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from fleet.api.dispatch import Report, TaskReport
from fleet.clock import Clock
from fleet.model.ids import TaskId
from fleet.model.task import TaskStatus

__all__ = ["Reporter"]

_COALESCE_S: Final = 0.01
"""Steps of a fast start (accepted, preparing, ready, starting, running) leave as one report."""

_BATCH_MAX: Final = 2_000


class Reporter:
    """``note`` at any time; ``run`` while a session is up. ``acknowledge`` on the manager's ``Reported``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[TaskId, TaskStatus] = {}
        self._sent: dict[int, dict[TaskId, TaskStatus]] = {}
        self._number = 0
        self._ready = asyncio.Event()

    def note(self, task_id: TaskId, status: TaskStatus) -> None:
        """A newer status of the task; replaces one not yet sent."""
        self._waiting[task_id] = status
        self._ready.set()

    def forget(self, task_id: TaskId) -> None:
        """The task is gone; nobody wants to hear of it."""
        self._waiting.pop(task_id, None)

    def acknowledge(self, number: int) -> None:
        """Everything in report ``number`` is durable."""
        self._sent.pop(number, None)

    def rewind(self) -> None:
        """The session broke: whatever was not acknowledged is to be said again, unless something newer is waiting."""
        for batch in self._sent.values():
            for task_id, status in batch.items():
                self._waiting.setdefault(task_id, status)
        self._sent.clear()
        if self._waiting:
            self._ready.set()

    async def run(self, send: Callable[[Report], Awaitable[None]]) -> None:
        """Send what is waiting, until cancelled or ``send`` raises."""
        while True:
            await self._ready.wait()
            await self._clock.sleep(_COALESCE_S)
            batch = dict(list(self._waiting.items())[:_BATCH_MAX])
            for task_id in batch:
                del self._waiting[task_id]
            if not self._waiting:
                self._ready.clear()
            if not batch:
                continue
            self._number += 1
            self._sent[self._number] = batch
            await send(
                Report(
                    number=self._number,
                    tasks=tuple(TaskReport(task_id=task_id, status=status) for task_id, status in batch.items()),
                )
            )
