"""What moving would make better now: the plan that is shown, and whose first steps the loop takes.

A plan is made from the tables each time and kept nowhere. What must outlive a leader is in the store: the marks on the tasks
that move, and on the cluster that somebody asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from fleet import errors
from fleet.manager.matching import cluster_strategy, satisfies_constraints
from fleet.model.cluster import Cluster
from fleet.model.ids import ServiceId
from fleet.model.node import NodeState
from fleet.model.service import Service
from fleet.model.task import Move, Task, TaskState, is_runnable
from fleet.orchestrator.moves import MOVE_PATIENCE, Mode, mobility, parse_mode
from fleet.orchestrator.view import ServiceView
from fleet.scheduler.node_view import FailureLog
from fleet.scheduler.pool import build_views
from fleet.scheduler.rebalance import MOVES_MAX, Relocation, plan_moves
from fleet.store import Store, Transaction

__all__ = ["AT_ONCE_MAX", "RebalancingPlan", "mode_of", "plan_rebalancing", "under_way_until", "wants_automatic"]

AT_ONCE_MAX: Final = 8
"""Moves under way at a time, of all services: images are pulled and connections end, which the cluster should hardly notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalancingPlan:
    """``moves`` in order; ``at_once`` of each service's at a time. ``stays``: why services that might move do not, by name."""

    moves: list[Relocation] = field(default_factory=list)
    at_once: dict[ServiceId, int] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)
    services: dict[ServiceId, Service] = field(default_factory=dict)

    def first(self) -> list[Relocation]:
        """The moves to begin with."""
        begun: dict[ServiceId, int] = {}
        result: list[Relocation] = []
        for each in self.moves:
            service_id = each.task.service_id
            if len(result) < AT_ONCE_MAX and begun.get(service_id, 0) < self.at_once[service_id]:
                begun[service_id] = begun.get(service_id, 0) + 1
                result.append(each)
        return result

    def mark(self, each: Relocation, *, now: datetime) -> Transaction:
        """Begins the move; refused unless task and service are as they were planned with."""
        marked = msgspec.structs.replace(each.task, move=Move(to=each.target, since=now), updated_at=now)
        return Transaction().require(self.services[each.task.service_id]).replace(marked)


def mode_of(service: Service, cluster: Cluster | None) -> Mode:
    """The service's own label, else the cluster's, else *manual*. What can not be read is *off*; the API refuses it."""
    try:
        default = parse_mode(cluster.spec.labels) if cluster is not None else Mode.MANUAL
        return parse_mode(service.spec.labels, default=default)
    except errors.UserError:
        return Mode.OFF


def wants_automatic(store: Store, cluster: Cluster | None) -> bool:
    """Whether any service is to be moved without being asked. O(services)."""
    return any(mode_of(service, cluster) is Mode.AUTOMATIC for service in store.services.all())


def under_way_until(task: Task) -> datetime | None:
    """When the move that the task is part of has come to its end at the latest; None if it is part of none that goes on."""
    if task.move is not None and task.is_moving and not task.move.data:
        return task.move.since + 2 * MOVE_PATIENCE  # the orchestrator ends it after one
    if task.toward and is_runnable(task) and task.status.state.rank < TaskState.RUNNING.rank:
        return task.created_at + MOVE_PATIENCE
    return None


def plan_rebalancing(
    store: Store, cluster: Cluster | None, *, now: datetime, is_asked: bool, limit: int = MOVES_MAX
) -> RebalancingPlan:
    """``is_asked``: by a person, so services that are moved by hand alone are in. O(nodes + tasks)."""
    plan = RebalancingPlan()
    tasks = store.tasks.all()
    nodes = {node.id: node for node in store.nodes.all()}
    movable: dict[ServiceId, tuple[Task, ...]] = {}
    for service in store.services.all():
        if service.spec.is_global or service.spec.is_job:
            continue
        mode = mode_of(service, cluster)
        if mode is Mode.OFF or (mode is Mode.MANUAL and not is_asked):
            if mode is Mode.OFF:
                plan.stays[service.spec.name] = "rebalancing is off"
            continue
        view = ServiceView(
            service=service, tasks=store.tasks.by_service(service.id), nodes=nodes, fits=satisfies_constraints
        )
        found = mobility(view, now=now)
        if found.tasks:
            movable[service.id] = found.tasks
            plan.at_once[service.id] = found.at_once
            plan.services[service.id] = service
        else:
            plan.stays[service.spec.name] = found.reason
    if not movable or sum(node.status.state is NodeState.READY for node in nodes.values()) < 2:
        return plan
    failures = FailureLog()
    for task in tasks:
        failures.record(task)
    plan.moves.extend(
        plan_moves(
            movable,
            build_views(nodes.values(), tasks, failures=failures.recent(now)),
            labels={service.id: (service.spec.name, service.spec.labels) for service in store.services.all()},
            network_drivers={network.id: network.spec.needed_plugin for network in store.networks.all()},
            strategy=cluster_strategy(store),
            limit=limit,
        )
    )
    return plan
