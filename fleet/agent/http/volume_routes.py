"""``/volumes``: translate, call the engine, answer."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from fleet.agent.http.container_filters import matches_labels
from fleet.agent.http.container_json import time_text
from fleet.api.http import Filters, json_response, parse_bool, parse_filters, read_struct
from fleet.containers import ContainerEngine, Volume
from fleet.containers.volumes import directory_size
from fleet.model.wire import Value

__all__ = ["volume_routes"]

_LIST_FILTERS: Final = frozenset({"dangling", "driver", "label", "name"})
_PRUNE_FILTERS: Final = frozenset({"all", "label", "label!"})


class VolumeBody(Value, frozen=True, kw_only=True):
    """The body of ``POST /volumes/create``."""

    name: str = ""
    driver: str = "local"
    driver_opts: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)


def volume_routes(engine: ContainerEngine) -> APIRouter:
    """The router of everything below ``/volumes``."""
    router = APIRouter()
    volumes = engine.volumes

    @router.get("/volumes")
    async def list_volumes(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=_LIST_FILTERS)
        found = [v for v in volumes.all() if _passes(v, filters, used=bool(volumes.users(v.name)))]
        return json_response({"Volumes": [_json(engine, v) for v in found], "Warnings": None})

    @router.post("/volumes/create")
    async def create(request: Request) -> Response:
        body = await read_struct(request, VolumeBody, what="volume")
        volume = await engine.create_volume(
            body.name, driver=body.driver or "local", labels=body.labels, options=body.driver_opts
        )
        return json_response(_json(engine, volume), status=201)

    @router.get("/volumes/{name}")
    async def inspect(name: str) -> Response:
        return json_response(_json(engine, volumes.get(name)))

    @router.delete("/volumes/{name}")
    async def remove(name: str, request: Request) -> Response:
        await engine.remove_volume(name, force=parse_bool(request.query_params.get("force")))
        return Response(status_code=204)

    @router.post("/volumes/prune")
    async def prune(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=_PRUNE_FILTERS)
        removed, freed_bytes = await volumes.prune(
            include_named=parse_bool(next(iter(filters.get("all", ())), None)),
            keep=lambda volume: not matches_labels(volume.labels, filters),
        )
        return json_response({"VolumesDeleted": removed or None, "SpaceReclaimed": freed_bytes})

    return router


async def volume_usage(engine: ContainerEngine) -> list[dict[str, Any]]:
    """All volumes with their sizes, for ``GET /system/df``."""
    items = []
    for volume in engine.volumes.all():
        size_bytes = await asyncio.to_thread(directory_size, engine.volumes.path(volume))
        usage = {"Size": size_bytes, "RefCount": len(engine.volumes.users(volume.name))}
        items.append({**_json(engine, volume), "UsageData": usage})
    return items


def _json(engine: ContainerEngine, volume: Volume) -> dict[str, Any]:
    return {
        "CreatedAt": time_text(volume.created_at),
        "Driver": "local",
        "Labels": volume.labels or None,
        "Mountpoint": str(engine.volumes.path(volume)),
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


def _passes(volume: Volume, filters: Filters, *, used: bool) -> bool:
    dangling = [parse_bool(text) for text in filters.get("dangling", ())]
    return (
        (not dangling or (not used) in dangling)
        and ("driver" not in filters or "local" in filters["driver"])
        and ("name" not in filters or any(text in volume.name for text in filters["name"]))
        and matches_labels(volume.labels, filters)
    )
