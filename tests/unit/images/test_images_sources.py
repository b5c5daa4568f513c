"""What a source's HTTP answers become: nothing is believed that a digest can disprove."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import httpx
import pytest

from fleet.errors import (
    FleetError,
    ForbiddenError,
    NotFoundError,
    RejectedFault,
    UnauthorizedError,
    UnavailableError,
    UserError,
)
from fleet.images.manifest import OCI_MANIFEST, digest_of
from fleet.images.push import RegistryTarget
from fleet.images.registry import (
    Credentials,
    RegistryOptions,
    RegistrySource,
    is_loopback,
    parse_registry_auth,
    registry_domain,
)
from fleet.images.sources import read_manifest_response, stream_blob

BODY = b'{"schemaVersion":2}'
OTHER = "sha256:" + "0" * 64


def manifest(response: httpx.Response, reference: str = "app:1") -> object:
    return asyncio.run(read_manifest_response(response, reference, source="peer"))


def blob(status: int, content: bytes, offset: int, *, told: str = "") -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 2):
            yield content[at : at + 2]

    async def scenario() -> bytes:
        response = httpx.Response(status, content=pieces(), headers={"Content-Range": told} if told else {})
        return b"".join([data async for data in stream_blob(response, OTHER, offset=offset, source="peer")])

    return asyncio.run(scenario())


def test_manifest_has_the_digest_of_its_bytes() -> None:
    read = manifest(httpx.Response(200, content=BODY, headers={"Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}))
    assert (read.digest, read.media_type, read.body) == (digest_of(BODY), OCI_MANIFEST, BODY)  # type: ignore[attr-defined]


def test_manifest_with_another_digest_than_claimed_is_refused() -> None:
    with pytest.raises(RejectedFault, match="content has digest"):
        manifest(httpx.Response(200, content=BODY, headers={"Docker-Content-Digest": OTHER}))


def test_manifest_with_another_digest_than_asked_for_is_refused() -> None:
    headers = {"Docker-Content-Digest": digest_of(BODY)}
    with pytest.raises(RejectedFault, match="content has digest"):
        manifest(httpx.Response(200, content=BODY, headers=headers), f"app@{OTHER}")


def test_manifest_beyond_the_limit_is_refused() -> None:
    with pytest.raises(RejectedFault, match="larger than"):
        manifest(httpx.Response(200, content=b" " * (5 << 20)))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, UnauthorizedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
        (418, RejectedFault),
        (302, RejectedFault),
    ],
)
def test_status_becomes_the_error_that_says_who_must_act(status: int, kind: type[FleetError]) -> None:
    with pytest.raises(kind, match=f"peer: manifest app:1: HTTP {status}: the reason why"):
        manifest(httpx.Response(status, content=b"the  reason\nwhy"))


def test_retry_after_is_passed_on() -> None:
    with pytest.raises(UnavailableError) as caught:
        manifest(httpx.Response(503, headers={"Retry-After": "7"}))
    assert caught.value.retry_after_s == 7


def test_range_that_is_honoured_is_taken_as_it_is() -> None:
    assert blob(206, b"456", 4, told="bytes 4-6/7") == b"456"


def test_range_that_is_ignored_is_skipped_here() -> None:
    assert blob(200, b"0123456", 4) == b"456"
    assert blob(200, b"0123456", 7) == b""


@pytest.mark.parametrize("told", ["bytes 3-6/7", "bytes */7", ""])
def test_another_range_than_asked_for_is_refused(told: str) -> None:
    with pytest.raises(RejectedFault, match="got another range"):
        blob(206, b"456", 4, told=told)


@pytest.mark.parametrize(
    ("domain", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost.example", False),
        ("127.0.0.1.example:5000", False),
        ("10.0.0.1", False),
        ("docker.io", False),
    ],
)
def test_loopback_registries(domain: str, loopback: bool) -> None:
    assert is_loopback(domain) is loopback


@pytest.mark.parametrize(
    ("listed", "insecure"),
    [
        ((), False),
        (("10.1.2.3:5000",), True),
        (("10.1.2.3",), True),
        (("10.0.0.0/8",), True),
        (("10.1.2.3:80",), False),
    ],
)
def test_plain_http_is_spoken_only_with_registries_that_are_listed(listed: tuple[str, ...], insecure: bool) -> None:
    source = RegistrySource("10.1.2.3:5000/app", options=RegistryOptions(insecure_registries=listed))
    try:
        assert source._insecure is insecure
    finally:
        asyncio.run(source.aclose())


def test_login_header() -> None:
    def header(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode()

    assert parse_registry_auth(header('{"username":"u","password":"p"}')) == Credentials(username="u", password="p")
    assert parse_registry_auth(header('{"identitytoken":"t"}').rstrip("=")) == Credentials(identity_token="t")
    assert parse_registry_auth("") is None
    assert parse_registry_auth(header("{}")) is None
    with pytest.raises(UserError, match="X-Registry-Auth"):
        parse_registry_auth(header("[]"))
    assert "secret" not in repr(Credentials(username="u", password="secret"))


@pytest.mark.parametrize(
    ("kind", "scope"), [(RegistrySource, "repository:team/app:pull"), (RegistryTarget, "repository:team/app:pull,push")]
)
def test_a_challenge_without_scope_is_answered_for_what_is_to_be_done(
    kind: type[RegistrySource], scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def fetch(_realm: str, _service: str, wanted: str) -> str:
        asked.append(wanted)
        return "t"

    async def scenario() -> str:
        source = kind("127.0.0.1:5000/team/app:1")
        monkeypatch.setattr(source, "_fetch_token", fetch)
        try:
            return await source._authorize('Bearer realm="https://127.0.0.1/token",service="s"')
        finally:
            await source.aclose()

    assert asyncio.run(scenario()) == "Bearer t"
    assert asked == [scope]


@pytest.mark.parametrize(
    ("server", "domain"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("reg.example:5000", "reg.example:5000"),
        ("http://127.0.0.1:5000/v2/", "127.0.0.1:5000"),
    ],
)
def test_a_registry_is_named_by_host_or_url(server: str, domain: str) -> None:
    assert registry_domain(server) == domain


def test_what_is_no_registry_is_refused() -> None:
    with pytest.raises(UserError, match="is not a registry"):
        registry_domain("nobody")
