"""Where the next task of a service would go, and why not elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.manager.control.context import Context
from fleet.manager.matching import cluster_quotas, cluster_strategy
from fleet.manager.preemption import may_preempt, nominations, yielding
from fleet.model.ids import NetworkId, NodeId, TaskId
from fleet.model.service import Service
from fleet.model.task import Attachment, Task, TaskState, TaskStatus
from fleet.scheduler.explain import NodeVerdict, explain_nodes
from fleet.scheduler.filters import Demand, Holders, nobody
from fleet.scheduler.node_view import FailureLog
from fleet.scheduler.place import make_demand_of, place
from fleet.scheduler.pool import build_views
from fleet.scheduler.preempt import Preemption, plan_preemptions
from fleet.scheduler.quotas import Budget, over_quota
from fleet.scheduler.wishes import priority_of

__all__ = ["PlacementControl", "PlacementReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementReport:
    """``chosen``: the node that the next task would get; none when it would wait, for the ``reason``. ``quotas``: those it counts
    for, and what is used of them. ``waiting``: tasks that wait for a node. ``preempted``: tasks that yield, or did, of or to
    this service. ``preemption``: what would be stopped for the next task."""

    service: Service
    strategy: str
    chosen: NodeId | None
    reason: str
    quotas: list[Budget]
    nodes: list[NodeVerdict]
    waiting: list[Task]
    preempted: list[Task]
    preemption: Preemption | None


class PlacementControl:
    """Reads alone."""

    def __init__(self, context: Context, *, holders: Holders = nobody) -> None:
        self._holders = holders
        self._context = context
        self._store = context.store

    def explain(self, text: str) -> PlacementReport:
        """For the service of that id, name or prefix. Raises ``NotFoundError``; ``UserError`` if ambiguous. O(nodes + tasks)."""
        service, now = self._store.services.find(text), self._context.now()
        tasks = self._store.tasks.all()
        failures = FailureLog()
        for task in tasks:
            failures.record(task)
        networks = [NetworkId(target.target) for target in service.spec.all_networks]
        following = Task(
            id=TaskId("next"),
            created_at=now,
            updated_at=now,
            service_id=service.id,
            service_name=service.spec.name,
            service_labels=service.spec.labels,
            spec=service.spec.task_template,
            spec_version=service.spec_version,
            ports=service.endpoint.ports,
            network_attachments=tuple(Attachment(network_id=network) for network in networks),
            status=TaskStatus(timestamp=now, state=TaskState.PENDING),
        )
        drivers = {network.id: network.spec.needed_plugin for network in self._store.networks.all()}
        pool = build_views(self._store.nodes.all(), tasks, failures=failures.recent(now))
        strategy = cluster_strategy(self._store)
        known = [drivers[network] for network in networks if network in drivers]
        demand = Demand(
            following,
            network_drivers=known,
            service_id_of=pool.service_id_of,
            strategy=strategy,
            holders=self._holders,
        )
        verdicts = explain_nodes(demand, pool)
        pool.set_quotas(cluster_quotas(self._store))
        trial = build_views(self._store.nodes.all(), tasks, failures=failures.recent(now))
        trial.set_quotas(cluster_quotas(self._store))
        placed = place([following], trial, network_drivers=drivers, strategy=strategy, holders=self._holders)
        over = over_quota(pool.budgets(service.spec.labels), following)
        able = may_preempt(self._store, [following]) if following.id in placed.pending and over is None else []
        preemptions = plan_preemptions(
            able,
            pool,
            yielding=yielding(self._store, below=priority_of(service.spec.labels), now=now) if able else {},
            make_demand=make_demand_of(pool, network_drivers=drivers, strategy=strategy, holders=self._holders),
            expected=[
                (task, nominated[task.id])
                for nominated in [nominations(tasks)]
                for task in tasks
                if task.id in nominated and task.status.state is TaskState.PENDING
            ],
        )
        return PlacementReport(
            preempted=[
                task
                for task in tasks
                if task.preempted is not None
                and (task.service_id == service.id or task.preempted.service == service.spec.name)
            ],
            preemption=next(iter(preemptions), None),
            service=service,
            strategy=demand.strategy.value,
            chosen=placed.assignments.get(following.id),
            reason=placed.pending.get(following.id, ""),
            quotas=pool.budgets(service.spec.labels),
            nodes=verdicts,
            waiting=[
                task
                for task in self._store.tasks.by_service(service.id)
                if task.status.state is TaskState.PENDING and task.desired_state.rank <= TaskState.RUNNING.rank
            ],
        )
