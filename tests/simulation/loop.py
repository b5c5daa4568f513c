"""An event loop in which nothing is left to chance: virtual time, no threads, no sockets, processes that can be paused or killed.

Time stands still while anything can run, and then jumps to the next timer. What runs belongs to the ``Process`` in its context
(tasks inherit it): what a dead process would have run is dropped, without a ``finally`` or ``except`` of its seeing it, as
SIGKILL does; what a paused one would have run waits. Tasks and futures hash by number, so that sets of them have the same order
every time.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Process", "SimLoop", "Stuck"]


class Stuck(Exception):
    """Nothing can run and no timer is set: everybody waits for somebody."""


class Process:
    """Something that can be paused and killed as a whole; ``context`` is what its tasks are made in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_paused = False
        self.parked: list[asyncio.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.number = kwargs["loop"].number_next()
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.number


class _Future(asyncio.Future):  # type: ignore[type-arg]
    def __init__(self, *, loop: SimLoop) -> None:
        self.number = loop.number_next()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._number = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        """When, in which order they were made, and what."""
        self._timers_made = 0
        self._timers_cancelled = 0
        self.steps = 0
        self.graveyard: list[object] = []
        """What belongs to dead processes, kept so that no destructor runs while the simulation does."""
        self.set_task_factory(self._make_task)
        self.thread_delay: Callable[[], float] = lambda: 0.0

    def number_next(self) -> int:
        self._number += 1
        return self._number

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    @staticmethod
    def _make_task(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        return _Task(coroutine, loop=loop, **kwargs)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], process: Process | None) -> asyncio.Task[Any]:
        """Start a task of that process, or of the world."""
        context = process.context if process is not None else _WORLD
        task = self.create_task(coroutine, context=context)
        self.graveyard.append(task)
        return task

    def later(self, delay_s: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        """Call it in the world, whatever becomes of the process that asks."""
        return self.call_later(delay_s, call, context=_WORLD)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """A thread that takes its time and ends with its process."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except BaseException as cause:  # noqa: BLE001 - it is the caller's
                future.set_exception(cause)

        self.call_later(self.thread_delay(), run)
        return future

    def kill(self, process: Process) -> None:
        process.is_dead = True
        self.graveyard.append(process.parked)

    def pause(self, process: Process) -> None:
        process.is_paused = True

    def resume(self, process: Process) -> None:
        process.is_paused = False
        parked, process.parked = process.parked, []
        self._ready.extend(parked)  # type: ignore[attr-defined]

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, handle))
        handle._scheduled = True
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Most timers are timeouts that never come; they are swept out when they are the most."""
        if not handle._scheduled:
            return  # it is not among them any more
        self._timers_cancelled += 1
        if self._timers_cancelled > 50 and 2 * self._timers_cancelled > len(self._timers):
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._timers_cancelled -= 1
        if not ready:
            if not timers:
                raise Stuck
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False
            if timer.cancelled():
                self._timers_cancelled -= 1
            else:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_PROCESS)
            if process is not None:
                if process.is_dead:
                    self.graveyard.append(handle)
                    continue
                if process.is_paused:
                    process.parked.append(handle)
                    continue
            self.steps += 1
            handle._run()

    def _process_events(self, event_list: Any) -> None:
        raise AssertionError("a simulation has no files to wait for")

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector here."""


_WORLD = contextvars.copy_context()
