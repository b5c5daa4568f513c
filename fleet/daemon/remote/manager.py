"""The manager that is asked: finds the task's node and passes the request on."""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import Request, Response
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from fleet import errors
from fleet.agent.http.attach_routes import StartBody
from fleet.agent.http.hijack import Connection, Hijacked
from fleet.agent.http.streams import MULTIPLEXED, RAW, both_ways
from fleet.api.http import json_response, problem, read_body
from fleet.containers.engine import ContainerEngine
from fleet.daemon.access.principal import PRINCIPAL, USER_HEADER, Principal
from fleet.daemon.moves.peers import Peers
from fleet.logs import get_logger
from fleet.manager.assignments import slot_name
from fleet.manager.role import ManagerRole
from fleet.model.task import Task, TaskState, task_name
from fleet.model.wire import parse_json

__all__ = ["RemoteTasks"]

log = get_logger("remote-exec")

_OF_CONTAINER: Final = re.compile(r"/containers/([^/]+)/(exec|json)")
_OF_EXEC: Final = re.compile(r"/exec/([^/]+)/(start|resize|json)")
_ANYWHERE: Final = ("/containers/", "/exec/")
_METHODS: Final = {"exec": "POST", "start": "POST", "resize": "POST", "json": "GET"}
_BODY_MAX: Final = 1 << 20
_SESSIONS_MAX: Final = 10_000
_PREFIX_MIN: Final = 4
_OPEN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a container or a session is: the node's cluster address, its name for people, and whether it has a terminal."""

    address: str
    hostname: str
    is_tty: bool = False
    container_id: str = ""


