"""A TLS connection of a listener whose directions end by themselves: below an ``asyncio.Protocol`` of the TCP transport, above
the transport of the HTTP protocol, in between ``api.TlsStream``.

Why not the event loop's own TLS: asyncio's (and uvloop's, which is the same code) answers the peer's ``close_notify`` by
closing the connection, whatever ``eof_received`` returns. Docker's client says ``close_notify`` at once for ``run``, ``exec``,
``start -a`` and ``attach`` without ``-i``, so it was shown no output. Here ``eof_received`` means what it means on a plain
socket.

What ends a connection, and what the protocol above is told:

| from the peer | told | then |
|---|---|---|
| ``close_notify`` | ``eof_received`` | true: half open, writing goes on; else as ``close`` |
| FIN after ``close_notify`` | | half open still: as on a plain socket, only writing shows whether anybody listens |
| FIN without ``close_notify``, reset | ``connection_lost`` | over: what was cut off must not be taken for whole |
| what is not TLS, or is altered | ``connection_lost`` | over, with OpenSSL's alert to the peer |
| a handshake that fails | | over, with the alert; the protocol above was not told of the connection |

``close`` sends what was written, ``close_notify`` and FIN, then reads what the peer still sends and throws it away until the
peer has closed as well: a socket that is closed with unread input resets the connection, and the peer loses output it has not
read yet.

Bounds: application data is encrypted as the TCP transport takes it, so it waits in plain and counts once; while the TCP
transport is full, the protocol above is paused. Input is decrypted as it arrives and handed over, and not read while the
protocol above is paused. Answers that OpenSSL writes itself (key updates) have a limit of their own, for a peer that asks for
them and reads none.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, cast

from fleet.api.tls_stream import TlsStream
from fleet.logs import get_logger

__all__ = ["READ_BYTES", "TlsConnection", "TlsLimits"]

log = get_logger("tls")

READ_BYTES: Final = 64 << 10
"""A good size for ``buffer``: from 128 KiB on, malloc gets each piece of input from the kernel anew, and copying costs ten
times as much."""

_HANDSHAKE_BYTES: Final = 256 << 10
"""OpenSSL takes certificate chains of up to 100 KiB."""

_SLICE: Final = 64 << 10
"""Plain bytes encrypted before looking whether the TCP transport is full."""

_OWN_OUTPUT_MAX: Final = 64 << 10
"""Of what OpenSSL answers by itself while the peer does not read: some 2,400 key updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsLimits:
    """How long peers may take."""

    handshake_s: float = 20.0
    """For the whole handshake; a round trip or two is needed."""
    linger_s: float = 5.0
    """For closing their side, once they could have had everything."""
    stall_s: float = 30.0
    """Without reading any of what is left after ``close``."""


