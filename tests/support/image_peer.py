"""A node that gives its images away: the two peer routes over plain HTTP on loopback, with faults to order."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fleet.errors import FleetError
from fleet.images import ImageStore

__all__ = ["PeerServer"]


class PeerServer:
    """Serves a store's manifests and blobs while the context lasts. ``blob_requests`` lists (digest, offset) as asked.

    ``break_off_after``: every blob answer ends after so many bytes, in the middle. ``flip_byte_at``: blobs longer than
    this are wrong there.
    """

    def __init__(
        self, store: ImageStore, *, break_off_after: int | None = None, flip_byte_at: int | None = None
    ) -> None:
        self.blob_requests: list[tuple[str, int]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                try:
                    if url.path == "/cluster/v1/images/manifest":
                        manifest = store.manifest(parse_qs(url.query)["reference"][0])
                        headers = {"Content-Type": manifest.media_type, "Docker-Content-Digest": manifest.digest}
                        self._answer(200, manifest.body, headers)
                    elif url.path.startswith("/cluster/v1/blobs/"):
                        self._blob(url.path.rpartition("/")[2])
                    else:
                        self._answer(404, b"no such route")
                except FleetError as error:
                    self._answer(error.http_status, str(error).encode())

            def _blob(self, digest: str) -> None:
                body = bytearray(store.blob_path(digest).read_bytes())
                wanted = self.headers.get("Range", "bytes=0-")
                offset = int(wanted.removeprefix("bytes=").rstrip("-"))
                owner.blob_requests.append((digest, offset))
                if flip_byte_at is not None and len(body) > flip_byte_at:
                    body[flip_byte_at] ^= 1
                headers = {"Content-Range": f"bytes {offset}-{len(body) - 1}/{len(body)}"} if offset else {}
                piece = bytes(body[offset:])
                self._answer(206 if offset else 200, piece, headers, cut=break_off_after)

            def _answer(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
            ) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])
                if cut is not None and cut < len(body):
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}" if isinstance(host, str) else ""

    def __enter__(self) -> PeerServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
