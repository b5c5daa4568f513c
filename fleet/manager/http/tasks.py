"""/tasks

The one list that grows with the cluster and is polled (each ``--detach=false`` asks five times a second), so its items are
kept as bytes.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import json_response
from fleet.api.render import Encoded, Json, task_json
from fleet.manager.control import ControlApi
from fleet.manager.control.task_moves import MoveReport
from fleet.manager.control.tasks import FILTERS
from fleet.manager.http.request import Control, filters_of, lookup, read_json
from fleet.model.network import Network
from fleet.model.task import Task, task_name

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """List, inspect and move."""
    router = APIRouter()
    encoded = Encoded()

    def render(task: Task, networks: dict[str, Network]) -> bytes:
        key = (
            task.version.index,
            *(networks[a.network_id] for a in task.network_attachments if a.network_id in networks),
        )
        return encoded.get(task.id, key, lambda: task_json(task, networks))

    @router.get("/tasks")
    async def list_tasks(request: Request) -> Response:
        api = control()
        networks = _networks(api)
        found = api.tasks.list(filters_of(request, FILTERS))
        return json_response(Encoded.array(render(task, networks) for task in found))

    @router.get("/tasks/{id_}")
    async def inspect_task(id_: str) -> Response:
        api = control()
        return json_response(render(api.tasks.find(id_), _networks(api)))

    @router.post("/fleet/v1/tasks/{id_}/move")
    async def move_task(request: Request, id_: str) -> Response:
        api, body = control(), await read_json(request, what="move of a task")
        to = lookup(body, "To")
        if lookup(body, "Checkpoint") is True:
            raise errors.UnsupportedError(
                "move: checkpoints are not supported (no CRIU); without --checkpoint the task's data is copied while it runs, "
                "then it is stopped, what changed is copied, and its successor started with it"
            )
        if not isinstance(to, str) or not to:
            raise errors.UserError('move of a task: "To" names the node')
        task = await api.task_moves.move(id_, to)
        return json_response(_move_json(api.task_moves.report(task.id)), status=202)

    @router.get("/fleet/v1/tasks")
    async def named_tasks(named: str) -> Response:
        task = control().task_moves.named(named)
        return json_response([{"ID": task.id, "Name": task_name(task)}] if task is not None else [])

    @router.get("/fleet/v1/tasks/{id_}/move")
    async def show_move(id_: str) -> Response:
        return json_response(_move_json(control().task_moves.report(id_)))

    return router


def _move_json(report: MoveReport) -> Json:
    to, successor = report.to, report.successor
    return {
        "ID": report.task.id,
        "Name": task_name(report.task),
        "From": report.task.node_id,
        "To": to.id if to is not None else "",
        "ToName": (to.description.hostname or to.id) if to is not None else "",
        "Stage": report.stage.value,
        "Message": report.message,
        "Successor": {"ID": successor.id, "Name": task_name(successor), "NodeID": successor.node_id}
        if successor is not None
        else None,
    }


def _networks(api: ControlApi) -> dict[str, Network]:
    return {network.id: network for network in api.networks.list()}
