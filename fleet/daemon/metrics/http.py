"""``GET /metrics`` of the engine API: whoever may ask there for anything else may ask for this."""

from __future__ import annotations

from fastapi import APIRouter, Response

from fleet.daemon.metrics.exposition import Exposition
from fleet.metrics import CONTENT_TYPE

__all__ = ["metrics_routes"]


def metrics_routes(exposition: Exposition) -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(await exposition.text(), headers={"Content-Type": CONTENT_TYPE})

    return routes