class _Phase(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """``close`` was called; there is output left."""
    LINGER = enum.auto()
    """All was handed to the TCP transport; waiting for the peer to close."""
    GONE = enum.auto()


class TlsConnection(asyncio.BufferedProtocol, asyncio.Transport):
    """See the module. ``app`` is the protocol above; it is told of the connection when the handshake is done.
    ``buffer`` is what the TCP transport reads into; one serves all connections of a loop, as it is emptied before the next read.

    ``get_extra_info`` has ``sslcontext``, ``ssl_object``, ``peercert`` and ``cipher``, and what the TCP transport has.
    """

    def __init__(
        self, context: ssl.SSLContext, app: asyncio.Protocol, *, buffer: memoryview, limits: TlsLimits | None = None
    ) -> None:
        super().__init__()
        self._context = context
        self._buffer = buffer
        self._stream = TlsStream(context, server_side=True)
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._below: asyncio.Transport
        self._phase = _Phase.HANDSHAKE
        self._is_known = False
        """Whether the protocol above was told of this connection, and so is to be told of its end."""
        self._cause: Exception | None = None
        self._limits = limits or TlsLimits()
        self._handshake_left = _HANDSHAKE_BYTES
        self._timer: asyncio.TimerHandle | None = None

        self._reading = True
        """Whether the protocol above wants input."""
        self._held: list[bytes] = []
        """Input that came when it did not; at most what the TCP transport reads at once."""
        self._eof_told = False
        self._fin = False

        self._backlog: deque[bytes | memoryview] = deque()
        self._backlog_bytes = 0
        self._full = False
        """Whether the TCP transport wants no more for now."""
        self._full_told = False
        self._end_asked = False
        self._end_said = False
        self._left = 0
        self._stalled_s = 0.0
        """While closing: bytes not taken by the peer when last looked at, and for how long there have been as many."""

    # Called by the TCP transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(self._limits.handshake_s, self._handshake_late)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._buffer[:nbytes]
        match self._phase:
            case _Phase.OPEN:
                self._take(data)
            case _Phase.HANDSHAKE:
                self._shake_hands(data)
            case _Phase.CLOSING | _Phase.LINGER:
                self._throw_away(data)
            case _Phase.GONE:
                pass

    def eof_received(self) -> bool:
        self._fin = True
        match self._phase:
            case _Phase.OPEN if self._stream.ended:
                return True
            case _Phase.OPEN:
                self._cause = ConnectionResetError("the peer closed the connection without ending it in TLS")
                self.abort()
                return True
            case _Phase.CLOSING:
                return True  # it may read what is left, whatever it said
            case _:
                return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _Phase.GONE
        self._stop_timer()
        self._backlog.clear()
        self._backlog_bytes = 0
        self._held.clear()
        app, self._app = self._app, asyncio.Protocol()
        if self._is_known:
            app.connection_lost(self._cause or exc)

    def pause_writing(self) -> None:
        self._full = True
        self._tell_full()

    def resume_writing(self) -> None:
        self._full = False
        self._send_outgoing()
        self._flush()
        self._tell_full()

    # Called by the protocol above.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "sslcontext":
                return self._context
            case "ssl_object":
                return self._stream.tls
            case "peercert":
                return self._stream.tls.getpeercert()
            case "cipher":
                return self._stream.tls.cipher()
            case _:
                return self._below.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """``protocol`` is an ``asyncio.Protocol``; buffered ones are not known here."""
        self._app = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._app

    def is_closing(self) -> bool:
        return self._phase in (_Phase.CLOSING, _Phase.LINGER, _Phase.GONE)

    def is_reading(self) -> bool:
        return self._phase is _Phase.OPEN and self._reading

    def pause_reading(self) -> None:
        if self.is_reading():
            self._reading = False
            if not self._fin:
                self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._phase is not _Phase.OPEN or self._reading:
            return
        self._reading = True
        if self._held or self._stream.ended:
            self._loop.call_soon(self._catch_up)
        if not self._fin:
            self._below.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """Plain bytes that wait here, and encrypted ones below."""
        return self._backlog_bytes + self._below.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Does not block. Without effect once closing; raises ``RuntimeError`` after ``write_eof``."""
        if self._end_asked:
            raise RuntimeError("write after write_eof")
        if not data or self._phase is not _Phase.OPEN:
            return
        if not isinstance(data, bytes):
            data = bytes(data)  # it is the caller's to change
        if len(data) <= _SLICE and not self._backlog and not self._full:
            self._encrypt(data)
            return
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        self._flush()
        self._tell_full()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """``close_notify`` behind what was written; input goes on. Idempotent."""
        if self._phase is _Phase.OPEN and not self._end_asked:
            self._end_asked = True
            self._flush()

    def close(self) -> None:
        """See the module. No input comes any more. Idempotent."""
        if self._phase is not _Phase.OPEN:
            return
        self._phase = _Phase.CLOSING
        self._held.clear()
        self._watch_closing()
        if not self._reading and not self._fin:
            self._below.resume_reading()
        self._flush()

    def abort(self) -> None:
        """What was written may be lost. Idempotent."""
        if self._phase is not _Phase.GONE:
            self._phase = _Phase.GONE
            self._backlog.clear()
            self._backlog_bytes = 0
            self._stop_timer()
            self._below.abort()

    # Handshake.

    def _shake_hands(self, data: memoryview) -> None:
        self._handshake_left -= len(data)
        try:
            if self._handshake_left < 0:
                raise ssl.SSLError("the handshake is larger than any is")
            done = self._stream.shake_hands(data)
            self._send_outgoing()
            if not done:
                return
            first = self._stream.receive(b"")
        except ssl.SSLError as cause:
            log.debug("handshake failed", peer=self._below.get_extra_info("peername"), cause=str(cause))
            self._break(cause)
            return
        self._stop_timer()
        self._phase = _Phase.OPEN
        self._is_known = True
        self._app.connection_made(self)
        if first:
            self._hand_over(first)
        self._tell_eof()

    def _handshake_late(self) -> None:
        log.debug("handshake given up", peer=self._below.get_extra_info("peername"), after_s=self._limits.handshake_s)
        self.abort()

    # Input.

    def _take(self, data: memoryview) -> None:
        try:
            plain = self._stream.receive(data)
        except ssl.SSLError as cause:
            self._break(cause)
            return
        if self._stream.has_outgoing:
            self._send_outgoing()
            if self._stream.outgoing_bytes > _OWN_OUTPUT_MAX:
                self._cause = ConnectionAbortedError("the peer has keys changed and reads no answer")
                self.abort()
                return
        if plain:
            self._hand_over(plain)
        if self._stream.ended:
            self._tell_eof()

    def _hand_over(self, plain: bytes) -> None:
        if self._reading and not self._held and self._phase is _Phase.OPEN:
            self._app.data_received(plain)
        else:
            self._held.append(plain)

    def _tell_eof(self) -> None:
        if (
            self._stream.ended
            and self._reading
            and not self._held
            and not self._eof_told
            and self._phase is _Phase.OPEN
        ):
            self._eof_told = True
            if not self._app.eof_received():
                self.close()

    def _catch_up(self) -> None:
        """What came while reading was paused."""
        if not self.is_reading():
            return
        plain = b"".join(self._held)
        self._held.clear()
        if plain:
            self._app.data_received(plain)
        self._tell_eof()

    def _throw_away(self, data: memoryview) -> None:
        """Input after ``close``: only its end is of interest."""
        if self._cause is not None:
            return
        try:
            self._stream.receive(data)
        except ssl.SSLError as cause:
            self._break(cause)
            return
        if self._stream.ended and self._phase is _Phase.LINGER:
            self._below.close()

    # Output.

    def _encrypt(self, data: bytes | memoryview) -> None:
        try:
            self._stream.write(data)
        except ssl.SSLError as cause:
            self._break(cause)
            return
        self._below.write(self._stream.outgoing())

    def _send_outgoing(self) -> None:
        """What OpenSSL answers by itself. Nothing may follow the end."""
        if self._stream.has_outgoing and not self._full and not self._end_said and self._phase is not _Phase.GONE:
            self._below.write(self._stream.outgoing())

    def _flush(self) -> None:
        while self._backlog and not self._full:
            data = self._backlog.popleft()
            if len(data) > _SLICE:
                view = memoryview(data)
                data = view[:_SLICE]
                self._backlog.appendleft(view[_SLICE:])
            self._backlog_bytes -= len(data)
            self._encrypt(data)
        if self._backlog or self._phase not in (_Phase.OPEN, _Phase.CLOSING):
            return
        if not self._end_said and (self._end_asked or self._phase is _Phase.CLOSING):
            self._say_end()
        if self._phase is _Phase.CLOSING:
            self._phase = _Phase.LINGER
            if self._stream.ended or self._fin:
                self._below.close()
            elif self._below.can_write_eof():
                self._below.write_eof()

    def _say_end(self) -> None:
        self._end_said = True
        try:
            self._stream.end()
        except ssl.SSLError as cause:
            self._break(cause)
            return
        self._below.write(self._stream.outgoing())

    def _tell_full(self) -> None:
        full = self._full or bool(self._backlog)
        if full is self._full_told or not self._is_known or self._phase is _Phase.GONE:
            return
        self._full_told = full
        if full:
            self._app.pause_writing()
        else:
            self._app.resume_writing()

    # The end.

    def _break(self, cause: ssl.SSLError) -> None:
        """TLS is over in both directions; what OpenSSL wants to tell the peer is still sent."""
        self._cause = cause
        if self._full:
            self.abort()
            return
        self._backlog.clear()
        self._backlog_bytes = 0
        is_said, self._end_said = self._end_said, True
        self._phase = _Phase.LINGER
        self._watch_closing()
        if not is_said and self._stream.has_outgoing:
            self._below.write(self._stream.outgoing())
        if self._is_known or not self._below.can_write_eof():
            self._below.close()
        else:  # it may have sent a request already, and a reset would reach it before the alert
            self._below.write_eof()

    def _watch_closing(self) -> None:
        self._stop_timer()
        self._left = self.get_write_buffer_size()
        self._stalled_s = 0.0
        self._timer = self._loop.call_later(self._limits.linger_s, self._look_at_closing)

    def _look_at_closing(self) -> None:
        before, self._left = self._left, self.get_write_buffer_size()
        if self._left == before == 0:
            self._below.close()
            return
        self._stalled_s = self._stalled_s + self._limits.linger_s if self._left == before else 0.0
        if self._stalled_s >= self._limits.stall_s:
            self.abort()
            return
        self._timer = self._loop.call_later(self._limits.linger_s, self._look_at_closing)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
