"""A registry as a source: the read side of the OCI distribution API (v1.1), as Docker's registries speak it.

Credentials go only to the registry, or to the token service it names, never along a redirect to another host (blobs
usually live on one), and never to a mirror. Plain HTTP is spoken only with loopback addresses, hosts the operator listed
and mirrors named with ``http://``; with the first two HTTPS is tried first, unverified, as Docker does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from fleet.clock import Clock, SystemClock
from fleet.errors import ForbiddenError, RejectedFault, RuntimeFault, UnauthorizedError, UnavailableError, UserError
from fleet.images.manifest import INDEX_TYPES, MANIFEST_TYPES, Manifest
from fleet.images.reference import Reference, check_digest, parse_reference
from fleet.images.registry_auth import Authorizer, Credentials, parse_registry_auth
from fleet.images.sources import (
    TIMEOUT,
    Source,
    raise_for_status,
    read_manifest_response,
    stream_blob,
    translate_errors,
)

__all__ = [
    "Credentials",
    "RegistryOptions",
    "RegistrySource",
    "check_login",
    "is_loopback",
    "parse_mirrors",
    "parse_registry_auth",
    "registry_domain",
    "registry_sources",
]

_ACCEPT = ", ".join(INDEX_TYPES + MANIFEST_TYPES)
_HUB = "docker.io"
_HOSTS = {_HUB: "registry-1.docker.io"}
_REDIRECTS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How this host reaches registries."""

    insecure_registries: tuple[str, ...] = ()
    """``host``, ``host:port`` or networks (``10.0.0.0/8``) to trust without certificates and over plain HTTP."""
    ssl_contexts: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    """Per ``host[:port]``: own authorities or client certificates."""
    certificates: Path | None = None
    """A folder as Docker's ``certs.d``: ``HOST[:PORT]/*.crt`` are authorities to trust besides the system's, ``X.cert`` with
    ``X.key`` is shown to the registry."""
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per registry: addresses (``https://host[:port]``) that hold copies, asked first, in order."""
    connections_max: int = 8
    unreachable: str = ""
    """Why no registry can be reached from here; "" when they can."""


def parse_mirrors(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``URL`` (of a mirror of Docker Hub, as in Docker) or ``REGISTRY=URL`` each, for ``RegistryOptions.mirrors``.

    Raises ``UserError`` with the one that is wrong.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        registry, separator, url = text.rpartition("=")
        domain = registry_domain(registry) if separator else _HUB
        parts = urlsplit(url)
        try:
            wrong = parts.scheme not in {"http", "https"} or not parts.hostname or (parts.port or 1) < 1
        except ValueError:
            wrong = True
        if wrong or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
            raise UserError(
                f"registry mirror {text[:200]!r}: expected [REGISTRY=]http[s]://HOST[:PORT], without path, query and user name"
            )
        base = f"{parts.scheme}://{parts.netloc}"
        if base not in found.get(domain, ()):
            found[domain] = (*found.get(domain, ()), base)
    return found


def registry_sources(
    reference: str, *, credentials: Credentials | None = None, options: RegistryOptions
) -> list[Source]:
    """Where a registry's image is fetched from: its mirrors, then itself. Credentials are the registry's only."""
    domain = parse_reference(reference).domain
    mirrors = [RegistrySource(reference, options=options, mirror=url) for url in options.mirrors.get(domain, ())]
    return [*mirrors, RegistrySource(reference, credentials=credentials, options=options)]


class RegistrySource:
    """One repository of one registry. Make one for each reference to fetch; ``aclose`` it afterwards."""

    def __init__(
        self,
        reference: str | Reference,
        *,
        credentials: Credentials | None = None,
        options: RegistryOptions | None = None,
        mirror: str = "",
        clock: Clock | None = None,
        offline: bool = False,
    ) -> None:
        """``mirror``: ask this address (``https://host[:port]``) for the registry's content."""
        parsed = parse_reference(reference) if isinstance(reference, str) else reference
        self._options = options or RegistryOptions()
        self._domain = urlsplit(mirror).netloc if mirror else parsed.domain
        self._host = _HOSTS.get(self._domain, self._domain)
        self._repository = parsed.path
        self._ssl = self._own_ssl_context()
        self._insecure = self._ssl is None and _is_insecure(self._domain, self._options.insecure_registries)
        self._base: str | None = mirror if mirror.startswith("http://") else None
        self._finding = asyncio.Lock()
        self._client = httpx.AsyncClient(
            verify=self._ssl_context(),
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=self._options.connections_max),
            follow_redirects=False,
            trust_env=not is_loopback(self._domain),
            headers={"User-Agent": "fleet"},
        )
        self._authorizer = Authorizer(
            self._client,
            registry=self._domain,
            credentials=credentials,
            allows_http=self._insecure or self._base is not None,
            clock=clock or SystemClock(),
            offline=offline,
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
        authorization = await self._authorizer.header()
        response = await self._send(url, headers, authorization, method, content)
        if response.status_code == 401:
            challenges = response.headers.get_list("WWW-Authenticate")
            await response.aclose()
            authorization = await self._authorizer.answer(
                challenges, refused=authorization, scopes=self._scopes(), what=self._repository
            )
            response = await self._send(url, headers, authorization, method, content)
        if method not in {"GET", "HEAD"}:
            return response
        own = urlsplit(url)
        for _ in range(_REDIRECTS_MAX):
            if response.status_code not in {301, 302, 303, 307, 308}:
                return response
            target = urljoin(url, response.headers.get("Location", ""))
            await response.aclose()
            there = urlsplit(target)
            if there.scheme != "https" and not (there.scheme == "http" and (self._insecure or own.scheme == "http")):
                raise RejectedFault(f"{self.name}: redirects to {there.scheme}://{there.netloc}, which is not HTTPS")
            same = (there.scheme, there.netloc) == (own.scheme, own.netloc)
            url = target
            response = await self._send(url, headers, authorization if same else "", method)
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
        async with self._finding:
            if self._options.unreachable:
                raise RejectedFault(f"{self.name}: no network beyond this host: {self._options.unreachable}")
            if self._base is None:
                base = f"https://{self._host}"
                if self._insecure:
                    try:
                        await self._client.get(f"{base}/v2/")
                    except httpx.HTTPError:
                        base = f"http://{self._host}"
                self._base = base
            return self._base

    def _scopes(self) -> tuple[str, ...]:
        """What to ask the token service for, whatever the challenge says."""
        return (f"repository:{self._repository}:pull",)

    def _own_ssl_context(self) -> ssl.SSLContext | None:
        own = self._options.ssl_contexts.get(self._domain)
        if own is None and self._options.certificates is not None:
            own = _load_certificates(self._options.certificates / self._domain)
        return own

    def _ssl_context(self) -> ssl.SSLContext | bool:
        if self._ssl is not None:
            return self._ssl
        if self._insecure:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        return True


class _LoginCheck(RegistrySource):
    """A registry asked nothing but whether it knows somebody."""

    def _scopes(self) -> tuple[str, ...]:
        return ()

    async def check(self) -> str:
        """A refresh token, where the token service gives them."""
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
            return self._authorizer.refresh_token


async def check_login(server: str, credentials: Credentials, *, options: RegistryOptions | None = None) -> str:
    """Ask a registry whether the credentials are good (``POST /auth``). ``server`` is a host, with or without port, or
    a URL as Docker's file of logins has it; empty is Docker Hub. The refresh token to keep instead of the password, if the
    registry's token service gives one.

    Raises ``UnauthorizedError`` when they are not, ``UnavailableError`` when the registry cannot be reached.
    """
    domain = parse_reference(f"{registry_domain(server)}/login").domain
    reference = Reference(domain=domain, path="login", tag="latest")
    source = _LoginCheck(reference, credentials=credentials, options=options, offline=True)
    try:
        return await source.check()
    finally:
        await source.aclose()


def registry_domain(server: str) -> str:
    """The ``host[:port]`` of a registry from what people and Docker's file call it."""
    text = server.strip()
    host = text.partition("://")[2] if "://" in text else text
    host = host.partition("/")[0]
    if host in {"", "docker.io", "index.docker.io", "registry-1.docker.io"}:
        return _HUB
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


def _load_certificates(folder: Path) -> ssl.SSLContext | None:
    """The TLS context of one registry's folder of certificates; None when it has none. ``RuntimeFault`` if they are no good."""
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix in {".crt", ".cert"})
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not names:
        return None
    context = ssl.create_default_context()
    path = folder
    try:
        for path in names:
            if path.suffix == ".crt":
                context.load_verify_locations(cafile=path)
            else:
                context.load_cert_chain(path, path.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise RuntimeFault(f"certificates of registry {folder.name}: {path}: {error}") from error
    return context
