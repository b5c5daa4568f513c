"""What nodes and tasks use, as the leader answers it: to a person at its own API, and to other managers that were asked."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from fleet import errors
from fleet.api.http import parse_bool
from fleet.api.render import Json
from fleet.manager.host_loads import HostLoad
from fleet.manager.role import ManagerRole
from fleet.model.task import TaskState

__all__ = ["CLUSTER_PATH", "usage_json"]

CLUSTER_PATH: Final = "/cluster/v1/usage"


def usage_json(role: ManagerRole, query: dict[str, str]) -> Json:
    """What is known here. Raises ``NotLeadingError`` where another manager leads, ``UserError`` for a bad query."""
    dispatcher = role.dispatcher
    since, with_tasks = _since(query.get("since", "")), parse_bool(query.get("tasks"))
    nodes = []
    for node in role.store.nodes.all():
        if node.removed:
            continue
        now = dispatcher.hosts.now(node.id)
        shown: Json = {"NodeID": node.id, "Now": _load_json(now) if now is not None else None}
        if since is not None:
            shown["History"] = [_load_json(point) for point in dispatcher.hosts.history(node.id, since=since)]
        nodes.append(shown)
    result: Json = {"PeriodSeconds": dispatcher.hosts.period_s(dispatcher.sessions), "Nodes": nodes}
    if with_tasks:
        dispatcher.loads.watch()
        result["Tasks"] = [
            {"ID": task.id, "NanoCPUs": load.nano_cpus, "MemoryBytes": load.memory_bytes}
            for task in role.store.tasks.all()
            if task.status.state is TaskState.RUNNING
            and (load := dispatcher.loads.of(task.id, task.service_id, span=timedelta())) is not None
        ]
    return result


def _since(text: str) -> float | None:
    if not text:
        return None
    try:
        since = float(text)
    except ValueError:
        since = math.nan
    if not math.isfinite(since):
        raise errors.UserError(f"since: {text!r} is not a number of Unix seconds")
    return since


def _load_json(load: HostLoad) -> Json:
    return {
        "Time": load.at,
        "NanoCPUs": load.nano_cpus,
        "MemoryBytes": load.memory_bytes,
        "Containers": {"NanoCPUs": load.containers_nano_cpus, "MemoryBytes": load.containers_memory_bytes},
    }
