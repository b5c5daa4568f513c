"""Both ends of a TLS connection for tests: contexts, a protocol that notes what it is told, clients well and ill behaved."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop
from support.certificates import make_pair

from fleet.daemon.tls_connection import READ_BYTES, TlsConnection, TlsLimits

__all__ = [
    "LOOPS",
    "Noting",
    "OpenSsl",
    "Pipe",
    "Site",
    "dial",
    "make_site",
    "read_all",
    "run_on",
    "say_end",
    "serve",
    "until",
]

DEADLINE_S = 30.0
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@dataclass
class Site:
    """Contexts of a server that asks for certificates, of a client that has one, and of one without."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    stranger: ssl.SSLContext


def make_site(folder: Path) -> Site:
    authority = make_pair(folder, "ca", None, [])
    make_pair(folder, "server", authority, ["127.0.0.1"])
    make_pair(folder, "client", authority, [])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server-key.pem")
    server.load_verify_locations(folder / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    clients = []
    for has_certificate in (True, False):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(folder / "ca.pem")
        if has_certificate:
            client.load_cert_chain(folder / "client.pem", folder / "client-key.pem")
        clients.append(client)
    return Site(server, *clients)


def run_on(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Like ``asyncio.run``, on the loop of that name; what a callback lets escape fails the test."""
    escaped: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: escaped.append(context))
        async with asyncio.timeout(DEADLINE_S * 2):
            await main

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(watched())
    assert not escaped, escaped


async def until(condition: Callable[[], Any], what: str = "") -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


@dataclass
class Noting(asyncio.Protocol):
    """The protocol above: notes what it is told. ``keeps_open`` is its answer to the end of input."""

    keeps_open: bool = True
    transport: Any = None
    data: bytearray = field(default_factory=bytearray)
    events: list[str] = field(default_factory=list)
    cause: Exception | None = None
    is_full: bool = False
    on_data: Callable[[Noting], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert self.events[-1] != "lost" and "eof" not in self.events
        self.data += data
        if self.on_data:
            self.on_data(self)

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.cause = exc

    def pause_writing(self) -> None:
        assert not self.is_full
        self.is_full = True

    def resume_writing(self) -> None:
        assert self.is_full
        self.is_full = False

    async def told(self, event: str) -> None:
        await until(lambda: event in self.events, event)


@asynccontextmanager
async def serve(
    context: ssl.SSLContext, *, limits: TlsLimits | None = None, **about: Any
) -> AsyncIterator[tuple[int, list[Noting]]]:
    """A listener on 127.0.0.1: its port, and the protocols of its connections."""
    apps: list[Noting] = []
    buffer = memoryview(bytearray(READ_BYTES))

    def make() -> TlsConnection:
        apps.append(Noting(**about))
        return TlsConnection(context, apps[-1], buffer=buffer, limits=limits)

    server = await asyncio.get_running_loop().create_server(cast(Any, make), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], apps
    finally:
        server.close()
        for app in apps:
            if app.transport is not None:
                app.transport.abort()
        await asyncio.sleep(0)


def dial(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def say_end(sock: ssl.SSLSocket) -> None:
    """``close_notify`` and nothing else, as Go's ``tls.Conn.CloseWrite``."""
    sock.setblocking(False)
    try:
        sock.unwrap()
    except ssl.SSLWantReadError:
        pass
    finally:
        sock.settimeout(DEADLINE_S)


def read_all(sock: ssl.SSLSocket) -> bytes:
    """Until the peer's end in TLS; raises for one without."""
    data = bytearray()
    sock.settimeout(DEADLINE_S)
    while True:
        try:
            piece = sock.recv(1 << 16)
        except ssl.SSLZeroReturnError:  # both have said their end
            piece = b""
        if not piece:
            return bytes(data)
        data += piece


class Pipe(asyncio.Transport):
    """The TCP transport below, without a wire: what the connection sends is in ``sent``."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.is_reading_ = True
        self.ends: list[str] = []
        self.pending = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ends, (self.ends, "written after the end")
        self.sent += data

    def take(self) -> bytes:
        data = bytes(self.sent)
        self.sent.clear()
        return data

    def get_write_buffer_size(self) -> int:
        return self.pending

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ends.append("eof")

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")

    @property
    def is_over(self) -> bool:
        return "close" in self.ends or "abort" in self.ends

    def pause_reading(self) -> None:
        self.is_reading_ = False

    def resume_reading(self) -> None:
        self.is_reading_ = True

    def is_closing(self) -> bool:
        return self.is_over

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default


class OpenSsl:
    """A client straight on libssl, for what Python's ``ssl`` has no word for: changes of keys.

    Raises ``LookupError`` where there is no libssl to be had.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        name = ctypes.util.find_library("ssl")
        if name is None:
            raise LookupError("libssl")
        self._lib = lib = ctypes.CDLL(name)
        for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new", "BIO_new", "BIO_s_mem"):
            getattr(lib, function).restype = ctypes.c_void_p
        pointer = ctypes.c_void_p
        lib.SSL_CTX_new.argtypes = lib.SSL_new.argtypes = lib.BIO_new.argtypes = [pointer]
        lib.SSL_set_bio.argtypes = [pointer] * 3
        lib.SSL_set_connect_state.argtypes = lib.SSL_do_handshake.argtypes = lib.SSL_free.argtypes = [pointer]
        lib.SSL_CTX_free.argtypes = [pointer]
        lib.SSL_key_update.argtypes = [pointer, ctypes.c_int]
        for function in ("SSL_read", "SSL_write", "BIO_read", "BIO_write"):
            getattr(lib, function).argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
        lib.SSL_CTX_use_certificate_file.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
        lib.SSL_CTX_use_PrivateKey_file.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
        self._context = lib.SSL_CTX_new(lib.TLS_client_method())
        assert lib.SSL_CTX_use_certificate_file(self._context, str(certificate).encode(), 1) == 1
        assert lib.SSL_CTX_use_PrivateKey_file(self._context, str(key).encode(), 1) == 1
        self._ssl = lib.SSL_new(self._context)
        self._incoming, self._outgoing = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(self._ssl, self._incoming, self._outgoing)
        lib.SSL_set_connect_state(self._ssl)

    def shake_hands(self) -> bool:
        return bool(self._lib.SSL_do_handshake(self._ssl) == 1)

    def change_keys(self, *, both: bool) -> None:
        """``both``: and ask the peer to do the same."""
        assert self._lib.SSL_key_update(self._ssl, 1 if both else 0) == 1
        assert self.shake_hands()

    def write(self, data: bytes) -> None:
        assert self._lib.SSL_write(self._ssl, data, len(data)) == len(data)

    def read(self) -> bytes:
        return self._drain(self._lib.SSL_read, self._ssl)

    def feed(self, data: bytes) -> None:
        if data:
            assert self._lib.BIO_write(self._incoming, data, len(data)) == len(data)

    def take(self) -> bytes:
        return self._drain(self._lib.BIO_read, self._outgoing)

    def close(self) -> None:
        self._lib.SSL_free(self._ssl)
        self._lib.SSL_CTX_free(self._context)

    @staticmethod
    def _drain(function: Any, source: Any) -> bytes:
        data, buffer = bytearray(), ctypes.create_string_buffer(1 << 16)
        while (count := function(source, buffer, len(buffer))) > 0:
            data += buffer.raw[:count]
        return bytes(data)
