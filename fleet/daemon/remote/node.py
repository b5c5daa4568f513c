"""The task's node: sessions in containers of tasks, for managers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fastapi import APIRouter, Depends, Request, Response, WebSocket, WebSocketDisconnect
from starlette.requests import HTTPConnection

from fleet import errors
from fleet.agent.http.attach_routes import exec_routes, talk_exec
from fleet.agent.http.container_json import container_inspect
from fleet.agent.http.networks import NetworkNames
from fleet.api.http import json_response
from fleet.cancellation import TaskGroup
from fleet.containers.engine import ContainerEngine
from fleet.daemon.access.principal import USER_HEADER
from fleet.identity.certificates import PeerIdentity
from fleet.logs import get_logger
from fleet.model.node import NodeRole

__all__ = ["cluster_exec_routes"]

log = get_logger("remote-exec")

_TASK_LABEL = "com.docker.swarm.task.id"

_USER_MAX = 64

Caller = Callable[..., PeerIdentity]


def cluster_exec_routes(engine: ContainerEngine, caller: Caller) -> APIRouter:
    """The router. ``caller(connection, role=...)`` raises for a peer that is not of that role."""

    def check_container(name: str) -> None:
        if _TASK_LABEL not in engine.get(name).config.labels:
            raise errors.ForbiddenError(f"container {name} is of no task: only its own host's users may reach it")

    def check(connection: HTTPConnection) -> None:
        peer = caller(connection, role=NodeRole.MANAGER)
        if name := connection.path_params.get("name"):
            check_container(name)
        if exec_id := connection.path_params.get("exec_id"):
            check_container(engine.execs.inspect(exec_id).container_id)
        if connection.scope.get("method") == "POST" or connection.scope["type"] == "websocket":
            # Who it is, only a manager is believed: one that could not prove to be a manager has been refused above.
            user = connection.headers.get(USER_HEADER, "")[:_USER_MAX]
            log.info("asked by a manager", path=connection.scope["path"], manager=peer.node_id, user=user)

    names = NetworkNames(engine)
    routes = APIRouter(prefix="/cluster/v1")

    @routes.get("/containers/{name}/json")
    async def inspect(request: Request, name: str) -> Response:
        check(request)
        container = engine.get(name)
        value = container_inspect(
            container, directory=engine.directory(container.id), network_name=names.name, layer_dirs=()
        )
        return json_response(value)

    @routes.websocket("/exec/{exec_id}/stream")
    async def stream(socket: WebSocket, exec_id: str) -> None:
        try:
            check(socket)
            engine.execs.check_startable(exec_id)
        except errors.FleetError as cause:
            await socket.close(code=1008, reason=str(cause)[:120])
            return
        await socket.accept()
        end = _SocketEnd(socket)
        try:
            async with TaskGroup() as group:
                reading = group.create_task(end.read())
                with contextlib.suppress(ConnectionResetError):
                    await talk_exec(engine, exec_id, end)
                reading.cancel()
        finally:
            with contextlib.suppress(RuntimeError):  # closed already
                await socket.close()

    routes.include_router(exec_routes(engine), dependencies=[Depends(check)])
    return routes


class _SocketEnd:
    """The manager's end of the stream."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16)
        self._ended = False
        self._lost = asyncio.Event()

    async def read(self) -> None:
        """Take what comes until it closes."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._input.put(await self._socket.receive_bytes())
        self._lost.set()
        await self._input.put(b"")

    async def receive(self) -> bytes:
        if self._ended:
            return b""
        data = await self._input.get()
        self._ended = not data
        return data

    async def send(self, data: bytes) -> None:
        if self._lost.is_set():
            raise ConnectionResetError("the manager is gone")
        try:
            await self._socket.send_bytes(data)
        except (WebSocketDisconnect, RuntimeError) as cause:
            raise ConnectionResetError("the manager is gone") from cause

    async def wait_lost(self) -> None:
        await self._lost.wait()
