"""Cancelling tasks without losing a cancellation on the way.

Two habits of Python 3.11 and 3.12 lose one that comes at the moment when something fails, and whoever waits for the cancelled
task then waits for ever: a ``TaskGroup`` raises its members' errors instead (CPython issue 116720, mended in 3.13), so whoever
catches those and goes on was never cancelled; and awaiting a cancelled task with ``CancelledError`` suppressed suppresses one's
own as well.
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Any, Self

from fleet.logs import get_logger

__all__ = ["TaskGroup", "cancel_and_wait"]

log = get_logger("cancellation")


if sys.version_info >= (3, 13):
    TaskGroup = asyncio.TaskGroup
else:

    class TaskGroup(asyncio.TaskGroup):
        """As asyncio's, but where the task that waits for it was cancelled from outside, that is what it raises, whatever its
        members raised."""

        _cancelled_before = 0

        async def __aenter__(self) -> Self:
            self._cancelled_before = _times_cancelled()
            return await super().__aenter__()

        async def __aexit__(
            self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
        ) -> None:
            asked = self._has_cancelled_its_owner()
            try:
                await super().__aexit__(kind, cause, trace)
            except BaseExceptionGroup as causes:
                if self._has_cancelled_its_owner() and not asked:  # while it was left: nobody takes that one back
                    _owner().uncancel()
                if _times_cancelled() <= self._cancelled_before:
                    raise
                log.debug("failed while it was cancelled", causes=[repr(each) for each in causes.exceptions])
                raise asyncio.CancelledError from causes

        def _has_cancelled_its_owner(self) -> bool:
            return bool(getattr(self, "_parent_cancel_requested", False))


def _owner() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _times_cancelled() -> int:
    return _owner().cancelling()


async def cancel_and_wait(*tasks: asyncio.Future[Any] | None) -> None:
    """End tasks of one's own, in that order, whatever they raise or have raised; what is None is left out. Raises
    ``CancelledError`` only if the caller is cancelled meanwhile."""
    present = [task for task in tasks if task is not None]
    for task in present:
        task.cancel()
    await asyncio.gather(*present, return_exceptions=True)
