"""What ``fleet top`` shows, as values: read from the manager API in one go, joined and summed up here.

What tasks and nodes use is what their agents told the manager that leads (``/fleet/v1/usage``). It is shown where it is known and
a dash elsewhere: a node that just came, a task that began a moment ago; a sum that lacks tasks is marked as a lower bound.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock
from fleet.cli.service_rows import mode_name
from fleet.cli.tasks import has_ended, state_of

__all__ = ["NodeRow", "ServiceRow", "Snapshot", "TaskRow", "Use", "gather"]

Json = dict[str, Any]

RECENT_S: Final = 600.0
"""How long a failed task counts as trouble."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a task or a whole host uses: ``cpus`` as a share of processors (1.5 is one and a half)."""

    cpus: float
    memory_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    name: str
    role: str
    state: str
    availability: str
    tasks: int
    cpus: float
    cpus_reserved: float
    memory_bytes: int
    memory_reserved: int
    use: Use | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    name: str
    mode: str
    running: int
    desired: int
    cpus_reserved: float
    memory_reserved: int
    use: Use | None = None
    whole: bool = True
    """Whether ``use`` covers all running tasks."""
    update: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    name: str
    service: str
    node: str
    state: str
    age_s: float
    reason: str
    trouble: bool
    count: int = 1
    """Tasks of the same slot with the same reason, of which this is the newest."""
    use: Use | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One look at the cluster. ``tells_use``: whether the daemon tells what is used at all."""

    here: str
    tells_use: bool
    nodes: tuple[NodeRow, ...] = ()
    services: tuple[ServiceRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether use of every running task and ready node is known, as far as the daemon tells any."""
        tasks = (task.use for task in self.tasks if task.state == "running")
        nodes = (node.use for node in self.nodes if node.state == "ready")
        return not self.tells_use or (None not in tasks and None not in nodes)

    @property
    def trouble(self) -> tuple[TaskRow, ...]:
        """Tasks that wait for something or failed lately."""
        return tuple(task for task in self.tasks if task.trouble)


def _uses(told: Iterable[tuple[Any, Json | None]]) -> dict[str, Use]:
    """By id; those whose use of processors is not known yet are left out."""
    return {
        str(id_): Use(cpus=figures["NanoCPUs"] / 1e9, memory_bytes=int(figures.get("MemoryBytes") or 0))
        for id_, figures in told
        if figures and figures.get("NanoCPUs") is not None
    }


def gather(client: EngineClient) -> Snapshot:
    """Read the cluster. Raises ``FleetError`` when the daemon has no answer."""
    nodes = client.get("/nodes") or []
    services = client.get("/services", status=True) or []
    tasks = client.get("/tasks") or []
    info = client.get("/info") or {}
    here = str(info.get("Name") or "")
    try:
        told = client.get("/fleet/v1/usage", tasks=True) or {}
        tells_use = True
    except EngineError:  # an older daemon, another engine, no leader, or not for this user
        told, tells_use = {}, False
    use = _uses((each.get("ID"), each) for each in told.get("Tasks") or ())
    of_nodes = _uses((each.get("NodeID"), each.get("Now")) for each in told.get("Nodes") or ())
    live = [task for task in tasks if not has_ended(task)]
    names = {str(node["ID"]): _host(node) for node in nodes}
    rows = _task_rows(tasks, services, names, use, now=clock.now())
    return Snapshot(
        here=here,
        tells_use=tells_use,
        nodes=tuple(_node_rows(nodes, live, of_nodes)),
        services=tuple(_service_rows(services, live, use)),
        tasks=tuple(rows),
    )


def _host(node: Json) -> str:
    return str((node.get("Description") or {}).get("Hostname") or node["ID"])


def _reserved(task: Json) -> tuple[float, int]:
    found = ((task.get("Spec") or {}).get("Resources") or {}).get("Reservations") or {}
    return (found.get("NanoCPUs") or 0) / 1e9, int(found.get("MemoryBytes") or 0)


def _sum(uses: Iterable[Use]) -> Use:
    all_ = list(uses)
    return Use(cpus=sum(each.cpus for each in all_), memory_bytes=sum(each.memory_bytes for each in all_))


