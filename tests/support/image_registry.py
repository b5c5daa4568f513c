"""Debian's docker-registry on loopback for the length of a test, and skopeo to fill it."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["registry", "push", "TokenService", "cutting_proxy", "available"]

_BINARY = shutil.which("docker-registry")


def available() -> bool:
    """Whether both programs are installed (apt install docker-registry skopeo)."""
    return _BINARY is not None and shutil.which("skopeo") is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def registry(scratch: Path, *, auth: str = "", tls: str = "") -> Iterator[str]:
    """Run a registry; its ``host:port``. ``auth`` and ``tls`` are YAML pieces of its configuration."""
    assert _BINARY is not None
    scratch.mkdir(parents=True, exist_ok=True)
    for _ in range(5):
        port = free_port()
        config = scratch / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {scratch}/data}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}'{tls}}}\n{auth}"
        )
        with (scratch / "log").open("wb") as log:
            process = subprocess.Popen(
                [_BINARY, "serve", config], stdout=log, stderr=log, env={**os.environ, "OTEL_TRACES_EXPORTER": "none"}
            )
        try:
            if not _wait_for(port, process):
                continue
            yield f"127.0.0.1:{port}"
            return
        finally:
            process.terminate()
            process.wait(10)
    raise AssertionError((scratch / "log").read_text())


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.03)
    return False


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
