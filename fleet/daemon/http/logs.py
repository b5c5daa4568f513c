"""``/services/{id}/logs`` and ``/tasks/{id}/logs``: output of tasks wherever they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet.daemon.log_stream import LogQuery
from fleet.daemon.membership import Membership
from fleet.model.task import Task

__all__ = ["log_routes"]


def log_routes(membership: Membership) -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.get("/services/{name}/logs")
    async def service_logs(request: Request, name: str) -> Response:
        store = membership.manager().store
        service = store.services.find(name, "service")
        query = LogQuery.from_query(request.query_params)

        def tasks() -> Sequence[Task]:
            return store.tasks.by_service(service.id)

        return _stream(membership, tasks, query)

    @routes.get("/tasks/{name}/logs")
    async def task_logs(request: Request, name: str) -> Response:
        store = membership.manager().store
        task = store.tasks.find(name, "task")
        query = LogQuery.from_query(request.query_params)

        def tasks() -> Sequence[Task]:
            now = store.tasks.get(task.id)
            return (now,) if now else ()

        return _stream(membership, tasks, query)

    return routes


def _stream(membership: Membership, tasks: Callable[[], Sequence[Task]], query: LogQuery) -> Response:
    lines = membership.service_logs().stream(tasks, query)
    return StreamingResponse(lines, media_type="application/vnd.docker.multiplexed-stream")
