"""/nodes"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import json_response, parse_bool
from fleet.api.render import Encoded, node_json
from fleet.manager.control.nodes import FILTERS
from fleet.manager.http.request import Control, filters_of, lookup, read_json, version_of
from fleet.model import wire
from fleet.model.node import Node, NodeSpec

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """List, inspect, update, remove."""
    router = APIRouter()
    encoded = Encoded()

    def render(node: Node) -> bytes:
        return encoded.get(node.id, (node,), lambda: node_json(node))

    @router.get("/nodes")
    async def list_nodes(request: Request) -> Response:
        found = control().nodes.list(filters_of(request, FILTERS))
        return json_response(Encoded.array(render(node) for node in found))

    @router.get("/nodes/{id_}")
    async def inspect_node(id_: str) -> Response:
        return json_response(render(control().nodes.find(id_)))

    @router.post("/nodes/{id_}/update")
    async def update_node(id_: str, request: Request) -> Response:
        raw = await read_json(request, what="node spec")
        for word in ("Role", "Availability"):
            # An update replaces the whole spec: leaving the role out must not demote a manager.
            if not lookup(raw, word):
                raise errors.UserError(f"node spec: {word} must be given")
        spec = wire.parse_builtins(raw, NodeSpec, what="node spec")
        await control().nodes.update(id_, spec, version=version_of(request))
        return Response(status_code=200)

    @router.delete("/nodes/{id_}")
    async def remove_node(id_: str, request: Request) -> Response:
        await control().nodes.remove(id_, force=parse_bool(request.query_params.get("force")))
        return Response(status_code=200)

    return router
