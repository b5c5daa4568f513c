"""The entry: what one service needs, whatever its mode."""

from __future__ import annotations

from datetime import datetime

from fleet.orchestrator.global_ import plan_global
from fleet.orchestrator.job import plan_job
from fleet.orchestrator.plan import NewId, Plan
from fleet.orchestrator.replicated import plan_replicated
from fleet.orchestrator.schedule import is_waiting_for_its_time
from fleet.orchestrator.view import ServiceView

__all__ = ["plan_service"]


def plan_service(view: ServiceView, *, now: datetime, new_id: NewId) -> Plan:
    """What to do next for the service; empty when nothing. Pure, idempotent, and right after any interruption.

    A service to be deleted loses its tasks (the reaper deletes it after the last).
    """
    service = view.service
    if service.pending_delete:
        plan = Plan()
        for task in view.tasks:
            plan.want_removal(task, now=now)
        return plan
    if service.spec.is_job:
        if is_waiting_for_its_time(service):
            return Plan()
        return plan_job(view, now=now, new_id=new_id)
    if service.spec.is_global:
        return plan_global(view, now=now, new_id=new_id)
    return plan_replicated(view, now=now, new_id=new_id)
