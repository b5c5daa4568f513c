"""The control socket of a process that outlives the daemon, from the process's side. Standard library only.

Messages are a four-byte length and JSON; each is answered by one, in order. Descriptors may come along (SCM_RIGHTS).
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["FRAME_BYTES_MAX", "Channel", "Controlled"]

FRAME_BYTES_MAX = 64 << 20
"""One table of 500,000 names; a bound against nonsense, not a quota."""


class Controlled(Protocol):
    """The process: an event loop, who may control it, and what it does when it is told to."""

    daemon_uid: int

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None: ...
    def unwatch(self, sock: socket.socket) -> None: ...
    def handle(self, request: dict[str, Any], descriptors: list[int]) -> tuple[dict[str, Any], list[socket.socket]]: ...


class Channel:
    """One connection of a daemon."""

    def __init__(self, server: Controlled, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._received = bytearray()
        self._descriptors: list[int] = []

    @staticmethod
    def accept(server: Controlled, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != server.daemon_uid:
            sock.close()
            return
        sock.settimeout(
            5.0
        )  # the daemon reads its answers at once; only a stopped one could hold us, and only this long
        control = Channel(server, sock)
        server.watch(sock, control.readable)

    def readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 20, 8)
        except OSError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        if not data:
            self._close()
            return
        self._received += data
        while len(self._received) >= 4:
            length = struct.unpack_from("!I", self._received)[0]
            if length > FRAME_BYTES_MAX:
                self._close()
                return
            if len(self._received) < 4 + length:
                return
            body = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            self._serve(body)

    def _serve(self, body: bytes) -> None:
        sockets: list[socket.socket] = []
        try:
            answer, sockets = self._server.handle(json.loads(body), self._descriptors)
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        payload = json.dumps(answer).encode()
        try:
            frame = struct.pack("!I", len(payload)) + payload
            sent = socket.send_fds(self._socket, [frame], [sock.fileno() for sock in sockets])
            if sent < len(frame):
                self._socket.sendall(frame[sent:])
        except OSError:
            self._close()

    def _close(self) -> None:
        self._server.unwatch(self._socket)
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
