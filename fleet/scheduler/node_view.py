"""A node as placing sees it: the node itself, what is free on it and what it carries.

Views change as tasks are placed ("assumed"), so that each decision counts those made before it. They belong to a
``NodePool``, which keeps them from pass to pass.

Resources and host ports are held until a task is *observed* to have ended, even when it is wanted to stop: the process
may still be there. Counts, by which tasks spread, include only tasks that are wanted to run (SwarmKit nodeinfo.go).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from fleet.model.common import DiscreteResource, GenericResource, NamedResource
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import Node
from fleet.model.service import PortConfig, Protocol, PublishMode
from fleet.model.taints import taints_of
from fleet.model.task import Task, TaskState, is_runnable

__all__ = ["FAILURES_MAX", "FailureLog", "NodeView", "host_ports"]

FAILURES_MAX: Final = 5
"""So many failures of one version of a service on a node put the node last for it (SCH-11)."""
FAILURE_WINDOW: Final = timedelta(minutes=5)

HostPort = tuple[Protocol, int]


class NodeView:
    """One node during one pass of placing."""

    __slots__ = (
        "discrete_free",
        "failures",
        "memory_free_bytes",
        "named_free",
        "nano_cpus_free",
        "node",
        "plugins",
        "ports",
        "taints",
        "tasks_by_service",
        "tasks_total",
    )

    def __init__(self, node: Node, *, failures: Mapping[tuple[ServiceId, int], int] | None = None) -> None:
        resources = node.description.resources
        self.node = node
        self.taints = taints_of(node.spec.labels)
        self.nano_cpus_free = resources.nano_cpus
        self.memory_free_bytes = resources.memory_bytes
        self.discrete_free: dict[str, int] = {}
        self.named_free: dict[str, set[str]] = {}
        for resource in resources.generic_resources:
            self._return(resource)
        self.tasks_by_service: dict[ServiceId, int] = {}
        self.tasks_total = 0
        self.ports: set[HostPort] = set()
        self.failures = failures or {}
        self.plugins: dict[str, frozenset[str]] = {}
        for plugin in node.description.engine.plugins:
            self.plugins[plugin.type] = self.plugins.get(plugin.type, frozenset()) | {plugin.name}

    def add(self, task: Task) -> None:
        """Count a task that is on this node: one that has ended counts for nothing."""
        if task.status.state.is_terminal:
            return
        reserved = task.spec.resources.reservations
        self.nano_cpus_free -= reserved.nano_cpus
        self.memory_free_bytes -= reserved.memory_bytes
        for resource in task.assigned_generic_resources:
            self._take(resource)
        self.ports.update(host_ports(task.ports))
        if is_runnable(task):
            self.tasks_total += 1
            self.tasks_by_service[task.service_id] = self.tasks_by_service.get(task.service_id, 0) + 1

    def assume(self, task: Task) -> tuple[GenericResource, ...]:
        """Count a task just placed here; returns the generic resources picked for it (named units, or amounts)."""
        reserved = task.spec.resources.reservations
        picked: tuple[GenericResource, ...] = ()
        if reserved.generic_resources:
            picked = self._pick(task)
            for resource in picked:
                self._take(resource)
        self.nano_cpus_free -= reserved.nano_cpus
        self.memory_free_bytes -= reserved.memory_bytes
        if task.ports:
            self.ports.update(host_ports(task.ports))
        self.tasks_total += 1
        self.tasks_by_service[task.service_id] = self.tasks_by_service.get(task.service_id, 0) + 1
        return picked

    def count(self, service_id: ServiceId) -> int:
        """Tasks of the service that are wanted to run here."""
        return self.tasks_by_service.get(service_id, 0)

    def reserved_permille(self) -> int:
        """The larger share of the node's CPUs and memory that is reserved; 0 for a node that reports neither."""
        resources = self.node.description.resources
        shares = (
            (resources.nano_cpus - self.nano_cpus_free, resources.nano_cpus),
            (resources.memory_bytes - self.memory_free_bytes, resources.memory_bytes),
        )
        return max((used * 1000 // total for used, total in shares if total > 0), default=0)

    def generic_free(self, kind: str) -> int:
        """How many units of a generic resource are free."""
        return self.discrete_free.get(kind, 0) + len(self.named_free.get(kind, ()))

    def recent_failures(self, service_id: ServiceId, spec_version: int) -> int:
        """Failures of that version of the service here in the last five minutes; below the limit they count as none."""
        found = self.failures.get((service_id, spec_version), 0)
        return found if found >= FAILURES_MAX else 0

    def _pick(self, task: Task) -> tuple[GenericResource, ...]:
        picked: list[GenericResource] = []
        for resource in task.spec.resources.reservations.generic_resources:
            if resource.discrete is not None:
                kind, wanted = resource.discrete.kind, resource.discrete.value
                names = sorted(self.named_free.get(kind, ()))[:wanted]
                picked.extend(GenericResource(named=NamedResource(kind=kind, value=name)) for name in names)
                if wanted > len(names):
                    rest = DiscreteResource(kind=kind, value=wanted - len(names))
                    picked.append(GenericResource(discrete=rest))
            elif resource.named is not None:
                picked.append(resource)
        return tuple(picked)

    def _take(self, resource: GenericResource) -> None:
        if resource.discrete is not None:
            kind = resource.discrete.kind
            self.discrete_free[kind] = self.discrete_free.get(kind, 0) - resource.discrete.value
        elif resource.named is not None:
            self.named_free.get(resource.named.kind, set()).discard(resource.named.value)

    def _return(self, resource: GenericResource) -> None:
        if resource.discrete is not None:
            kind = resource.discrete.kind
            self.discrete_free[kind] = self.discrete_free.get(kind, 0) + resource.discrete.value
        elif resource.named is not None:
            self.named_free.setdefault(resource.named.kind, set()).add(resource.named.value)


class FailureLog:
    """Which versions of which services failed where of late. Kept by the leader in memory only: it is a hint.

    Bounded: five instants for each of at most ``keys_max`` (node, service, version), the oldest entry leaving first.
    """

    def __init__(self, *, keys_max: int = 10_000) -> None:
        self._keys_max = keys_max
        self._failures: dict[tuple[NodeId, ServiceId, int], deque[tuple[datetime, TaskId]]] = {}

    def record(self, task: Task) -> None:
        """Note a task, if it has failed or been rejected on a node. Noting it twice changes nothing."""
        if task.status.state not in (TaskState.FAILED, TaskState.REJECTED) or not task.node_id:
            return
        key = (task.node_id, task.service_id, task.spec_version)
        seen = self._failures.pop(key, None) or deque(maxlen=FAILURES_MAX)
        if all(task_id != task.id for _, task_id in seen):
            seen.append((task.status.timestamp, task.id))
        self._failures[key] = seen
        while len(self._failures) > self._keys_max:
            del self._failures[next(iter(self._failures))]

    def recent(self, now: datetime) -> dict[NodeId, dict[tuple[ServiceId, int], int]]:
        """Counts of the last five minutes, by node; forgets what is older."""
        counts: dict[NodeId, dict[tuple[ServiceId, int], int]] = {}
        for key, seen in list(self._failures.items()):
            while seen and seen[0][0] <= now - FAILURE_WINDOW:
                seen.popleft()
            if not seen:
                del self._failures[key]
                continue
            node_id, service_id, spec_version = key
            counts.setdefault(node_id, {})[service_id, spec_version] = len(seen)
        return counts


def host_ports(ports: Iterable[PortConfig]) -> list[HostPort]:
    """Ports published on the node itself; 0 is chosen by the node's kernel and never in the way."""
    return [(p.protocol, p.published_port) for p in ports if p.publish_mode is PublishMode.HOST and p.published_port]
