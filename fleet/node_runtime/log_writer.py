"""A container's output on disk: Docker's json-file lines, one object a line, ``{"log":...,"stream":...,"time":...}``,
rotated by size.

Lines longer than 16 KiB are cut as Docker cuts them: pieces without a newline at the end of ``log``. Bytes that are
not UTF-8 become U+FFFD, since JSON has no other text. A write that fails (disk full, directory gone) drops the data
and is counted; the container is never made to wait for it. Rotation renames ``path`` to ``path.1`` and so on;
``max_files`` counts the current file.
"""

from __future__ import annotations

import os
import time
from _json import encode_basestring

__all__ = ["LINE_BYTES_MAX", "LogWriter", "timestamp"]

LINE_BYTES_MAX = 16 * 1024

_second = -1
_second_text = ""


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds in UTC, all nine digits."""
    global _second, _second_text
    second, fraction = divmod(time_ns, 1_000_000_000)
    if second != _second:
        _second, _second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_second_text}.{fraction:09d}Z"


class LogWriter:
    """Appends for one container. `feed` takes raw bytes of a stream, `close` writes what had no newline yet."""

    def __init__(self, path: str, *, max_size_bytes: int, max_files: int) -> None:
        self._path = path
        self._max_size = max(max_size_bytes, 1)
        self._max_files = max(max_files, 1)
        self._partial: dict[str, bytes] = {}
        self._fd = -1
        self._size = 0
        self.dropped_bytes = 0
        """Output that could not be written; grows only."""

    def feed(self, stream: str, data: bytes, *, time_ns: int) -> None:
        """Split into lines and append them; the rest waits for its newline."""
        pending = self._partial.pop(stream, b"") + data
        tail = f',"stream":"{stream}","time":"{timestamp(time_ns)}"}}\n'
        out: list[str] = []
        lines = pending.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if len(line) >= LINE_BYTES_MAX:
                line = self._cut(line, tail, out)  # noqa: PLW2901
            out.append('{"log":' + encode_basestring(line.decode("utf-8", "replace") + "\n") + tail)
        if len(rest) >= LINE_BYTES_MAX:
            rest = self._cut(rest, tail, out)
        if rest:
            self._partial[stream] = rest
        if out:
            self._append_lines(out)

    def _append_lines(self, lines: list[str]) -> None:
        """Append, rotating between two lines, so that no file outgrows its limit by more than one line."""
        data = "".join(lines).encode()
        if self._size + len(data) <= self._max_size:
            self._append(data)
            return
        batch: list[bytes] = []
        batch_size = 0
        for line in lines:
            encoded = line.encode()
            if batch and self._size + batch_size + len(encoded) > self._max_size:
                self._append(b"".join(batch))
                batch, batch_size = [], 0
            batch.append(encoded)
            batch_size += len(encoded)
        self._append(b"".join(batch))

    def _cut(self, line: bytes, tail: str, out: list[str]) -> bytes:
        """Emit whole pieces of a long line; what is returned is shorter than a piece."""
        while len(line) >= LINE_BYTES_MAX:
            end = LINE_BYTES_MAX
            while end > LINE_BYTES_MAX - 4 and end < len(line) and line[end] & 0xC0 == 0x80:
                end -= 1  # do not cut a character in two
            out.append('{"log":' + encode_basestring(line[:end].decode("utf-8", "replace")) + tail)
            line = line[end:]
        return line

    def close(self, *, time_ns: int) -> None:
        """Write unfinished lines and close the file. Idempotent."""
        for stream, rest in self._partial.items():
            tail = f',"stream":"{stream}","time":"{timestamp(time_ns)}"}}\n'
            self._append(('{"log":' + encode_basestring(rest.decode("utf-8", "replace")) + tail).encode())
        self._partial.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._open()
            if self._size and self._size + len(data) > self._max_size:
                self._rotate()
            written = 0
            while written < len(data):
                count = os.write(self._fd, data[written:])
                written += count
                self._size += count
        except OSError:
            self.dropped_bytes += len(data)

    def open(self) -> None:
        """Make the (empty) file now, so that readers find it. Errors surface as dropped output later."""
        try:
            if self._fd < 0:
                self._open()
        except OSError:
            return

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self._path, flags, 0o640)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        if self._max_files == 1:
            os.truncate(self._path, 0)
        for number in range(self._max_files - 1, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            try:
                os.rename(older, f"{self._path}.{number}")
            except FileNotFoundError:
                continue
        self._open()
