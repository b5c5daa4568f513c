"""Reading what Docker's clients really send, and Docker's spelling of our names."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from fleet import errors
from fleet.api.http import install_error_handlers, parse_bool, parse_filters
from fleet.model.service import ServiceSpec
from fleet.model.wire import docker_name, encode, parse_json


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("nano_cpus", "NanoCPUs"),
        ("stop_grace_period_ns", "StopGracePeriod"),
        ("dns_config", "DNSConfig"),
        ("virtual_ips", "VirtualIPs"),
        ("id", "ID"),
        ("enable_ipv6", "EnableIPv6"),
        ("tty", "TTY"),
    ],
)
def test_names_are_dockers(name: str, spelled: str) -> None:
    assert docker_name(name) == spelled


def test_keys_in_any_case_nulls_and_unknown_keys_are_taken() -> None:
    body = b'{"name":"x","mode":{"replicated":{"Replicas":2}},"Labels":null,"Whatever":1}'
    spec = parse_json(body, ServiceSpec, what="service spec")
    assert (spec.name, spec.replicas, spec.labels) == ("x", 2, {})
    assert parse_json(encode(spec), ServiceSpec, what="again") == spec


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "expected object, got array"),
        (b'{"Mode":{"Replicated":{"Replicas":"two"}}}', r"Mode\.Replicated\.Replicas: expected int"),
        (b'{"EndpointSpec":{"Ports":[{"Protocol":"icmp"}]}}', "Protocol"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_bodies_are_refused_naming_the_place(body: bytes, said: str) -> None:
    with pytest.raises(errors.UserError, match=said):
        parse_json(body, ServiceSpec, what="service spec")


def test_filters_in_both_shapes() -> None:
    known = frozenset({"name", "label"})
    assert parse_filters('{"name":{"x":true,"y":false}}', known=known) == {"name": ("x",)}
    assert parse_filters('{"name":["x","y"]}', known=known) == {"name": ("x", "y")}
    assert parse_filters(None, known=known) == {}
    for bad in ('{"nope":["x"]}', "[]", "{", '{"name":3}'):
        with pytest.raises(errors.UserError):
            parse_filters(bad, known=known)


def test_booleans_as_clients_write_them() -> None:
    assert [parse_bool(text) for text in ("1", "true", "True", "0", "false", "False", "", None)] == [
        True, True, True, False, False, False, False, False,
    ]  # fmt: skip


def test_every_refusal_has_a_body_that_clients_read() -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/bug")
    async def bug() -> None:
        raise ValueError("x")

    @app.get("/often")
    async def often() -> None:
        raise errors.RateLimitedError("too often", retry_after_s=3)

    @app.get("/typed")
    async def typed(wanted: int) -> None: ...

    async def story() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for path, status in (("/bug", 500), ("/often", 429), ("/typed", 400), ("/no", 404)):
                answer = await client.get(path)
                assert (answer.status_code, list(answer.json())) == (status, ["message"])
            assert (await client.get("/often")).headers["retry-after"] == "3"
            assert (await client.put("/often")).json() == {"message": "Method Not Allowed"}
            assert (await client.get("/typed", params={"wanted": "x"})).json()["message"].startswith("wanted: input")

    asyncio.run(story())
