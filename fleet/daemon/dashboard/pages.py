"""``/`` and ``/fleet/dashboard/...``: the files in ``static``, read once, with headers that leave a hostile text no way to run.

Served where whoever asks the API is authenticated: the unix socket, by its mode, and TCP with TLS, by a certificate or a token;
the files themselves tell nothing. TCP in the clear (127.0.0.1) has no authentication: there only if ``--dashboard on`` says so.
"""

from __future__ import annotations

import hashlib
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
        "style-src 'self'",
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
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with it some browsers send "Origin: null" even to the page's own origin.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


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
        content, media_type, tag = file
        headers = {**_HEADERS, "ETag": tag}
        if Headers(scope=scope).get("if-none-match") == tag:
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        headers["Content-Type"] = media_type
        headers["Content-Length"] = str(len(content))
        body = content if scope["method"] == "GET" else b""
        await Response(body, headers=headers)(scope, receive, send)


def _read_files() -> dict[str, tuple[bytes, str, str]]:
    """Path -> content, type, entity tag. Only what is in this table can be asked for: no path of a request meets a disk."""
    found = {}
    for file in sorted(_STATIC.rglob("*")):
        if file.suffix in _TYPES:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
            found[ASSETS + file.relative_to(_STATIC).as_posix()] = (content, _TYPES[file.suffix], tag)
    found["/"] = found.pop(ASSETS + "index.html")
    return found
