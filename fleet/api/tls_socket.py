"""A blocking TLS connection for a conversation both ways: one thread reads, others write, and one direction may end first.

``ssl.SSLSocket`` can do neither: OpenSSL's object is not for two threads at once, of which one waits for input; and its
``unwrap`` breaks the session where something to read is on its way already (see ``TlsStream``). Here OpenSSL works in memory
under a lock, and nobody waits for the network while holding it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Final

from fleet.api.tls_stream import TlsStream

__all__ = ["TlsSocket"]

_CHUNK: Final = 64 * 1024


class TlsSocket:
    """The client's side over ``sock``, which is connected and from now on this object's.

    The constructor shakes hands; it raises ``ssl.SSLError`` for a server that is not trusted, ``OSError`` for one that went
    away, ``TimeoutError`` after the socket's timeout.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_hostname: str) -> None:
        self._sock = sock
        self._stream = TlsStream(context, server_side=False, server_hostname=server_hostname)
        self._openssl = threading.Lock()
        self._sending = threading.Lock()
        """Held while bytes go out, so that they go in order; may be held for long, and by whom waits for the network."""
        self._rest = b""
        try:
            self._shake_hands()
        except BaseException:
            sock.close()
            raise

    def settimeout(self, timeout_s: float | None) -> None:
        """For each wait for the network from now on; None for no limit."""
        self._sock.settimeout(timeout_s)

    def recv(self, size: int) -> bytes:
        """Some input, at most ``size`` bytes; empty at its end. For one thread. Raises ``ssl.SSLError`` for altered input."""
        while not self._rest and not self._stream.ended:
            data = self._sock.recv(_CHUNK)
            if not data:
                break
            with self._openssl:
                self._rest = self._stream.receive(data)
            self._answer()
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def sendall(self, data: bytes) -> None:
        """Waits until all is on its way."""
        with self._sending:
            for start in range(0, len(data), _CHUNK):
                with self._openssl:
                    self._stream.write(data[start : start + _CHUNK])
                    sealed = self._stream.outgoing()
                self._sock.sendall(sealed)

    def end_output(self) -> None:
        """Say that no more is sent; input goes on."""
        with self._sending:
            with self._openssl:
                self._stream.end()
                sealed = self._stream.outgoing()
            self._sock.sendall(sealed)

    def shutdown(self, how: int) -> None:
        """As a socket's, without a word in TLS: whoever waits in ``recv`` comes back."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def _shake_hands(self) -> None:
        data = b""
        try:
            while not self._stream.shake_hands(data):
                self._sock.sendall(self._stream.outgoing())
                data = self._sock.recv(_CHUNK)
                if not data:
                    raise ConnectionResetError("the server closed the connection during the TLS handshake")
            self._rest = self._stream.receive(b"")
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # the server may have gone before it could be told why
                self._sock.sendall(self._stream.outgoing())
            raise
        self._sock.sendall(self._stream.outgoing())

    def _answer(self) -> None:
        """Send what OpenSSL answered by itself, unless somebody is sending: the next call takes it along then."""
        while self._stream.has_outgoing and self._sending.acquire(blocking=False):
            try:
                with self._openssl:
                    sealed = self._stream.outgoing()
                self._sock.sendall(sealed)
            finally:
                self._sending.release()
