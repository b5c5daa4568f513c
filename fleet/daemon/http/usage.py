"""``GET /fleet/v1/usage``: what nodes and tasks use, from any manager; agents tell it the leader, which is asked."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response
from fleet.daemon.membership import Membership
from fleet.daemon.moves.peers import Peers
from fleet.daemon.usage import CLUSTER_PATH, usage_json
from fleet.manager.role import NotLeadingError

__all__ = ["usage_routes"]

_ANSWER_S: Final = 10.0


def usage_routes(membership: Membership, peers: Peers) -> APIRouter:
    """The router. Query: ``since`` (Unix seconds; the history of nodes after it, none without) and ``tasks`` (whether to tell of
    tasks as well; the first question for them finds nothing, and has all nodes read them for half a minute)."""
    routes = APIRouter()

    @routes.get("/fleet/v1/usage")
    async def usage(request: Request) -> Response:
        query = dict(request.query_params)
        try:
            return json_response(usage_json(membership.manager(), query))
        except NotLeadingError as elsewhere:
            if not elsewhere.leader:
                raise
            answer = await peers.ask(
                "GET", elsewhere.leader, CLUSTER_PATH, host="the leading manager", query=query, answer_s=_ANSWER_S
            )
            return json_response(answer)

    return routes
