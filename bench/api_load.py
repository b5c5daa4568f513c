"""Requests to an engine API over its unix socket: how long answers take, and how many streams hear one event.

Sockets and a selector in one thread, nothing parsed but what ends an answer: the client must not be what is measured. The
daemon's processor time is read around it, for it says what an answer costs also while the machine is busy.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Load", "Watchers", "load"]

_CHUNK: Final = 1 << 18
_TIMEOUT_S: Final = 120.0
_LAST_CHUNK: Final = b"0\r\n\r\n"


@dataclass
class Load:
    """What one kind of request took; ``seconds`` of each, ``busy_s`` of the daemon's processor time and ``spent_s`` for all."""

    seconds: list[float] = field(default_factory=list)
    spent_s: float = 0.0
    busy_s: float = 0.0
    answer_bytes: int = 0

    def add(self, other: Load) -> None:
        """Another run of the same."""
        self.seconds += other.seconds
        self.spent_s += other.spent_s
        self.busy_s += other.busy_s
        self.answer_bytes = other.answer_bytes

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers was there."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.spent_s

    @property
    def busy_each_s(self) -> float:
        """Processor time of the daemon for one answer."""
        return self.busy_s / len(self.seconds)


class _Connection:
    """One request after the other; ``receive`` whenever there is something to read."""

    def __init__(self, path: Path, target: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(_TIMEOUT_S)
        self.socket.connect(str(path))
        self._request = f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self._target = target
        self._head = b""
        self._left: int | None = None
        self._tail = b""
        self.answer_bytes = 0
        self.began = 0.0

    def ask(self) -> None:
        self._head, self._tail, self._left, self.answer_bytes = b"", b"", None, 0
        self.began = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Whether the answer is there now. Raises ``RuntimeError`` for one that is not 200 or that breaks off."""
        data = self.socket.recv(_CHUNK)
        if not data:
            raise RuntimeError(f"GET {self._target}: the connection was closed in the middle of an answer")
        self.answer_bytes += len(data)
        if self._left is None and not self._tail:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return False
            self._begin(head, data)
        if self._left is None:
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
            return self._tail == _LAST_CHUNK
        self._left -= len(data)
        return self._left <= 0

    def _begin(self, head: bytes, body: bytes) -> None:
        status, *lines = head.split(b"\r\n")
        if status.split(b" ")[1] != b"200":
            raise RuntimeError(
                f"GET {self._target}: {status.decode(errors='replace')}: {body.decode(errors='replace')[:200]}"
            )
        headers = dict(line.lower().split(b":", 1) for line in lines)
        length = headers.get(b"content-length")
        self._left = None if length is None else int(length)
        self._tail = b" " if length is None else b""  # from here on the body has begun


def load(
    path: Path, target: str, *, connections: int, seconds: float, busy: Callable[[], float], least: int = 3
) -> Load:
    """Ask for ``target`` on so many kept connections, each again as soon as it has its answer, for about ``seconds`` and at
    least ``least`` times each. ``busy`` is the daemon's processor time so far, in seconds."""
    made = [_Connection(path, target) for _ in range(connections)]
    result = Load()
    try:
        with selectors.DefaultSelector() as selector:
            for each in made:
                selector.register(each.socket, selectors.EVENT_READ, each)
            before, start = busy(), time.perf_counter()
            for each in made:
                each.ask()
            waiting, rounds = connections, dict.fromkeys(made, 0)
            while waiting:
                ready = selector.select(_TIMEOUT_S)
                if not ready:
                    raise TimeoutError(f"GET {target}: no answer within {_TIMEOUT_S:g} s")
                for key, _ in ready:
                    each = key.data
                    if not each.receive():
                        continue
                    now = time.perf_counter()
                    result.seconds.append(now - each.began)
                    result.answer_bytes = each.answer_bytes
                    rounds[each] += 1
                    if now - start < seconds or rounds[each] < least:
                        each.ask()
                    else:
                        waiting -= 1
            result.spent_s = time.perf_counter() - start
            result.busy_s = busy() - before
    finally:
        for each in made:
            each.socket.close()
    return result


class Watchers:
    """So many open ``GET /events``; a context manager."""

    def __init__(self, path: Path, count: int, *, target: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        request = f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        for _ in range(count):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sockets.append(made)
            made.settimeout(_TIMEOUT_S)
            made.connect(str(path))
            made.sendall(request)
            self._selector.register(made, selectors.EVENT_READ, made)
        self.hear(b"\r\n\r\n")

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, *_: Any) -> None:
        self._selector.close()
        for each in self._sockets:
            each.close()

    def hear(self, what: bytes, tell: Callable[[], Any] = lambda: None, *, patience_s: float = _TIMEOUT_S) -> float:
        """Seconds from before ``tell`` until the last has received ``what``. Raises ``TimeoutError`` when no more came for
        ``patience_s``."""
        left = set(self._sockets)
        texts: dict[socket.socket, bytes] = dict.fromkeys(self._sockets, b"")
        start = time.perf_counter()
        tell()
        while left:
            ready = self._selector.select(patience_s)
            if not ready:
                raise TimeoutError(f"{len(left)} of {len(self._sockets)} watchers heard nothing for {patience_s:g} s")
            for key, _ in ready:
                made: socket.socket = key.data
                data = made.recv(_CHUNK)
                if not data:
                    raise RuntimeError("a stream of events was ended by the daemon")
                texts[made] += data
                if what in texts[made]:
                    left.discard(made)
        return time.perf_counter() - start
