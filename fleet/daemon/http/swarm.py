"""``/swarm/init``, ``join``, ``leave``, ``unlock``; backup and restore, which are fleet's own."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet.api.http import json_response, parse_bool, read_struct
from fleet.daemon.joining import InitRequest, JoinSwarmRequest, UnlockRequest
from fleet.daemon.membership import Membership

__all__ = ["swarm_routes"]


def swarm_routes(membership: Membership) -> APIRouter:
    """The router; ``GET /swarm`` and ``/swarm/update`` are the manager's."""
    routes = APIRouter()

    @routes.post("/swarm/init")
    async def init(request: Request) -> Response:
        wanted = await read_struct(request, InitRequest, what="swarm init")
        return json_response(await membership.init(wanted))

    @routes.post("/swarm/join")
    async def join(request: Request) -> Response:
        wanted = await read_struct(request, JoinSwarmRequest, what="swarm join")
        await membership.join(wanted)
        return Response(status_code=200)

    @routes.post("/swarm/leave")
    async def leave(force: str | None = None) -> Response:
        await membership.leave(force=parse_bool(force))
        return Response(status_code=200)

    @routes.get("/fleet/v1/swarm/backup")
    async def backup() -> Response:
        membership.manager()
        return StreamingResponse(membership.backup(), media_type="application/x-ndjson")

    @routes.post("/fleet/v1/swarm/restore")
    async def restore(request: Request) -> Response:
        query = request.query_params
        node_id = await membership.restore(
            request.stream(),
            listen_addr=query.get("listenAddr", ""),
            advertise_addr=query.get("advertiseAddr", ""),
        )
        return json_response({"NodeID": node_id})

    @routes.get("/swarm/unlockkey")
    async def unlock_key() -> Response:
        return json_response({"UnlockKey": membership.manager().admission.cluster().unlock_key})

    @routes.post("/swarm/unlock")
    async def unlock(request: Request) -> Response:
        wanted = await read_struct(request, UnlockRequest, what="swarm unlock")
        await membership.unlock(wanted.unlock_key)
        return Response(status_code=200)

    return routes
