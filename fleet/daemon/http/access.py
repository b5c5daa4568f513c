"""``GET /fleet/v1/whoami``: whom this daemon takes the caller for."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response
from fleet.daemon.access.principal import LOCAL, PRINCIPAL, Principal

__all__ = ["access_routes"]


def access_routes() -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.get("/fleet/v1/whoami")
    async def whoami(request: Request) -> Response:
        principal: Principal = request.scope.get(PRINCIPAL, LOCAL)
        return json_response(
            {
                "User": principal.user,
                "Role": principal.role.value,
                "Scope": [dict(selector) for selector in principal.scope],
                "HostAccess": principal.reaches_hosts,
                "TokenID": principal.token_id,
            }
        )

    return routes
