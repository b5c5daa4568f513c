"""A small HTTP/1.1 client for the engine API over a unix socket or TCP with TLS.

Standard library only, because every ``fleet`` command pays for its imports (httpx costs 100 ms of start-up, this 15).
It is synchronous: the command line does one thing at a time. Streams (logs, events, uploads) travel in chunks.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self, cast
from urllib.parse import urlencode, urlsplit

from fleet import errors
from fleet.api.tls_socket import TlsSocket

__all__ = ["API_VERSION", "STALE_HEADER", "EngineClient", "EngineError"]

API_VERSION: Final = "1.47"
"""The engine API version this client speaks (Docker's numbering)."""

STALE_HEADER: Final = "Fleet-Stale"
"""In a manager's answer: seconds since the state it shows was last known to be the newest. Absent while it is."""

_MAX_BODY: Final = 256 * 1024 * 1024
_CHUNK: Final = 64 * 1024


class EngineError(errors.FleetError):
    """The daemon answered with an error status; ``status`` is HTTP's, the text is the daemon's."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.http_status = status
        self.exit_code = 1
        self.transient = status in (429, 503, 507)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("fleet", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EngineClient:
    """Calls the engine API at ``url`` (``unix:///path`` or ``tcp://host:port``).

    Raises ``UnavailableError`` when nobody listens there, ``EngineError`` for every HTTP status of 400 and above.
    One connection is kept and reused; not thread-safe. ``token`` goes with every request: the caller sees to it that
    ``url`` and ``tls`` keep it from others.
    """

    def __init__(
        self, url: str, *, tls: ssl.SSLContext | None = None, timeout_s: float | None = 60.0, token: str = ""
    ) -> None:
        self.url = url
        self.stale_s: str | None = None
        """Seconds since what a manager last showed was known to be the newest; None while it is."""
        self.tls = tls
        """Of the connection; None without TLS, and for ``https`` with what this machine trusts."""
        self._timeout_s = timeout_s
        self.credentials: Mapping[str, str] = {"Authorization": f"Bearer {token}"} if token else {}
        """Headers that say who asks."""
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, self._timeout_s)
        if parts.scheme in ("tcp", "http", "https"):
            if not parts.hostname:
                raise errors.UserError(f"{self.url}: no host in it; expected tcp://HOST:PORT")
            if self.tls is not None or parts.scheme == "https":
                return http.client.HTTPSConnection(
                    parts.hostname, parts.port or 2376, context=self.tls, timeout=self._timeout_s
                )
            return http.client.HTTPConnection(parts.hostname, parts.port or 2375, timeout=self._timeout_s)
        raise errors.UserError(f"{self.url}: unknown scheme; expected unix:///path or tcp://HOST:PORT")

    def dial(self) -> socket.socket | TlsSocket:
        """A connection of its own, for a conversation that stops being HTTP. Raises ``OSError`` when there is none to be had."""
        connection = self._connect()
        if not isinstance(connection, http.client.HTTPSConnection):
            connection.connect()
            return cast(socket.socket, connection.sock)
        sock = socket.create_connection((connection.host, connection.port), self._timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return TlsSocket(sock, self.tls or ssl.create_default_context(), server_hostname=connection.host)

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        target = path + (
            "?" + urlencode({k: _query_value(v) for k, v in query.items() if v is not None}) if query else ""
        )
        connection = self._connection or self._connect()
        self._connection = None
        try:
            connection.request(
                method,
                target,
                body=body,
                headers={**headers, **self.credentials},
                encode_chunked=body is not None and not isinstance(body, bytes),
            )
            response = connection.getresponse()
        except (ConnectionError, FileNotFoundError, TimeoutError, http.client.HTTPException, OSError) as cause:
            connection.close()
            raise errors.UnavailableError(
                f"cannot reach the fleet daemon at {self.url}: {cause}; is fleetd running?"
            ) from cause
        self.stale_s = response.headers.get(STALE_HEADER)
        if response.status >= 400:
            text = response.read(_MAX_BODY)
            connection.close()
            raise EngineError(_error_text(text, response.reason), status=response.status)
        response.fleet_connection = connection  # type: ignore[attr-defined]
        return response

    def _finish(self, response: http.client.HTTPResponse) -> None:
        connection: http.client.HTTPConnection = response.fleet_connection  # type: ignore[attr-defined]
        if response.isclosed() and not response.will_close:
            self._connection = connection
        else:
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        json_body: object = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One call; returns the parsed JSON body, or ``None`` when it is empty. ``body`` iterables are sent chunked."""
        sent = dict(headers or {})
        if json_body is not None:
            body = json.dumps(json_body).encode()
            sent.setdefault("Content-Type", "application/json")
        elif body is not None:
            sent.setdefault("Content-Type", "application/x-tar")
        response = self._send(method, path, query=query, body=body, headers=sent)
        data = response.read(_MAX_BODY)
        if not response.isclosed() and response.read(1):
            raise errors.TooLargeError(f"{method} {path}: the answer is larger than {_MAX_BODY} bytes")
        self._finish(response)
        if not data:
            return None
        if "json" in (response.getheader("Content-Type") or "json"):
            return json.loads(data)
        return data.decode(errors="replace")

    def get(self, path: str, **query: object) -> Any:
        """``GET`` with query parameters; dicts and lists become JSON, booleans ``1``/``0``."""
        return self.request("GET", path, query=query or None)

    def post(self, path: str, json_body: object = None, **query: object) -> Any:
        """``POST`` a JSON body."""
        return self.request("POST", path, query=query or None, json_body=json_body if json_body is not None else {})

    def delete(self, path: str, **query: object) -> Any:
        """``DELETE``."""
        return self.request("DELETE", path, query=query or None)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """A call whose answer is read as it arrives; yields an iterator of chunks."""
        response = self._send(method, path, query=query, body=body, headers=headers or {})

        def chunks() -> Iterator[bytes]:
            while data := response.read1(_CHUNK):
                yield data

        try:
            yield chunks()
        finally:
            response.fleet_connection.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the kept connection; idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _query_value(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def _error_text(body: bytes, reason: str) -> str:
    try:
        parsed = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip() or reason
    message = parsed.get("message") if isinstance(parsed, dict) else None
    return str(message) if message else reason
