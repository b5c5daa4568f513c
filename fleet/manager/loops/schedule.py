"""The schedules' loop: begins the runs of jobs that are due."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import write_all
from fleet.manager.matching import satisfies_constraints
from fleet.model.ids import NodeId, ServiceId
from fleet.model.node import Node
from fleet.model.service import Service
from fleet.model.task import Task
from fleet.orchestrator.schedule import plan_schedule, schedule_of
from fleet.orchestrator.view import ServiceView
from fleet.store import Changes, Kind, Store, Transaction

__all__ = ["ScheduleLoop"]

log = get_logger("schedule")


class ScheduleLoop:
    """One a leader. Nothing is kept that the services do not say."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._due: dict[ServiceId, datetime | None] = {}
        """Of services with a schedule, when to look again."""

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.SERVICE, Kind.TASK) as subscription:
            await self._look(service.id for service in self._store.services.all())
            while True:
                now = self._clock.now()
                due = min((instant for instant in self._due.values() if instant is not None), default=None)
                changes = await changes_until(subscription, self._clock, due)
                await self._look(self._affected(changes, now=self._clock.now() if due is not None else now))

    def _affected(self, changes: Changes, *, now: datetime) -> set[ServiceId]:
        if changes.resync:
            return {service.id for service in self._store.services.all()} | set(self._due)
        found: set[ServiceId] = set()
        for change in changes:
            latest = change.new or change.old
            if isinstance(latest, Service):
                found.add(latest.id)
            elif isinstance(latest, Task) and latest.service_id in self._due:
                found.add(latest.service_id)
        return found | {service_id for service_id, due in self._due.items() if due is not None and due <= now}

    async def _look(self, service_ids: Iterable[ServiceId]) -> None:
        now = self._clock.now()
        nodes: dict[NodeId, Node] | None = None
        changed: list[Service] = []
        for service_id in sorted(service_ids):
            service = self._store.services.get(service_id)
            if service is None or not _has_runs(service):
                self._due.pop(service_id, None)
                continue
            if nodes is None:
                nodes = {node.id: node for node in self._store.nodes.all()}
            tasks = self._store.tasks.by_service(service_id)
            view = ServiceView(service=service, tasks=tasks, nodes=nodes, fits=satisfies_constraints)
            after, self._due[service_id] = plan_schedule(view, now=now)
            if after is not None:
                changed.append(after)
                _log(service, after)
        if not changed:
            return
        refused = await write_all(self._store, [Transaction().replace(service) for service in changed])
        if refused:
            log.info("schedules changed meanwhile; they are looked at again", refused=refused)


def _has_runs(service: Service) -> bool:
    """Ones to come, or ones that began before its schedule was taken from it."""
    return schedule_of(service) is not None or (service.job_status is not None and bool(service.job_status.runs))


def _log(before: Service, after: Service) -> None:
    known = before.job_status.runs if before.job_status else ()
    for run in after.job_status.runs if after.job_status else ():
        if run not in known:
            due = run.scheduled.isoformat()
            log.info("schedule", service=after.spec.name, due=due, outcome=run.outcome, why=run.reason)
