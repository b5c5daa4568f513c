"""The reaper's loop: services with something to forget are looked at, and what can go is deleted."""

from __future__ import annotations

from datetime import datetime

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import transactions_of, write_all
from fleet.model.cluster import OrchestrationConfig
from fleet.model.ids import ServiceId
from fleet.model.node import Node
from fleet.model.task import Task, TaskState
from fleet.orchestrator.reaper import plan_reaping
from fleet.store import Change, Changes, Kind, Store

__all__ = ["ReaperLoop"]

log = get_logger("reaper")


class ReaperLoop:
    """One a leader."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._wake_at: datetime | None = None

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.SERVICE, Kind.TASK, Kind.NODE, Kind.CLUSTER) as subscription:
            dirty = self._everything()
            while True:
                while dirty:
                    dirty = await self._reap(dirty)
                changes = await changes_until(subscription, self._clock, self._wake_at)
                due = self._wake_at is not None and self._wake_at <= self._clock.now()
                if due:
                    self._wake_at = None
                dirty = self._everything() if due else self._affected(changes)

    async def _reap(self, dirty: set[ServiceId]) -> set[ServiceId]:
        """Returns what to look at again: all, if anything was written."""
        services = {service.id: service for service in self._store.services.all() if service.id in dirty}
        plan = plan_reaping(
            services,
            (task for service_id in dirty for task in self._store.tasks.by_service(service_id)),
            {node.id: node for node in self._store.nodes.all()},
            history_limit=self._history_limit(),
            now=self._clock.now(),
        )
        if plan.wake_at is not None:
            self._wake_at = min(plan.wake_at, self._wake_at or plan.wake_at)
        if plan.is_empty:
            return set()
        refused = await write_all(self._store, transactions_of(plan, None, logins=tuple(self._store.logins.all())))
        log.info("reaped", did=plan.explain(), refused=refused)
        return dirty

    def _history_limit(self) -> int:
        cluster = next(iter(self._store.clusters.all()), None)
        config = cluster.spec.orchestration if cluster is not None else OrchestrationConfig()
        return config.task_history_retention_limit

    def _everything(self) -> set[ServiceId]:
        return {service.id for service in self._store.services.all()} | {
            task.service_id for task in self._store.tasks.all()
        }

    def _affected(self, changes: Changes) -> set[ServiceId]:
        if changes.resync or any(change.kind is Kind.CLUSTER for change in changes):
            return self._everything()
        affected: set[ServiceId] = set()
        for change in changes:
            affected.update(self._affected_by(change))
        return affected

    def _affected_by(self, change: Change) -> set[ServiceId]:
        latest = change.new or change.old
        if isinstance(latest, Task):
            # A task that lives and is wanted gives nothing to forget.
            unwanted = latest.desired_state.rank > TaskState.RUNNING.rank or latest.status.state.is_terminal
            return {latest.service_id} if unwanted or change.new is None else set()
        if isinstance(latest, Node):
            return {task.service_id for task in self._store.tasks.by_node(latest.id)}
        return {ServiceId(change.id)}
