"""Reads what `fleet.node_runtime.log_writer` wrote: since, until, the last lines, and following a file while it grows
and is rotated.

The reader shares nothing with the writer but the files. It keeps the file it is reading open, so a rename under it
loses nothing: at its end it looks up which file carries its inode now and goes on with the next newer one. Waking up
is by inotify on the directory (one watch a follower), and once a second anyway. A line that is not complete JSON (the
machine died while it was written) is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

from fleet.cancellation import cancel_and_wait
from fleet.errors import NotFoundError, RuntimeFault

__all__ = ["LogLine", "read_log"]

_CHUNK_BYTES = 1 << 18
_FILES_MAX = 1000
_WAKE_S = 1.0
_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x80, 0x100


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record. ``data`` ends in a newline unless the line was cut at 16 KiB or the stream ended without one."""

    stream: Literal["stdout", "stderr"]
    time: datetime
    data: bytes


async def read_log(
    path: Path | str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    tail: int | None = None,
    follow: bool = False,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[LogLine]:
    """Lines in the order written, oldest first; ``tail`` counts records of the whole log before ``since`` and
    ``until`` filter them.

    With ``follow`` it goes on until ``stop`` is set (then reads to the end) or ``until`` is passed. Cancels safely.
    Raises `NotFoundError` when there is no log, unless following: then it waits for one.
    """
    reader = _Reader(Path(path))
    watch = _Watch(Path(path).parent) if follow else None
    try:
        if not await asyncio.to_thread(reader.open_first, tail) and not follow:
            raise NotFoundError(f"no log at {path}")
        while True:
            ending = not follow or (stop is not None and stop.is_set())
            while chunk := await asyncio.to_thread(reader.read):
                for line in _parse(chunk):
                    if until is not None and line.time > until:
                        return
                    if since is None or line.time >= since:
                        yield line
            if ending or (until is not None and datetime.now(UTC) > until):
                return
            assert watch is not None
            await watch.changed(stop)
    finally:
        reader.close()
        if watch is not None:
            watch.close()


def _parse(chunk: bytes) -> Iterator[LogLine]:
    for raw in chunk.splitlines():
        try:
            record = json.loads(raw)
            moment = datetime.fromisoformat(record["time"][:26].rstrip("Z")).replace(tzinfo=UTC)
            yield LogLine(record["stream"], moment, record["log"].encode("utf-8", "surrogatepass"))
        except (ValueError, KeyError, TypeError):
            continue


class _Reader:
    """Whole lines, file by file. All methods block on the disk and are called in a thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _names(self) -> list[Path]:
        """Existing files, newest first."""
        names = [self._path]
        for number in range(1, _FILES_MAX):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if not older.exists():
                break
            names.append(older)
        return names

    def open_first(self, tail: int | None) -> bool:
        """Stand at the oldest record wanted; False when there is no file yet."""
        files: list[BinaryIO] = []
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                files.append(name.open("rb"))
        if not files:
            return False
        if tail is None:
            chosen = files[-1]
        else:
            chosen, wanted = files[-1], tail
            for file in files:
                wanted = _seek_back(file, wanted)
                chosen = file
                if not wanted:
                    break
        for file in files:
            if file is not chosen:
                file.close()
        self._file = chosen
        return True

    def read(self) -> bytes:
        """The next whole lines, b'' when there are none now."""
        while True:
            if self._file is None and not self.open_first(None):
                return b""
            assert self._file is not None
            data = self._file.read(_CHUNK_BYTES)
            if not data:
                if self._truncated():
                    self._file.seek(0)
                    self._rest = b""
                    continue
                if self._advance():
                    continue
                return b""
            whole, newline, rest = (self._rest + data).rpartition(b"\n")
            self._rest = rest
            if newline:
                return whole + newline

    def _truncated(self) -> bool:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size < self._file.tell()

    def _advance(self) -> bool:
        """Go to the next newer file, if this one has been rotated away and is read to its end."""
        assert self._file is not None
        own = os.fstat(self._file.fileno())
        newer: BinaryIO | None = None
        found = False
        for name in self._names():
            try:
                file = name.open("rb")
            except FileNotFoundError:
                continue
            there = os.fstat(file.fileno())
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                file.close()
                found = True
                break
            if newer is not None:
                newer.close()
            newer = file
        if newer is None:
            return False
        if found or own.st_nlink == 0:
            if own.st_size > self._file.tell():  # the writer's last line came between our read and the rename
                newer.close()
                return True
            self._file.close()
            self._file, self._rest = newer, b""
            return True
        newer.close()  # seen in the middle of a rotation: look again
        return False


def _seek_back(file: BinaryIO, lines: int) -> int:
    """Position ``file`` before its last ``lines`` records; how many it lacked."""
    position = file.seek(0, os.SEEK_END)
    if not lines:
        return 0
    count = 0
    while position:
        size = min(_CHUNK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        index = len(block)
        while (index := block.rfind(b"\n", 0, index)) >= 0:
            count += 1
            if count > lines:  # the newline before the first record wanted
                file.seek(position + index + 1)
                return 0
    file.seek(0)
    return lines - count


class _Watch:
    """inotify on one directory."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise RuntimeFault(f"follow {directory}: inotify: {os.strerror(ctypes.get_errno())}")
        directory.mkdir(parents=True, exist_ok=True)
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise RuntimeFault(f"follow {directory}: inotify: {os.strerror(number)}")
        self._event = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 65536):
                pass
        self._event.set()

    async def changed(self, stop: asyncio.Event | None) -> None:
        """Something happened in the directory, or ``stop`` was set, or a second has passed."""
        waiters = [asyncio.ensure_future(self._event.wait())]
        if stop is not None:
            waiters.append(asyncio.ensure_future(stop.wait()))
        try:
            await asyncio.wait(waiters, timeout=_WAKE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*waiters)
        self._event.clear()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
