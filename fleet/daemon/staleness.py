"""What a manager without a majority answers: reads from what it has, marked as possibly old; writes with a refusal at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fleet import errors
from fleet.api.client import STALE_HEADER
from fleet.api.http import problem
from fleet.manager.majority import Majority

__all__ = ["StaleState"]

_CLUSTER: Final = (
    "/services", "/tasks", "/nodes", "/secrets", "/configs", "/swarm", "/fleet/v1/users", "/fleet/v1/tokens",
    "/fleet/v1/usage", "/fleet/v1/watch",
)  # fmt: skip
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

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (STALE_HEADER.lower().encode(), age)]
            await send(message)

        if scope["method"] not in ("GET", "HEAD"):
            try:
                majority.require()
            except errors.UnavailableError as refusal:
                await problem(refusal)(scope, receive, marked)
                return
        await self._app(scope, receive, marked)
