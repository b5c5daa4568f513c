"""An engine API server on a unix socket with answers given beforehand; it remembers what it was asked.

Only for unit tests of the command line: a route that was not given answers 404 ``page not found``, and a body that is
not JSON where JSON is announced fails the request, as the real one would. Paths are taken with and without the API's version.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclasses.dataclass(frozen=True)
class Request:
    """One call; ``query`` has the first value of each name, filters parsed."""

    method: str
    path: str
    query: dict[str, Any]
    headers: dict[str, str]
    body: Any


@dataclasses.dataclass(frozen=True)
class Reply:
    status: int = 200
    body: Any = None
    raw: bytes | None = None


Answer = Reply | Callable[[Request], Reply] | dict[str, Any] | list[Any] | str | None


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    engine: FakeEngine

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is printed as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


DIGEST = f"sha256:{'d' * 64}"
"""Of every image."""


class FakeEngine:
    """``with FakeEngine(path) as engine: engine.on("GET", "/nodes", [...])``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[Request] = []
        self._routes: list[tuple[str, re.Pattern[str], Answer]] = [
            ("GET", re.compile("/distribution/.*"), {"Descriptor": {"digest": DIGEST}})
        ]
        self._server = _Server(str(path), _Handler)
        self._server.engine = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def on(self, method: str, path: str, answer: Answer) -> None:
        """``path`` is a regular expression for the whole path; the newest route wins."""
        self._routes.insert(0, (method, re.compile(path), answer))

    def answer(self, request: Request) -> Reply:
        self.requests.append(request)
        for method, pattern, answer in self._routes:
            if method == request.method and pattern.fullmatch(request.path):
                if callable(answer):
                    return answer(request)
                return answer if isinstance(answer, Reply) else Reply(body=answer)
        return Reply(404, {"message": "page not found"})

    def sent(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and re.fullmatch(path, r.path)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query: dict[str, Any] = {}
        for name, values in parse_qs(parts.query, keep_blank_values=True).items():
            query[name] = json.loads(values[0]) if name == "filters" else values if len(values) > 1 else values[0]
        data = self._body()
        body: Any = data
        if self.headers.get("Content-Type") == "application/json":
            body = json.loads(data)
        path = re.sub(r"^/v\d+\.\d+/", "/", parts.path)
        request = Request(self.command, path, query, {k.lower(): v for k, v in self.headers.items()}, body)
        reply = self.server.engine.answer(request)
        if reply.raw is not None:
            content, kind = reply.raw, "application/octet-stream"
        else:
            content = b"" if reply.body is None else json.dumps(reply.body).encode()
            kind = "application/json"
        self.send_response(reply.status)
        self.send_header("Content-Type", kind)
        self.send_header("Api-Version", "1.47")
        self.send_header("Ostype", "linux")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - the base class names them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
