"""What stands behind the port of ``fleet dashboard``: a browser's requests go on to the daemon as those of the user who runs it.

    browser --127.0.0.1--> Door (no other site, this user's browser) --> Relay (the user's socket, token, certificate) --> fleetd

A port of 127.0.0.1 is open to every user and every program of this machine, and what is behind it may do what its user may. So
each request needs a key. The browser gets it once, for the token in the link that the command prints, and keeps it where pages of
this very scheme, host and port alone can read it; there is no cookie, which it would send to every other port of this host too.
The token stands behind the ``#`` of the link, which no browser sends: no log and no other site sees it. The page's own files are
given without a key: they tell nothing.

The page is the daemon's, so that it fits its API. Of a request goes on what ``_REQUEST_HEADERS`` names: to the daemon this is one
more command line, and no header makes it somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from starlette.requests import Request
from starlette.responses import Response

from fleet import errors
from fleet.api.client import EngineClient
from fleet.api.http import json_response, problem, read_body
from fleet.cancellation import cancel_and_wait
from fleet.daemon.dashboard.guard import CHANGE_HEADER, explain_refusal
from fleet.model.wire import Value, parse_json

__all__ = ["Door", "Relay", "is_page"]

_SESSION: Final = "/fleet/v1/session"
_HOSTS: Final = frozenset({"127.0.0.1", "localhost"})
"""Any port of them: ``ssh -L`` gives a browser elsewhere another one."""
_PAGE: Final = re.compile(r"/(?:fleet/dashboard/(?:[\w-]+/)*[\w-]+\.(?:js|css|svg))?", re.ASCII)
"""No part of it is ``..``: what comes after would be a path of the API, and needs the key."""
_REQUEST_HEADERS: Final = frozenset(
    {b"accept", b"accept-encoding", b"content-length", b"content-type", b"if-none-match", b"range", b"x-registry-auth"}
)
_OWN_ANSWER_HEADERS: Final = frozenset(
    {
        b"connection",
        b"date",
        b"keep-alive",
        b"server",
        b"set-cookie",
        b"strict-transport-security",
        b"transfer-encoding",
    }
)
"""Of the connection to the daemon, or for its own address."""
_BODY_MAX: Final = 4096
_CONNECT_S: Final = 10.0


def is_page(method: str, path: str) -> bool:
    """Whether a request is for a file of the page."""
    return method in ("GET", "HEAD") and _PAGE.fullmatch(path) is not None


class _SignIn(Value, frozen=True, kw_only=True):
    token: str = ""

    def __repr__(self) -> str:
        return "_SignIn(token=<hidden>)"


class Door:
    """ASGI middleware that lets in whoever has shown ``token``, by the page's own sign-in and once."""

    def __init__(self, app: Any, *, token: str) -> None:
        self._app = app
        self._token = _digest(token)
        self._key: bytes | None = None
        """Of the one that was let in; empty once it has signed out, and None before."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "the dashboard has no WebSockets"})
            return
        try:
            answer = await self._answer(Request(scope, receive))
        except errors.FleetError as refusal:
            answer = problem(refusal)
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """None for what goes on to the daemon. Raises ``ForbiddenError`` and ``UnauthorizedError`` for what does not."""
        headers = {name: request.headers.getlist(name) for name in request.headers}
        path, key = request.scope["path"], request.headers.get(CHANGE_HEADER, "")
        if _hostname(request.headers.get("host", "")) not in _HOSTS:
            raise errors.ForbiddenError("this address is asked as 127.0.0.1 or localhost, and by no other name")
        if refusal := explain_refusal(request.method, path, headers, is_tls=False, hosts=()):
            raise errors.ForbiddenError(refusal)
        if path == _SESSION and request.method == "POST":
            wish = parse_json(await read_body(request, limit=_BODY_MAX), _SignIn, what="sign-in")
            return json_response({"Key": self._admit(wish.token)}, status=201)
        if is_page(request.method, path):
            return None
        if not self._key or not hmac.compare_digest(_digest(key), self._key):
            raise errors.UnauthorizedError("open the link that fleet dashboard printed: its token lets one browser in")
        if path == _SESSION:
            self._key = b""
            return Response(status_code=204)
        return None

    def _admit(self, token: str) -> str:
        if not hmac.compare_digest(_digest(token), self._token):
            raise errors.UnauthorizedError("that is not the token that fleet dashboard printed")
        if self._key is not None:
            raise errors.UnauthorizedError(
                "this link has let a browser in already, and does so once. If that was not yours, end fleet dashboard at once; "
                "for another browser start it again"
            )
        key = secrets.token_urlsafe(32)
        self._key = _digest(key)
        return key


class Relay:
    """ASGI application: passes requests on with the credentials of ``client``, and answers as they come. ``close`` at the end."""

    def __init__(self, client: EngineClient) -> None:
        parts = urlsplit(client.url)
        is_tls = client.tls is not None or parts.scheme == "https"
        self._url = client.url
        if parts.scheme == "unix":
            self._base = httpx.URL("http://fleet")
            transport = httpx.AsyncHTTPTransport(uds=parts.path)
        else:
            self._base = httpx.URL(
                scheme="https" if is_tls else "http", host=parts.hostname, port=parts.port or (2376 if is_tls else 2375)
            )
            transport = httpx.AsyncHTTPTransport(verify=client.tls or ssl.create_default_context())
        self._credentials = [(name.encode(), value.encode()) for name, value in client.credentials.items()]
        timeout = httpx.Timeout(None, connect=_CONNECT_S)  # logs and changes may be silent for as long as they like
        # No proxy of the environment: the credentials are for the daemon alone.
        self._http = httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
        self._ending = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name in _REQUEST_HEADERS]
        names = {name for name, _ in scope["headers"]}
        request = Request(scope, receive)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        wanted = self._http.build_request(
            scope["method"],
            self._base.copy_with(raw_path=scope["raw_path"] + query),
            headers=[*headers, *self._credentials],
            content=request.stream() if names & {b"content-length", b"transfer-encoding"} else None,
        )
        if b"accept-encoding" not in names:
            del wanted.headers["accept-encoding"]  # httpx would unpack what the browser did not ask for
        try:
            answer = await self._http.send(wanted, stream=True)
        except httpx.HTTPError as cause:
            unreachable = errors.UnavailableError(
                f"cannot reach the fleet daemon at {self._url}: {cause or type(cause).__name__}"
            )
            await problem(unreachable)(scope, receive, send)
            return
        try:
            await self._pass_back(answer, receive, send)
        finally:
            await answer.aclose()

    async def _pass_back(self, answer: httpx.Response, receive: Any, send: Any) -> None:
        """Until the answer ends, the browser has gone, or the command ends."""
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _OWN_ANSWER_HEADERS]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})

        async def pump() -> None:
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        is_endless = "content-length" not in answer.headers
        ways: list[asyncio.Future[Any]] = [asyncio.ensure_future(pump()), asyncio.ensure_future(gone())]
        if is_endless:
            ways.append(asyncio.ensure_future(self._ending.wait()))
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            whole = ways[0].done() and ways[0].exception() is None
            await cancel_and_wait(*ways)
        if whole or (is_endless and self._ending.is_set()):  # else the connection ends without the end of the answer
            with contextlib.suppress(OSError):
                await send({"type": "http.response.body", "body": b""})

    def end(self) -> None:
        """End the streams that would go on; idempotent."""
        self._ending.set()

    async def close(self) -> None:
        """Close the connections to the daemon."""
        await self._http.aclose()


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
