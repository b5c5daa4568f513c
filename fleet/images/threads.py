"""Blocking work off the event loop, finished or abandoned cleanly when its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["in_thread", "in_thread_until_cancelled"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run in a worker thread. If the caller is cancelled, the function is still awaited first: what it works on stays
    owned.
    """
    return await _finish(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)), None)


async def in_thread_until_cancelled(function: Callable[[threading.Event], _T]) -> _T:
    """As ``in_thread``; the function is given an event that is set when the caller is cancelled, and should then
    return or raise soon.
    """
    cancel = threading.Event()
    return await _finish(asyncio.ensure_future(asyncio.to_thread(function, cancel)), cancel)


async def _finish(work: asyncio.Future[_T], cancel: threading.Event | None) -> _T:
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if cancel is not None:
            cancel.set()
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            work.exception()  # retrieved: the cancellation is what the caller hears
        raise
