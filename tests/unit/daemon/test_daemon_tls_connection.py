"""A TLS connection whose directions end one after the other, against Python's real clients, on both event loops."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
from support.tls_peers import LOOPS, Noting, Site, dial, make_site, read_all, run_on, say_end, serve, until

from fleet.daemon.tls_connection import TlsLimits

pytestmark = pytest.mark.parametrize("loop", LOOPS)
_MIB = 1 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_output_goes_on_after_the_client_s_end(site: Site, tmp_path: Path, loop: str, version: ssl.TLSVersion) -> None:
    own = make_site(tmp_path)
    own.server.minimum_version = own.server.maximum_version = version
    output = os.urandom(_MIB)

    async def main() -> None:
        async with serve(own.server) as (port, apps):
            sock = await asyncio.to_thread(dial, port, own.client)
            assert sock.version() == version.name.replace("_", ".")
            await asyncio.to_thread(sock.sendall, b"input")
            await asyncio.to_thread(say_end, sock)
            await until(lambda: apps)
            (app,) = apps
            await app.told("eof")
            assert app.data == b"input"
            app.transport.write(b"one, ")
            await asyncio.sleep(0.05)
            assert "lost" not in app.events and not app.transport.is_closing()
            app.transport.write(output)
            app.transport.close()
            assert await asyncio.to_thread(read_all, sock) == b"one, " + output
            sock.close()
            await app.told("lost")
            assert app.events == ["made", "eof", "lost"] and app.cause is None

    run_on(loop, main())


def test_a_client_that_ends_tcp_as_well_still_reads(site: Site, loop: str) -> None:
    async def main() -> None:
        async with serve(site.server) as (port, apps):
            plain = socket.create_connection(("127.0.0.1", port), 30)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = site.client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")

            def talk() -> None:
                while True:
                    try:
                        client.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        plain.sendall(outgoing.read())
                        incoming.write(plain.recv(65536))
                with pytest.raises(ssl.SSLWantReadError):
                    client.unwrap()
                plain.sendall(outgoing.read())
                plain.shutdown(socket.SHUT_WR)

            def rest() -> bytes:
                while data := plain.recv(65536):
                    incoming.write(data)
                return client.read(65536)

            await asyncio.to_thread(talk)
            await until(lambda: apps and "eof" in apps[0].events)
            await asyncio.sleep(0.05)
            apps[0].transport.write(b"still here")
            apps[0].transport.close()
            assert await asyncio.to_thread(rest) == b"still here"
            plain.close()
            await apps[0].told("lost")

    run_on(loop, main())


def test_input_goes_on_after_the_server_s_end(site: Site, loop: str) -> None:
    data = os.urandom(_MIB)

    async def main() -> None:
        async with serve(site.server) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await until(lambda: apps and apps[0].transport)
            (app,) = apps
            app.transport.write(b"that is all")
            assert app.transport.can_write_eof()
            app.transport.write_eof()
            app.transport.write_eof()
            with pytest.raises(RuntimeError, match="write_eof"):
                app.transport.write(b"more")
            assert await asyncio.to_thread(read_all, sock) == b"that is all"
            await asyncio.to_thread(sock.sendall, data)
            await until(lambda: len(app.data) == len(data))
            assert app.data == data and app.events == ["made"]
            await asyncio.to_thread(say_end, sock)
            await app.told("eof")
            app.transport.close()
            await app.told("lost")
            sock.close()

    run_on(loop, main())


def test_a_protocol_that_does_not_keep_it_open_has_it_closed_with_what_it_wrote(site: Site, loop: str) -> None:
    def answer(app: Noting) -> None:
        if app.data == b"ask":
            app.transport.write(b"answer")

    async def main() -> None:
        async with serve(site.server, keeps_open=False, on_data=answer) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await asyncio.to_thread(sock.sendall, b"ask")
            assert await asyncio.to_thread(sock.recv, 6) == b"answer"
            await asyncio.to_thread(say_end, sock)
            assert await asyncio.to_thread(read_all, sock) == b""
            await apps[0].told("lost")
            assert apps[0].events == ["made", "eof", "lost"]
            sock.close()

    run_on(loop, main())


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_input_that_was_cut_off_is_not_taken_for_whole(site: Site, loop: str, how: str) -> None:
    async def main() -> None:
        async with serve(site.server) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await asyncio.to_thread(sock.sendall, b"half of")
            await until(lambda: apps and apps[0].data == b"half of")
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            await apps[0].told("lost")
            assert apps[0].events == ["made", "lost"]
            assert isinstance(apps[0].cause, ConnectionError)

    run_on(loop, main())


def test_a_client_that_does_not_read_makes_the_writer_wait_and_gets_everything(site: Site, loop: str) -> None:
    piece = os.urandom(256 << 10)

    async def main() -> None:
        async with serve(site.server) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await until(lambda: apps and apps[0].transport)
            (app,) = apps
            sent = hashlib.sha256()
            total = 0

            def write_until_full() -> None:
                nonlocal total
                while not app.is_full:
                    app.transport.write(piece)
                    sent.update(piece)
                    total += len(piece)

            write_until_full()
            assert app.transport.get_write_buffer_size() <= 2 * len(piece), "what waits counts once"
            reading = asyncio.create_task(asyncio.to_thread(read_all, sock))
            for _ in range(40):
                await until(lambda: not app.is_full)
                write_until_full()
            app.transport.write_eof()
            got = await reading
            assert len(got) == total and hashlib.sha256(got).digest() == sent.digest()
            sock.close()

    run_on(loop, main())


def test_one_large_write_is_not_encrypted_ahead(site: Site, loop: str) -> None:
    data = os.urandom(12 * _MIB)

    async def main() -> None:
        async with serve(site.server) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await until(lambda: apps and apps[0].transport)
            (app,) = apps
            app.transport.write(data)
            assert app.is_full
            assert app.transport.get_write_buffer_size() <= len(data) + _MIB
            app.transport.close()
            assert await asyncio.to_thread(read_all, sock) == data, "closing sends what was written"
            sock.close()
            await app.told("lost")

    run_on(loop, main())


def test_paused_input_is_bounded_and_its_end_waits_too(site: Site, loop: str) -> None:
    data = os.urandom(12 * _MIB)

    async def main() -> None:
        def pause(app: Noting) -> None:
            app.transport.pause_reading()

        async with serve(site.server, on_data=pause) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)

            def send() -> None:
                sock.sendall(data)
                say_end(sock)

            sending = asyncio.create_task(asyncio.to_thread(send))
            await until(lambda: apps and apps[0].data)
            (app,) = apps
            await asyncio.sleep(0.2)
            first = len(app.data)
            assert first <= 256 << 10 and not sending.done() and "eof" not in app.events
            for _ in range(3):  # piece by piece
                before = len(app.data)
                app.transport.resume_reading()
                await until(lambda before=before: len(app.data) > before)
                assert len(app.data) - before <= 256 << 10
            app.on_data = None
            app.transport.resume_reading()
            await sending
            await app.told("eof")
            assert app.data == data
            app.transport.close()
            sock.close()
            await app.told("lost")

    run_on(loop, main())


def test_the_end_behind_the_last_input_waits_for_a_paused_reader(site: Site, loop: str) -> None:
    async def main() -> None:
        def pause(app: Noting) -> None:
            app.transport.pause_reading()

        async with serve(site.server, on_data=pause) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)

            def together() -> None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                sock.sendall(b"last")
                say_end(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

            await asyncio.to_thread(together)
            await until(lambda: apps and apps[0].data == b"last")
            await asyncio.sleep(0.1)
            assert apps[0].events == ["made"]
            apps[0].transport.resume_reading()
            await apps[0].told("eof")
            apps[0].transport.write(b"ok")
            apps[0].transport.close()
            assert await asyncio.to_thread(read_all, sock) == b"ok"
            sock.close()
            await apps[0].told("lost")

    run_on(loop, main())


def test_the_answer_survives_a_client_that_is_still_sending(site: Site, loop: str) -> None:
    """A socket closed with unread input resets the connection, and the answer on its way is lost."""

    def refuse(app: Noting) -> None:
        if not app.transport.is_closing():
            app.transport.write(b"no, thank you")
            app.transport.close()

    async def main() -> None:
        async with serve(site.server, on_data=refuse) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)

            def send_and_read() -> bytes:
                for _ in range(64):
                    sock.sendall(bytes(64 << 10))
                return read_all(sock)

            assert await asyncio.to_thread(send_and_read) == b"no, thank you"
            sock.close()
            await apps[0].told("lost")
            assert apps[0].events == ["made", "lost"]

    run_on(loop, main())


def test_who_is_at_the_other_end_is_known(site: Site, loop: str) -> None:
    async def main() -> None:
        async with serve(site.server) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await until(lambda: apps and apps[0].transport)
            transport = apps[0].transport
            assert transport.get_extra_info("sslcontext") is site.server
            assert ("commonName", "client") in transport.get_extra_info("ssl_object").getpeercert()["subject"][0]
            assert transport.get_extra_info("peercert") == transport.get_extra_info("ssl_object").getpeercert()
            assert transport.get_extra_info("cipher")[1] == sock.version()
            assert transport.get_extra_info("peername")[:2] == sock.getsockname()
            assert transport.get_extra_info("nothing", 5) == 5
            sock.close()

    run_on(loop, main())


@pytest.mark.parametrize("how", ["close", "abort", "nothing"])
def test_a_peer_that_never_closes_is_left_after_a_while(site: Site, loop: str, how: str) -> None:
    limits = TlsLimits(linger_s=0.1, stall_s=0.3)
    written: Any = {"close": bytes(12 * _MIB), "abort": b"", "nothing": b""}[how]

    async def main() -> None:
        async with serve(site.server, limits=limits) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await until(lambda: apps and apps[0].transport)
            apps[0].transport.write(written)
            if how == "abort":
                apps[0].transport.abort()
            else:
                apps[0].transport.close()
            await apps[0].told("lost")
            sock.close()

    run_on(loop, main())


def test_a_slow_reader_is_not_given_up_after_close(site: Site, loop: str) -> None:
    limits = TlsLimits(linger_s=0.05, stall_s=0.5)
    data = os.urandom(3 * _MIB)

    async def main() -> None:
        async with serve(site.server, limits=limits) as (port, apps):
            sock = await asyncio.to_thread(dial, port, site.client)
            await until(lambda: apps and apps[0].transport)
            apps[0].transport.write(data)
            apps[0].transport.close()
            got = bytearray()
            while len(got) < len(data):
                got += await asyncio.to_thread(sock.recv, 1 << 20)
                await asyncio.sleep(0.001)
            assert got == data
            sock.close()
            await apps[0].told("lost")
            assert apps[0].cause is None

    run_on(loop, main())
