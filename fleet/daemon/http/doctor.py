"""``GET /fleet/v1/networks/doctor``: what is wrong with networks, in sentences."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import json_response, parse_filters
from fleet.containers.engine import ContainerEngine
from fleet.daemon.doctor import Doctor
from fleet.daemon.membership import Membership

__all__ = ["doctor_routes"]

_FILTERS: Final = frozenset({"network", "node"})


def doctor_routes(membership: Membership, engine: ContainerEngine, doctor: Doctor, *, hostname: str) -> APIRouter:
    """The router. Query: ``filters`` with ``network`` (names or ids; none for all) and ``node`` (one)."""
    routes = APIRouter()

    async def of_host(name: str) -> str | None:
        try:
            return engine.networks.find(name).id
        except errors.NotFoundError:
            return name if not membership.has_control and await doctor.host.knows(name) else None

    @routes.get("/fleet/v1/networks/doctor")
    async def examine(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=_FILTERS)
        names, nodes = filters.get("network", ()), filters.get("node", ())
        if len(nodes) > 1:
            raise errors.UserError(f"{len(nodes)} nodes were named; examine one, or all by naming none")
        node = nodes[0] if nodes else ""
        for name in names:
            if name in ("host", "none"):
                raise errors.UserError(f"network {name} has nothing that could be examined")
        local = [found for name in names if (found := name if name == "bridge" else await of_host(name)) is not None]
        if names and len(local) == len(names):
            if node and membership.has_control:
                raise errors.UserError(f"network {names[0]} is of this host only; run the command there without --node")
            return json_response(await doctor.alone(local, hostname=hostname, why=""))
        if not membership.has_control:
            if names:
                raise errors.NotFoundError(
                    f"network {names[0]} is not on this host; ask a manager for the whole cluster"
                )
            if node:
                membership.manager()  # says what is missing to ask another node
            why = "this host is in no cluster" if membership.state is None else "only a manager can ask the others"
            return json_response(await doctor.alone((), hostname=hostname, why=why))
        store = membership.manager().store
        wanted = [name if name in local else store.networks.find(name, "network").id for name in names]
        return json_response(await doctor.examine(store, wanted, node=node))

    return routes
