"""What hosts of a cluster say to each other over mutual TLS, on the cluster port. Not for people: they use the engine API.

Who may call what is decided here, on every call, by the peer's certificate:

=============================================  ===========================  ==========================
route                                          answered by                  callers
=============================================  ===========================  ==========================
GET  /cluster/v1/root                          managers                     anyone (public certificate)
POST /cluster/v1/join                          managers                     anyone with a join token
WS   /cluster/v1/session                       the leader; others redirect  nodes
POST /cluster/v1/renew, /leave                 managers                     nodes, for themselves
POST /cluster/v1/managers/kit, .../vote        managers                     managers, for themselves
GET  /cluster/v1/images/holders                the leader                   nodes
GET  /cluster/v1/images/manifest, /blobs/...   every node                   nodes
GET  /cluster/v1/containers/{name}/logs        every node                   managers
GET  /cluster/v1/containers/{name}/json        every node                   managers, for containers of tasks
POST /cluster/v1/containers/{name}/exec        every node                   managers, for containers of tasks
...  /cluster/v1/exec/{id}/...                 every node                   managers, for containers of tasks
POST /cluster/v1/moves/{id}/expect, .../run    every node                   managers
POST /cluster/v1/moves/{id}/...                every node                   the node a manager announced
GET  /cluster/v1/tasks/{id}/move               managers                     the two nodes of the task's move
*    /cluster/v1/task-moves/{id}/...           every node                   the node of that task, if a manager says so
POST /cluster/v1/doctor/{run}/...              every node                   managers
GET  /cluster/v1/usage                         the leader                   managers
=============================================  ===========================  ==========================
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.requests import HTTPConnection
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from fleet import errors
from fleet.api import dispatch
from fleet.api.http import install_error_handlers, json_response, read_body, read_struct
from fleet.containers.engine import ContainerEngine
from fleet.daemon.control import Control
from fleet.daemon.doctor import HostDoctor
from fleet.daemon.doctor.http import cluster_doctor_routes
from fleet.daemon.joining import KitRequest
from fleet.daemon.listeners import TLS_EXTENSION
from fleet.daemon.log_stream import LogQuery, container_log_frames
from fleet.daemon.moves import Moves
from fleet.daemon.moves.http import cluster_move_routes, cluster_task_move_routes
from fleet.daemon.remote import cluster_exec_routes
from fleet.daemon.usage import CLUSTER_PATH, usage_json
from fleet.identity.certificates import PeerIdentity
from fleet.identity.tls import verify_peer
from fleet.images import ImageStore
from fleet.logs import get_logger
from fleet.manager.admission import JoinRequest
from fleet.manager.guests import GuestRequest
from fleet.manager.role import ManagerRole, NotLeadingError
from fleet.manager.sessions import ChannelClosed
from fleet.manager.task_moves import standing_of
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole
from fleet.model.wire import to_builtins

__all__ = ["cluster_app"]

log = get_logger("cluster-api")

_JOIN_LIMIT: Final = 64 * 1024
_CHUNK: Final = 1 << 18
_RANGE: Final = re.compile(r"bytes=(\d+)-")
_HELLO_TIMEOUT_S: Final = 10.0


class _WebSocketChannel:
    """A ``Channel`` over an accepted WebSocket. Speaks ASGI itself: with thousands of sessions what frameworks put around each
    frame is a third of a beat's cost."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._closed = False

    async def send(self, frame: bytes) -> None:
        try:
            await self._send({"type": "websocket.send", "bytes": frame})
        except (ClientDisconnected, RuntimeError) as cause:
            raise ChannelClosed(str(cause) or "connection lost") from cause

    async def receive(self) -> bytes:
        if self._closed:
            raise ChannelClosed("closed")
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self._closed = True
            raise ChannelClosed(f"closed by the node ({message.get('code', '')})")
        data = message.get("bytes")
        if not data:
            raise errors.UserError("text frame from agent; expected a binary one")
        return bytes(data)

    async def close(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            try:
                await self._send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
            except (ClientDisconnected, RuntimeError):
                log.debug("connection was closed already", reason=reason)


def cluster_app(
    *,
    cluster_id: ClusterId,
    manager: Callable[[], ManagerRole],
    images: ImageStore,
    engine: ContainerEngine,
    removed: Callable[[], Container[NodeId]],
    control: Control,
    moves: Moves,
    doctor: HostDoctor,
) -> ASGIApp:
    """The application of the cluster listener. ``manager`` raises ``UnavailableError`` on workers; ``removed`` are nodes
    that are refused although their certificates are good; ``control`` is this host as a manager."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    install_error_handlers(app)

    def caller(connection: HTTPConnection, *, role: NodeRole | None = None) -> PeerIdentity:
        tls = connection.scope.get("extensions", {}).get(TLS_EXTENSION)
        if tls is None:
            raise errors.UnauthorizedError("the cluster port speaks TLS only")
        peer = verify_peer(tls, cluster_id=cluster_id, role=role)
        if peer.node_id in removed():
            raise errors.ForbiddenError(f"node {peer.node_id} is not a member of this cluster: it was removed")
        return peer

    def check_manager(node_id: NodeId) -> None:
        if manager().admission.member(node_id).spec.role is not NodeRole.MANAGER:
            raise errors.ForbiddenError(f"node {node_id} is not to be a manager: it was demoted")

    @app.get("/cluster/v1/root")
    async def root() -> Response:
        return Response(manager().admission.root_pem(), media_type="application/x-pem-file")

    @app.post("/cluster/v1/join")
    async def join(request: Request) -> Response:
        body = await read_body(request, limit=_JOIN_LIMIT)
        try:
            wanted = msgspec.json.decode(body, type=JoinRequest)
        except msgspec.DecodeError as cause:
            raise errors.UserError(f"join request: {cause}") from cause
        return json_response(await manager().admission.admit(wanted))

    @app.post("/cluster/v1/renew")
    async def renew(request: Request) -> Response:
        peer = caller(request)
        csr = (await read_body(request, limit=_JOIN_LIMIT)).decode("ascii", errors="replace")
        return Response(await manager().admission.renew(csr, peer.node_id), media_type="application/x-pem-file")

    @app.post("/cluster/v1/leave")
    async def leave(request: Request) -> Response:
        peer = caller(request)
        role = manager()
        await role.admission.farewell(peer.node_id)
        with suppress(NotLeadingError):
            await role.dispatcher.disconnect(peer.node_id, "the node left")
        return json_response({})

    @app.post("/cluster/v1/managers/kit")
    async def kit(request: Request) -> Response:
        peer = caller(request, role=NodeRole.MANAGER)
        check_manager(peer.node_id)
        return json_response(
            await control.equip(peer.node_id, await read_struct(request, KitRequest, what="kit request"))
        )

    @app.post("/cluster/v1/managers/vote")
    async def vote(request: Request) -> Response:
        peer = caller(request, role=NodeRole.MANAGER)
        check_manager(peer.node_id)
        await control.give_vote((await read_body(request, limit=_JOIN_LIMIT)).decode("ascii", errors="replace"))
        return json_response({})

    @app.get("/cluster/v1/secrets/{secret_id}/value/{task_id}")
    async def secret_value(request: Request, secret_id: str, task_id: str) -> Response:
        peer = caller(request)
        manager().admission.member(peer.node_id)
        value = await manager().secret_drivers.value(secret_id, task_id=task_id, node_id=peer.node_id)
        return json_response({"value": base64.b64encode(value).decode()})

    @app.get("/cluster/v1/tasks/{task_id}/move")
    async def task_move(request: Request, task_id: str) -> Response:
        peer = caller(request)
        manager().admission.member(peer.node_id)
        return json_response(to_builtins(standing_of(manager().store, task_id, asks=peer.node_id)))

    @app.get("/cluster/v1/networks/{name}")
    async def attachable(request: Request, name: str) -> Response:
        manager().admission.member(caller(request).node_id)
        network = manager().guests.network(name)
        return json_response({"id": network.id, "name": network.spec.name})

    @app.post("/cluster/v1/guests")
    async def guest(request: Request) -> Response:
        peer = caller(request)
        manager().admission.member(peer.node_id)
        wish = await read_struct(request, GuestRequest, what="guest")
        place = await manager().guests.join(peer.node_id, wish)
        return json_response({"address": place.address, "address6": place.address6})

    @app.delete("/cluster/v1/guests/{network_id}/{container_id}")
    async def guest_left(request: Request, network_id: str, container_id: str) -> Response:
        await manager().guests.leave(caller(request).node_id, container_id, network_id)
        return json_response({})

    @app.get("/cluster/v1/images/holders")
    async def holders(request: Request, reference: str) -> Response:
        peer = caller(request)
        manager().admission.member(peer.node_id)
        nodes = manager().dispatcher.holders_of(reference)
        return json_response({"addresses": [node.cluster_addr for node in nodes if node.id != peer.node_id]})

    @app.get(CLUSTER_PATH)
    async def usage(request: Request) -> Response:
        caller(request, role=NodeRole.MANAGER)
        return json_response(usage_json(manager(), dict(request.query_params)))

    @app.get("/cluster/v1/images/manifest")
    async def manifest(request: Request, reference: str) -> Response:
        caller(request)
        found = images.manifest(reference)
        return Response(found.body, media_type=found.media_type, headers={"Docker-Content-Digest": found.digest})

    @app.get("/cluster/v1/blobs/{digest}")
    async def blob(request: Request, digest: str) -> Response:
        caller(request)
        return _blob_response(images.blob_path(digest), request.headers.get("range", ""))

    @app.get("/cluster/v1/containers/{name}/logs")
    async def logs(request: Request, name: str) -> Response:
        caller(request, role=NodeRole.MANAGER)
        query = LogQuery.from_query(request.query_params)
        frames = container_log_frames(engine, name, query)
        return StreamingResponse(frames, media_type="application/octet-stream")

    app.include_router(cluster_move_routes(moves, caller))
    app.include_router(cluster_task_move_routes(moves, caller))
    app.include_router(cluster_doctor_routes(doctor, caller))
    app.include_router(cluster_exec_routes(engine, caller))

    async def session(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            peer = caller(HTTPConnection(scope))
            role = manager()
        except errors.FleetError as cause:
            await send({"type": "websocket.close", "code": 1008, "reason": str(cause)[:120]})
            return
        channel = _WebSocketChannel(receive, send)
        try:
            await send({"type": "websocket.accept"})
            await role.dispatcher.serve(channel, peer.node_id)
        except NotLeadingError as elsewhere:
            with suppress(ChannelClosed, TimeoutError):
                async with asyncio.timeout(_HELLO_TIMEOUT_S):
                    await channel.receive()  # the agent speaks first, and would not hear an answer that came before
                await channel.send(
                    dispatch.encode(dispatch.Redirect(leader=elsewhere.leader, managers=role.addresses()))
                )
                await channel.close(str(elsewhere))
        except ChannelClosed:
            log.debug("session closed before it began", node=peer.node_id)
        except ClientDisconnected:
            log.debug("connection lost before the session began", node=peer.node_id)
        except errors.FleetError as cause:
            log.warning("session refused", node=peer.node_id, cause=str(cause))
            await channel.close(str(cause))

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] == dispatch.PATH:
            await session(scope, receive, send)
        else:
            await app(scope, receive, send)

    return served


def _blob_response(path: Path, range_header: str) -> Response:
    size = path.stat().st_size
    match = _RANGE.fullmatch(range_header.strip())
    offset = int(match[1]) if match else 0
    if offset > size:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})

    async def chunks() -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(path.open, "rb")
        try:
            await asyncio.to_thread(file.seek, offset)
            while data := await asyncio.to_thread(file.read, _CHUNK):
                yield data
        finally:
            file.close()

    headers = {"Content-Length": str(size - offset)}
    if match:
        headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
    return StreamingResponse(
        chunks(), status_code=206 if match else 200, headers=headers, media_type="application/octet-stream"
    )
