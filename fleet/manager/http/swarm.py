"""GET /swarm and POST /swarm/update; founding, joining and leaving are the daemon's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response, parse_bool
from fleet.api.render import swarm_json
from fleet.manager.http.request import Control, read_json, version_of
from fleet.model import wire
from fleet.model.cluster import SwarmSpec

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """Inspect and update."""
    router = APIRouter()

    @router.get("/swarm")
    async def inspect_swarm() -> Response:
        return json_response(swarm_json(control().cluster.find()))

    @router.post("/swarm/update")
    async def update_swarm(request: Request) -> Response:
        query = request.query_params
        api = control().cluster
        raw = await read_json(request, what="swarm spec")
        # Unlike other updates this one is merged into the present spec (docker-py sends only what it changes).
        merged = _merge(wire.to_builtins(api.find().spec), raw)
        await api.update(
            wire.parse_builtins(merged, SwarmSpec, what="swarm spec"),
            version=version_of(request),
            rotate_worker_token=parse_bool(query.get("rotateWorkerToken")),
            rotate_manager_token=parse_bool(query.get("rotateManagerToken")),
            rotate_unlock_key=parse_bool(query.get("rotateManagerUnlockKey")),
            rotate_sealing_key=parse_bool(query.get("rotateSealingKey")),
        )
        return Response(status_code=200)

    return router


def _merge(base: Any, changes: Any) -> Any:
    """``changes`` over ``base``: objects key by key whatever their case, the rest replaced; nulls and labels aside."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    result = dict(base)
    spelled = {str(key).lower(): key for key in base}
    for key, value in changes.items():
        if value is None:
            continue
        name = spelled.get(str(key).lower(), key)
        result[name] = value if str(name).lower() == "labels" else _merge(result.get(name), value)
    return result
