"""The HTTP client under ``etcd_wire``: POST over kept-alive connections, whole answers or streamed ones.

Every write of a cluster is one such request, so its cost is the manager's. httpx and its transport spend 0.7 ms of CPU on one,
as much as etcd itself needs; this does with a seventh, because it can do nothing else: no redirects, no proxies, no
cookies, one method. Parsing is httptools' (node.js's parser), which the server side uses as well.

Nothing is retried here. ``NotSentError``: the request did not leave. ``BrokenError``: it may have arrived, its answer has not.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

__all__ = ["Answer", "BrokenError", "NotSentError", "Pool"]

_CONNECT_S: Final = 2.0
_HEADER_BYTES_MAX: Final = 64 * 1024
_UNREAD_BYTES_MAX: Final = 4 * 1024 * 1024
"""A stream stops reading its socket while so much has not been taken."""


class NotSentError(OSError):
    """No connection; the request was not sent."""


class BrokenError(OSError):
    """The connection ended, or what came is not HTTP, before the answer was complete."""


class Answer:
    """A status and a body that arrives: ``chunks`` gives it in pieces, ``whole`` at once."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @property
    def status(self) -> int:
        return self._connection.status

    async def chunks(self, *, idle_s: float) -> AsyncIterator[bytes]:
        """The body in pieces. Raises ``BrokenError`` if it ends early or nothing comes for ``idle_s`` seconds."""
        while (piece := await self._connection.piece(idle_s)) is not None:
            yield piece

    async def whole(self, *, bytes_max: int) -> bytes:
        """The body. Raises ``BrokenError`` if it ends early or is larger than ``bytes_max``."""
        return await self._connection.whole(bytes_max)


class Pool:
    """Connections to any number of ``http(s)://host:port``, kept for the next request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: dict[str, list[_Connection]] = {}
        self._all: set[_Connection] = set()

    @asynccontextmanager
    async def post(self, endpoint: str, path: str, body: bytes) -> AsyncIterator[Answer]:
        """Send, wait for the answer's head, and give it. Leaving before the body is taken ends the connection.

        Raises ``NotSentError`` or ``BrokenError``. There is no deadline but the connecting's: cancel.
        """
        connection = await self._connection(endpoint)
        try:
            await connection.request(path, body)
            yield Answer(connection)
        finally:
            if connection.reusable:
                self._idle.setdefault(endpoint, []).append(connection)
            else:
                connection.abort()

    async def close(self) -> None:
        """End all connections, those in use too; their requests raise ``BrokenError``."""
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    async def _connection(self, endpoint: str) -> _Connection:
        idle = self._idle.get(endpoint, [])
        while idle:
            connection = idle.pop()
            if connection.reusable:
                return connection
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NotSentError(f"{endpoint} is not an address such as https://10.0.0.5:2379")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        context = (self._tls or ssl.create_default_context()) if secure else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(parts.netloc, self._all.discard), parts.hostname, port, ssl=context
                )
        except TimeoutError as cause:
            raise NotSentError(f"no connection within {_CONNECT_S:g} s") from cause
        except OSError as cause:  # ssl.SSLError too
            raise NotSentError(str(cause) or type(cause).__name__) from cause
        self._all.add(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Also what httptools calls back."""

    def __init__(self, host: str, gone: Callable[[_Connection], None]) -> None:
        self._host = host.encode("ascii", "replace")
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._arrived = asyncio.Event()
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._head_bytes = 0
        self._headed = False
        self._complete = True
        self._lost: BrokenError | None = None
        self._keeps = True
        self._paused = False
        self.status = 0

    @property
    def reusable(self) -> bool:
        """Connected, and the last answer was complete and did not end it."""
        return self._complete and self._keeps and self._lost is None and self._transport is not None

    async def request(self, path: str, body: bytes) -> None:
        """Send one, and return when the answer's head is here."""
        assert self._transport is not None
        self._complete = self._headed = False
        self._pieces.clear()
        self._unread = self._head_bytes = 0
        self._transport.write(
            b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode("ascii"), self._host, len(body), body)
        )
        while not self._headed:
            await self._wait()

    async def piece(self, idle_s: float) -> bytes | None:
        """The next of the body; None after the last."""
        while not self._pieces:
            if self._complete:
                return None
            try:
                async with asyncio.timeout(idle_s):
                    await self._wait()
            except TimeoutError as cause:
                raise BrokenError(f"nothing came for {idle_s:g} s") from cause
        piece = self._pieces.popleft()
        self._unread -= len(piece)
        if self._paused and self._unread < _UNREAD_BYTES_MAX and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def whole(self, bytes_max: int) -> bytes:
        taken: list[bytes] = []
        size = 0
        while not self._complete or self._pieces:
            if not self._pieces:
                await self._wait()
                continue
            while self._pieces:
                taken.append(cast("bytes", await self.piece(0)))
                size += len(taken[-1])
            if size > bytes_max:
                raise BrokenError(f"the answer is larger than {bytes_max} bytes")
        return b"".join(taken)

    def abort(self) -> None:
        """End it now; whoever waits gets ``BrokenError``."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._arrived.clear()
        await self._arrived.wait()

    def _break(self, why: str) -> None:
        if self._lost is None:
            self._lost = BrokenError(why)
        self._arrived.set()
        self.abort()

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._complete:
            self._lost = self._lost or BrokenError(str(exc) if exc else "the connection was closed")
        self._keeps = False
        self._transport = None
        self._arrived.set()
        self._gone(self)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._break("an answer to nothing")
            return
        if not self._headed:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as cause:
            self._break(f"not HTTP: {cause}")
            return
        if not self._headed and self._head_bytes > _HEADER_BYTES_MAX:
            self._break(f"the answer's head is larger than {_HEADER_BYTES_MAX} bytes")
        if self._unread > _UNREAD_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._arrived.set()

    # -- called by the parser

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("two answers to one request")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._keeps = self._parser.should_keep_alive()
        self._headed = self.status != 100

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        self._complete = self._headed
