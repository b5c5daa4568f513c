"""``GET /fleet/v1/watch``: nodes, services and tasks as they are, and then each change, as lines of JSON.

    {"Type": "reset"}                                              forget what was told before; the first line, too
    {"Type": "task", "Action": "put", "ID": "...", "Object": {}}   it is so now
    {"Type": "task", "Action": "remove", "ID": "..."}              it is no more
    {"Type": "synced"}                                             everything was told; from here on changes follow

Objects are Docker's, services with ``ServiceStatus``. Tasks have only what lists of them show. ``SpecVersion`` beside a service
is that of the last update that replaces tasks: one with a lesser one is of before, unless its ``SpecDigest`` is the service's, as
after a rollback. Changes of one object that come quickly are
one, and a reader that does not keep up misses states between but never the last one. Lists that are polled would cost the
manager and the reader the whole cluster at each event; this costs what changed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from fleet.api.render import Json, node_json, service_json, task_json
from fleet.daemon.membership import Membership
from fleet.manager.role import ManagerRole
from fleet.model.ids import ServiceId
from fleet.model.node import Node
from fleet.model.service import Placement, Service, TaskSpec
from fleet.model.task import Task
from fleet.orchestrator.view import wanted_spec
from fleet.store import Changes, Kind

__all__ = ["watch_lines", "watch_routes"]

_COALESCE_S: Final = 0.1
_PIECE_BYTES: Final = 128 * 1024


def watch_routes(membership: Membership) -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.get("/fleet/v1/watch")
    async def watch() -> StreamingResponse:
        return StreamingResponse(watch_lines(membership.manager()), media_type="application/x-ndjson")

    return routes


async def watch_lines(role: ManagerRole) -> AsyncIterator[bytes]:
    """Pieces of whole lines, until the store is closed."""
    with role.store.subscribe(Kind.NODE, Kind.SERVICE, Kind.TASK) as subscription:
        changes = Changes((), resync=True)
        while True:
            for piece in _pieces(_everything(role) if changes.resync else _changed(role, changes)):
                yield piece
            changes = await subscription.wait()
            if not changes.resync:
                await asyncio.sleep(_COALESCE_S)
                more = subscription.take()
                changes = Changes((*changes, *more), resync=more.resync)


def _pieces(lines: Iterable[Json]) -> Iterator[bytes]:
    piece = bytearray()
    for line in lines:
        piece += msgspec.json.encode(line) + b"\n"
        if len(piece) > _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _everything(role: ManagerRole) -> Iterator[Json]:
    yield {"Type": "reset"}
    for node in role.control.nodes.list():
        yield _node(node)
    for service in role.control.services.list():
        yield _service(role, service)
    for task in role.store.tasks.all():
        yield _task(task)
    yield {"Type": "synced"}


def _changed(role: ManagerRole, changes: Changes) -> Iterator[Json]:
    """Each object once, as it is now; with a task goes its service, whose count of running tasks it may have changed."""
    services: dict[ServiceId, None] = {}
    seen: set[tuple[Kind, str]] = set()
    for change in changes:
        if isinstance(obj := change.new or change.old, Task) and obj.service_id:
            services[obj.service_id] = None
        if isinstance(obj, Service):
            services[obj.id] = None
        if isinstance(obj, Service) or (change.kind, change.id) in seen:
            continue
        seen.add((change.kind, change.id))
        now: Any = role.store.table(change.kind).get(change.id)
        if now is None or (isinstance(now, Node) and now.removed):
            yield {"Type": str(change.kind), "Action": "remove", "ID": change.id}
        else:
            yield _node(now) if isinstance(now, Node) else _task(now)
    for service_id in services:
        service = role.store.services.get(service_id)
        if service is None or service.pending_delete:
            yield {"Type": "service", "Action": "remove", "ID": service_id}
        else:
            yield _service(role, service)


def _node(node: Node) -> Json:
    return {"Type": "node", "Action": "put", "ID": node.id, "Object": node_json(node)}


def _service(role: ManagerRole, service: Service) -> Json:
    counts = role.control.services.counts(service)
    shown = service_json(service, status=(counts.running, counts.desired, counts.completed))
    return {
        "Type": "service",
        "Action": "put",
        "ID": service.id,
        "SpecVersion": service.task_spec_version,
        "SpecDigest": _digest(wanted_spec(service)),
        "Object": shown,
    }


def _task(task: Task) -> Json:
    whole = task_json(task, {})
    shown: Json = {key: whole[key] for key in _TASK_KEYS if key in whole}
    container = whole["Spec"].get("ContainerSpec") or {}
    shown["Spec"] = {"ContainerSpec": {key: container[key] for key in ("Image", "TTY") if key in container}}
    return {
        "Type": "task",
        "Action": "put",
        "ID": task.id,
        "SpecVersion": task.spec_version,
        "SpecDigest": _digest(task.spec),
        "Object": shown,
    }


def _digest(spec: TaskSpec) -> str:
    """The same for tasks that need not replace each other; where they may be placed says nothing of what they are."""
    encoded = msgspec.json.encode(msgspec.structs.replace(spec, placement=Placement()))
    return hashlib.blake2s(encoded, digest_size=6).hexdigest()


_TASK_KEYS: Final[tuple[str, ...]] = (
    "ID",
    "Version",
    "CreatedAt",
    "UpdatedAt",
    "ServiceID",
    "Slot",
    "NodeID",
    "Status",
    "DesiredState",
    "JobIteration",
)
