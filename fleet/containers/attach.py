"""Talking with a container's process, or with one that joined it: bytes in, bytes out, as ``docker attach`` and ``exec`` do.

An ``Attachment`` is the host's side of such a talk: ``read`` gives output in Docker's framing (raw with a terminal),
``write`` is its standard
input. Whoever holds a client's connection pumps between the two. Attaching never slows a container down: a reader a
mebibyte behind is cut off by the supervisor, and the log is unaffected.

Standard input without a terminal is a pipe whose writing end the engine keeps, from start to exit, so that clients may
come and go. It does
not survive fleetd: a container that reads its input then sees the end of file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.errors import ConflictError, UserError

__all__ = ["Attachment", "Attachments", "frame"]

_CHUNK: Final = 64 << 10
_ATTACHED_MAX: Final = 64
"""Clients on one container."""
_STREAMS: Final = {"stdin": 0, "stdout": 1, "stderr": 2}


def frame(stream: str, data: bytes) -> bytes:
    """One piece of a multiplexed stream: number of the stream, three zero bytes, length, data (Engine API, attach)."""
    return struct.pack(">BxxxI", _STREAMS[stream], len(data)) + data


class Attachment:
    """One talk. ``close`` it; the process goes on."""

    def __init__(
        self, outputs: dict[int, str | None], *, stdin_fd: int | None = None, on_eof: Callable[[], None] | None = None
    ) -> None:
        """``outputs``: descriptor -> name of the stream to frame, None for bytes that go out as they are. All descriptors are
        taken over. ``on_eof`` is called by ``close_stdin``.
        """
        self._open = dict(outputs)
        self._stdin_fd = stdin_fd
        self._on_eof = on_eof
        self._ended = asyncio.Event()
        for fd in (*outputs, *(() if stdin_fd is None else (stdin_fd,))):
            os.set_blocking(fd, False)

    async def read(self) -> bytes:
        """The next output; ``b""`` when there will be none. One reader at a time."""
        while self._open:
            for fd, name in list(self._open.items()):
                try:
                    data = os.read(fd, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError as cause:
                    if cause.errno not in (errno.EIO, errno.ECONNRESET):  # EIO: every end of the terminal is closed
                        raise
                    data = b""
                if data:
                    return data if name is None else frame(name, data)
                os.close(fd)
                del self._open[fd]
            if self._open:
                if self._ended.is_set():  # the process ended, and what it wrote was read; others may hold its pipes
                    return b""
                await self._readable()
        return b""

    async def write(self, data: bytes) -> None:
        """To its standard input. Raises ``UserError`` when it has none, ``BrokenPipeError`` when it reads no more."""
        if self._stdin_fd is None:
            raise UserError("standard input is not attached")
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._stdin_fd, view) :]
            except BlockingIOError:
                await _ready(
                    self._stdin_fd, asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer
                )

    def close_stdin(self) -> None:
        """The client has no more input. Idempotent."""
        fd, self._stdin_fd = self._stdin_fd, None
        if fd is not None:
            os.close(fd)
            if self._on_eof is not None:
                self._on_eof()

    def end(self) -> None:
        """The process ended: ``read`` gives what is there, then nothing."""
        self._ended.set()

    def close(self) -> None:
        """Leave. Idempotent."""
        self._on_eof = None
        self.close_stdin()
        for fd in self._open:
            os.close(fd)
        self._open = {}
        self._ended.set()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.ensure_future(self._ended.wait())
        for fd in self._open:
            loop.add_reader(fd, ready.cancel)
        try:
            await asyncio.wait((ready,))
        finally:
            for fd in self._open:
                loop.remove_reader(fd)
            ready.cancel()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready = asyncio.get_running_loop().create_future()
    add(fd, _wake, ready)
    try:
        await ready
    finally:
        remove(fd)


class Attachments:
    """Makes attachments for one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def attach(self, entry: Entry, *, stdin: bool) -> Attachment:
        """Output from now on, or from the start if it is not running yet. Raises ``ConflictError`` when it is paused or
        too many are here.
        """
        streams = entry.streams
        if entry.record.state.status == "paused":
            raise ConflictError(f"container {entry.id} is paused, unpause the container before attach")
        if streams.attached >= _ATTACHED_MAX:
            raise ConflictError(f"container {entry.record.name} has {_ATTACHED_MAX} clients attached already")
        ours, theirs = socket.socketpair()
        try:
            if entry.record.is_up:
                await self._core.runtime.attach(entry.id, theirs.fileno())
                theirs.close()
            else:
                streams.waiting.append(theirs)
            return await self._talk(entry, ours, stdin=stdin)
        except BaseException:
            ours.close()
            theirs.close()
            raise

    async def _talk(self, entry: Entry, ours: socket.socket, *, stdin: bool) -> Attachment:
        streams = entry.streams
        config = entry.record.config
        if not (stdin and config.open_stdin):
            return Attachment({ours.detach(): None})
        if entry.record.is_up and config.tty:
            return Attachment({ours.detach(): None}, stdin_fd=await self._core.runtime.open_terminal(entry.id))
        if entry.record.is_up and streams.stdin_fd is not None:
            eof = self._eof(entry, streams.runs)
            return Attachment({ours.detach(): None}, stdin_fd=os.dup(streams.stdin_fd), on_eof=eof)
        has_begun = entry.record.is_up or streams.stdin_fd is not None
        run = streams.runs if has_begun else streams.runs + 1
        return _LateInput({ours.detach(): None}, find=lambda: self._input(entry), on_eof=self._eof(entry, run))

    async def _input(self, entry: Entry) -> int | None:
        """Where input goes, once it runs."""
        while not entry.record.is_up:
            if entry.is_gone:
                return None
            await asyncio.shield(entry.health_changed)
        if entry.record.config.tty:
            return await self._core.runtime.open_terminal(entry.id)
        return None if entry.streams.stdin_fd is None else os.dup(entry.streams.stdin_fd)

    @staticmethod
    def _eof(entry: Entry, run: int) -> Callable[[], None]:
        """``StdinOnce``: the first client's end of input is the container's, in that run of it."""
        return (lambda: entry.streams.end_input(run=run)) if entry.record.config.stdin_once else (lambda: None)

    @staticmethod
    def prepare(entry: Entry) -> tuple[int | None, int | None]:
        """(reading end of standard input, first waiting client) for the supervisor; ``started`` follows."""
        config = entry.record.config
        reader = entry.streams.begin(stdin=config.open_stdin and not config.tty)
        waiting = entry.streams.waiting
        return reader, waiting[0].fileno() if waiting else None

    async def started(self, entry: Entry) -> None:
        """It runs: the first waiting client was handed over with the start, the others are now."""
        waiting, entry.streams.waiting = entry.streams.waiting, []
        for index, end in enumerate(waiting):
            if index:
                with contextlib.suppress(ConflictError):
                    await self._core.runtime.attach(entry.id, end.fileno())
            end.close()


class _LateInput(Attachment):
    """An attachment to a container that is not started yet: its input is opened with the first write."""

    def __init__(
        self, outputs: dict[int, str | None], *, find: Callable[[], Awaitable[int | None]], on_eof: Callable[[], None]
    ) -> None:
        super().__init__(outputs, on_eof=on_eof)
        self._find = find
        self._found = False

    async def write(self, data: bytes) -> None:
        if not self._found:
            self._found = True
            self._stdin_fd = await self._find()
            if self._stdin_fd is not None:
                os.set_blocking(self._stdin_fd, False)
        await super().write(data)

    def close_stdin(self) -> None:
        if self._stdin_fd is None and self._on_eof is not None:
            self._on_eof()
            self._on_eof = None
        super().close_stdin()
