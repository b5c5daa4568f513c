"""``/`` and ``/fleet/dashboard/...``: the files in ``static``, read once, with headers that leave a hostile text no way to run.

All but the page itself are in a folder named after what they hold, so a browser keeps them and never asks whether they are
still the same; modules name each other by where they are, and need not know that folder. The style is in the page: the first
paint waits for one answer.

Served where whoever asks the API is authenticated: the unix socket, by its mode, and TCP with TLS, by a certificate or a token;
the files themselves tell nothing. TCP in the clear (127.0.0.1) has no authentication: there only if ``--dashboard on`` says so.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from fleet.daemon.listeners import is_tls, is_unix

__all__ = ["ASSETS", "DashboardMode", "DashboardPages", "is_served"]

ASSETS: Final = "/fleet/dashboard/"
_STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' '{style}'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with it some browsers send "Origin: null" even to the page's own origin.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
_STYLE: Final = '<link rel="stylesheet" href="/fleet/dashboard/style.css">'


class DashboardMode(StrEnum):
    """``--dashboard``. AUTO: wherever there is authentication."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def is_served(mode: DashboardMode, scope: Any) -> bool:
    """Whether a request's listener has the dashboard."""
    if mode is DashboardMode.AUTO:
        return is_unix(scope) or is_tls(scope)
    return mode is DashboardMode.ON


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    content: bytes
    packed: bytes
    """The same with gzip."""
    headers: dict[str, str]
    tag: str


class DashboardPages:
    """ASGI middleware. Files are read here, once."""

    def __init__(self, app: Any, *, mode: DashboardMode) -> None:
        self._app = app
        self._mode = mode
        self._files = _read_files() if mode is not DashboardMode.OFF else {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        file = self._files.get(scope["path"]) if scope["type"] == "http" else None
        if file is None or scope["method"] not in ("GET", "HEAD") or not is_served(self._mode, scope):
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        is_packed = "gzip" in asked.get("accept-encoding", "")
        tag = f'"{file.tag}{"-gzip" if is_packed else ""}"'
        headers = {**file.headers, "ETag": tag}
        if asked.get("if-none-match") == tag:
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        content = file.packed if is_packed else file.content
        if is_packed:
            headers["Content-Encoding"] = "gzip"
        headers["Content-Length"] = str(len(content))
        body = content if scope["method"] == "GET" else b""
        await Response(body, headers=headers)(scope, receive, send)


def _read_files() -> dict[str, _File]:
    """Path -> file. Only what is in this table can be asked for: no path of a request meets a disk."""
    found = {
        file.relative_to(_STATIC).as_posix(): file.read_bytes()
        for file in sorted(_STATIC.rglob("*"))
        if file.suffix in _TYPES
    }
    whole = hashlib.sha256()
    for name, content in found.items():
        whole.update(f"{name} {len(content)} ".encode() + content)
    folder = f"{ASSETS}{whole.hexdigest()[:16]}/"
    style = found.pop("style.css").decode()
    page = (
        found.pop("index.html").decode().replace(_STYLE, f"<style>{style}</style>").replace(f'"{ASSETS}', f'"{folder}')
    )
    policy = _POLICY.format(style=f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}")
    files = {
        folder + name: _file(name, content, policy, "max-age=31536000, immutable") for name, content in found.items()
    }
    return {**files, "/": _file("index.html", page.encode(), policy, "no-cache")}


def _file(name: str, content: bytes, policy: str, keeping: str) -> _File:
    headers = {
        **_HEADERS,
        "Content-Security-Policy": policy,
        "Content-Type": _TYPES[Path(name).suffix],
        "Cache-Control": keeping,
    }
    tag = hashlib.sha256(content).hexdigest()[:24]
    return _File(content=content, packed=gzip.compress(content, mtime=0), headers=headers, tag=tag)
