"""The HTTP client under the etcd engine, against servers that answer in pieces, lie, or hang up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fleet.engines.http1 import BrokenError, NotSentError, Pool

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MAX = 1 << 20


@asynccontextmanager
async def server(handle: Handler) -> AsyncIterator[str]:
    """The endpoint of a server that gives each connection to ``handle`` and then closes it."""

    handlers: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        handlers.add(mine)
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def request(reader: asyncio.StreamReader) -> bytes:
    """The body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return await reader.readexactly(int(length.partition(b":")[2]))


async def ask(pool: Pool, endpoint: str, body: bytes = b"{}") -> tuple[int, bytes]:
    async with asyncio.timeout(20), pool.post(endpoint, "/x", body) as answer:
        return answer.status, await answer.whole(bytes_max=MAX)


@asynccontextmanager
async def pool() -> AsyncIterator[Pool]:
    made = Pool()
    try:
        yield made
    finally:
        await made.close()


def raw(*pieces: bytes, keep: bool = False) -> Handler:
    """Answers every request with these pieces, one at a time."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.005)
            if not keep:
                return

    return handle


def test_one_connection_serves_one_request_after_the_other() -> None:
    connections = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            body = await request(reader)
            writer.write(b"HTTP/1.1 207 Odd\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def run() -> None:
        async with server(echo) as endpoint, pool() as client:
            for body in (b"one", b"", b"3" * 300_000):
                assert await ask(client, endpoint, body) == (207, body)
            assert connections == 1
            both = await asyncio.gather(ask(client, endpoint, b"a"), ask(client, endpoint, b"b"))
            assert both == [(207, b"a"), (207, b"b")]
            assert connections == 2

    asyncio.run(run())


def test_a_body_may_come_in_pieces_and_chunks() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n"

    async def run() -> None:
        single = raw(*(answer[i : i + 1] for i in range(len(answer))), keep=True)
        async with server(single) as endpoint, pool() as client:
            assert await ask(client, endpoint) == (200, b"abcdefgh")
            async with client.post(endpoint, "/x", b"") as streamed:
                assert b"".join([piece async for piece in streamed.chunks(idle_s=20)]) == b"abcdefgh"

    asyncio.run(run())


def test_an_interim_answer_is_passed_over() -> None:
    async def run() -> None:
        interim = raw(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        async with server(interim) as endpoint, pool() as client:
            assert await ask(client, endpoint) == (200, b"ok")

    asyncio.run(run())


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"HTTP/1.1 200 OK\r\nContent-"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [b"SSH-2.0-OpenSSH\r\n"],
        [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000],
    ],
    ids=["nothing", "half a head", "half a body", "a bad chunk", "not HTTP", "endless head", "too large"],
)
def test_what_is_no_whole_answer_is_broken_and_its_connection_not_used_again(pieces: list[bytes]) -> None:
    async def run() -> None:
        asked = 0
        bad, good = raw(*pieces), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async def first_bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await (bad if asked == 1 else good)(reader, writer)

        async with server(first_bad) as endpoint, pool() as client:
            with pytest.raises(BrokenError):
                await ask(client, endpoint)
            assert await ask(client, endpoint) == (200, b"ok")

    asyncio.run(run())


def test_what_follows_an_answer_is_not_taken_for_the_next() -> None:
    async def run() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%b"
        async with server(raw(answer % b"a" + answer % b"b", keep=True)) as endpoint, pool() as client:
            for _ in range(3):
                assert await ask(client, endpoint) == (200, b"a")

    asyncio.run(run())


def test_a_kept_connection_that_ended_meanwhile_is_replaced() -> None:
    async def run() -> None:
        async with server(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as endpoint, pool() as client:
            for _ in range(3):
                assert await ask(client, endpoint) == (200, b"ok")
                await asyncio.sleep(0.05)  # the server has closed it

    asyncio.run(run())


def test_no_connection_means_nothing_was_sent() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with pool() as client:
            for endpoint in (f"http://127.0.0.1:{port}", "127.0.0.1", "ftp://127.0.0.1"):
                with pytest.raises(NotSentError):
                    await ask(client, endpoint)

    asyncio.run(run())


def test_a_request_given_up_ends_its_connection() -> None:
    async def run() -> None:
        asked, ended = 0, asyncio.Event()

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await request(reader)
            if asked == 1:
                await reader.read()  # until the client hangs up
                ended.set()
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")

        async with server(late) as endpoint, pool() as client:
            waiting = asyncio.create_task(ask(client, endpoint))
            while not asked:
                await asyncio.sleep(0.005)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with asyncio.timeout(20):
                await ended.wait()
            assert await ask(client, endpoint) == (200, b"second")

    asyncio.run(run())


def test_a_silent_stream_is_given_up_and_one_not_read_is_not_piled_up() -> None:
    async def run() -> None:
        sent = 0

        async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            while True:
                writer.write(b"x" * MAX)
                await writer.drain()
                sent += MAX

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
            await reader.read()

        async with pool() as client:
            async with server(silent) as endpoint, client.post(endpoint, "/x", b"") as answer:
                pieces = answer.chunks(idle_s=0.05)
                assert await anext(pieces) == b"x"
                with pytest.raises(BrokenError, match="nothing came"):
                    await anext(pieces)
            async with server(flood) as endpoint, client.post(endpoint, "/x", b"") as answer:
                before = -1
                while sent != before:
                    before = sent
                    await asyncio.sleep(0.3)
                assert sent < 64 * MAX
                taken = 0
                async for piece in answer.chunks(idle_s=20):
                    taken += len(piece)
                    if taken > 100 * MAX:
                        break
                assert sent > 90 * MAX

    asyncio.run(run())
