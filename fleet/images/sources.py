"""Where images come from: one small protocol, spoken by registries and by the other nodes.

A source hands out manifests by reference and blobs by digest. It is never trusted: ``Manifest.digest`` is computed
from the body by the source object, and the fetcher checks every blob. Sources raise ``NotFoundError`` (ask the next
one), ``UnavailableError`` (try again) or another ``FleetError`` (this source will not do).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import quote

import httpx

from fleet.errors import ForbiddenError, NotFoundError, RejectedFault, UnauthorizedError, UnavailableError
from fleet.images.manifest import INDEX_TYPES, MANIFEST_BYTES_MAX, MANIFEST_TYPES, Manifest, digest_of
from fleet.images.reference import check_digest, parse_reference

__all__ = [
    "Source",
    "PeerSource",
    "read_manifest_response",
    "stream_blob",
    "open_blob",
    "raise_for_status",
    "translate_errors",
    "TIMEOUT",
]

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_ACCEPT = ", ".join(INDEX_TYPES + MANIFEST_TYPES)
_CHUNK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Source(Protocol):
    """A place to get images from."""

    @property
    def name(self) -> str:
        """For messages: a registry's or peer's address."""
        ...

    async def manifest(self, reference: str) -> Manifest:
        """The manifest or index a reference names; of exactly the reference's digest, if it has one."""
        ...

    def blob(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on, unchecked."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


class PeerSource:
    """Another node of the cluster, spoken to over mutual TLS.

    ``GET {base}/cluster/v1/images/manifest?reference=R`` answers the body with ``Content-Type`` and
    ``Docker-Content-Digest``; ``GET {base}/cluster/v1/blobs/{digest}`` answers the bytes and honours ``Range:
    bytes=N-``.
    """

    def __init__(self, base_url: str, ssl_context: ssl.SSLContext | None = None, *, limit_connections: int = 8) -> None:
        self._base = base_url.rstrip("/")
        self._client = httpx.AsyncClient(
            verify=ssl_context if ssl_context is not None else True,
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=limit_connections),
            trust_env=False,  # a proxy set for registries is not for the cluster
        )

    @property
    def name(self) -> str:
        return self._base

    async def manifest(self, reference: str) -> Manifest:
        url = f"{self._base}/cluster/v1/images/manifest?reference={quote(reference, safe='')}"
        with translate_errors(self.name):
            async with self._client.stream("GET", url, headers={"Accept": _ACCEPT}) as response:
                return await read_manifest_response(response, reference, source=self.name)

    async def blob(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        url = f"{self._base}/cluster/v1/blobs/{check_digest(digest)}"
        with translate_errors(self.name):
            async with open_blob(self._client, url, offset=offset) as response:
                async for data in stream_blob(response, digest, offset=offset, source=self.name):
                    yield data

    async def aclose(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def open_blob(
    client: httpx.AsyncClient, url: str, *, offset: int, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """GET with a Range header when resuming. ``Accept-Encoding: identity``: a layer's gzip is content, not transport."""
    wanted = {"Accept-Encoding": "identity", **(headers or {})}
    if offset:
        wanted["Range"] = f"bytes={offset}-"
    async with client.stream("GET", url, headers=wanted, follow_redirects=False) as response:
        yield response


async def stream_blob(response: httpx.Response, digest: str, *, offset: int, source: str) -> AsyncIterator[bytes]:
    """The response's bytes from ``offset`` on, whether or not the server honoured the range."""
    await raise_for_status(response, f"blob {digest}", source=source)
    skip = offset
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            raise RejectedFault(f"{source}: blob {digest}: asked from byte {offset}, got another range")
        skip = 0
    async for data in response.aiter_raw(_CHUNK):
        if skip >= len(data):
            skip -= len(data)
            continue
        yield data[skip:]
        skip = 0


async def read_manifest_response(response: httpx.Response, reference: str, *, source: str) -> Manifest:
    """A manifest from an HTTP answer; its digest is computed, and must be the header's and the reference's if they
    name one.
    """
    await raise_for_status(response, f"manifest {reference}", source=source)
    body = b""
    async for data in response.aiter_bytes(_CHUNK):
        body += data
        if len(body) > MANIFEST_BYTES_MAX:
            raise RejectedFault(f"{source}: manifest {reference}: larger than {MANIFEST_BYTES_MAX} bytes")
    digest = digest_of(body)
    asked = parse_reference(reference).digest
    claimed = response.headers.get("Docker-Content-Digest")
    for expected in (asked, claimed):
        if expected and expected != digest:
            raise RejectedFault(f"{source}: manifest {reference}: content has digest {digest}, not {expected[:80]}")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return Manifest(media_type=media_type, digest=digest, body=body)


async def raise_for_status(response: httpx.Response, what: str, *, source: str) -> None:
    """Turn an HTTP status into the error that says who must act."""
    status = response.status_code
    if status in {200, 206}:
        return
    text = f"{source}: {what}: HTTP {status}"
    detail = await _error_detail(response)
    if detail:
        text = f"{text}: {detail}"
    if status == 401:
        raise UnauthorizedError(f"{text} (log in, or the image does not exist)")
    if status == 403:
        raise ForbiddenError(text)
    if status in {404, 410}:
        raise NotFoundError(text)
    if status in {408, 425, 429} or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise UnavailableError(text, retry_after_s=float(after) if after.isdecimal() and len(after) < 6 else None)
    raise RejectedFault(text)


async def _error_detail(response: httpx.Response) -> str:
    """The first KiB of an error body on one line."""
    body = b""
    async for data in response.aiter_bytes(1024):
        body += data
        break
    text = " ".join(body[:1024].decode(errors="replace").split())[:300]
    return "".join(sign if sign.isprintable() else "?" for sign in text)  # it is for a terminal


class translate_errors:  # noqa: N801 - reads as a verb where it is used
    """Transport errors become ``UnavailableError`` with the address: they may go away by themselves."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, httpx.HTTPError):
            raise UnavailableError(f"{self._source}: {str(error) or type(error).__name__}") from error
        if isinstance(error, httpx.InvalidURL | httpx.StreamError):
            raise RejectedFault(f"{self._source}: {error}") from error
