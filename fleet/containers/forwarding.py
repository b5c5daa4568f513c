"""Sends the lines of containers whose log driver is syslog or journald to their receiver, from the copy kept on this host.

The supervisor writes every container's lines to disk and makes no container wait; so a receiver that is slow, gone or unknown
costs the container nothing, and ``logs`` can read the copy. How far it got is kept beside the log, so the next daemon goes on
from there: after a crash the last second's lines may be sent twice, none is left out unless the copy was rotated away meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fleet.containers.assemble import log_path
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.log_targets import OPTIONS, Described, Target, make_target
from fleet.containers.logs import follow_log, log_attributes
from fleet.errors import NotFoundError
from fleet.node_runtime.logs import LogLine

__all__ = ["Forwarding"]

_NOTE_S: Final = 1.0
_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 15.0
_LAST_TRY_S: Final = 5.0
"""How long the lines of a container that has ended wait for a receiver that is away; the next daemon tries again."""


class _Position:
    """The time of the last line sent, and how many of that very time were."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.time: datetime | None = None
        self.count = 0
        with contextlib.suppress(OSError, ValueError):
            moment, count = path.read_text(encoding="ascii").split()
            self.time, self.count = datetime.fromisoformat(moment).astimezone(UTC), int(count)

    def sent(self, line: LogLine) -> None:
        self.count = self.count + 1 if line.time == self.time else 1
        self.time = line.time

    def keep(self) -> None:
        """Blocks. What cannot be kept is sent again."""
        if self.time is None:
            return
        aside = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            aside.write_text(f"{self.time.isoformat()} {self.count}\n", encoding="ascii")
            aside.replace(self._path)


class Forwarding:
    """One for an engine."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def begin(self, entry: Entry) -> None:
        """A run begins: send what it writes, until it has ended and all is sent. Nothing for other drivers."""
        if entry.record.config.log.driver not in OPTIONS:
            return
        before = self._under_way.get(entry.id)
        task = self._core.spawn(self._follow(entry, before), what=f"log of container {entry.id[:12]}")
        self._under_way[entry.id] = task
        task.add_done_callback(lambda done: self._ended(entry.id, done))

    def resume(self, entry: Entry) -> None:
        """After a restart of the daemon: go on where the last one stopped, whether the container has ended or not."""
        if entry.id not in self._under_way:
            self.begin(entry)

    async def finish(self, entry: Entry) -> None:
        """Returns when all that a container that has ended wrote is sent, or after five seconds."""
        if (task := self._under_way.get(entry.id)) is not None:
            await asyncio.wait({task}, timeout=_LAST_TRY_S)

    def _ended(self, container_id: str, task: asyncio.Task[None]) -> None:
        if self._under_way.get(container_id) is task:
            del self._under_way[container_id]

    async def _follow(self, entry: Entry, before: asyncio.Task[None] | None) -> None:
        if before is not None:  # of the run before: it is reading to the end
            await asyncio.gather(before, return_exceptions=True)
        path = log_path(self._core.records.directory(entry.id))
        position = await self._core.in_thread(_Position, path.with_name("forwarded"))
        skip = position.count
        already = position.time
        link = _Link(self._core, entry)
        noted = self._core.clock.monotonic()
        try:
            async for line in follow_log(path, entry, since=position.time, follow=True):
                if line.time == already and skip > 0:
                    skip -= 1
                    continue
                if not await link.send(line):
                    return
                position.sent(line)
                if self._core.clock.monotonic() - noted > _NOTE_S:
                    noted = self._core.clock.monotonic()
                    await self._core.in_thread(position.keep)
        except NotFoundError:
            return  # it never ran, or was removed meanwhile
        finally:
            link.close()
            position.keep()


class _Link:
    """The connection, made again whenever it breaks."""

    def __init__(self, core: Core, entry: Entry) -> None:
        self._core = core
        self._entry = entry
        self._target: Target | None = None
        self._told = False

    async def send(self, line: LogLine) -> bool:
        """False when the container has ended and its receiver stays away."""
        pause_s = _RETRY_FIRST_S
        began: float | None = None
        while True:
            try:
                if self._target is None:
                    log = self._entry.record.config.log
                    self._target = await make_target(log.driver, log.options, self._described())
                await self._target.send(line)
            except (OSError, TimeoutError) as cause:
                self.close()
                self._tell(cause)
            else:
                self._told = False
                return True
            if not (self._entry.record.is_up or self._entry.starting):
                began = began if began is not None else self._core.clock.monotonic()
                if self._entry.removing or self._core.clock.monotonic() - began > _LAST_TRY_S:
                    return False
            await self._core.clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)

    def _described(self) -> Described:
        record = self._entry.record
        return Described(
            id=record.id,
            name=record.name,
            image=record.config.image,
            image_id=record.image_id,
            hostname=socket.gethostname(),
            attributes=log_attributes(record),
        )

    def _tell(self, cause: BaseException) -> None:
        if not self._told:
            self._told = True
            driver = self._entry.record.config.log.driver
            self._core.log.warning(
                "log lines wait for their receiver",
                container=self._entry.id,
                driver=driver,
                cause=str(cause) or "it does not answer",
            )

    def close(self) -> None:
        if self._target is not None:
            self._target.close()
            self._target = None
