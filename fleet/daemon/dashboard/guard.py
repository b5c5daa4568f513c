"""What stands between a person's browser and the engine API, so that no other web site can use it in that person's name.

A browser sends requests for any page that is open in it: to 127.0.0.1, through a forwarded unix socket, and with the client
certificate it holds. Who asks is therefore no answer to who wants it. Three checks, for requests of browsers alone; command
line clients send none of the headers looked at and notice nothing:

    Host      a name that somebody else's DNS can point here is refused (DNS rebinding: the page would be "of the same
              origin"). Not with TLS: there the certificate proves the name.
    Origin    has to be this very listener: scheme, host and port. Fetch standard, "Origin header": sent with every request
              that is not GET or HEAD, and with every one across origins that expects to read the answer.
    X-Fleet-Dashboard   a header that a form cannot send, and that a script of another origin may send only after a preflight,
              which nobody answers here. Needed for each change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from fleet.api.http import json_response
from fleet.daemon.listeners import is_tls
from fleet.logs import get_logger

__all__ = ["CHANGE_HEADER", "BrowserGuard", "explain_refusal"]

log = get_logger("dashboard")

CHANGE_HEADER: Final = "x-fleet-dashboard"
_READS: Final = frozenset({"GET", "HEAD"})
_SAME: Final = frozenset({"same-origin", "none"})
"""``Sec-Fetch-Site``: asked by a page of this origin, or by the person (address bar, bookmark)."""


class BrowserGuard:
    """ASGI middleware. ``hosts``: names besides addresses and ``localhost`` under which this daemon may be asked in the clear."""

    def __init__(self, app: Any, *, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers: dict[str, list[str]] = {}
            for name, value in scope["headers"]:
                headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
            method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
            refusal = explain_refusal(method, scope["path"], headers, is_tls=is_tls(scope), hosts=self._hosts)
            if refusal:
                log.warning("refused", method=method, path=scope["path"][:200], reason=refusal)
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008, "reason": refusal[:120]})
                    return
                await json_response({"message": refusal}, status=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def explain_refusal(
    method: str, path: str, headers: dict[str, list[str]], *, is_tls: bool, hosts: Collection[str]
) -> str:
    """Why this request is refused; empty when it is not. ``headers`` by lower-case name, every value that came."""
    host = headers.get("host", [""])[0]
    if not is_tls and _is_foreign_name(host, hosts):
        return (
            f"Host {host[:100]!r}: a name that DNS can point anywhere is not answered in the clear; ask by address or as "
            "localhost, or start fleetd with --dashboard-host NAME"
        )
    origins, site = headers.get("origin", []), headers.get("sec-fetch-site", [""])[0]
    is_browser = bool(origins or site or headers.get("referer"))
    if not is_browser:
        return ""
    if origins and any(not _is_same_origin(origin, host, is_tls=is_tls) for origin in origins):
        return f"Origin {origins[0][:100]!r} is another site than {host[:100]!r}: refused"
    if method in _READS:
        is_page_opened = path == "/" and headers.get("sec-fetch-mode", [""])[0] == "navigate"
        if site and site not in _SAME and not is_page_opened:
            return f"asked by a page of another site (Sec-Fetch-Site: {site[:40]}): refused"
        return ""
    if not origins or (site and site not in _SAME):
        return "a browser's change without the Origin of this dashboard: refused"
    if not any(headers.get(CHANGE_HEADER, ())):
        return f"a browser's change needs the header {CHANGE_HEADER.title()}: refused"
    return ""


def _is_same_origin(origin: str, host: str, *, is_tls: bool) -> bool:
    try:
        parts = urlsplit(origin)
        there, here = (parts.hostname, parts.port), urlsplit(f"//{host}")
        default = 443 if is_tls else 80
        if parts.scheme != ("https" if is_tls else "http") or not there[0]:
            return False
        return (there[0], there[1] or default) == (here.hostname, here.port or default)
    except ValueError:  # a port that is none
        return False


def _is_foreign_name(host: str, hosts: Collection[str]) -> bool:
    """Whether somebody's DNS may answer for it. Clients on unix sockets say anything (``docker``, ``fleet``, a path, nothing):
    a name without a dot is in nobody's zone.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return True
    if "." not in name or name.endswith(".localhost") or name in hosts:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False
