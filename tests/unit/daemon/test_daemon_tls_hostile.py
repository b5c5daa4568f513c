"""Peers that break TLS, never finish, or make work, at ``TlsConnection``: with sockets, and in memory where bytes are bent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tls_peers import LOOPS, Noting, OpenSsl, Pipe, Site, dial, make_site, run_on, serve, until

from fleet.api.tls_stream import TlsStream
from fleet.daemon.tls_connection import READ_BYTES, TlsConnection, TlsLimits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    return make_site(folder)


class Memory:
    """A connection over a ``Pipe``, and what feeds it."""

    def __init__(self, site: Site) -> None:
        self.app = Noting()
        self.pipe = Pipe()
        self.connection = TlsConnection(site.server, self.app, buffer=memoryview(bytearray(READ_BYTES)))
        self.connection.connection_made(self.pipe)

    def feed(self, data: bytes) -> None:
        while data and not self.pipe.is_over:
            buffer = self.connection.get_buffer(-1)
            piece, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))

    def shake_hands(self, client: TlsStream) -> None:
        while not client.shake_hands(self.pipe.take()):
            self.feed(client.outgoing())
        self.feed(client.outgoing())
        assert client.receive(self.pipe.take()) == b""
        assert self.app.events == ["made"]

    def lose(self) -> None:
        self.connection.connection_lost(None)


def _client(site: Site) -> TlsStream:
    return TlsStream(site.client, server_side=False, server_hostname="127.0.0.1")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(4096), b"\x16\x03\x01\xff\xff" + os.urandom(70000), b"\x80\x2e\x01"],
    ids=["http", "zeros", "huge record", "sslv2"],
)
def test_garbage_instead_of_a_handshake(site: Site, loop: str, garbage: bytes) -> None:
    async def main() -> None:
        async with serve(site.server, limits=TlsLimits(handshake_s=0.5, linger_s=0.1)) as (port, apps):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            assert len(await reader.read()) < 100, "an alert at most, then the end"
            writer.close()
            await asyncio.sleep(0)
            assert apps[0].events == [], "the protocol above never heard of it"

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("sends", [0, 40], ids=["nothing", "half a hello"])
def test_a_handshake_that_is_never_finished_is_given_up(site: Site, loop: str, sends: int) -> None:
    async def main() -> None:
        async with serve(site.server, limits=TlsLimits(handshake_s=0.2)) as (port, apps):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = _client(site)
            client.shake_hands(b"")
            writer.write(client.outgoing()[:sends])
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert apps[0].events == []

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_without_a_certificate_is_told_why(site: Site, loop: str) -> None:
    async def main() -> None:
        async with serve(site.server) as (port, apps):

            def ask() -> None:
                sock = dial(port, site.stranger)
                try:
                    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    sock.recv(10)
                finally:
                    sock.close()

            with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|certificate required"):
                await asyncio.to_thread(ask)
            assert apps[0].events == []

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_half_a_record_waits_for_its_other_half(site: Site, loop: str) -> None:
    async def main() -> None:
        async with serve(site.server) as (port, apps):
            with socket.create_connection(("127.0.0.1", port), 30) as plain:
                client = _client(site)

                def shake() -> None:
                    data = b""
                    while not client.shake_hands(data):
                        plain.sendall(client.outgoing())
                        data = plain.recv(65536)
                    plain.sendall(client.outgoing())

                await asyncio.to_thread(shake)
                client.write(b"a whole record")
                record = client.outgoing()
                for byte in record[:-1]:
                    plain.sendall(bytes([byte]))
                await until(lambda: apps[0].events == ["made"])
                await asyncio.sleep(0.1)
                assert not apps[0].data
                plain.sendall(record[-1:])
                await until(lambda: apps[0].data == b"a whole record")

    run_on(loop, main())


def test_an_altered_record_ends_the_connection_and_nothing_of_it_is_handed_over(site: Site) -> None:
    async def main() -> None:
        it, client = Memory(site), _client(site)
        it.shake_hands(client)
        client.write(b"rm -rf /tmp/x")
        record = bytearray(client.outgoing())
        record[-5] ^= 1
        it.feed(bytes(record))
        assert not it.app.data and it.pipe.is_over
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            client.receive(it.pipe.take())
        it.connection.write(b"more")
        assert it.pipe.take() == b""
        it.lose()
        assert it.app.events == ["made", "lost"] and isinstance(it.app.cause, ssl.SSLError)

    run_on("asyncio", main())


@pytest.fixture
def openssl(site: Site, folder: Path) -> Iterator[OpenSsl]:
    try:
        client = OpenSsl(folder / "client.pem", folder / "client-key.pem")
    except LookupError:
        pytest.skip("not run: needs libssl (package libssl3)")
    yield client
    client.close()


def _meet(it: Memory, client: OpenSsl) -> None:
    while not client.shake_hands():
        it.feed(client.take())
        client.feed(it.pipe.take())
    it.feed(client.take())


def test_keys_are_changed_after_the_server_s_end(site: Site, openssl: OpenSsl) -> None:
    async def main() -> None:
        it, client = Memory(site), openssl
        _meet(it, client)
        it.connection.write_eof()
        client.feed(it.pipe.take())
        for _ in range(3):
            client.change_keys(both=True)
            client.write(b"in")
            it.feed(client.take())
            it.connection.resume_writing()
        assert it.app.data == b"ininin" and it.pipe.take() == b"", "nothing follows the end"
        it.connection.close()
        client.change_keys(both=True)
        it.feed(client.take())
        assert it.pipe.ends == ["eof"]
        it.connection.eof_received()
        it.lose()

    run_on("asyncio", main())


def test_keys_are_changed_by_either_side_under_way(site: Site, openssl: OpenSsl) -> None:
    async def main() -> None:
        it, client = Memory(site), openssl
        _meet(it, client)
        for number in range(20):
            client.change_keys(both=number % 2 == 0)
            client.write(b"in")
            it.feed(client.take())
            it.connection.write(b"out")
            client.feed(it.pipe.take())
            assert client.read() == b"out"
        assert it.app.data == b"in" * 20 and it.app.events == ["made"]

        it.connection.pause_writing()  # it asks and asks, and does not read the answers
        for _ in range(10_000):
            client.change_keys(both=True)
            client.write(b".")
            it.feed(client.take())
            if it.pipe.is_over:
                break
        assert it.pipe.ends == ["abort"] and it.pipe.take() == b""
        it.lose()
        assert isinstance(it.app.cause, ConnectionAbortedError)

    run_on("asyncio", main())


def test_an_endless_handshake_is_cut_off(site: Site) -> None:
    async def main() -> None:
        it = Memory(site)
        for _ in range(1000):
            it.feed(b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(0x4000 - 4))
            if it.pipe.ends:
                break
        assert it.pipe.ends and it.app.events == []
        it.connection.eof_received()
        it.lose()
        assert it.app.events == []

    run_on("asyncio", main())


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_input_and_output_are_whole_or_cut_but_never_bent(site: Site, seed: int) -> None:
    """Random pieces, pauses, ends of every kind and now and then an altered, lost or doubled piece, from a seed."""
    rng = random.Random(seed)
    is_evil = seed % 3 == 0

    async def main() -> None:
        it, client = Memory(site), _client(site)
        it.app.keeps_open = rng.random() < 0.7
        if is_evil and rng.random() < 0.2:
            it.feed(rng.randbytes(rng.randint(1, 400)))
            if not it.pipe.ends:
                it.connection.eof_received()
            it.lose()
            assert it.app.events == []
            return
        it.shake_hands(client)
        said, got, written = bytearray(), bytearray(), bytearray()
        on_wire = bytearray()
        has_ended = is_written_off = False
        full = False
        for _ in range(rng.randint(5, 120)):
            match rng.choice(
                ["say", "carry", "carry", "write", "read", "pause", "resume", "full", "end", "bend", "last"]
            ):
                case "say" if not has_ended:
                    data = rng.randbytes(rng.choice([1, 100, 16384, 40000]))
                    client.write(data)
                    said += data
                    on_wire += client.outgoing()
                case "carry":
                    count = rng.randint(0, len(on_wire))
                    if it.pipe.is_reading_:
                        it.feed(bytes(on_wire[:count]))
                        del on_wire[:count]
                case "write" if not it.connection.is_closing() and not is_written_off:
                    data = rng.randbytes(rng.choice([1, 1000, 200_000]))
                    it.connection.write(data)
                    written += data
                case "read":
                    got += _read(client, it.pipe, is_evil=is_evil)
                case "pause":
                    it.connection.pause_reading()
                case "resume":
                    it.connection.resume_reading()
                    await asyncio.sleep(0)
                case "full":
                    full = not full
                    (it.connection.pause_writing if full else it.connection.resume_writing)()
                case "end" if not has_ended and rng.random() < 0.2:
                    has_ended = True
                    client.end()
                    on_wire += client.outgoing()
                case "bend" if is_evil and on_wire and rng.random() < 0.3:
                    at = rng.randrange(len(on_wire))
                    if rng.random() < 0.5:
                        on_wire[at] ^= 1 << rng.randrange(8)
                    else:
                        del on_wire[at : at + rng.randint(1, 50)]
                case "last" if rng.random() < 0.1:
                    is_written_off = True
                    rng.choice([it.connection.close, it.connection.write_eof, it.connection.abort])()
                case _:
                    pass
            assert said.startswith(it.app.data), "input is what was said, in order"
            assert it.app.events.count("lost") == 0 and it.app.events.count("eof") <= 1
        if full:
            it.connection.resume_writing()
        it.connection.resume_reading()
        await asyncio.sleep(0)
        it.feed(bytes(on_wire))
        await asyncio.sleep(0)
        got += _read(client, it.pipe, is_evil=is_evil)
        if is_evil or "abort" in it.pipe.ends:
            assert written.startswith(got)
        else:
            assert got == written, "what was written has arrived"
            if not it.pipe.ends:
                assert it.app.data == said
        if not it.pipe.is_over:
            it.connection.eof_received()
        it.lose()
        assert it.app.events[-1] == "lost"
        assert it.app.events.count("lost") == 1
        it.connection.write(b"late") if not it.connection._end_asked else None
        for late in (
            it.connection.close,
            it.connection.abort,
            it.connection.pause_reading,
            it.connection.resume_reading,
        ):
            late()

    run_on("asyncio", main())


def _read(client: TlsStream, pipe: Pipe, *, is_evil: bool) -> bytes:
    try:
        return client.receive(pipe.take())
    except ssl.SSLError:
        assert is_evil
        return b""
