"""/secrets and /configs: the same five routes twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response, read_struct
from fleet.api.render import config_json, secret_json
from fleet.manager.control.data import FILTERS, ConfigControl, SecretControl
from fleet.manager.http.request import Control, filters_of, version_of
from fleet.model.secret import ConfigSpec, SecretSpec

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """List, create, inspect, update labels, remove; of both."""
    router = APIRouter()
    _add(router, "secret", lambda: control().secrets, SecretSpec, secret_json)
    _add(router, "config", lambda: control().configs, ConfigSpec, config_json)
    return router


def _add(
    router: APIRouter,
    word: str,
    objects: Callable[[], SecretControl] | Callable[[], ConfigControl],
    spec_type: type[SecretSpec] | type[ConfigSpec],
    render: Callable[[Any], dict[str, Any]],
) -> None:
    path = f"/{word}s"
    chosen: Callable[[], Any] = objects  # a control and a spec of the same kind: which one, the two calls above say

    @router.get(path)
    async def list_objects(request: Request) -> Response:
        return json_response([render(item) for item in chosen().list(filters_of(request, FILTERS))])

    @router.post(f"{path}/create")
    async def create(request: Request) -> Response:
        made = await chosen().create(await read_struct(request, spec_type, what=word))
        return json_response({"ID": made.id}, status=201)

    @router.get(f"{path}/{{id_}}")
    async def inspect(id_: str) -> Response:
        return json_response(render(chosen().find(id_)))

    @router.post(f"{path}/{{id_}}/update")
    async def update(id_: str, request: Request) -> Response:
        spec = await read_struct(request, spec_type, what=word)
        await chosen().update(id_, spec, version=version_of(request))
        return Response(status_code=200)

    @router.delete(f"{path}/{{id_}}")
    async def remove(id_: str) -> Response:
        await chosen().remove(id_)
        return Response(status_code=204)
