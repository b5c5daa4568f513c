"""What a manager without a majority answers: reads from what it has, marked as possibly old; writes with a refusal at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from fleet import errors
from fleet.manager.majority import Majority

__all__ = ["STALE_HEADER", "StaleState"]

STALE_HEADER: Final = "Fleet-Stale"
"""Seconds since the state that the answer shows was last known to be the newest."""

_CLUSTER: Final = ("/services", "/tasks", "/nodes", "/secrets", "/configs", "/swarm")
_LOCAL: Final = ("/swarm/init", "/swarm/join", "/swarm/leave", "/swarm/unlock")


class StaleState:
    """ASGI middleware. ``majority`` is None where this host is no manager."""

    def __init__(self, app: Any, majority: Callable[[], Majority | None]) -> None:
        self._app = app
        self._majority = majority

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        majority = self._majority() if scope["type"] == "http" else None
        path = scope.get("path", "")
        if majority is None or not majority.is_lost or not path.startswith(_CLUSTER) or path.startswith(_LOCAL):
            await self._app(scope, receive, send)
            return
        age = f"{majority.age_s:.0f}".encode()
        if scope["method"] not in ("GET", "HEAD"):
            try:
                majority.require()
            except errors.UnavailableError as refusal:
                await _refuse(send, str(refusal), age)
                return

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (STALE_HEADER.lower().encode(), age)]
            await send(message)

        await self._app(scope, receive, marked)


async def _refuse(send: Any, text: str, age: bytes) -> None:
    body = json.dumps({"message": text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"2"),
        (STALE_HEADER.lower().encode(), age),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
