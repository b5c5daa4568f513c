"""Everything together, at most once a second however many ask, and the application of the listener of its own."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.daemon.membership import Membership
from fleet.daemon.metrics.cluster import cluster_families
from fleet.daemon.metrics.host import host_families
from fleet.daemon.metrics.process import process_families
from fleet.daemon.metrics.requests import RequestFigures
from fleet.images import ImageStore
from fleet.metrics import CONTENT_TYPE, Family, Sample, render

__all__ = ["Exposition", "metrics_app"]

_FRESH_S: Final = 1.0


class Exposition:
    """One a daemon."""

    def __init__(
        self,
        *,
        membership: Membership,
        engine: ContainerEngine,
        images: ImageStore,
        requests: RequestFigures,
        clock: Clock,
    ) -> None:
        self._membership = membership
        self._engine = engine
        self._images = images
        self._requests = requests
        self._clock = clock
        self._gathering = asyncio.Lock()
        self._text = b""
        self._gathered = float("-inf")

    async def text(self) -> bytes:
        """The exposition, up to a second old."""
        async with self._gathering:
            if self._clock.monotonic() - self._gathered >= _FRESH_S:
                self._text = render(await self._gather())
                self._gathered = self._clock.monotonic()
            return self._text

    async def _gather(self) -> list[Family]:
        membership = self._membership
        families = [*process_families(), *self._requests.families(), *self._session()]
        families += await host_families(self._engine, self._images)
        if membership.has_control:
            families += cluster_families(membership.manager(), raft_term=membership.raft_term)
        return families

    def _session(self) -> list[Family]:
        agent = self._membership.agent
        if agent is None:
            return []
        connected = Sample((), int(agent.session.connected.is_set()))
        return [
            Family("fleet_agent_connected", "Whether the agent has a session with the leader", "gauge", [connected]),
            agent.session.beats.family(),
        ]


def metrics_app(exposition: Exposition) -> Any:
    """``GET /metrics`` and nothing else."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("the metrics listener speaks HTTP only")
        status, body, kind = 404, b"this listener has /metrics alone\n", "text/plain; charset=utf-8"
        if scope["path"] == "/metrics":
            status, body = 405, b"GET /metrics\n"
            if scope["method"] in ("GET", "HEAD"):
                status, body, kind = 200, await exposition.text(), CONTENT_TYPE
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
