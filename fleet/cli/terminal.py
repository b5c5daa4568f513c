"""A container's streams joined to this terminal: the taken-over connection, raw mode, size, detach keys, signals.

The main thread reads the container's output; one thread feeds it our input, one tells the daemon of signals and sizes
(a signal handler only queues). All end with ``talk``; the terminal is as before whatever happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlencode

from fleet import errors
from fleet.api.client import EngineError
from fleet.api.tls_socket import TlsSocket
from fleet.cli import clock
from fleet.cli.app import App

__all__ = ["Session", "Streams", "connect", "detach_keys", "signals_forwarded", "terminal_size"]

_HEAD_MAX: Final = 64 * 1024
_FRAME_MAX: Final = 16 * 1024 * 1024
_CHUNK: Final = 64 * 1024
_TRIES: Final = 6
_PAUSE_S: Final = 0.02
DEFAULT_KEYS: Final = "ctrl-p,ctrl-q"


def detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or single characters, comma-separated. Raises ``UserError``."""
    found = b""
    for part in text.split(","):
        if len(part) == 1 and part.isascii():
            found += part.encode()
        elif part.startswith("ctrl-") and len(part) == 6 and (part[5].islower() or part[5] in "@[\\]^_"):
            found += bytes([ord(part[5].upper()) - 64])
        else:
            raise errors.UserError(f"--detach-keys: unknown character: '{part}'; expected a letter or ctrl-LETTER")
    return found


def terminal_size() -> tuple[int, int] | None:
    """(rows, columns), or None without a terminal."""
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(sys.stdout.fileno())
        if size.lines and size.columns:
            return size.lines, size.columns
    return None


@dataclasses.dataclass
class Session:
    """A connection that speaks bytes now; ``rest`` came with the answer's head."""

    sock: socket.socket | TlsSocket
    rest: bytes

    def read(self) -> bytes:
        """The next bytes; empty at the end."""
        if self.rest:
            data, self.rest = self.rest, b""
            return data
        try:
            return self.sock.recv(_CHUNK)
        except ConnectionError:
            return b""

    def end_input(self) -> None:
        """No more input; output goes on."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self.sock, TlsSocket):
                self.sock.end_output()
            else:
                self.sock.shutdown(socket.SHUT_WR)


def connect(app: App, path: str, *, query: dict[str, Any] | None = None, body: Any = None) -> Session:
    """``POST path`` and take the connection over. Raises as ``EngineClient`` does."""
    client = app.streaming_client()
    payload = json.dumps(body).encode() if body is not None else b""
    target = path + (f"?{urlencode(query)}" if query else "")
    who = "".join(f"{name}: {value}\r\n" for name, value in client.credentials.items())
    head = (
        f"POST {target} HTTP/1.1\r\nHost: fleet\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"{who}Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    sock: socket.socket | TlsSocket | None = None
    try:
        sock = client.dial()
        sock.sendall(head.encode() + payload)
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(_CHUNK)
            if not piece or len(data) > _HEAD_MAX:
                raise ConnectionError("the answer ended early")
            data += piece
    except OSError as cause:
        if sock is not None:
            sock.close()
        raise errors.UnavailableError(
            f"cannot reach the fleet daemon at {app.host}: {cause}; is fleetd running?"
        ) from cause
    answer, _, rest = data.partition(b"\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    if status not in (101, 200):
        sock.settimeout(2)
        with contextlib.suppress(OSError):
            while len(rest) < _HEAD_MAX and not rest.rstrip().endswith(b"}") and (piece := sock.recv(_CHUNK)):
                rest += piece
        sock.close()
        found = rest[rest.find(b"{") : rest.rfind(b"}") + 1]
        try:
            message = str(json.loads(found)["message"])
        except (ValueError, KeyError, TypeError):
            message = rest.decode(errors="replace").strip() or f"HTTP {status}"
        raise EngineError(message, status=status)
    return Session(sock=sock, rest=rest)


class _Detach(Exception):
    """The detach keys were typed."""


class _Keys:
    """Holds back input that may become the detach keys."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What goes on to the container. Raises ``_Detach``."""
        if not self._keys:
            return data
        out = b""
        for byte in data:
            self._held += bytes([byte])
            while not self._keys.startswith(self._held):
                out, self._held = out + self._held[:1], self._held[1:]
            if self._held == self._keys:
                raise _Detach
        return out


