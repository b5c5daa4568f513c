"""Listening sockets with uvicorn behind them, run as tasks of the daemon instead of as uvicorn's own main program.

The listener of the engine API over TLS has connections of ``TlsConnection``, whose directions end one after the other; others
have the event loop's own TLS, which is for peers that never half-close.

Two things ASGI does not carry are added by small protocol subclasses: the TLS connection of a request (routes of the
cluster listener must know which node calls), as ``scope["extensions"]["fleet.tls"]``, and the transport, whose socket
knows who a unix peer is, as ``scope["extensions"]["fleet.transport"]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from fleet import errors
from fleet.agent.http import HijackMixin
from fleet.api.dispatch import FRAME_LIMIT
from fleet.daemon.tls_connection import READ_BYTES, TlsConnection
from fleet.logs import get_logger

__all__ = ["TLS_EXTENSION", "TRANSPORT_EXTENSION", "Listener", "is_tls", "is_unix", "tcp_socket", "unix_socket"]

log = get_logger("listener")

TLS_EXTENSION: Final = "fleet.tls"
TRANSPORT_EXTENSION: Final = "fleet.transport"
_BACKLOG: Final = 512
_STOP_TIMEOUT_S: Final = 3


def is_unix(scope: Any) -> bool:
    """Whether a request came over a unix socket: uvicorn names such a listener by its path and no port."""
    server = scope.get("server")
    return not server or server[1] is None


def is_tls(scope: Any) -> bool:
    """Whether a request came over TLS."""
    return TLS_EXTENSION in scope.get("extensions", {}) or scope.get("scheme") in ("https", "wss")


class _Http(HijackMixin, HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})[TRANSPORT_EXTENSION] = self.transport  # type: ignore[assignment]
        tls = self.transport.get_extra_info("ssl_object")
        if tls is not None:
            self.scope.setdefault("extensions", {})[TLS_EXTENSION] = tls


class _WebSocket(WebSocketsSansIOProtocol):
    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        tls = self.transport.get_extra_info("ssl_object")
        if tls is not None and getattr(self, "scope", None) is not None:
            self.scope["extensions"][TLS_EXTENSION] = tls


class _Server(uvicorn.Server):
    """Signals are the daemon's, and waiting is on an event instead of ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self.up.set()
        await self.stopping.wait()
        self.should_exit = True


class Listener:
    """Serves ``app`` on ``listening`` (bound, listening sockets) until ``stop``. ``half_open``: clients over TLS that say the end
    of their input are still sent output, as over any other socket."""

    def __init__(
        self,
        app: Any,
        listening: list[socket.socket],
        *,
        name: str,
        tls: ssl.SSLContext | None = None,
        half_open: bool = False,
    ) -> None:
        self.name = name
        self._sockets = listening
        self._addresses = [str(s.getsockname()) for s in listening if s.family == socket.AF_UNIX]
        config = uvicorn.Config(
            app,
            http=_Http,
            ws=_WebSocket,
            ws_max_size=FRAME_LIMIT,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_TIMEOUT_S,
            timeout_keep_alive=75,
        )
        config.load()
        if tls is not None and half_open:
            for sock in listening:
                _keep_alive(sock)

            buffer = memoryview(bytearray(READ_BYTES))

            def over_tls(**parts: Any) -> TlsConnection:
                return TlsConnection(tls, _Http(**parts), buffer=buffer)

            config.http_protocol_class = over_tls  # type: ignore[assignment]
        else:
            config.ssl = tls
        self._server = _Server(config)

    async def run(self) -> None:
        """Until ``stop``; then open requests get a few seconds to finish."""
        await self._server.serve(sockets=self._sockets)

    async def started(self) -> None:
        """Returns once connections are accepted."""
        await self._server.up.wait()

    def forget(self) -> None:
        """Remove what ``run`` left in the file system, once it has returned."""
        for address in self._addresses:
            Path(address).unlink(missing_ok=True)

    def stop(self) -> None:
        """Ask ``run`` to return; idempotent."""
        self._server.stopping.set()


def _keep_alive(listening: socket.socket) -> None:
    """Connections that ``listening`` accepts are ended by the kernel some two minutes after the peer's host has vanished: a
    peer that only listens sends nothing that would show it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def unix_socket(path: Path, *, group: int | None = None) -> socket.socket:
    """A listening unix socket, 0660 for root and ``group`` (0600 without). A dead one in its place is replaced.

    Raises ``ConflictError`` when somebody listens there, ``UserError`` when the path is too long or not a socket.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    if len(os.fsencode(path)) > 107:
        raise errors.UserError(f"unix socket {path}: longer than the 107 bytes Linux allows; choose a shorter path")
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise errors.UserError(f"unix socket {path}: something else is there")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink(missing_ok=True)
            else:
                raise errors.ConflictError(f"unix socket {path}: another daemon listens there")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(old)
    if group is not None:
        os.chown(path, 0, group)
        path.chmod(0o660)
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


def tcp_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ``ConflictError`` when the port is taken, ``UserError`` for a foreign address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as cause:
        listening.close()
        text = f"listen on {host}:{port}: {cause.strerror or cause}"
        if cause.errno == 98:
            raise errors.ConflictError(f"{text}; another program uses the port") from cause
        raise errors.UserError(f"{text}; is it an address of this host?") from cause
    listening.setblocking(False)
    return listening
