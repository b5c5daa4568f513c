"""What a source's HTTP answers become: nothing is believed that a digest can disprove."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import httpx
import pytest
from support.clocks import SleepingTimers

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
from fleet.images.registry import (
    Credentials,
    RegistryOptions,
    RegistrySource,
    is_loopback,
    parse_mirrors,
    parse_registry_auth,
    registry_domain,
)
from fleet.images.registry_auth import Authorizer, parse_challenges
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


class Ticking(SleepingTimers):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, duration_s: float) -> None:
        self.seconds += duration_s


def token_service(asked: list[dict[str, list[str]]], **answer: object) -> httpx.AsyncClient:
    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(parse_qs(request.url.query.decode()))
        return httpx.Response(200, json={"token": f"t{len(asked)}", **answer})

    return httpx.AsyncClient(transport=httpx.MockTransport(handle))


CHALLENGE = 'Bearer realm="https://tokens/get?x=1",service="s"'


def test_a_token_is_asked_for_every_scope_so_far_and_shared_by_requests_that_need_no_other() -> None:
    asked: list[dict[str, list[str]]] = []

    async def scenario() -> None:
        async with token_service(asked) as client:
            one = Authorizer(client, registry="r", credentials=None, allows_http=False, clock=Ticking())

            async def answer(scope: str, refused: str, challenge: str = CHALLENGE) -> str:
                return await one.answer([challenge], refused=refused, scopes=[scope], what="app")

            assert await one.header() == ""
            first = await asyncio.gather(*(answer("repository:a:pull", "") for _ in range(3)))
            assert first == ["Bearer t1"] * 3
            more = f'{CHALLENGE},scope="repository:a:pull,push repository:b:pull"'
            assert await answer("repository:a:pull", "", more) == "Bearer t2", "newer, but not for b"
            assert await one.header() == "Bearer t2"

    asyncio.run(scenario())
    assert asked == [
        {"x": ["1"], "service": ["s"], "scope": ["repository:a:pull"]},
        {"x": ["1"], "service": ["s"], "scope": ["repository:a:pull,push", "repository:b:pull"]},
    ]


@pytest.mark.parametrize(
    ("told", "renewed_after_s"), [({}, 50.0), ({"expires_in": 300}, 290.0), ({"expires_in": 8}, 6.0)]
)
def test_a_token_is_renewed_a_little_before_its_end(told: dict[str, int], renewed_after_s: float) -> None:
    asked: list[dict[str, list[str]]] = []

    async def scenario() -> None:
        clock = Ticking()
        async with token_service(asked, **told) as client:
            one = Authorizer(client, registry="r", credentials=None, allows_http=False, clock=clock)
            await one.answer([CHALLENGE], refused="", scopes=["repository:a:pull"], what="a")
            clock.seconds = renewed_after_s - 0.1
            assert await one.header() == "Bearer t1"
            clock.seconds = renewed_after_s + 0.1
            assert await asyncio.gather(one.header(), one.header()) == ["Bearer t2"] * 2

    asyncio.run(scenario())
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("challenge", "error", "why"),
    [
        ('Basic realm="x"', UnauthorizedError, "no basic auth credentials"),
        ("Negotiate", UnauthorizedError, "asks for Negotiate"),
        ('Bearer realm="http://tokens/"', RejectedFault, "is not HTTPS"),
        ("Bearer", RejectedFault, "is not HTTPS"),
    ],
)
def test_challenges_that_cannot_be_answered(challenge: str, error: type[FleetError], why: str) -> None:
    async def scenario() -> None:
        async with token_service([]) as client:
            one = Authorizer(client, registry="r", credentials=None, allows_http=False, clock=Ticking())
            with pytest.raises(error, match=why):
                await one.answer([challenge], refused="", scopes=(), what="app")

    asyncio.run(scenario())


def test_challenges_are_read_whether_in_one_header_or_two() -> None:
    basic, bearer = ("basic", {"realm": "a, b"}), ("bearer", {"realm": "https://x", "scope": 'q"s'})
    text = 'Bearer realm="https://x", scope="q\\"s"'
    assert parse_challenges([f'Basic realm="a, b", {text}']) == [basic, bearer]
    assert parse_challenges(['basic realm="a, b"', text]) == [basic, bearer]
    assert parse_challenges(["", "Digest x=1"]) == []


@pytest.mark.parametrize(
    ("texts", "mirrors"),
    [
        ((), {}),
        (("https://m.example",), {"docker.io": ("https://m.example",)}),
        (
            ("http://m:5000/", "reg.example:5000=https://n", "docker.io=https://o"),
            {"docker.io": ("http://m:5000", "https://o"), "reg.example:5000": ("https://n",)},
        ),
    ],
)
def test_mirrors_are_of_docker_hub_or_of_the_registry_named(texts: tuple[str, ...], mirrors: dict[str, object]) -> None:
    assert parse_mirrors(texts) == mirrors


@pytest.mark.parametrize(
    "text", ["m.example", "ftp://m", "https://u:p@m", "https://m/path", "https://m?q", "=", "x=https://m"]
)
def test_what_is_no_mirror_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"mirror|is not a registry"):
        parse_mirrors([text])


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
