"""Requests to the engine API by route, method and code, and how long their answers took to begin."""

from __future__ import annotations

import time
from typing import Any, Final

from fleet.metrics import OTHER, Counter, Family, Histogram

__all__ = ["RequestFigures"]

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})


class RequestFigures:
    """ASGI middleware. Routes are counted by their pattern, so names in paths make no series; what no route answers is
    ``other``. Time is taken to the first byte of the answer: a log that is followed for an hour did not take an hour."""

    def __init__(self) -> None:
        self._total = Counter("fleet_api_requests_total", "Requests answered", ("route", "method", "code"))
        self._latency = Histogram(
            "fleet_api_request_seconds", "From a request's head to the first byte of its answer", ("route", "method")
        )
        self.limited = Counter(
            "fleet_api_limited_requests_total", "Requests refused with 429, by the limit they were over", ("limit",)
        )
        """Limits: ``client``, ``address``, ``authentication``."""

    def around(self, app: Any) -> Any:
        """``app``, counted."""

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.perf_counter()
            code = 0

            async def watched(message: Any) -> None:
                nonlocal code
                if message["type"] == "http.response.start" and not code:
                    code = message["status"]
                    self._note(scope, str(code), time.perf_counter() - began)
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                if not code:  # attach and exec took the connection over, or the client left before an answer
                    self._note(scope, "none", None)

        return counted

    def _note(self, scope: Any, code: str, took_s: float | None) -> None:
        route = getattr(scope.get("route"), "path", OTHER)
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        self._total.inc(route, method, code)
        if took_s is not None:
            self._latency.observe(took_s, route, method)

    def families(self) -> list[Family]:
        """As they are now."""
        return [self._total.family(), self._latency.family(), self.limited.family()]
