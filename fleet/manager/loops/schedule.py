"""The schedules' loop: begins the runs of jobs that are due."""

from __future__ import annotations

from datetime import datetime

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import write_all
from fleet.model.ids import ServiceId
from fleet.orchestrator.schedule import plan_schedule, schedule_of
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
        with self._store.subscribe(Kind.SERVICE) as subscription:
            await self._look(service.id for service in self._store.services.all())
            while True:
                now = self._clock.now()
                due = min((instant for instant in self._due.values() if instant is not None), default=None)
                changes = await changes_until(subscription, self._clock, due)
                await self._look(self._affected(changes, now=self._clock.now() if due is not None else now))

    def _affected(self, changes: Changes, *, now: datetime) -> set[ServiceId]:
        if changes.resync:
            return {service.id for service in self._store.services.all()} | set(self._due)
        found = {ServiceId((change.new or change.old).id) for change in changes}  # type: ignore[union-attr]
        return found | {service_id for service_id, due in self._due.items() if due is not None and due <= now}

    async def _look(self, service_ids: object) -> None:
        now = self._clock.now()
        changed = []
        for service_id in sorted(service_ids):  # type: ignore[call-overload]
            service = self._store.services.get(service_id)
            if service is None or schedule_of(service) is None:
                self._due.pop(service_id, None)
                continue
            after, self._due[service_id] = plan_schedule(service, self._store.tasks.by_service(service_id), now=now)
            if after is not None:
                changed.append(after)
        if not changed:
            return
        refused = await write_all(self._store, [Transaction().replace(service) for service in changed])
        for service in changed:
            run = service.job_status.runs[-1] if service.job_status else None
            if run is not None:
                log.info(
                    "schedule",
                    service=service.spec.name,
                    due=run.scheduled.isoformat(),
                    outcome=run.outcome,
                    why=run.reason,
                )
        if refused:
            log.info("schedules changed meanwhile; they are looked at again", refused=refused)