class Streams:
    """One conversation. ``framed``: without a terminal output comes in frames that name the stream."""

    def __init__(self, session: Session, *, stdin: bool, is_tty: bool, keys: str | None) -> None:
        self._session = session
        self._stdin = stdin
        self._tty = is_tty
        self._keys = _Keys(detach_keys(keys or DEFAULT_KEYS) if is_tty else b"")
        self.detached = False

    def talk(self) -> None:
        """Copy both ways until the output ends or the user detaches (``detached``)."""
        stop_read, stop_write = os.pipe()
        feeder = threading.Thread(target=self._feed, args=(stop_read,), daemon=True)
        try:
            with self._raw():
                if self._stdin:
                    feeder.start()
                self._show()
        finally:
            os.close(stop_write)
            if self._stdin and feeder.ident is not None:
                feeder.join()
            os.close(stop_read)
            self._session.sock.close()

    @contextlib.contextmanager
    def _raw(self) -> Iterator[None]:
        if not (self._tty and self._stdin and os.isatty(0)):
            yield
            return
        before = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSANOW)  # what was typed already is kept
        try:
            yield
        finally:
            termios.tcsetattr(0, termios.TCSANOW, before)

    def _feed(self, stop: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([0, stop], [], [])
                if stop in ready:
                    return
                data = os.read(0, _CHUNK)
                if not data:
                    self._session.end_input()
                    return
                try:
                    data = self._keys.feed(data)
                except _Detach:
                    self.detached = True
                    self._session.sock.shutdown(socket.SHUT_RDWR)
                    return
                self._session.sock.sendall(data)

    def _show(self) -> None:
        buffer = b""
        while data := self._session.read():
            if self._tty:
                _write(1, data)
                continue
            buffer += data
            while len(buffer) >= 8:
                size = int.from_bytes(buffer[4:8], "big")
                if buffer[0] > 3 or size > _FRAME_MAX:
                    raise errors.UnavailableError("the daemon sent a stream that is not framed as expected")
                if len(buffer) < 8 + size:
                    break
                _write(2 if buffer[0] == 2 else 1, buffer[8 : 8 + size])
                buffer = buffer[8 + size :]


def _write(stream: int, data: bytes) -> None:
    target = sys.stderr.buffer if stream == 2 else sys.stdout.buffer
    target.write(data)
    target.flush()


_NEVER: Final = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP,
}  # fmt: skip


@contextlib.contextmanager
def signals_forwarded(app: App, *, kill: str | None, resize: str | None) -> Iterator[Callable[[], None]]:
    """While inside, signals go to ``POST kill`` and the terminal's size to ``POST resize``; yields "send the size"."""
    wanted: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()

    def work() -> None:
        while (item := wanted.get()) is not None:
            for attempt in range(_TRIES):
                try:
                    with app.streaming_client() as client:
                        client.post(item[0], **item[1])
                except errors.FleetError:  # the process may not be there yet; what is gone needs neither
                    clock.sleep(_PAUSE_S * (attempt + 1))
                else:
                    break

    def send_size() -> None:
        size = terminal_size()
        if resize is not None and size is not None:
            wanted.put((resize, {"h": size[0], "w": size[1]}))

    def on_signal(number: int, _frame: object) -> None:
        if number == signal.SIGWINCH:
            send_size()
        elif kill is not None:
            wanted.put((kill, {"signal": str(number)}))

    chosen = [s for s in signal.valid_signals() if isinstance(s, signal.Signals) and s not in _NEVER] if kill else []
    if resize is not None:
        chosen.append(signal.SIGWINCH)
    if threading.current_thread() is not threading.main_thread():
        chosen = []
    before = {number: signal.signal(number, on_signal) for number in chosen}
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield send_size
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        wanted.put(None)
        worker.join(timeout=5)
