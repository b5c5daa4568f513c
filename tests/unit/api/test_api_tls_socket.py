"""The command line's side of a conversation over TLS: two threads, ends one after the other, servers of other kinds."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.tls_peers import Site, make_site

from fleet.api.tls_socket import TlsSocket

_MIB = 1 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("tls"))


@contextmanager
def _server(site: Site, talk: Callable[[ssl.SSLSocket], Any]) -> Iterator[socket.socket]:
    """A blocking server that talks to one client; the client's end of the connection."""
    near, far = socket.socketpair()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with site.server.wrap_socket(far, server_side=True) as sock:
                talk(sock)
        except (AssertionError, OSError) as cause:
            failures.append(cause)

    thread = threading.Thread(target=run)
    thread.start()
    near.settimeout(30)
    try:
        yield near
    finally:
        near.close()
        thread.join(30)
    assert not failures, failures


def _read_all(sock: TlsSocket) -> bytes:
    data = bytearray()
    while piece := sock.recv(50_000):
        data += piece
    return bytes(data)


def test_both_ways_at_once_although_neither_side_waits_for_the_other(site: Site) -> None:
    """The server reads nothing before all it has to say was read: sending and reading must not wait for each other."""
    up, down = os.urandom(8 * _MIB), os.urandom(8 * _MIB)
    got = bytearray()

    def talk(sock: ssl.SSLSocket) -> None:
        sock.sendall(down)
        while len(got) < len(up):
            got.extend(sock.recv(_MIB))
        sock.unwrap()

    with _server(site, talk) as near:
        sock = TlsSocket(near, site.client, server_hostname="127.0.0.1")
        sending = threading.Thread(target=sock.sendall, args=(up,))
        sending.start()
        read = bytearray()
        while len(read) < len(down):
            read += sock.recv(_MIB)
        sending.join(30)
        sock.end_output()
        assert _read_all(sock) == b"" and sock.recv(1) == b""
        assert read == down and got == up


def test_output_on_its_way_survives_the_end_of_input(site: Site) -> None:
    """Where ``SSLSocket.unwrap`` breaks the session: the server's words are in the socket when the client says its end."""
    down = os.urandom(_MIB)
    told = threading.Event()

    def talk(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"first words")
        told.set()
        assert sock.recv(10) == b"input"
        assert sock.recv(10) == b""
        sock.sendall(down)
        sock.unwrap()

    with _server(site, talk) as near:
        sock = TlsSocket(near, site.client, server_hostname="127.0.0.1")
        assert told.wait(30)
        sock.sendall(b"input")
        sock.end_output()
        assert _read_all(sock) == b"first words" + down


def test_a_server_that_is_not_the_one_meant_is_refused(site: Site) -> None:
    near, far = socket.socketpair()

    def serve() -> None:
        with pytest.raises(OSError):
            site.server.wrap_socket(far, server_side=True)
        far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ssl.SSLCertVerificationError, match=r"IP address mismatch|Hostname mismatch"):
        TlsSocket(near, site.client, server_hostname="127.0.0.2")
    thread.join(30)
    assert near.fileno() == -1, "closed"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_does_not_speak_tls_is_an_error(site: Site, answer: bytes) -> None:
    near, far = socket.socketpair()
    far.sendall(answer)
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError):
        TlsSocket(near, site.client, server_hostname="127.0.0.1")
    far.close()


def test_shutdown_wakes_who_reads(site: Site) -> None:
    def talk(sock: ssl.SSLSocket) -> None:
        assert sock.recv(1) == b""

    with _server(site, talk) as near:
        sock = TlsSocket(near, site.client, server_hostname="127.0.0.1")
        read: list[bytes] = []
        reading = threading.Thread(target=lambda: read.append(sock.recv(10)))
        reading.start()
        sock.shutdown(socket.SHUT_RDWR)
        reading.join(30)
        assert read == [b""]
