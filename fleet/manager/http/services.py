"""/services"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import json_response, parse_bool
from fleet.api.render import Json, service_json
from fleet.manager.control.services import FILTERS
from fleet.manager.http.request import Control, filters_of, lookup, read_json, version_of
from fleet.model import wire
from fleet.model.service import ServiceSpec

__all__ = ["routes"]

_UNSUPPORTED: Final = (
    ("TaskTemplate", "PluginSpec"),
    ("TaskTemplate", "NetworkAttachmentSpec"),
    ("TaskTemplate", "ContainerSpec", "Privileges", "CredentialSpec"),
    ("TaskTemplate", "ContainerSpec", "Privileges", "SELinuxContext"),
)
"""Parts of Docker's spec that the model does not know, and that must not vanish without a word."""

_UNSUPPORTED_MOUNT: Final = ("ClusterOptions", "ImageOptions")

_AUTH_WARNING: Final = (
    "the registry credentials sent along are not kept: nodes without access take the image from nodes that have it"
)


def routes(control: Control) -> APIRouter:
    """List, create, inspect, update, remove."""
    router = APIRouter()

    @router.get("/services")
    async def list_services(request: Request) -> Response:
        api = control().services
        is_counted = parse_bool(request.query_params.get("status"))
        found = api.list(filters_of(request, FILTERS))
        return json_response([_render(request, control, item.id, is_counted=is_counted) for item in found])

    @router.post("/services/create")
    async def create_service(request: Request) -> Response:
        spec = await _read_spec(request)
        service = await control().services.create(spec)
        answer: Json = {"ID": service.id}
        warnings = _warnings(request)
        if warnings:
            answer["Warnings"] = warnings
        return json_response(answer, status=201)

    @router.get("/services/{id_}")
    async def inspect_service(id_: str, request: Request) -> Response:
        return json_response(_render(request, control, id_))

    @router.post("/services/{id_}/update")
    async def update_service(id_: str, request: Request) -> Response:
        spec = await _read_spec(request)
        await control().services.update(id_, spec, version=version_of(request), rollback=_is_rollback(request))
        return json_response({"Warnings": _warnings(request) or None})

    @router.delete("/services/{id_}")
    async def remove_service(id_: str) -> Response:
        await control().services.remove(id_)
        return Response(status_code=200)

    return router


def _render(request: Request, control: Control, id_: str, *, is_counted: bool = False) -> Json:
    api = control().services
    service = api.find(id_)
    status = None
    if is_counted:
        counts = api.counts(service)
        status = (counts.running, counts.desired, counts.completed)
    insert_defaults = parse_bool(request.query_params.get("insertDefaults"))
    return service_json(service, insert_defaults=insert_defaults, status=status)


async def _read_spec(request: Request) -> ServiceSpec:
    raw = await read_json(request, what="service spec")
    _refuse_unknown(raw)
    return wire.parse_builtins(raw, ServiceSpec, what="service spec")


def _refuse_unknown(raw: Any) -> None:
    for path in _UNSUPPORTED:
        if _says_something(lookup(raw, *path)):
            raise errors.UnsupportedError(f"service spec: {'.'.join(path)} is not supported")
    mounts = lookup(raw, "TaskTemplate", "ContainerSpec", "Mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        for word in _UNSUPPORTED_MOUNT:
            if _says_something(lookup(mount, word)):
                raise errors.UnsupportedError(f"service spec: Mounts.{word} is not supported")


def _says_something(value: Any) -> bool:
    """Neither absent nor made of empty values only (clients send ``{"Disable": false, "User": ""}``)."""
    if isinstance(value, dict):
        return any(_says_something(item) for item in value.values())
    return bool(value)


def _is_rollback(request: Request) -> bool:
    word = request.query_params.get("rollback", "")
    if word not in ("", "previous", "none"):
        raise errors.UserError(f"invalid rollback option {word!r}: only 'previous' is known")
    return word == "previous"


def _warnings(request: Request) -> list[str]:
    """``X-Registry-Auth`` of clients without credentials is empty, or ``{}`` in base64."""
    header = request.headers.get("x-registry-auth", "")
    return [_AUTH_WARNING] if header not in ("", "e30=", "e30") else []
