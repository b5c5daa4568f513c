"""``fleet dashboard``: who gets through its port, and what goes on to the daemon and back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.api.client import EngineClient
from fleet.cli.dashboard import can_open, serve
from fleet.cli.dashboard_relay import Door, is_page
from tests.support.fake_engine import FakeEngine, Reply

_TOKEN = "once-and-no-more"


async def _daemon(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http" and receive
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"daemon"})


def _through_the_door(*requests: dict[str, Any]) -> list[httpx.Response]:
    """The answers to requests made one after the other; ``key=True`` shows the key that the last sign-in gave."""

    async def ask() -> list[httpx.Response]:
        transport, answers, key = httpx.ASGITransport(app=Door(_daemon, token=_TOKEN)), [], ""
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            for request in requests:
                wanted = dict(request)
                headers = {**wanted.pop("headers", {}), **({"X-Fleet-Dashboard": key} if wanted.pop("key", 0) else {})}
                answers.append(await client.request(headers=headers, **wanted))
                if answers[-1].status_code == 201:
                    key = answers[-1].json()["Key"]
        return answers

    return asyncio.run(ask())


def _sign_in(token: str = _TOKEN) -> dict[str, Any]:
    return {"method": "POST", "url": "/fleet/v1/session", "json": {"Token": token}}


_READ = {"method": "GET", "url": "/info"}
_OWN = {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"}


def test_the_token_lets_one_browser_in_and_its_key_opens_the_api() -> None:
    before, wrong, right, again, read, change, keyless = _through_the_door(
        _READ, _sign_in("guessed"), _sign_in(), _sign_in(), {**_READ, "key": True},
        {"method": "POST", "url": "/services/create", "key": True, "headers": _OWN}, _READ,
    )  # fmt: skip
    assert [before.status_code, wrong.status_code, keyless.status_code] == [401, 401, 401]
    assert "fleet dashboard printed" in before.json()["message"]
    assert right.status_code == 201 and "set-cookie" not in right.headers
    assert again.status_code == 401 and "already" in again.json()["message"]
    assert [read.status_code, change.status_code] == [418, 418]


def test_whoever_signs_out_is_out_and_the_token_stays_used() -> None:
    _, out, read, again = _through_the_door(
        _sign_in(), {"method": "DELETE", "url": "/fleet/v1/session", "key": True}, {**_READ, "key": True}, _sign_in()
    )
    assert [out.status_code, read.status_code, again.status_code] == [204, 401, 401]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8080", "intranet", "10.0.0.1", "", "[::1"])
def test_a_name_that_was_pointed_here_is_refused_even_the_page(host: str) -> None:
    for url in ("/", "/info"):
        (answer,) = _through_the_door({"method": "GET", "url": url, "headers": {"Host": host}})
        assert answer.status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost:8080", "LOCALHOST"])
def test_a_forwarded_port_may_be_another(host: str) -> None:
    (answer,) = _through_the_door({"method": "GET", "url": "/", "headers": {"Host": host}})
    assert answer.status_code == 418


def test_another_site_gets_nothing_even_with_the_key() -> None:
    evil = {"Origin": "http://127.0.0.1:9999"}
    _, change, read, sign_in = _through_the_door(
        _sign_in(), {"method": "POST", "url": "/services/create", "key": True, "headers": evil},
        {**_READ, "key": True, "headers": evil}, {**_sign_in(), "headers": evil},
    )  # fmt: skip
    assert [change.status_code, read.status_code, sign_in.status_code] == [403, 403, 403]


@pytest.mark.parametrize("path", ["/", "/fleet/dashboard/0a1b/app.js", "/fleet/dashboard/0a1b/vendor/preact.js"])
def test_the_page_s_files_need_no_key(path: str) -> None:
    assert is_page("GET", path) and is_page("HEAD", path) and not is_page("POST", path)


@pytest.mark.parametrize(
    "path",
    ["/info", "//", "/fleet/dashboard/", "/fleet/dashboard/../../info", "/fleet/dashboard/../../containers/json.js",
     "/fleet/dashboard/x/../../v1/watch.js", "/fleet/dashboard/app.js\n", "/x/fleet/dashboard/app.js"],
)  # fmt: skip
def test_what_could_become_a_path_of_the_api_needs_one(path: str) -> None:
    assert not is_page("GET", path)


# The whole, with a daemon on a socket ---------------------------------------------------------------------------------


def _certified(folder: Path) -> ssl.SSLContext:
    """A server's context for 127.0.0.1, and in ``folder`` the ``ca.pem`` that vouches for it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fleet")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(certificate.public_bytes(pem) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


def _served(
    use: Callable[[httpx.AsyncClient], Awaitable[None]],
    *,
    daemon: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    over_tls: bool = False,
) -> None:
    """``use`` with a client that has signed in, against a daemon that speaks HTTP itself."""

    async def run(folder: str) -> None:
        path = f"{folder}/s"
        tls = _certified(Path(folder)) if over_tls else None
        server = await (
            asyncio.start_server(daemon, "127.0.0.1", 0, ssl=tls)
            if over_tls
            else asyncio.start_unix_server(daemon, path)
        )
        url = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}" if over_tls else f"unix://{path}"
        trust = ssl.create_default_context(cafile=f"{folder}/ca.pem") if over_tls else None
        links: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.timeout(60), server:
            asked = EngineClient(url, tls=trust, token="the caller's" if over_tls else "")
            running = asyncio.ensure_future(serve(asked, port=0, started=links.put_nowait))
            address, _, token = (await links.get()).partition("/#token=")
            assert address.startswith("http://127.0.0.1:")
            async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
                key = (await client.post("/fleet/v1/session", json={"Token": token})).json()["Key"]
                client.headers["X-Fleet-Dashboard"] = key
                await use(client)
            os.kill(os.getpid(), signal.SIGINT)
            await running

    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        asyncio.run(run(folder))


