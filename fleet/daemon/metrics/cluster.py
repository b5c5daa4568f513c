"""Figures of a manager. What is true of the whole cluster is told by the leader alone, so that sums over managers are right."""

from __future__ import annotations

from collections import Counter
from typing import Final

from fleet.manager.role import ManagerRole
from fleet.metrics import OTHER, Family, Sample
from fleet.model.ids import ServiceId
from fleet.store import Kind

__all__ = ["cluster_families"]

_SERVICES_MAX: Final = 1000
"""Services with series of their own; the rest are counted together under ``other``."""
_COUNTED: Final = (Kind.SERVICE, Kind.TASK, Kind.NODE, Kind.NETWORK, Kind.SECRET, Kind.CONFIG)


def cluster_families(role: ManagerRole, *, raft_term: int | None) -> list[Family]:
    """``raft_term``: of the etcd that keeps the state; None where SQLite does."""
    engine = "sqlite" if raft_term is None else "etcd"
    store, leadership = role.store, role.leadership
    result = [
        _one("fleet_manager_leading", "Whether this manager leads", leadership.is_leading),
        _one("fleet_manager_terms_total", "Terms this manager began", leadership.terms, counter=True),
        _one("fleet_manager_has_majority", "Whether the managers can write", not role.majority.is_lost),
        _one(
            "fleet_manager_state_age_seconds", "Since the state here was last known to be newest", role.majority.age_s
        ),
        Family("fleet_store_info", "What keeps the state", "gauge", [Sample((("engine", engine),), 1)]),
        _one("fleet_store_revision", "Revision of the state that this manager shows", store.revision),
        Family(
            "fleet_store_objects",
            "Objects in the state",
            "gauge",
            [Sample((("kind", kind.value),), len(store.table(kind).all())) for kind in _COUNTED],
        ),
        store.commit_s.family(),
        store.refusals.family(),
        *role.figures.families(),
    ]
    if raft_term is not None:
        result.append(_one("fleet_raft_term", "Raft term of the etcd that keeps the state", raft_term))
    if leadership.is_leading:
        result += [*_services(role), _nodes(role)]
    return result


def _one(name: str, help_: str, value: float, *, counter: bool = False) -> Family:
    return Family(name, help_, "counter" if counter else "gauge", [Sample((), value + 0)])


def _services(role: ManagerRole) -> list[Family]:
    desired: Counter[str] = Counter()
    running: Counter[str] = Counter()
    names: dict[ServiceId, str] = {}
    for service in sorted(role.control.services.list(), key=lambda each: each.spec.name):
        name = names[service.id] = service.spec.name if len(names) < _SERVICES_MAX else OTHER
        counts = role.control.services.counts(service)
        desired[name] += counts.desired
        running[name] += counts.running
    states: Counter[tuple[str, str]] = Counter(
        (names.get(task.service_id, OTHER), task.status.state.value) for task in role.store.tasks.all()
    )

    def by_service(name: str, help_: str, values: Counter[str]) -> Family:
        return Family(name, help_, "gauge", [Sample((("service", key),), value) for key, value in values.items()])

    return [
        by_service("fleet_service_desired_tasks", "Tasks the service should have running", desired),
        by_service("fleet_service_running_tasks", "Tasks of the service that run and should", running),
        Family(
            "fleet_tasks",
            "Tasks by observed state, with the history that is kept",
            "gauge",
            [Sample((("service", name), ("state", state)), value) for (name, state), value in states.items()],
        ),
    ]


def _nodes(role: ManagerRole) -> Family:
    nodes = Counter(
        (node.spec.role.value, node.spec.availability.value, node.status.state.value)
        for node in role.store.nodes.all()
        if not node.removed
    )
    return Family(
        "fleet_nodes",
        "Nodes of the cluster",
        "gauge",
        [
            Sample((("role", each[0]), ("availability", each[1]), ("state", each[2])), count)
            for each, count in nodes.items()
        ],
    )
