"""The steps of an examination on the cluster port; only managers may ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response, read_struct
from fleet.daemon.doctor.host import HostDoctor
from fleet.daemon.doctor.words import ListenRequest, LookRequest
from fleet.daemon.moves.http import Caller
from fleet.model.node import NodeRole

__all__ = ["cluster_doctor_routes"]


def cluster_doctor_routes(doctor: HostDoctor, caller: Caller) -> APIRouter:
    """The router."""
    routes = APIRouter(prefix="/cluster/v1/doctor/{run}")

    @routes.post("/listen")
    async def listen(request: Request, run: str) -> Response:
        caller(request, role=NodeRole.MANAGER)
        return json_response(await doctor.listen(run, await read_struct(request, ListenRequest, what="examination")))

    @routes.post("/look")
    async def look(request: Request, run: str) -> Response:
        caller(request, role=NodeRole.MANAGER)
        return json_response(await doctor.look(run, await read_struct(request, LookRequest, what="examination")))

    @routes.post("/heard")
    async def heard(request: Request, run: str) -> Response:
        caller(request, role=NodeRole.MANAGER)
        return json_response(doctor.heard(run))

    return routes
