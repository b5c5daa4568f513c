"""Routes of moves on the cluster port: managers announce and direct, the announced source does the rest."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter, Request, Response
from starlette.requests import HTTPConnection
from starlette.responses import StreamingResponse

from fleet import errors
from fleet.api.http import json_response, parse_bool, read_struct
from fleet.daemon.moves.moves import Moves
from fleet.daemon.moves.task_target import FRESH_HEADER, MARK_HEADER
from fleet.daemon.moves.words import Expected, Manifest, RunRequest, check_move_id
from fleet.identity.certificates import PeerIdentity
from fleet.model.ids import is_id
from fleet.model.node import NodeRole
from fleet.model.wire import to_builtins

__all__ = ["LINES", "cluster_move_routes", "cluster_task_move_routes"]

LINES = "application/x-ndjson"


class Caller(Protocol):
    """Who calls, by certificate. Raises unless it is a member, and of ``role``."""

    def __call__(self, connection: HTTPConnection, *, role: NodeRole | None = None) -> PeerIdentity: ...


def cluster_move_routes(moves: Moves, caller: Caller) -> APIRouter:
    """The router."""
    routes = APIRouter(prefix="/cluster/v1/moves/{move_id}")
    arriving = moves.arriving

    @routes.post("/expect")
    async def expect(request: Request, move_id: str) -> Response:
        caller(request, role=NodeRole.MANAGER)
        arriving.expect(check_move_id(move_id), await read_struct(request, Expected, what="announced move"))
        return json_response({})

    @routes.post("/run")
    async def run(request: Request, move_id: str) -> Response:
        caller(request, role=NodeRole.MANAGER)
        wish = await read_struct(request, RunRequest, what="move")
        return StreamingResponse(moves.leave(check_move_id(move_id), wish), media_type=LINES)

    @routes.post("/begin")
    async def begin(request: Request, move_id: str) -> Response:
        peer = caller(request)
        manifest = await read_struct(request, Manifest, what="manifest of a move")
        await arriving.begin(check_move_id(move_id), peer.node_id, manifest)
        return json_response({})

    @routes.post("/files")
    async def files(request: Request, move_id: str) -> Response:
        peer = caller(request)
        tree = request.query_params.get("tree", "")
        if not (tree.isascii() and tree.isdigit() and len(tree) < 5):
            raise errors.UserError(f"tree {tree[:20]!r} is no number")
        size = await arriving.files(
            check_move_id(move_id),
            peer.node_id,
            tree=int(tree),
            fresh=parse_bool(request.query_params.get("fresh")),
            pieces=request.stream(),
        )
        return json_response({"bytes": size})

    @routes.post("/ready")
    async def ready(request: Request, move_id: str) -> Response:
        await arriving.ready(check_move_id(move_id), caller(request).node_id)
        return json_response({})

    @routes.post("/commit")
    async def commit(request: Request, move_id: str) -> Response:
        await arriving.commit(check_move_id(move_id), caller(request).node_id)
        return json_response({})

    @routes.post("/settle")
    async def settle(request: Request, move_id: str) -> Response:
        give_up = parse_bool(request.query_params.get("give_up"))
        arrived = await arriving.settle(check_move_id(move_id), caller(request).node_id, give_up=give_up)
        return json_response({"arrived": arrived})

    @routes.post("/done")
    async def done(request: Request, move_id: str) -> Response:
        await arriving.done(check_move_id(move_id), caller(request).node_id)
        return json_response({})

    return routes


def cluster_task_move_routes(moves: Moves, caller: Caller) -> APIRouter:
    """What the node of a task that follows one of this host asks for; a manager must say that it may."""
    routes = APIRouter(prefix="/cluster/v1/task-moves/{task_id}")
    source = moves.task_source

    @routes.post("/offer")
    async def offer(request: Request, task_id: str) -> Response:
        return json_response(to_builtins(await source.offer(_task_id(task_id), caller(request).node_id)))

    @routes.get("/ended")
    async def ended(request: Request, task_id: str) -> Response:
        return json_response({"ended": await source.has_ended(_task_id(task_id), caller(request).node_id)})

    @routes.get("/trees/{number}")
    async def tree(request: Request, task_id: str, number: int) -> Response:
        stream = await source.tree(
            _task_id(task_id),
            caller(request).node_id,
            number,
            after=request.query_params.get("after", ""),
            is_rest=parse_bool(request.query_params.get("rest")),
        )
        headers = {FRESH_HEADER: str(int(stream.fresh)), MARK_HEADER: stream.mark}
        return StreamingResponse(stream.pieces, media_type="application/octet-stream", headers=headers)

    return routes


def _task_id(text: str) -> str:
    """It becomes part of a path. Raises ``UserError``."""
    if not is_id(text):
        raise errors.UserError("a task's id is 25 digits and small letters")
    return text
