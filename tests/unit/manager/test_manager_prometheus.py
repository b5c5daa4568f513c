"""One number from a Prometheus, and a sentence for everything else it may answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleet import errors
from fleet.manager.prometheus import query_prometheus, value_in


def answer(kind: str, result: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()


def anything(_host: str, _address: object, _port: int) -> str:
    """Whoever asks may."""
    return ""


def test_a_scalar_and_a_vector_of_one_are_numbers() -> None:
    assert value_in(answer("scalar", [1.5, "42"]), status=200) == 42
    assert value_in(answer("vector", [{"metric": {"a": "b"}, "value": [1.5, "0.25"]}]), status=200) == 0.25


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (answer("vector", []), "the query gave nothing, not one number"),
        (answer("vector", [{"value": [1, "1"]}] * 3), "gave 3 series, not one number; wrap it in sum(...)"),
        (answer("matrix", []), "gave a matrix"),
        (answer("scalar", [1, "NaN"]), "gave NaN, which is no number"),
        (answer("scalar", [1, "+Inf"]), "which is no number"),
        (answer("scalar", [1, 5]), "which is no number"),
        (answer("scalar", {}), "which is no number"),
        (answer("vector", ["x"]), "which is no number"),
        (b'{"status":"error","error":"parse error at char 3"}', "it refused the query: parse error at char 3"),
        (b"<html>", "it answered 502 and no JSON object: is it the address of a Prometheus?"),
        (b"[" * 100_000, "no JSON object"),
        (b"[]", "no JSON object"),
    ],
)
def test_everything_else_is_a_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(errors.UnavailableError, match=re.escape(sentence)):
        value_in(body, status=502)


def asked(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], query: str = "sum(x)") -> Any:
    async def body() -> Any:
        handlers: list[asyncio.Task[None]] = []

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(
            lambda reader, writer: handlers.append(asyncio.create_task(one(reader, writer))), "127.0.0.1", 0
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            try:
                return await query_prometheus(f"http://127.0.0.1:{port}/base", query, explain_refusal=anything)
            finally:
                for handler in handlers:
                    handler.cancel()
                await asyncio.gather(*handlers)
                await asyncio.sleep(0)  # in which the loop closes what was aborted

    return asyncio.run(body())


def test_it_is_asked_by_its_api() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = answer("scalar", [1, "7"])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    assert asked(serve, 'sum(x{a="b c"})') == 7
    assert heads[0].startswith(b"GET /base/api/v1/query?query=sum%28x%7Ba%3D%22b+c%22%7D%29 HTTP/1.1")


def test_an_endless_answer_is_cut_off() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            writer.write(b"x" * 4096)
            await writer.drain()

    with pytest.raises(errors.UnavailableError, match="longer than 65536 bytes"):
        asked(serve)


def test_one_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.manager.prometheus.PATIENCE_S", 0.2)

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(errors.UnavailableError, match=r"did not answer|cannot be asked"):
        asked(serve)


def test_one_that_is_not_there_is_named() -> None:
    with pytest.raises(errors.UnavailableError, match=r"Prometheus at http://127\.0\.0\.1:1 cannot be asked"):
        asyncio.run(query_prometheus("http://127.0.0.1:1", "x", explain_refusal=anything))


@pytest.mark.parametrize(
    "address",
    [
        "http://" + "a" * 300,
        "http://a..b",
        "http://[::1]:1",
        "http://%ff:1",
        "http://-:1",
        "http://x:0",
        "http://1.1.1.1.1:1",
    ],
)
def test_an_address_that_leads_nowhere_is_a_sentence_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.manager.prometheus.PATIENCE_S", 1.0)
    with pytest.raises(errors.UnavailableError, match="Prometheus at ") as caught:
        asyncio.run(query_prometheus(address, "\ud800", explain_refusal=anything))
    assert caught.value.retry_after_s == 10


def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere with the second question (DNS rebinding) is asked once, and its answer is what is used."""
    questions: list[str] = []
    judged: list[tuple[str, str]] = []
    heads: list[bytes] = []

    async def body() -> float:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            text = answer("scalar", [1, "7"])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(text), text))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        real = asyncio.get_running_loop().getaddrinfo

        async def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
            if host != "turns.example":
                return await real(host, *args, **kwargs)
            questions.append(host)
            found = ["127.0.0.3", "127.0.0.1"] if len(questions) == 1 else ["127.0.0.2"]
            return [(2, 1, 6, "", (each, args[0])) for each in found]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)

        def explain(host: str, address: Any, _port: int) -> str:
            judged.append((host, str(address)))
            return "elsewhere" if str(address) == "127.0.0.3" else ""

        async with server:
            return await query_prometheus(f"http://turns.example:{port}", "x", explain_refusal=explain)

    assert asyncio.run(body()) == 7
    assert questions == ["turns.example"]
    assert judged == [("turns.example", "127.0.0.3"), ("turns.example", "127.0.0.1")]
    assert b"\r\nHost: turns.example:" in heads[0]


def test_what_is_refused_is_not_connected_to() -> None:
    async def serve(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pytest.fail("it was connected to")

    async def body() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await query_prometheus(f"http://127.1:{port}", "x", explain_refusal=lambda *said: f"no: {said[1]}")

    with pytest.raises(errors.UnavailableError, match=r"Prometheus at http://127.1:\d+ is not asked: no: 127\.0\.0\.1"):
        asyncio.run(body())


def test_a_redirection_is_not_followed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    with pytest.raises(errors.UnavailableError, match="it answered 302 and no JSON object"):
        asked(serve)