def _node_rows(nodes: list[Json], live: list[Json], use: Mapping[str, Use]) -> Iterable[NodeRow]:
    by_node: defaultdict[str, list[Json]] = defaultdict(list)
    for task in live:
        by_node[str(task.get("NodeID") or "")].append(task)
    for node in nodes:
        mine = by_node[str(node["ID"])]
        reserved = [_reserved(task) for task in mine]
        resources = (node.get("Description") or {}).get("Resources") or {}
        manager = node.get("ManagerStatus") or {}
        yield NodeRow(
            name=_host(node),
            role="leader" if manager.get("Leader") else str((node.get("Spec") or {}).get("Role") or ""),
            state=str((node.get("Status") or {}).get("State") or "unknown"),
            availability=str((node.get("Spec") or {}).get("Availability") or ""),
            tasks=sum(state_of(task) == "running" for task in mine),
            cpus=(resources.get("NanoCPUs") or 0) / 1e9,
            cpus_reserved=sum(cpus for cpus, _ in reserved),
            memory_bytes=int(resources.get("MemoryBytes") or 0),
            memory_reserved=sum(memory for _, memory in reserved),
            use=use.get(str(node["ID"])),
        )


def _service_rows(services: list[Json], live: list[Json], use: Mapping[str, Use]) -> Iterable[ServiceRow]:
    by_service: defaultdict[str, list[Json]] = defaultdict(list)
    for task in live:
        by_service[str(task.get("ServiceID") or "")].append(task)
    for service in services:
        mine = by_service[str(service["ID"])]
        reserved = [_reserved(task) for task in mine]
        running = [task for task in mine if state_of(task) == "running"]
        known = [use[task["ID"]] for task in running if task["ID"] in use]
        status = service.get("ServiceStatus") or {}
        yield ServiceRow(
            name=str(service["Spec"].get("Name") or service["ID"]),
            mode=mode_name(service["Spec"]),
            running=int(status.get("RunningTasks") or 0),
            desired=int(status.get("DesiredTasks") or 0),
            cpus_reserved=sum(cpus for cpus, _ in reserved),
            memory_reserved=sum(memory for _, memory in reserved),
            use=_sum(known) if known else None,
            whole=len(known) == len(running),
            update=str((service.get("UpdateStatus") or {}).get("State") or ""),
        )


def _reason(task: Json) -> str:
    status = task.get("Status") or {}
    code = (status.get("ContainerStatus") or {}).get("ExitCode")
    reason = str(status.get("Err") or "")
    if not reason and state_of(task) == "failed" and code:
        reason = f"exit code {code}"
    return reason


def _in_trouble(task: Json, age_s: float) -> bool:
    """Wanted and waiting with a reason, or failed a short time ago."""
    if has_ended(task):
        return state_of(task) in ("failed", "rejected", "orphaned") and age_s < RECENT_S
    return state_of(task) != "running" and bool((task.get("Status") or {}).get("Err"))


def _task_rows(
    tasks: list[Json], services: list[Json], nodes: Mapping[str, str], use: Mapping[str, Use], *, now: datetime
) -> list[TaskRow]:
    """Live tasks and those in trouble, newest first; what failed again and again in one slot is one row."""
    names = {str(service["ID"]): str(service["Spec"].get("Name") or service["ID"]) for service in services}
    counts: Counter[tuple[str, str, str]] = Counter()
    rows: dict[tuple[str, str, str], TaskRow] = {}
    for task in sorted(tasks, key=lambda each: str(each.get("CreatedAt") or ""), reverse=True):
        since = clock.parse_time((task.get("Status") or {}).get("Timestamp"))
        age_s = max(0.0, (now - since).total_seconds()) if since else 0.0
        trouble = _in_trouble(task, age_s)
        if has_ended(task) and not trouble:
            continue
        service = names.get(str(task.get("ServiceID") or ""), str(task.get("ServiceID") or ""))
        node = nodes.get(str(task.get("NodeID") or ""), str(task.get("NodeID") or ""))
        name = f"{service}.{task.get('Slot') or node}" if service else str(task["ID"])
        reason = _reason(task)
        key = (name, reason, state_of(task)) if trouble else (str(task["ID"]), "", "")
        counts[key] += 1
        rows.setdefault(
            key,
            TaskRow(
                name=name, service=service, node=node, state=state_of(task), age_s=age_s, reason=reason, trouble=trouble,
                use=use.get(task["ID"]),
            ),
        )  # fmt: skip
    return [dataclasses.replace(row, count=counts[key]) for key, row in rows.items()]
