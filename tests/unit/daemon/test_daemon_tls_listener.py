"""The listener of the engine API over TLS: ordinary requests, WebSockets and connections taken over, with both clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import Request
from support.tls_peers import LOOPS, Site, dial, make_site, read_all, run_on, say_end
from websockets.sync.client import connect

from fleet.agent.http.hijack import Connection, Hijacked
from fleet.api.client import EngineClient
from fleet.api.tls_socket import TlsSocket
from fleet.daemon.access.authenticate import names_in
from fleet.daemon.listeners import TLS_EXTENSION, Listener, is_tls, tcp_socket

pytestmark = pytest.mark.parametrize("loop", LOOPS)
_TAKE = b"POST /take HTTP/1.1\r\nHost: fleet\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}"
_OUTPUT = 3 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("tls"))


async def _app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    assert is_tls(scope)
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": event["bytes"]})
        return
    if scope["path"] == "/take":
        await Hijacked(Request(scope), _talk, content_type="text/plain")(scope, receive, send)
        return
    taken, more = 0, True
    while more:
        event = await receive()
        taken, more = taken + len(event.get("body", b"")), event.get("more_body", False)
    who = names_in(scope["extensions"][TLS_EXTENSION].getpeercert())
    body = f'{{"who": "{who[0]}", "taken": {taken}}}'.encode() if scope["path"] != "/big" else bytes(_OUTPUT)
    head = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for start in range(0, len(body), 65536):
        await send({"type": "http.response.body", "body": body[start : start + 65536], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _talk(connection: Connection) -> None:
    """Tells how much it was given once it is given no more, then a good deal; as a container that reads to the end."""
    given = 0
    while data := await connection.receive():
        given += len(data)
    await connection.send(b"given %d\n" % given)
    await asyncio.sleep(0.05)
    for _ in range(_OUTPUT >> 16):
        await connection.send(bytes(1 << 16))
    await connection.send(b"done")


@asynccontextmanager
async def _listening(site: Site) -> AsyncIterator[int]:
    sock = tcp_socket("127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    listener = Listener(_app, [sock], name="test", tls=site.server, half_open=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        await listener.started()
        try:
            yield port
        finally:
            listener.stop()


def test_requests_follow_each_other_on_one_connection(site: Site, loop: str) -> None:
    def ask(port: int) -> None:
        with EngineClient(f"tcp://127.0.0.1:{port}", tls=site.client) as client:
            for size in (0, 10, 5 << 20):
                body = iter([os.urandom(1 << 20)] * (size >> 20)) if size > 1 << 20 else bytes(size)
                assert client.request("POST", "/up", body=body) == {"who": "client", "taken": size}
            connection = client._connection
            with client.stream("GET", "/big") as pieces:
                assert sum(map(len, pieces)) == _OUTPUT
            assert connection is not None

    async def main() -> None:
        async with _listening(site) as port:
            await asyncio.gather(*(asyncio.to_thread(ask, port) for _ in range(3)))

    run_on(loop, main())


def test_a_connection_taken_over_without_input_is_shown_all_output(site: Site, loop: str) -> None:
    """Docker's client without ``-i``: ``close_notify`` as soon as the connection is taken over."""

    def ask(port: int) -> None:
        sock = dial(port, site.client)
        sock.sendall(_TAKE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101")
        say_end(sock)
        output = read_all(sock)
        assert output == b"given 0\n" + bytes(_OUTPUT) + b"done"
        sock.close()

    async def main() -> None:
        async with _listening(site) as port:
            await asyncio.to_thread(ask, port)

    run_on(loop, main())


def test_fleet_s_own_client_sends_input_to_its_end_and_reads_on(site: Site, loop: str) -> None:
    def ask(port: int) -> None:
        sock = EngineClient(f"tcp://127.0.0.1:{port}", tls=site.client, timeout_s=30).dial()
        assert isinstance(sock, TlsSocket)
        sock.sendall(_TAKE)
        sock.sendall(bytes(1_000_000))
        sock.end_output()
        output = b""
        while piece := sock.recv(1 << 20):
            output += piece
        sock.close()
        assert output.partition(b"\r\n\r\n")[2] == b"given 1000000\n" + bytes(_OUTPUT) + b"done"

    async def main() -> None:
        async with _listening(site) as port:
            await asyncio.to_thread(ask, port)

    run_on(loop, main())


def test_websockets_go_through(site: Site, loop: str) -> None:
    def ask(port: int) -> None:
        with connect(f"wss://127.0.0.1:{port}/", ssl=site.client, server_hostname="127.0.0.1", proxy=None) as socket:
            for size in (1, 70_000, 500_000):
                data = os.urandom(size)
                socket.send(data)
                assert socket.recv(timeout=30) == data

    async def main() -> None:
        async with _listening(site) as port:
            await asyncio.to_thread(ask, port)

    run_on(loop, main())