class RemoteTasks:
    """ASGI middleware around the engine API. ``manager`` raises where ``has_control`` is false."""

    def __init__(
        self,
        app: Any,
        *,
        has_control: Callable[[], bool],
        manager: Callable[[], ManagerRole],
        engine: ContainerEngine,
        peers: Peers,
    ) -> None:
        self._app = app
        self._has_control = has_control
        self._manager = manager
        self._engine = engine
        self._peers = peers
        self._sessions: OrderedDict[str, _Place] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_ANYWHERE) and self._has_control():
            request = Request(scope, receive)
            try:
                response = await self._answer(request)
            except errors.FleetError as cause:
                response = problem(cause)
            if response is not None:
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """None for what is not for another node."""
        if match := _OF_CONTAINER.fullmatch(request.scope["path"]):
            if request.method != _METHODS[match[2]] or self._is_here(match[1]):
                return None
            found = self._find(match[1])
            return None if found is None else await self._of_container(request, *found, what=match[2])
        if match := _OF_EXEC.fullmatch(request.scope["path"]):
            place = self._sessions.get(match[1])
            if request.method == _METHODS[match[2]] and place is not None:
                return await self._of_exec(request, match[1], place, what=match[2])
        return None

    def find_task(self, name: str) -> tuple[str, Task] | None:
        """(container id, task) of a container on another node; None if there is none. Raises ``ConflictError`` for a name
        of several tasks or of one that has no container."""
        if not self._has_control() or self._is_here(name):
            return None
        task = self._task(name)
        return None if task is None else (_container_of(task), task)

    def container_of_session(self, exec_id: str) -> str | None:
        """Whose session it is, if it is on another node."""
        place = self._sessions.get(exec_id)
        return None if place is None else place.container_id

    def _is_here(self, name: str) -> bool:
        try:
            self._engine.get(name)
        except errors.NotFoundError:
            return False
        except errors.FleetError:  # an ambiguous name of this host is this host's to refuse
            return True
        return True

    def _find(self, name: str) -> tuple[str, _Place] | None:
        """Container id and place. Raises as ``find_task``, and ``UnavailableError`` for a node that is nowhere."""
        task = self._task(name)
        if task is None:
            return None
        container_id = _container_of(task)
        node = self._manager().store.nodes.get(task.node_id)
        if node is None or not node.cluster_addr:
            raise errors.UnavailableError(f"the node of task {task_name(task)} is not known to be anywhere")
        return container_id, _Place(node.cluster_addr, node.description.hostname or node.id, container_id=container_id)

    def _task(self, name: str) -> Task | None:
        tasks = [task for task in self._manager().store.tasks.all() if _is_called(task, name)]
        running = [task for task in tasks if task.status.state is TaskState.RUNNING]
        chosen = running or tasks
        if not chosen:
            return None
        if len(chosen) > 1:
            raise errors.ConflictError(
                f"{name} stands for {len(chosen)} tasks, such as {', '.join(_some_names(chosen))}"
            )
        return chosen[0]

    async def _of_container(self, request: Request, container_id: str, place: _Place, *, what: str) -> Response:
        path = f"/cluster/v1/containers/{container_id}/{what}"
        body = await read_body(request, limit=_BODY_MAX) if what == "exec" else b""
        who = _asked_by(request)
        answer = await self._peers.ask(request.method, place.address, path, host=place.hostname, body=body, headers=who)
        if what == "json":
            return json_response(answer)
        is_tty = bool((parse_json(body, dict, what="exec") if body else {}).get("Tty"))
        self._sessions[str(answer["Id"])] = replace(place, is_tty=is_tty)
        while len(self._sessions) > _SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return json_response(answer, status=201)

    async def _of_exec(self, request: Request, exec_id: str, place: _Place, *, what: str) -> Response:
        path = f"/cluster/v1/exec/{exec_id}/{what}"
        if what != "start":
            query = dict(request.query_params)
            answer = await self._peers.ask(
                request.method, place.address, path, host=place.hostname, query=query, headers=_asked_by(request)
            )
            return json_response(answer) if what == "json" else Response(status_code=200)
        body = await read_body(request, limit=_BODY_MAX)
        if parse_json(body or b"{}", StartBody, what="exec start").detach:
            await self._peers.ask(
                "POST", place.address, path, host=place.hostname, body=body, headers=_asked_by(request)
            )
            return Response(status_code=200)
        far = await self._open(exec_id, place, _asked_by(request))

        async def run(near: Connection) -> None:
            try:
                await _carry(near, far)
            finally:
                await far.close()

        try:
            return Hijacked(request, run, content_type=RAW if place.is_tty else MULTIPLEXED)
        except BaseException:
            await far.close()
            raise

    async def _open(self, exec_id: str, place: _Place, who: dict[str, str]) -> ClientConnection:
        try:
            return await connect(
                f"wss://{place.address}/cluster/v1/exec/{exec_id}/stream",
                ssl=self._peers.context(),
                server_hostname="fleet-node",
                additional_headers=who,
                compression=None,
                open_timeout=_OPEN_S,
                close_timeout=1.0,
                proxy=None,
            )
        except (OSError, TimeoutError, WebSocketException) as cause:
            text = str(cause) or type(cause).__name__
            raise errors.UnavailableError(f"{place.hostname} cannot be reached at {place.address}: {text}") from cause


async def _carry(near: Connection, far: ClientConnection) -> None:
    """Bytes both ways until the session has ended, or the client has gone."""

    async def outwards() -> None:
        with contextlib.suppress(WebSocketException):
            async for piece in far:
                await near.send(piece if isinstance(piece, bytes) else piece.encode())

    async def inwards() -> None:
        with contextlib.suppress(WebSocketException):
            while data := await near.receive():
                await far.send(data)
            await far.send(b"")
        await near.wait_lost()

    await both_ways(outwards(), inwards())


def _asked_by(request: Request) -> dict[str, str]:
    """The header that tells the task's node who asked, for its log; this manager has let that user do it."""
    principal: Principal | None = request.scope.get(PRINCIPAL)
    return {USER_HEADER: principal.user or principal.role.value} if principal is not None else {}


def _container_of(task: Task) -> str:
    container = task.status.container_status
    if container is None or not container.container_id:
        raise errors.ConflictError(f"task {task_name(task)} has no container: it is {task.status.state}")
    return container.container_id


def _is_called(task: Task, name: str) -> bool:
    container = task.status.container_status
    ids = [task.id, container.container_id if container else ""]
    if len(name) >= _PREFIX_MIN and any(each.startswith(name) for each in ids):
        return True
    return name == task_name(task) or (name == slot_name(task) and task.status.state is TaskState.RUNNING)


def _some_names(tasks: list[Task]) -> Iterator[str]:
    return (task_name(task) for task in tasks[:3])
