"""Who one is to a registry: names and passwords, and the bearer tokens a token service gives for them.

A registry answers a request it will not serve with 401 and a challenge (RFC 7235). ``Basic`` is answered with the name and
password themselves; ``Bearer`` names a token service, which is asked for a token for certain *scopes*
(``repository:team/app:pull,push``) and says how long it lasts. Source: docker/distribution, docs/spec/auth/{token,oauth,scope}.

A token is asked for all scopes needed so far, so that one serves a whole pull or push, and anew a little before it ends: a
large upload is not begun with one that would expire on the way. One that ends earlier than it said is noticed by the next 401.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

import httpx

from fleet.clock import Clock
from fleet.errors import RejectedFault, UnauthorizedError, UserError
from fleet.images.jsondoc import decode_document
from fleet.images.sources import raise_for_status

__all__ = ["Authorizer", "Credentials", "parse_challenges", "parse_registry_auth", "union_of_scopes"]

_TOKEN_BYTES_MAX = 1 << 20
_LIFETIME_S = 60.0  # of a token that does not say (the specification's default)
_MARGIN_S = 10.0  # a token is renewed this long before its end, or at three quarters of a short life
_SCOPES_MAX = 64
_CLIENT = "fleet"
_SCHEME = re.compile(r"(?:^|,)\s*(basic|bearer)(?=\s|$|,)", re.ASCII | re.IGNORECASE)
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What to say to a registry: name and password, or a token it gave out earlier. Not shown in tracebacks."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """A refresh token (``docker login`` with a token service): exchanged for access tokens."""
    registry_token: str = field(default="", repr=False)
    """A bearer token to send as it is."""


def parse_registry_auth(header: str) -> Credentials | None:
    """The ``X-Registry-Auth`` header (base64url JSON, Docker Engine API "Authentication"); None when it says
    nothing.
    """
    if not header:
        return None
    try:
        raw = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        document = decode_document(raw or b"{}", "X-Registry-Auth", bytes_max=64 << 10)
        credentials = Credentials(
            username=document.text("username", ""),
            password=document.text("password", ""),
            identity_token=document.text("identitytoken", ""),
            registry_token=document.text("registrytoken", ""),
        )
    except (binascii.Error, ValueError, RejectedFault) as error:
        raise UserError(f"X-Registry-Auth header is not base64url JSON: {error}") from error
    return credentials if credentials != Credentials() else None


def parse_challenges(headers: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """The (scheme, parameters) of ``WWW-Authenticate`` headers, of the two schemes registries use, as they come."""
    found = []
    for header in headers:
        marks = list(_SCHEME.finditer(header))
        for number, mark in enumerate(marks):
            end = marks[number + 1].start() if number + 1 < len(marks) else len(header)
            pairs = _PARAMETER.findall(header[mark.end() : end])
            found.append((mark[1].lower(), {key.lower(): re.sub(r"\\(.)", r"\1", value) for key, value in pairs}))
    return found


def union_of_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """One scope a resource with every action asked for: ``repository:a:pull`` and ``repository:a:pull,push`` are one."""
    actions: dict[str, dict[str, None]] = {}
    for scope in scopes:
        resource, _, wanted = scope.rpartition(":")
        actions.setdefault(resource, {}).update(dict.fromkeys(wanted.split(",")))
    return tuple(f"{resource}:{','.join(wanted)}" for resource, wanted in actions.items())


class Authorizer:
    """The ``Authorization`` of requests to one registry. Requests at the same time share one token."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        registry: str,
        credentials: Credentials | None,
        allows_http: bool,
        clock: Clock,
        offline: bool = False,
    ) -> None:
        """``offline``: ask the token service for a refresh token too, which is what a login is kept as."""
        self._client = client
        self._registry = registry
        self._credentials = credentials
        self._allows_http = allows_http
        self._clock = clock
        self._offline = offline
        self._lock = asyncio.Lock()
        self._realm = ""
        self._service = ""
        self._scopes: tuple[str, ...] = ()
        self._renew_at = float("inf")
        self._header = f"Bearer {credentials.registry_token}" if credentials and credentials.registry_token else ""
        self.refresh_token = credentials.identity_token if credentials else ""

    async def header(self) -> str:
        """What to send now; empty as long as nobody asked."""
        if self._clock.monotonic() >= self._renew_at:
            async with self._lock:
                if self._clock.monotonic() >= self._renew_at:
                    await self._fetch_token()
        return self._header

    async def answer(self, challenges: Sequence[str], *, refused: str, scopes: Sequence[str], what: str) -> str:
        """Answer the challenge of a request that was sent with ``refused``; what to send instead.

        ``scopes`` are asked for besides what the challenge says, ``what`` names the request's object. Raises
        ``UnauthorizedError`` when there is nothing to answer with.
        """
        async with self._lock:
            offers = dict(reversed(parse_challenges(challenges)))
            wanted = (*scopes, *offers.get("bearer", {}).get("scope", "").split())
            is_newer = self._header != refused  # another request was faster
            if is_newer and union_of_scopes((*self._scopes, *wanted)) == self._scopes:
                return self._header
            if "bearer" in offers:
                return await self._answer_bearer(offers["bearer"], wanted)
            if is_newer:
                return self._header
            if "basic" not in offers:
                scheme = (challenges[0].partition(" ")[0] if challenges else "") or "no known"
                raise UnauthorizedError(
                    f"{self._registry}: asks for {scheme[:40]} authentication, which is not supported"
                )
            if self._credentials is None or not self._credentials.username:
                raise UnauthorizedError(
                    f"{self._registry}: {what}: no basic auth credentials: this registry wants a login"
                )
            self._header = _basic(self._credentials)
            return self._header

    async def _answer_bearer(self, fields: dict[str, str], wanted: Sequence[str]) -> str:
        realm = fields.get("realm", "")
        scheme = urlsplit(realm).scheme
        if scheme != "https" and not (scheme == "http" and self._allows_http):
            raise RejectedFault(f"{self._registry}: its token service {realm[:200]!r} is not HTTPS")
        self._scopes = union_of_scopes((*self._scopes, *wanted))[:_SCOPES_MAX]
        self._realm, self._service = realm, fields.get("service", "")
        await self._fetch_token()
        return self._header

    async def _fetch_token(self) -> None:
        asked_at = self._clock.monotonic()
        request = self._token_request()
        response = await self._client.send(request, stream=True)
        try:
            await raise_for_status(response, "token", source=self._realm)
            body = b""
            async for data in response.aiter_bytes(1 << 16):
                body += data
                if len(body) > _TOKEN_BYTES_MAX:
                    raise RejectedFault(f"{self._realm}: token larger than {_TOKEN_BYTES_MAX} bytes")
        finally:
            await response.aclose()
        document = decode_document(body, f"token from {self._realm}", bytes_max=_TOKEN_BYTES_MAX)
        token = document.text("token", "") or document.text("access_token", "")
        if not token or not token.isascii() or not token.isprintable():
            raise UnauthorizedError(f"{self._realm}: answered without a token")
        if self._offline or self.refresh_token:
            self.refresh_token = document.text("refresh_token", "") or self.refresh_token
        life_s = float(document.number("expires_in")) if "expires_in" in document else _LIFETIME_S
        life_s -= _age_s(document.text("issued_at", ""), self._clock.now())
        self._renew_at = asked_at + max(0.75 * life_s, life_s - _MARGIN_S)
        self._header = f"Bearer {token}"

    def _token_request(self) -> httpx.Request:
        who = self._credentials
        if self.refresh_token:
            form = {"grant_type": "refresh_token", "refresh_token": self.refresh_token, "client_id": _CLIENT}
            form |= {"service": self._service} if self._service else {}
            form |= {"scope": " ".join(self._scopes)} if self._scopes else {}
            return self._client.build_request("POST", self._realm, data=form)
        query: dict[str, str | Sequence[str]] = {"service": self._service} if self._service else {}
        if self._scopes:
            query["scope"] = self._scopes
        headers = {}
        if who is not None and who.username:
            headers["Authorization"] = _basic(who)
            query["account"] = who.username
        if self._offline:
            query |= {"offline_token": "true", "client_id": _CLIENT}
        parameters = httpx.URL(self._realm).params.merge(query)  # the realm may have its own
        return self._client.build_request("GET", self._realm, params=parameters, headers=headers)


def _age_s(issued_at: str, now: datetime) -> float:
    """How old a token was when it came, if it says so credibly; clocks differ, so at most half a minute is believed."""
    try:
        issued = datetime.fromisoformat(issued_at)
        return min(max((now - issued).total_seconds(), 0.0), 30.0)
    except (ValueError, TypeError):
        return 0.0


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()
