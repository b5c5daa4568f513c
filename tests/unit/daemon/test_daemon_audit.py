"""What the log says of a change, and under which id."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from fleet.daemon.audit import Audit
from fleet.daemon.listeners import TLS_EXTENSION
from fleet.logs import request_id


class _Tls:
    def getpeercert(self) -> dict[str, Any]:
        return {"subject": ((("organizationName", "shop"),), (("commonName", "alice"),))}


def _answered(**scope: Any) -> tuple[list[dict[str, Any]], dict[bytes, bytes]]:
    told: list[dict[str, Any]] = []

    def write(event: str, **fields: Any) -> None:
        told.append({"event": event, **fields})

    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201})
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/secrets/create", "headers": [], **scope}
    asyncio.run(Audit(app, write=write)(whole, None, send))
    return told, dict(sent[0]["headers"])


def test_a_change_names_the_certificate_and_the_address() -> None:
    told, _ = _answered(client=("192.0.2.7", 4711), extensions={TLS_EXTENSION: _Tls()})
    assert [(line["who"], line["origin"], line["code"]) for line in told] == [
        ("certificate alice", "192.0.2.7:4711", "201")
    ]


def test_reads_are_not_told() -> None:
    assert _answered(method="GET")[0] == []


@pytest.mark.parametrize("given", [b"", b"two words", b'"', b"x" * 65, "ü".encode()])
def test_an_id_that_is_not_plain_is_replaced(given: bytes) -> None:
    told, headers = _answered(headers=[(b"x-request-id", given)])
    assert re.fullmatch(r"[0-9a-f]{16}", told[0]["request"])
    assert headers[b"x-request-id"].decode() == told[0]["request"]


def test_a_plain_id_is_kept() -> None:
    told, headers = _answered(headers=[(b"x-request-id", b"order-17.a_b")])
    assert told[0]["request"] == "order-17.a_b"
    assert headers[b"x-request-id"] == b"order-17.a_b"


def test_what_is_done_for_a_request_knows_its_id_and_nothing_else_does() -> None:
    seen: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        seen.append(request_id.get())
        await send({"type": "http.response.start", "status": 201})

    async def send(_message: Any) -> None:
        pass

    async def main() -> None:
        scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"x-request-id", b"story-1")]}
        await Audit(app, write=lambda *_a, **_k: None)(scope, None, send)
        seen.append(request_id.get())

    asyncio.run(main())
    assert seen == ["story-1", ""]
