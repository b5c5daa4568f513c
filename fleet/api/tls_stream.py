"""TLS without a socket, whose two directions end one after the other: what ``TlsConnection`` of the daemon (asyncio) and
``TlsSocket`` of the command line (threads) have in common.

A ``close_notify`` ends the direction it was sent in and no other (RFC 8446, 6.1). Docker's client says it at once
where a container gets no input, and reads on; Python's own layers over the same OpenSSL, ``asyncio.sslproto`` and uvloop's,
take it for the end of the connection. OpenSSL itself keeps the directions apart, with one trap: ``SSL_shutdown`` sends the
alert and then looks for the peer's, and where it finds data instead the session is broken in both directions. Hence the
invariant here: what has arrived is decrypted at once and whole, so OpenSSL holds at most a part of a record when ``end`` is
called.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Final

__all__ = ["TlsStream"]

_RECORD: Final = 16 << 10
"""Plain bytes of the largest record: OpenSSL decrypts and encrypts one record a call, so asking for more only allocates more."""


class TlsStream:
    """One TLS connection as bytes in and bytes out. Not for several threads at once.

    Every method raises ``ssl.SSLError`` when the peer broke the protocol, or its certificate was refused; then only
    ``outgoing`` is left to be called, for the alert that tells the peer why.
    """

    __slots__ = ("_incoming", "_outgoing", "ended", "tls")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls: Final = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        """For questions only: certificates, version, cipher."""
        self.ended = False
        """Whether the peer has said that it sends no more. It may still be told as much as one likes."""

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something for ``outgoing`` to give."""
        return self._outgoing.pending > 0

    @property
    def outgoing_bytes(self) -> int:
        """How much ``outgoing`` would give."""
        return self._outgoing.pending

    def outgoing(self) -> bytes:
        """What has to be sent now, after any other call; perhaps nothing."""
        return self._outgoing.read()

    def shake_hands(self, data: bytes | memoryview) -> bool:
        """Go on with the handshake; whether it is done. What came behind its end is had from ``receive(b"")``."""
        self._incoming.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes | memoryview) -> bytes:
        """All that can be decrypted, now that ``data`` has arrived. What follows the peer's end is thrown away."""
        if self.ended:
            return b""
        incoming, tls = self._incoming, self.tls
        incoming.write(data)
        pieces = []
        try:
            while incoming.pending or tls.pending():  # asking without is right too, but an exception costs 2 us
                piece = tls.read(_RECORD)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # what b"" is once both have said their end
            self.ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt all of it. Not after ``end``."""
        written = self.tls.write(data)
        if written < len(data):
            view = memoryview(data)
            while written < len(view):
                written += self.tls.write(view[written:])

    def end(self) -> None:
        """Say that no more is sent from here; the peer may go on. Once, and after the handshake."""
        with contextlib.suppress(ssl.SSLWantReadError):  # said; the peer's own end has not come yet
            self.tls.unwrap()
