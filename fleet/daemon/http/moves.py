"""``POST /fleet/v1/containers/{name}/move``: what a person asks of a manager. Answers with lines of JSON."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet import errors
from fleet.api.http import read_struct
from fleet.daemon.membership import Membership
from fleet.daemon.moves import Moves
from fleet.daemon.moves.http import LINES
from fleet.model.wire import Value

__all__ = ["move_routes"]


class MoveBody(Value, frozen=True, kw_only=True):
    """``source`` is the node it is on; this one if empty."""

    to: str
    source: str = ""
    start: bool = True
    keep: bool = False
    checkpoint: bool = False
    host_access: bool = False


def move_routes(membership: Membership, moves: Moves) -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.post("/fleet/v1/containers/{name}/move")
    async def move(request: Request, name: str) -> Response:
        wish = await read_struct(request, MoveBody, what="move")
        if wish.checkpoint:
            raise errors.UnsupportedError(
                "move: checkpoints are not supported; without --checkpoint the container is stopped, copied and started"
            )
        nodes = membership.manager().store.nodes
        assert membership.state is not None
        lines = await moves.direct(
            name,
            source=nodes.find(wish.source or membership.state.node_id, "node"),
            target=nodes.find(wish.to, "node"),
            start=wish.start,
            keep=wish.keep,
            host_access=wish.host_access,
        )
        return StreamingResponse(lines, media_type=LINES)

    return routes
