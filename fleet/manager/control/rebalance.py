"""Moving tasks for balance: what would be moved, asking for it, and taking that back."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fleet import errors
from fleet.manager.control.context import Context
from fleet.manager.rebalancing import RebalancingPlan, plan_rebalancing, under_way_until
from fleet.model.cluster import Cluster, Rebalance
from fleet.model.task import Task, TaskState, is_runnable
from fleet.store import Transaction

__all__ = ["RebalanceControl", "RebalanceReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceReport:
    """``request``: the last one. ``under_way``: tasks that are to leave their node, or are made to take the place of one.
    ``moved``: tasks that run in the place of those that left since the request. ``given_up``: running tasks whose last move did
    not come about."""

    request: Rebalance | None
    plan: RebalancingPlan
    under_way: list[Task]
    moved: list[Task]
    given_up: list[Task]


class RebalanceControl:
    """The loop on the leader does the work; this writes what is wanted."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def report(self) -> RebalanceReport:
        """O(nodes + tasks)."""
        cluster, tasks, now = self._cluster(), self._store.tasks.all(), self._context.now()
        request = cluster.rebalance
        return RebalanceReport(
            request=request,
            plan=plan_rebalancing(self._store, cluster, now=now, is_asked=True),
            under_way=[task for task in tasks if (until := under_way_until(task)) is not None and now < until],
            moved=[
                task
                for task in tasks
                if task.toward
                and request is not None
                and task.created_at >= request.requested_at
                and is_runnable(task)
                and task.status.state is TaskState.RUNNING
            ],
            given_up=[task for task in tasks if task.move is not None and task.move.ended and is_runnable(task)],
        )

    async def request(self) -> None:
        """Ask for all that can be moved with gain; returns when that is noted. One that is at work goes on."""
        await self._context.guarded(lambda: self._noted(Rebalance(requested_at=self._context.now())))

    async def cancel(self) -> None:
        """Begin no further move. Raises ``UserError`` when none was asked for; those under way come to their end."""
        request = self._cluster().rebalance
        if request is None or request.finished_at is not None:
            raise errors.UserError("no rebalancing is at work")
        finished = msgspec.structs.replace(request, finished_at=self._context.now(), outcome="cancelled")
        await self._context.guarded(lambda: self._noted(finished))

    def _noted(self, rebalance: Rebalance) -> Transaction:
        cluster = self._cluster()
        before = cluster.rebalance
        if rebalance.finished_at is None and before is not None and before.finished_at is None:
            rebalance = before
        return Transaction().replace(
            msgspec.structs.replace(cluster, rebalance=rebalance, updated_at=self._context.now())
        )

    def _cluster(self) -> Cluster:
        cluster = next(iter(self._store.clusters.all()), None)
        if cluster is None:
            raise errors.UnavailableError("the cluster is not founded yet", retry_after_s=1)
        return cluster
