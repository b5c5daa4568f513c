"""A registry as a source: the read side of the OCI distribution API (v1.1), as Docker's registries speak it.

Credentials go only to the registry, or to the token service it names, never along a redirect to another host (blobs
usually live on one). Plain HTTP is spoken only with loopback addresses and hosts the operator listed; there HTTPS is
tried first, unverified, as Docker does.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import httpx

from fleet.errors import ForbiddenError, RejectedFault, UnauthorizedError, UnavailableError, UserError
from fleet.images.jsondoc import decode_document
from fleet.images.manifest import INDEX_TYPES, MANIFEST_TYPES, Manifest
from fleet.images.reference import Reference, check_digest, parse_reference
from fleet.images.sources import TIMEOUT, raise_for_status, read_manifest_response, stream_blob, translate_errors

__all__ = ["RegistrySource", "RegistryOptions", "Credentials", "parse_registry_auth", "is_loopback", "check_login"]

_ACCEPT = ", ".join(INDEX_TYPES + MANIFEST_TYPES)
_HOSTS = {"docker.io": "registry-1.docker.io"}
_REDIRECTS_MAX = 5
_TOKEN_BYTES_MAX = 1 << 20
_CHALLENGE = re.compile(r'([A-Za-z_]+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What to say to a registry: name and password, or a token it gave out earlier. Not shown in tracebacks."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """A refresh token (``docker login`` with a token service): exchanged for access tokens."""
    registry_token: str = field(default="", repr=False)
    """A bearer token to send as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How this host reaches registries."""

    insecure_registries: tuple[str, ...] = ()
    """``host``, ``host:port`` or networks (``10.0.0.0/8``) to trust without certificates and over plain HTTP."""
    ssl_contexts: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    """Per ``host[:port]``: own authorities or client certificates."""
    connections_max: int = 8


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


class RegistrySource:
    """One repository of one registry. Make one for each reference to fetch; ``aclose`` it afterwards."""

    def __init__(
        self,
        reference: str | Reference,
        *,
        credentials: Credentials | None = None,
        options: RegistryOptions | None = None,
    ) -> None:
        parsed = parse_reference(reference) if isinstance(reference, str) else reference
        self._options = options or RegistryOptions()
        self._domain = parsed.domain
        self._host = _HOSTS.get(parsed.domain, parsed.domain)
        self._repository = parsed.path
        self._credentials = credentials
        self._insecure = parsed.domain not in self._options.ssl_contexts and _is_insecure(
            parsed.domain, self._options.insecure_registries
        )
        self._authorization = (
            f"Bearer {credentials.registry_token}" if credentials and credentials.registry_token else ""
        )
        self._base: str | None = None
        self._client = httpx.AsyncClient(
            verify=self._ssl_context(),
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=self._options.connections_max),
            follow_redirects=False,
            trust_env=not is_loopback(parsed.domain),
            headers={"User-Agent": "fleet"},
        )

    @property
    def name(self) -> str:
        return self._domain

    @property
    def options(self) -> RegistryOptions:
        """How this host reaches the registry."""
        return self._options

    async def manifest(self, reference: str) -> Manifest:
        parsed = parse_reference(reference)
        wanted = parsed.digest or parsed.tag
        async with self._get(f"manifests/{wanted}", {"Accept": _ACCEPT}) as response:
            return await read_manifest_response(response, reference, source=self.name)

    async def blob(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        async with self._get(f"blobs/{check_digest(digest)}", headers) as response:
            if response.status_code == 416:
                raise UnavailableError(f"{self.name}: blob {digest}: cannot resume at byte {offset}")
            async for data in stream_blob(response, digest, offset=offset, source=self.name):
                yield data

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def _get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        with translate_errors(self.name):
            base = await self._find_base()
            response = await self._send_authorized(f"{base}/v2/{self._repository}/{path}", headers)
            try:
                yield response
            finally:
                await response.aclose()

    async def _send_authorized(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        content: Callable[[], AsyncIterator[bytes]] | None = None,
    ) -> httpx.Response:
        """Send, answer one challenge, follow redirects (of GET and HEAD) without taking credentials to another host."""
        response = await self._send(url, headers, self._authorization, method, content)
        if response.status_code == 401:
            challenge = response.headers.get("WWW-Authenticate", "")
            await response.aclose()
            self._authorization = await self._authorize(challenge)
            response = await self._send(url, headers, self._authorization, method, content)
        if method not in {"GET", "HEAD"}:
            return response
        own = urlsplit(url)
        for _ in range(_REDIRECTS_MAX):
            if response.status_code not in {301, 302, 303, 307, 308}:
                return response
            target = urljoin(url, response.headers.get("Location", ""))
            await response.aclose()
            there = urlsplit(target)
            if there.scheme != "https" and not (there.scheme == "http" and self._insecure):
                raise RejectedFault(f"{self.name}: redirects to {there.scheme}://{there.netloc}, which is not HTTPS")
            same = (there.scheme, there.netloc) == (own.scheme, own.netloc)
            url = target
            response = await self._send(url, headers, self._authorization if same else "", method)
        await response.aclose()
        raise RejectedFault(f"{self.name}: more than {_REDIRECTS_MAX} redirects")

    async def _send(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str,
        method: str,
        content: Callable[[], AsyncIterator[bytes]] | None = None,
    ) -> httpx.Response:
        sent = {**headers, **({"Authorization": authorization} if authorization else {})}
        body = content() if content is not None else None
        return await self._client.send(self._client.build_request(method, url, headers=sent, content=body), stream=True)

    async def _find_base(self) -> str:
        """The scheme to speak: HTTPS, but for insecure registries whichever answers, HTTPS first."""
        if self._base is None:
            secure, plain = f"https://{self._host}", f"http://{self._host}"
            self._base = secure
            if self._insecure:
                try:
                    await self._client.get(f"{secure}/v2/")
                except httpx.HTTPError:
                    self._base = plain
        return self._base

    async def _authorize(self, challenge: str) -> str:
        """Answer a WWW-Authenticate challenge (RFC 7235; bearer tokens as in docker/distribution's token
        specification).
        """
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            if self._credentials is None:
                raise UnauthorizedError(f"{self.name}: {self._repository}: this registry wants a login")
            return _basic(self._credentials)
        if scheme.lower() != "bearer":
            raise UnauthorizedError(
                f"{self.name}: asks for {scheme or 'no known'} authentication, which is not supported"
            )
        fields = {key.lower(): value.replace('\\"', '"') for key, value in _CHALLENGE.findall(rest)}
        realm = urlsplit(fields.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and self._insecure):
            raise RejectedFault(f"{self.name}: its token service {fields.get('realm', '')[:200]!r} is not HTTPS")
        scope = fields.get("scope") or self._default_scope()
        return f"Bearer {await self._fetch_token(fields['realm'], fields.get('service', ''), scope)}"

    def _default_scope(self) -> str:
        """What to ask the token service for when the challenge does not say."""
        return f"repository:{self._repository}:pull"

    async def _fetch_token(self, realm: str, service: str, scope: str) -> str:
        who = self._credentials
        query = {key: value for key, value in (("service", service), ("scope", scope)) if value}
        if who is not None and who.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": who.identity_token, "client_id": "fleet", **query}
            request = self._client.build_request("POST", realm, data=form)
        else:
            headers = {"Authorization": _basic(who)} if who is not None and who.username else {}
            request = self._client.build_request("GET", realm, params=query, headers=headers)
        response = await self._client.send(request, stream=True)
        try:
            await raise_for_status(response, "token", source=realm)
            body = b""
            async for data in response.aiter_bytes(1 << 16):
                body += data
                if len(body) > _TOKEN_BYTES_MAX:
                    raise RejectedFault(f"{realm}: token larger than {_TOKEN_BYTES_MAX} bytes")
        finally:
            await response.aclose()
        document = decode_document(body, f"token from {realm}", bytes_max=_TOKEN_BYTES_MAX)
        token = document.text("token", "") or document.text("access_token", "")
        if not token or not token.isascii() or not token.isprintable():
            raise UnauthorizedError(f"{realm}: answered without a token")
        return token

    def _ssl_context(self) -> ssl.SSLContext | bool:
        own = self._options.ssl_contexts.get(self._domain)
        if own is not None:
            return own
        if self._insecure:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        return True


class _LoginCheck(RegistrySource):
    """A registry asked nothing but whether it knows somebody."""

    def _default_scope(self) -> str:
        return ""

    async def check(self) -> None:
        with translate_errors(self.name):
            url = f"{await self._find_base()}/v2/"
            try:
                response = await self._send_authorized(url, {})
                try:
                    await raise_for_status(response, "login", source=self.name)
                finally:
                    await response.aclose()
            except (UnauthorizedError, ForbiddenError) as error:
                raise UnauthorizedError(f"Get {url!r}: unauthorized: incorrect username or password") from error


async def check_login(server: str, credentials: Credentials, *, options: RegistryOptions | None = None) -> None:
    """Ask a registry whether the credentials are good (``POST /auth``). ``server`` is a host, with or without port, or
    a URL as Docker's file of logins has it; empty is Docker Hub.

    Raises ``UnauthorizedError`` when they are not, ``UnavailableError`` when the registry cannot be reached.
    """
    domain = parse_reference(f"{registry_domain(server)}/login").domain
    source = _LoginCheck(Reference(domain=domain, path="login", tag="latest"), credentials=credentials, options=options)
    try:
        await source.check()
    finally:
        await source.aclose()


def registry_domain(server: str) -> str:
    """The ``host[:port]`` of a registry from what people and Docker's file call it."""
    text = server.strip()
    host = text.partition("://")[2] if "://" in text else text
    host = host.partition("/")[0]
    if host in {"", "docker.io", "index.docker.io", "registry-1.docker.io"}:
        return "docker.io"
    if not any(sign in host for sign in ".:[") and host != "localhost":
        raise UserError(f"{server[:200]!r} is not a registry: expected HOST, HOST:PORT or a URL")
    return host


def is_loopback(domain: str) -> bool:
    """Whether a registry is this host: ``localhost`` or a loopback address, with or without port."""
    host = urlsplit(f"//{domain}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_insecure(domain: str, listed: tuple[str, ...]) -> bool:
    host = urlsplit(f"//{domain}").hostname or ""
    if is_loopback(domain) or domain in listed or host in listed:
        return True
    try:
        address = ipaddress.ip_address(host)
        return any(address in ipaddress.ip_network(item, strict=False) for item in listed if "/" in item)
    except ValueError:
        return False


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()
