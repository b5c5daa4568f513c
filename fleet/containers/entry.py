"""A container in the engine's memory: its record and what coordinates the work on it.

Order of locks: ``lock`` (one lifecycle step at a time) before ``_save_lock`` (one write at a time). Exits arrive
without any lock: they
change the record at once, so that whoever waits wakes with no delay, and leave the slow rest to a task that takes ``lock``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from fleet.containers.record import Container, ExitStatus, RunState
from fleet.containers.streams import Streams

__all__ = ["Entry"]


class Entry:
    """One container. ``record`` is replaced, never changed."""

    def __init__(self, record: Container, *, saved: bool) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.next_exit: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        """Done at the next exit (or removal), then replaced."""
        self.health_changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the health state changes or the run begins or ends, then replaced."""
        self.removed: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.starting = False
        """The supervisor is being asked to start it; an exit that is told meanwhile waits in ``early_exit``."""
        self.early_exit: ExitStatus | None = None
        self.early_oom = False
        self.needs_release = False
        """The supervisor's state, cgroup or network sandbox of a run may still exist."""
        self.removing = False
        self.restart_delay_s = 0.0
        self.restart_task: asyncio.Task[None] | None = None
        self.health_task: asyncio.Task[None] | None = None
        self.streams = Streams()
        self._save_lock = asyncio.Lock()
        self._version = 1
        self._saved_version = 1 if saved else 0

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def is_gone(self) -> bool:
        """Removed for good."""
        return self.removed.done()

    def change(self, **fields: Any) -> None:
        """Replace fields of the record."""
        self.record = msgspec.structs.replace(self.record, **fields)
        self._version += 1

    def change_state(self, **fields: Any) -> RunState:
        """Replace fields of the record's state."""
        state: RunState = msgspec.structs.replace(self.record.state, **fields)
        self.change(state=state)
        return state

    def announce_exit(self, status: ExitStatus) -> None:
        """Wake those who wait for the end of this run."""
        done, self.next_exit = self.next_exit, asyncio.get_running_loop().create_future()
        done.set_result(status)
        self.announce_health()

    def announce_health(self) -> None:
        """Wake those who wait for a change of health."""
        done, self.health_changed = self.health_changed, asyncio.get_running_loop().create_future()
        done.set_result(None)

    async def save(self, write: Callable[[Container], Awaitable[None]]) -> None:
        """Make the newest record durable; several callers at once share a write. The newest is saved when this returns."""
        wanted = self._version
        async with self._save_lock:
            if self._saved_version >= wanted or self.is_gone:
                return
            version, record = self._version, self.record
            await write(record)
            self._saved_version = version