@pytest.mark.parametrize("over_tls", [False, True])
def test_requests_are_the_caller_s_and_nothing_of_the_browser_goes_on(over_tls: bool) -> None:
    seen: list[bytes] = []

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        seen.append(await reader.readexactly(8))
        writer.write(b"HTTP/1.1 201 Created\r\nSet-Cookie: a=b\r\nFleet-Stale: 3\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def use(client: httpx.AsyncClient) -> None:
        sent = {"Authorization": "Bearer somebody", "Cookie": "a=b", "X-Registry-Auth": "e30=", "X-Fleet-User": "root"}
        answer = await client.post("/services/a%2Fb/update?version=7&x=%2F", json={"a": 10}, headers=sent)
        assert (answer.status_code, answer.text, answer.headers["fleet-stale"]) == (201, "{}", "3")
        assert "set-cookie" not in answer.headers

    _served(use, daemon=daemon, over_tls=over_tls)
    head = seen[0].decode().lower()
    assert head.startswith("post /services/a%2fb/update?version=7&x=%2f http/1.1\r\n") and seen[1] == b'{"a":10}'
    assert "x-registry-auth: e30=\r\n" in head and "somebody" not in head
    assert ("authorization: bearer the caller's\r\n" in head) == over_tls
    for word in ("cookie:", "x-fleet-dashboard", "x-fleet-user", "origin"):
        assert word not in head


def test_a_stream_comes_through_as_it_is_written_and_ends_with_the_browser() -> None:
    ended: list[bytes] = []

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
        await writer.drain()
        ended.append(await reader.read())  # nothing more is written until whoever reads has gone
        writer.close()

    async def use(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/fleet/v1/watch") as answer:
            assert await anext(answer.aiter_raw()) == b"one\n"
        while not ended:
            await asyncio.sleep(0.01)

    _served(use, daemon=daemon)


@pytest.mark.parametrize(
    "half", [b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
def test_an_answer_that_breaks_off_is_not_passed_on_as_a_whole_one(half: bytes) -> None:
    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + half)
        writer.close()

    async def use(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/info")

    _served(use, daemon=daemon)


def test_a_daemon_that_is_gone_is_said_to_the_page() -> None:
    async def daemon(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def use(client: httpx.AsyncClient) -> None:
        answer = await client.get("/info")
        assert answer.status_code == 503 and "cannot reach the fleet daemon at unix://" in answer.json()["message"]

    _served(use, daemon=daemon)


# The command ----------------------------------------------------------------------------------------------------------


def _answering(engine: FakeEngine) -> None:
    engine.on("GET", "/info", {"Name": "n1"})
    engine.on("HEAD", "/", Reply(raw=b""))


def test_it_prints_the_link_opens_a_browser_without_telling_others_the_token_and_ends_with_an_interrupt(
    engine: FakeEngine, tmp_path: Path
) -> None:
    _answering(engine)
    said = tmp_path / "said"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {said}.new\nmv {said}.new {said}\n')
    browser.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("SUDO_USER", "WAYLAND_DISPLAY")}
    with subprocess.Popen(
        [sys.executable, "-m", "fleet.cli.main", "dashboard"],
        env={**kept, "FLEET_HOST": engine.url, "DISPLAY": ":9", "BROWSER": f"{browser} %s", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        link = running.stdout.readline().strip()
        while not said.exists():
            assert running.poll() is None
            time.sleep(0.01)
        opened = Path(said.read_text().strip().removeprefix("file://"))
        assert link.startswith("http://127.0.0.1:") and "/#token=" in link
        assert link not in said.read_text() and link in opened.read_text()
        assert stat.S_IMODE(opened.stat().st_mode) == 0o600 and stat.S_IMODE(opened.parent.stat().st_mode) == 0o700
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 0 and "until ^C" in err and "Traceback" not in err
    assert not opened.parent.exists()


def test_a_browser_is_opened_on_this_user_s_display_alone() -> None:
    assert can_open({"DISPLAY": ":0"}) and can_open({"WAYLAND_DISPLAY": "wayland-0"})
    assert not can_open({}) and not can_open({"DISPLAY": ":0", "SUDO_USER": "ann"})


def test_what_stands_in_the_way_is_said_before_a_browser_is(engine: FakeEngine, fleet: Any) -> None:
    engine.on("GET", "/info", Reply(status=401, body={"message": "authentication required: show a token"}))
    refused = fleet("dashboard")
    assert refused.code == 1 and "show a token" in refused.err
    engine.on("GET", "/info", {"Name": "n1"})
    without = fleet("dashboard")
    assert without.code == 2 and "--dashboard on" in without.err
    gone = fleet("dashboard", environment={"FLEET_HOST": "unix:///nowhere/s"})
    assert gone.code != 0 and "/nowhere/s" in gone.err


def test_a_port_that_is_taken_or_none_is_refused(engine: FakeEngine, fleet: Any) -> None:
    _answering(engine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = fleet("dashboard", "--no-open", f"--port={taken.getsockname()[1]}")
    assert ran.code != 0 and "another program uses the port" in ran.err
    assert fleet("dashboard", "--port=70000").code == 2
