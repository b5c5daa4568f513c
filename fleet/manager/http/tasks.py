"""/tasks

The one list that grows with the cluster and is polled (each ``--detach=false`` asks five times a second), so its items are
kept as bytes.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response
from fleet.api.render import Encoded, task_json
from fleet.manager.control import ControlApi
from fleet.manager.control.tasks import FILTERS
from fleet.manager.http.request import Control, filters_of
from fleet.model.network import Network
from fleet.model.task import Task

__all__ = ["routes"]


def routes(control: Control) -> APIRouter:
    """List and inspect."""
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

    return router


def _networks(api: ControlApi) -> dict[str, Network]:
    return {network.id: network for network in api.networks.list()}
