"""Connections that stop being HTTP: the client of attach and exec sends ``Connection: Upgrade, Upgrade: tcp`` (or
nothing at all) and speaks
bytes from then on, both ways. ASGI has no word for that, so the protocol class of the server is taught one.

``HijackMixin`` goes before uvicorn's ``HttpToolsProtocol`` in a listener's protocol class; it puts a ``Hijack`` into
``scope["extensions"]["fleet.hijack"]``. A route returns ``Hijacked(request, talk)``: its call takes the connection over
instead of
sending a response. Half-closing is kept: the client's end of input leaves the way back open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httptools
from fastapi import Request, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fleet.errors import UnsupportedError

__all__ = ["EXTENSION", "Connection", "HijackMixin", "Hijacked"]

EXTENSION: Final = "fleet.hijack"
_HIGH_WATER: Final = 64 << 10
"""Bytes of unread input beyond which the client is made to wait."""

_UPGRADED: Final = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
_PLAIN: Final = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n"


class Connection:
    """A connection taken over: bytes both ways."""

    def __init__(self, transport: asyncio.Transport, drain: Callable[[], Awaitable[None]], first: bytes) -> None:
        self._transport = transport
        self._drain = drain
        self._pieces: deque[bytes] = deque([first] if first else [])
        self._size = len(first)
        self._wake = asyncio.Event()
        self._eof = False
        self._gone = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether the client is gone altogether."""
        return self._gone.is_set()

    async def wait_lost(self) -> None:
        """Returns when the client is gone."""
        await self._gone.wait()

    def feed(self, data: bytes) -> None:
        """Called by the protocol."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _HIGH_WATER:
            self._transport.pause_reading()
        self._wake.set()

    def feed_eof(self, *, lost: bool) -> None:
        """Called by the protocol: no more input; ``lost``: nor does anybody listen."""
        self._eof = True
        if lost:
            self._gone.set()
        self._wake.set()

    async def receive(self) -> bytes:
        """The next input; ``b""`` at its end."""
        while not self._pieces:
            if self._eof:
                return b""
            self._wake.clear()
            await self._wake.wait()
        piece = self._pieces.popleft()
        was_high = self._size > _HIGH_WATER
        self._size -= len(piece)
        if was_high and self._size <= _HIGH_WATER and not self.lost:
            self._transport.resume_reading()
        return piece

    async def send(self, data: bytes) -> None:
        """Raises ``ConnectionResetError`` when the client is gone."""
        if self.lost or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)
        await self._drain()

    def close(self) -> None:
        """What was sent still arrives. Idempotent."""
        self._transport.close()


class HijackMixin(HttpToolsProtocol):
    """See the module."""

    _taken: Connection | None = None
    _upgraded = False
    _body_left = 0
    _rest: bytes = b""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})[EXTENSION] = self._hijack  # type: ignore[assignment]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._wants_bytes():
            self.cycle.keep_alive = False  # refused or not, no other request follows on this connection
            lengths = [value for name, value in self.headers if name == b"content-length"]
            self._body_left = int(lengths[0]) if lengths and lengths[0].isdigit() else 0

    def on_message_complete(self) -> None:
        # llhttp takes what follows the head of an upgrade for the new protocol, but Docker's clients send a body.
        if not (self._wants_bytes() and self._body_left):
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self._taken is not None:
            self._taken.feed(data)
            return
        if self._upgraded:
            self._after_head(data)
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._upgraded = True
                self._after_head(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _wants_bytes(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def _after_head(self, data: bytes) -> None:
        """The body of the request, then input that comes before the connection is taken over."""
        if self._body_left:
            body, data = data[: self._body_left], data[self._body_left :]
            self._body_left -= len(body)
            self.on_body(body)
            if not self._body_left:
                super().on_message_complete()
        self._rest += data
        if len(self._rest) > _HIGH_WATER:
            self.flow.pause_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        if self._taken is None:
            return None
        self._taken.feed_eof(lost=False)
        return True  # keep the way to the client open

    def connection_lost(self, exc: Exception | None) -> None:
        if self._taken is not None:
            self._taken.feed_eof(lost=True)
        super().connection_lost(exc)

    def _hijack(self, content_type: str) -> Connection:
        """Take the connection from the server; the head of the answer has been written."""
        cycle = self.cycle
        cycle.response_started = cycle.response_complete = True
        cycle.keep_alive = False
        head = _UPGRADED if self._get_upgrade() == b"tcp" else _PLAIN
        self._taken = Connection(self.transport, self.flow.drain, self._rest)
        if self.transport.is_closing():
            self._taken.feed_eof(lost=True)
        else:
            self.transport.write(head % content_type.encode())
            self.flow.resume_reading()
        return self._taken


class Hijacked(Response):
    """A response that takes the connection over and runs ``talk`` on it, then closes it."""

    def __init__(self, request: Request, talk: Callable[[Connection], Awaitable[None]], *, content_type: str) -> None:
        super().__init__()
        self._talk = talk
        self._content_type = content_type
        self._take = request.scope.get("extensions", {}).get(EXTENSION)
        if self._take is None:
            raise UnsupportedError(
                "this listener cannot hand connections over, so attach and exec are not to be had here"
            )

    async def __call__(self, _scope: Any, _receive: Any, _send: Any) -> None:
        connection: Connection = self._take(self._content_type)
        try:
            await self._talk(connection)
        except (ConnectionResetError, BrokenPipeError):
            return  # the client left, which is its right
        finally:
            connection.close()
