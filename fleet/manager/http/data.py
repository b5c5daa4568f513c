"""/secrets and /configs"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response, read_struct
from fleet.api.render import config_json, secret_json
from fleet.manager.control.data import FILTERS
from fleet.manager.http.request import Control, filters_of, version_of
from fleet.model.secret import ConfigSpec, SecretSpec

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """List, create, inspect, update labels, remove; of both."""
    router = APIRouter()

    @router.get("/secrets")
    async def list_secrets(request: Request) -> Response:
        return json_response([secret_json(item) for item in control().secrets.list(filters_of(request, FILTERS))])

    @router.post("/secrets/create")
    async def create_secret(request: Request) -> Response:
        secret = await control().secrets.create(await read_struct(request, SecretSpec, what="secret"))
        return json_response({"ID": secret.id}, status=201)

    @router.get("/secrets/{id_}")
    async def inspect_secret(id_: str) -> Response:
        return json_response(secret_json(control().secrets.find(id_)))

    @router.post("/secrets/{id_}/update")
    async def update_secret(id_: str, request: Request) -> Response:
        spec = await read_struct(request, SecretSpec, what="secret")
        await control().secrets.update(id_, spec, version=version_of(request))
        return Response(status_code=200)

    @router.delete("/secrets/{id_}")
    async def remove_secret(id_: str) -> Response:
        await control().secrets.remove(id_)
        return Response(status_code=204)

    @router.get("/configs")
    async def list_configs(request: Request) -> Response:
        return json_response([config_json(item) for item in control().configs.list(filters_of(request, FILTERS))])

    @router.post("/configs/create")
    async def create_config(request: Request) -> Response:
        config = await control().configs.create(await read_struct(request, ConfigSpec, what="config"))
        return json_response({"ID": config.id}, status=201)

    @router.get("/configs/{id_}")
    async def inspect_config(id_: str) -> Response:
        return json_response(config_json(control().configs.find(id_)))

    @router.post("/configs/{id_}/update")
    async def update_config(id_: str, request: Request) -> Response:
        spec = await read_struct(request, ConfigSpec, what="config")
        await control().configs.update(id_, spec, version=version_of(request))
        return Response(status_code=200)

    @router.delete("/configs/{id_}")
    async def remove_config(id_: str) -> Response:
        await control().configs.remove(id_)
        return Response(status_code=204)

    return router
