"""The dashboard's files and headers, and what the guard refuses a browser."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

import fleet.daemon.dashboard
from fleet.daemon.dashboard.guard import BrowserGuard, explain_refusal
from fleet.daemon.dashboard.pages import DashboardMode, DashboardPages, is_served

_STATIC = Path(fleet.daemon.dashboard.__file__).parent / "static"
_HERE = "127.0.0.1:8080"
_OWN = {"host": [_HERE], "origin": [f"http://{_HERE}"], "sec-fetch-site": ["same-origin"], "x-fleet-dashboard": ["1"]}


def _ask(app: Any, path: str, *, method: str = "GET", server: Any = ("/run/s", None), **headers: str) -> Any:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "server": server,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(app(scope, None, send))
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


async def _api(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"api"})


def _pages(mode: DashboardMode = DashboardMode.AUTO) -> DashboardPages:
    return DashboardPages(_api, mode=mode)


def _asset(name: str) -> str:
    """Its path, as the page names it."""
    page = _ask(_pages(), "/")[2].decode()
    return re.search(r'"(/fleet/dashboard/\w{16}/)app\.js"', page)[1] + name  # type: ignore[index]


def test_every_file_the_page_names_is_served_and_nothing_comes_from_elsewhere() -> None:
    named = re.findall(r'"(/fleet/[^"]+)"', _ask(_pages(), "/")[2].decode())
    assert len(named) > 10 and all(_ask(_pages(), path)[0] == 200 for path in named)
    for file in _STATIC.rglob("*.*"):
        text = file.read_text()
        if file.suffix in (".html", ".js", ".css"):
            for name in re.findall(r'from ?"([^"]+)"', text):
                assert (file.parent / name).is_file(), name
            assert not re.search(r"innerHTML|eval\(|new Function|https?://(?!www\.w3\.org/)", text) or "vendor" in str(
                file
            )


def test_modules_are_asked_for_with_the_page_and_not_by_one_another() -> None:
    named = set(
        re.findall(
            r'(?:modulepreload" href|module"(?: async)? src)="/fleet/dashboard/([^"]+)"',
            (_STATIC / "index.html").read_text(),
        )
    )
    assert named == {file.relative_to(_STATIC).as_posix() for file in _STATIC.rglob("*.js")}


@pytest.mark.parametrize("name", ["", "app.js", "vendor/preact.js"])
def test_headers_leave_foreign_text_no_way_to_run(name: str) -> None:
    code, headers, body = _ask(_pages(), _asset(name) if name else "/")
    policy = headers["content-security-policy"]
    assert code == 200 and body
    for part in ("default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'", "trusted-types 'none'",
                 "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):  # fmt: skip
        assert part in policy.split("; ")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "same-origin"


def test_the_page_is_asked_for_each_time_and_its_files_once() -> None:
    assert _ask(_pages(), "/")[1]["cache-control"] == "no-cache"
    for name in ("app.js", "vendor/preact.js", "icon.svg"):
        code, headers, _ = _ask(_pages(), _asset(name))
        assert code == 200 and "immutable" in headers["cache-control"]
        assert _ask(_pages(), f"/fleet/dashboard/{name}")[0] == 418, "a name without what it stands for may not be kept"


def test_the_style_is_in_the_page_and_the_policy_knows_it_alone() -> None:
    _, headers, body = _ask(_pages(), "/")
    (style,) = re.findall(r"<style>(.*)</style>", body.decode(), re.DOTALL)
    assert style == (_STATIC / "style.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'self' 'sha256-{digest}'" in headers["content-security-policy"].split("; ")
    assert b"stylesheet" not in body


def test_files_are_sent_packed_to_whoever_unpacks_them() -> None:
    _, plain, content = _ask(_pages(), _asset("views.js"))
    _, packed, body = _ask(_pages(), _asset("views.js"), accept_encoding="gzip, br")
    assert gzip.decompress(body) == content and len(body) < len(content) / 2
    assert packed["content-encoding"] == "gzip" and int(packed["content-length"]) == len(body)
    assert "content-encoding" not in plain and plain["vary"] == packed["vary"] == "Accept-Encoding"
    assert plain["etag"] != packed["etag"]


def test_an_unchanged_file_is_not_sent_again_and_head_has_no_body() -> None:
    tag = _ask(_pages(), "/")[1]["etag"]
    code, _, body = _ask(_pages(), "/", if_none_match=tag)
    assert (code, body) == (304, b"")
    code, headers, body = _ask(_pages(), "/", method="HEAD")
    assert (code, body) == (200, b"") and int(headers["content-length"]) > 100


@pytest.mark.parametrize(
    "path", ["/fleet/dashboard/", "/fleet/dashboard/../guard.py", "/fleet/dashboard/index.html", "//", "/info"]
)
def test_other_paths_are_the_api_s(path: str) -> None:
    assert _ask(_pages(), path)[0] == 418


def test_a_change_of_the_page_s_path_is_the_api_s() -> None:
    assert _ask(_pages(), "/", method="POST")[0] == 418


def test_tcp_without_authentication_has_no_dashboard_unless_asked_for() -> None:
    tcp = ("127.0.0.1", 2375)
    assert _ask(_pages(), "/", server=tcp)[0] == 418
    assert _ask(_pages(DashboardMode.ON), "/", server=tcp)[0] == 200
    assert _ask(_pages(DashboardMode.OFF), "/")[0] == 418
    assert is_served(DashboardMode.AUTO, {"server": tcp, "scheme": "https"})
    assert not is_served(DashboardMode.AUTO, {"server": tcp, "scheme": "http"})


@pytest.mark.parametrize(
    ("method", "changed", "word"),
    [
        ("POST", {"origin": ["http://evil.example"]}, "another site"),
        ("GET", {"origin": ["http://evil.example"]}, "another site"),
        ("POST", {"origin": ["null"]}, "another site"),
        ("POST", {"origin": ["https://127.0.0.1:8080"]}, "another site"),
        ("POST", {"origin": ["http://127.0.0.1:8081"]}, "another site"),
        ("POST", {"origin": ["http://127.0.0.1:x"]}, "another site"),
        ("POST", {"origin": [f"http://{_HERE}", "http://evil.example"]}, "another site"),
        ("POST", {"origin": []}, "without the Origin"),
        ("POST", {"sec-fetch-site": ["cross-site"]}, "without the Origin"),
        ("POST", {"x-fleet-dashboard": []}, "X-Fleet-Dashboard"),
        ("DELETE", {"x-fleet-dashboard": [""]}, "X-Fleet-Dashboard"),
        ("GET", {"origin": [], "sec-fetch-site": ["cross-site"]}, "another site"),
        ("WEBSOCKET", {"origin": ["http://evil.example"]}, "another site"),
        ("GET", {"host": ["evil.example"]}, "Host"),
        ("GET", {"host": ["127.0.0.1.evil.example:8080"]}, "Host"),
        ("GET", {"host": ["[::1"]}, "Host"),
    ],
)
def test_what_another_site_makes_a_browser_ask_is_refused(
    method: str, changed: dict[str, list[str]], word: str
) -> None:
    assert word in explain_refusal(method, "/nodes", {**_OWN, **changed}, is_tls=False, hosts=())


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("host", ["docker", "localhost", "", "/run/fleet.sock", "10.0.0.1:2375", "[::1]:2375"])
def test_command_line_clients_notice_nothing(method: str, host: str) -> None:
    assert not explain_refusal(method, "/nodes", {"host": [host]}, is_tls=False, hosts=())


def test_the_page_itself_may_read_and_change() -> None:
    for method in ("GET", "POST", "DELETE"):
        assert not explain_refusal(method, "/nodes", _OWN, is_tls=False, hosts=())
    named = {**_OWN, "host": ["fleet.example"], "origin": ["http://fleet.example"]}
    assert not explain_refusal("POST", "/nodes", named, is_tls=False, hosts={"fleet.example"})
    tls = {**_OWN, "host": ["fleet.example"], "origin": ["https://fleet.example"]}
    assert not explain_refusal("POST", "/nodes", tls, is_tls=True, hosts=())


def test_a_link_may_open_the_page_but_read_nothing() -> None:
    link = {"host": [_HERE], "sec-fetch-site": ["cross-site"], "sec-fetch-mode": ["navigate"]}
    assert not explain_refusal("GET", "/", link, is_tls=False, hosts=())
    assert explain_refusal("GET", "/tasks", link, is_tls=False, hosts=())


def test_a_refusal_is_answered_before_the_api_is_asked() -> None:
    guard = BrowserGuard(_api)
    assert _ask(guard, "/nodes", host="localhost")[0] == 418
    code, _, body = _ask(guard, "/nodes", method="POST", host="localhost", origin="http://evil.example")
    assert code == 403 and b"evil.example" in body
