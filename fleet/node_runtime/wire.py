"""Frames between the supervisor and its clients: four bytes of length, big-endian, then one JSON object; descriptors
ride along (SCM_RIGHTS).

A message that carries descriptors says how many in ``fds``. On a stream socket descriptors arrive with the first byte
they were sent with, so they are kept in a queue and each message takes its own from the front. Both ends run this
code; it does no waiting of its own.

Requests: ``{"seq": n, "op": name, ...}``. Answers: ``{"seq": n, "ok": {...}}`` or ``{"seq": n, "error": {"kind",
"code", "text"}}``. Events have no ``seq``: ``{"event": name, ...}``.
"""

from __future__ import annotations

import json
import os
import struct
from _socket import MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from collections.abc import Sequence
    from typing import Any

__all__ = ["FDS_MAX", "MESSAGE_BYTES_MAX", "OUTGOING_BYTES_MAX", "Channel", "ClosedError"]

MESSAGE_BYTES_MAX = 8 << 20
"""A spec with a large environment is tens of kilobytes; a listing of 256 containers is about as much."""
OUTGOING_BYTES_MAX = 16 << 20
"""Unsent bytes after which a peer that does not read is given up; it can connect again and ask for the list."""
FDS_MAX = 250
"""The kernel takes 253 in one message (SCM_MAX_FD)."""
_RECEIVE_BYTES = 1 << 16


class ClosedError(Exception):
    """The peer is gone, or broke the framing; the text says which."""


class Channel:
    """One non-blocking stream socket. The owner calls `receive` when it is readable and `flush` when it is writable."""

    def __init__(self, sock: Socket) -> None:
        self.socket = sock
        self._incoming = bytearray()
        self._descriptors: deque[int] = deque()
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._outgoing_bytes = 0

    def receive(self) -> list[tuple[dict[str, Any], list[int]]]:
        """Every whole message that has arrived, with its descriptors, which then belong to the caller. Raises
        `ClosedError`.
        """
        messages: list[tuple[dict[str, Any], list[int]]] = []
        ended = False
        while True:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    _RECEIVE_BYTES, 4 * FDS_MAX + 64, MSG_DONTWAIT | MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except OSError as error:
                raise ClosedError(f"connection: {error.strerror}") from error
            for level, kind, payload in ancillary:
                if level == SOL_SOCKET and kind == SCM_RIGHTS:
                    count = len(payload) // 4
                    self._descriptors.extend(struct.unpack(f"{count}i", payload[: 4 * count]))
            if flags & 8:  # MSG_CTRUNC: descriptors were lost
                raise ClosedError("too many descriptors in one message")
            if not data:
                ended = True
                break
            self._incoming += data
            if len(data) < _RECEIVE_BYTES and not ancillary:
                break
        while (message := self._take()) is not None:
            count = message.get("fds", 0)
            if not isinstance(count, int) or not 0 <= count <= len(self._descriptors):
                raise ClosedError("a message without the descriptors it announces")
            messages.append((message, [self._descriptors.popleft() for _ in range(count)]))
        if ended and not messages:
            raise ClosedError("closed by the other side")
        return messages

    def _take(self) -> dict[str, Any] | None:
        if len(self._incoming) < 4:
            return None
        size = int.from_bytes(self._incoming[:4], "big")
        if size > MESSAGE_BYTES_MAX:
            raise ClosedError(f"a message of {size} bytes, the limit is {MESSAGE_BYTES_MAX}")
        if len(self._incoming) < 4 + size:
            return None
        body = bytes(self._incoming[4 : 4 + size])
        del self._incoming[: 4 + size]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ClosedError("a message that is not JSON") from error
        if not isinstance(message, dict):
            raise ClosedError("a message that is not an object")
        return message

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Queue and send as much as goes now. Descriptors are duplicated while they wait, so the caller may close its
        own at once.

        Raises `ClosedError` when the peer is gone or does not read.
        """
        if fds:
            message = {**message, "fds": len(fds)}
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > MESSAGE_BYTES_MAX:
            raise ClosedError(f"a message of {len(body)} bytes, the limit is {MESSAGE_BYTES_MAX}")
        frame = len(body).to_bytes(4, "big") + body
        self._outgoing.append((frame, tuple(os.dup(fd) for fd in fds)))
        self._outgoing_bytes += len(frame)
        self.flush()
        if self._outgoing_bytes > OUTGOING_BYTES_MAX:
            raise ClosedError("the other side does not read")

    def flush(self) -> bool:
        """Send what is queued; True when nothing is left. Raises `ClosedError`."""
        while self._outgoing:
            frame, fds = self._outgoing[0]
            ancillary = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            try:
                sent = self.socket.sendmsg([frame], ancillary, MSG_DONTWAIT | MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                raise ClosedError(f"connection: {error.strerror}") from error
            for fd in fds:
                os.close(fd)
            self._outgoing_bytes -= sent
            if sent == len(frame):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (frame[sent:], ())
        return True

    def close(self) -> None:
        """Close the socket and every descriptor nobody took or sent."""
        self.socket.close()
        for fd in self._descriptors:
            os.close(fd)
        for _, fds in self._outgoing:
            for fd in fds:
                os.close(fd)
        self._descriptors.clear()
        self._outgoing.clear()
