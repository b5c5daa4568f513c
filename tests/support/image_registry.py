"""Debian's docker-registry on loopback for the length of a test, and skopeo to fill it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

__all__ = [
    "Logged",
    "registry",
    "requests_of",
    "push",
    "TokenService",
    "cutting_proxy",
    "refusing_proxy",
    "stalling_proxy",
    "available",
]

_BINARY = shutil.which("docker-registry")


def available() -> bool:
    """Whether both programs are installed (apt install docker-registry skopeo)."""
    return _BINARY is not None and shutil.which("skopeo") is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def registry(
    scratch: Path, *, auth: str = "", tls: str = "", logs_access: bool = False, address: str = "127.0.0.1"
) -> Iterator[str]:
    """Run a registry; its ``host:port``. ``auth`` and ``tls`` are YAML pieces of its configuration. ``requests_of`` reads the
    log that ``logs_access`` makes it write.
    """
    assert _BINARY is not None
    scratch.mkdir(parents=True, exist_ok=True)
    for _ in range(5):
        port = free_port()
        config = scratch / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: {str(not logs_access).lower()}}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {scratch}/data}}}}\n"
            f"http: {{addr: '{address}:{port}'{tls}}}\n{auth}"
        )
        with (scratch / "log").open("wb") as log:
            process = subprocess.Popen(
                [_BINARY, "serve", config], stdout=log, stderr=log, env={**os.environ, "OTEL_TRACES_EXPORTER": "none"}
            )
        try:
            if not _wait_for(address, port, process):
                continue
            yield f"{address}:{port}"
            return
        finally:
            process.terminate()
            process.wait(10)
    raise AssertionError((scratch / "log").read_text())


def _wait_for(address: str, port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return True
        time.sleep(0.03)
    return False


def htpasswd_auth(scratch: Path, users: dict[str, str]) -> str:
    """The piece of the registry's configuration that asks for these names and passwords. Skips where crypt(3) is not."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        crypt = pytest.importorskip("crypt", reason="needs crypt(3) in Python to make a bcrypt hash")
    lines = [f"{user}:{crypt.crypt(password, '$2y$05$abcdefghijklmnopqrstuu')}\n" for user, password in users.items()]
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "htpasswd").write_text("".join(lines))
    return f"auth: {{htpasswd: {{realm: here, path: {scratch}/htpasswd}}}}\n"


class Logged(NamedTuple):
    """One request as the registry saw it."""

    method: str
    path: str
    status: int
    sent_bytes: int


_LINE = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d+) (\d+) ')


def requests_of(scratch: Path) -> list[Logged]:
    """What a registry with ``logs_access`` below ``scratch`` was asked so far, in the order in which it finished answering."""
    found = _LINE.finditer((scratch / "log").read_text(errors="replace"))
    return [Logged(match[1], match[2], int(match[3]), int(match[4])) for match in found]


def blob_file(scratch: Path, digest_hex: str) -> Path:
    """Where the registry below ``scratch`` keeps a blob."""
    return scratch / "data/docker/registry/v2/blobs/sha256" / digest_hex[:2] / digest_hex / "data"


def push(layout: Path, target: str, *options: str, tag: str = "tiny") -> None:
    """Copy an image from an OCI layout to ``host:port/name:tag``."""
    command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", *options]
    done = subprocess.run(
        [*command, f"oci:{layout}:{tag}", f"docker://{target}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class TokenService:
    """Hands out bearer tokens to one user. ``requests`` lists (authorization, scope, service) as asked."""

    def __init__(self, *, authorization: str) -> None:
        self.requests: list[tuple[str, str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                said = self.headers.get("Authorization", "")
                owner.requests.append((said, query.get("scope", [""])[0], query.get("service", [""])[0]))
                good = said == authorization
                self.send_response(200 if good else 401)
                self.end_headers()
                self.wfile.write(
                    b'{"token":"open-sesame","expires_in":300}' if good else b'{"details":"wrong password"}'
                )

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> TokenService:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _CuttingProxy:
    """Passes requests on and breaks every answer off after ``cut_bytes``; ``ranges`` lists the Range headers seen."""

    def __init__(self, target: str, cut_bytes: int) -> None:
        self.ranges: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                connection = http.client.HTTPConnection(target, timeout=10)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "connection"}}
                if "Range" in headers:
                    owner.ranges.append(headers["Range"])
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in {"connection", "transfer-encoding", "content-length"}:
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut_bytes])
                if len(body) > cut_bytes:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> _CuttingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def cutting_proxy(target: str, *, cut_bytes: int) -> _CuttingProxy:
    """A proxy in front of a registry that breaks off every answer after ``cut_bytes``."""
    return _CuttingProxy(target, cut_bytes)


class _RefusingProxy:
    """Passes requests on, but refuses the first of every method; ``refused`` lists those."""

    def __init__(self, target: str, status: int) -> None:
        self.refused: set[str] = set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: Any) -> None:
                pass

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command not in owner.refused and self.path != "/v2/":
                    owner.refused.add(self.command)
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(target, timeout=10)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, body=body, headers=headers)
                answer = connection.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in {"connection", "transfer-encoding", "content-length"}:
                        self.send_header(key, value)
                self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _pass  # noqa: N815 - the base class's names

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> _RefusingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def refusing_proxy(target: str, *, status: int) -> _RefusingProxy:
    """A proxy in front of a registry that refuses the first request of every method."""
    return _RefusingProxy(target, status)


class _StallingProxy:
    """Passes requests on; while ``is_stalling`` it stops every blob after ``after_bytes`` and holds the connection open, until
    the other side closes it. ``stalled`` counts the blobs it holds.
    """

    def __init__(self, target: str, after_bytes: int, address: str) -> None:
        self.is_stalling = True
        self.stalled = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                with contextlib.closing(http.client.HTTPConnection(target, timeout=30)) as connection:
                    connection.request("GET", self.path, headers=headers)
                    with connection.getresponse() as answer:
                        self._pass_on(answer)

            def _pass_on(self, answer: http.client.HTTPResponse) -> None:
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in {"connection", "transfer-encoding"}:
                        self.send_header(key, value)
                self.end_headers()
                sent = 0
                while data := answer.read(1 << 16):
                    if owner.is_stalling and "/blobs/" in self.path and sent >= after_bytes:
                        owner.stalled += 1
                        with contextlib.suppress(OSError):
                            self.connection.recv(1)  # until the client is gone, however it went
                        break
                    with contextlib.suppress(OSError):
                        self.wfile.write(data)
                    sent += len(data)

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.address = f"{address}:{self._server.server_address[1]}"

    def __enter__(self) -> _StallingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def stalling_proxy(target: str, *, after_bytes: int, address: str = "127.0.0.1") -> _StallingProxy:
    """A proxy in front of a registry that stops in the middle of blobs."""
    return _StallingProxy(target, after_bytes, address)
