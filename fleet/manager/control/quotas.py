"""Quotas with what is used of them."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.manager.control.context import Context
from fleet.manager.matching import cluster_quotas
from fleet.model.task import TaskState, is_runnable
from fleet.scheduler.quotas import Budget, Quota, QuotaLedger

__all__ = ["QuotaControl", "QuotaReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaReport:
    """``services``: how many it covers. ``waiting``: tasks that it keeps from being placed."""

    budget: Budget
    services: int
    waiting: int


class QuotaControl:
    """Reads alone."""

    def __init__(self, context: Context) -> None:
        self._store = context.store

    def list(self) -> list[QuotaReport]:
        """By name. O(tasks x quotas)."""
        quotas = cluster_quotas(self._store)
        ledger = QuotaLedger(quotas)
        tasks = self._store.tasks.all()
        for task in tasks:
            ledger.look(task)
        kept_away = [
            task
            for task in tasks
            if is_runnable(task)
            and task.status.state is TaskState.PENDING
            and task.status.err.startswith("beyond quota ")
        ]
        services = [service for service in self._store.services.all() if not service.pending_delete]
        return [
            QuotaReport(
                budget=ledger.budget(quota),
                services=sum(quota.covers(service.spec.labels) for service in services),
                waiting=sum(_names(task.status.err, quota) for task in kept_away),
            )
            for quota in quotas
        ]


def _names(reason: str, quota: Quota) -> bool:
    return reason.startswith(f"beyond quota {quota.name} (")
