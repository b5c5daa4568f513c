"""The autoscale loop: collects what tasks use and what Prometheus says, has it decided, writes the number of replicas.

What it remembers (advice given, readings) is the leader's alone and is lost with it. That is safe: the decision begins with a
history of nothing, and with that nothing is taken away before a whole window has passed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from fleet import errors
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.figures import ManagerFigures
from fleet.manager.loops.waiting import changes_until
from fleet.manager.matching import cluster_quotas
from fleet.manager.prometheus import query_prometheus
from fleet.manager.prometheus_targets import PrometheusTargets
from fleet.manager.usage import TaskLoads
from fleet.model.autoscale import (
    AutoscalePolicy,
    QueryTarget,
    cpu_basis,
    has_policy,
    memory_basis,
    policy_of,
    with_replicas,
)
from fleet.model.ids import ServiceId
from fleet.model.service import SCALINGS_KEPT, AutoscaleStatus, Scaling, Service
from fleet.model.task import Task, TaskState, is_runnable
from fleet.orchestrator.autoscale import Decision, Gauge, History, Observation, decide
from fleet.orchestrator.update import UpdateState, is_paused
from fleet.scheduler.quotas import QuotaLedger
from fleet.store import Changes, Kind, Store, Transaction

__all__ = ["AutoscaleLoop"]

log = get_logger("autoscale")

_ASKED_AT_ONCE: Final = 4
"""Questions to Prometheus that wait for an answer; the other services are decided meanwhile."""
_HELD_S: Final = 60.0
"""Why a service is not scaled is written no more often."""
_STEADY: Final = timedelta(seconds=15)
"""How long it must have been so: tasks that just started are not measured yet, and that is no news."""
_AGAIN: Final = timedelta(seconds=1)
"""Until another look when somebody else wrote the service meanwhile."""
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Windows are measured by the clock that only goes forward; decisions take instants."""

Ask = Callable[[str, str], Awaitable[float]]
"""(address of a Prometheus, query) -> its number; raises ``UnavailableError``. One that may be asked, where none is given."""


@dataclass(slots=True)
class _Track:
    """One service with a policy. ``due``: when to decide next."""

    policy: AutoscalePolicy
    due: datetime
    history: History | None = None
    last: Decision | None = None
    held_from: datetime = _EPOCH
    """Since when ``last.held`` is what it is."""
    is_busy: bool = False
    """A decision is in work, and waits for its Prometheus."""


class AutoscaleLoop:
    """One a leader."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        loads: TaskLoads,
        ask: Ask | None = None,
        figures: ManagerFigures | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._loads = loads
        self._ask = ask or functools.partial(query_prometheus, explain_refusal=PrometheusTargets(store).explain_refusal)
        self._figures = figures or ManagerFigures()
        self._tracks: dict[ServiceId, _Track] = {}
        self._asking = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._silent: dict[str, tuple[datetime, str]] = {}
        """Addresses that did not answer: until when they are left alone, and what came of the last try."""

    def last(self, service_id: ServiceId) -> Decision | None:
        """What was decided for the service lately; None for one without a policy, or not looked at yet."""
        track = self._tracks.get(service_id)
        return track.last if track is not None else None

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        self._tracks.clear()
        with self._store.subscribe(Kind.SERVICE) as subscription:
            self._follow(self._store.services.all())
            async with TaskGroup() as group:
                while True:
                    self._begin_due(group)
                    due = min((track.due for track in self._tracks.values()), default=None)
                    until = None if due is None else self._clock.now() + (due - self._now())
                    self._read(await changes_until(subscription, self._clock, until))

    def _now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._clock.monotonic())

    def _read(self, changes: Changes) -> None:
        if changes.resync:
            self._follow(self._store.services.all())
            for service_id in [each for each in self._tracks if self._store.services.get(each) is None]:
                del self._tracks[service_id]
        for change in changes:
            if isinstance(change.new, Service):
                self._follow([change.new])
            else:
                self._tracks.pop(ServiceId(change.id), None)

    def _follow(self, services: Iterable[Service]) -> None:
        """Begin with what has a policy, end with what has none any more; a changed policy begins anew."""
        for service in services:
            policy = policy_of(service.spec) if has_policy(service.spec.labels) else None
            known = self._tracks.get(service.id)
            if policy is None or service.pending_delete:
                self._tracks.pop(service.id, None)
            elif known is None or known.policy != policy:
                self._tracks[service.id] = _Track(policy, self._now())

    def _begin_due(self, group: asyncio.TaskGroup) -> None:
        """A decision of its own for each service whose time has come, so that none waits for the Prometheus of another."""
        now = self._now()
        self._silent = {address: (until, said) for address, (until, said) in self._silent.items() if until > now}
        for service_id, track in self._tracks.items():
            if track.due <= now:
                track.due = now + track.policy.interval
                if not track.is_busy:
                    track.is_busy = True
                    group.create_task(self._decide(service_id, track))

    async def _decide(self, service_id: ServiceId, track: _Track) -> None:
        try:
            asked = await self._asked(track.policy.query)
            await self._decide_with(asked, service_id, track)
        finally:
            track.is_busy = False

    async def _decide_with(self, asked: Gauge | None, service_id: ServiceId, track: _Track) -> None:
        service = self._store.services.get(service_id)
        if service is None or service.pending_delete or policy_of(service.spec) != track.policy:
            return  # changed while Prometheus was asked; the feed tells it too
        seen = self._observe(service, track.policy, asked)
        decision = decide(track.policy, seen, track.history, now=self._now())
        if track.last is None or track.last.held != decision.held:
            track.held_from = self._now()
        steady_held = decision.held if self._now() - track.held_from >= _STEADY else None
        track.last = decision
        after = _written(service, decision, steady_held, now=self._clock.now(), revision=self._store.revision)
        if after is None:
            track.history = decision.history
            return
        try:
            await self._store.commit(Transaction().replace(after))
        except (errors.ConflictError, errors.NotFoundError):
            track.due = self._now() + _AGAIN  # what changed wakes the loop too, which then sees this
            return
        track.history = decision.history
        if decision.replicas != service.spec.replicas:
            self._figures.scalings.inc("up" if decision.replicas > service.spec.replicas else "down")
            log.info("scaled", service=service.spec.name, id=service.id, why=decision.reason)
        elif steady_held:
            log.info("scaling is held", service=service.spec.name, id=service.id, why=steady_held)

    async def _asked(self, target: QueryTarget | None) -> Gauge | None:
        if target is None:
            return None
        try:
            async with self._asking:
                if (known := self._silent.get(target.prometheus)) is not None:
                    return Gauge(error=known[1])
                value = await self._ask(target.prometheus, target.query)
        except errors.UnavailableError as cause:
            if cause.retry_after_s is not None:
                self._silent[target.prometheus] = (self._now() + timedelta(seconds=cause.retry_after_s), str(cause))
            return Gauge(error=str(cause))
        return Gauge(
            text=f"the query gives {value:g}, {target.per_task:g} a task are wanted",
            demand=max(value, 0.0) / target.per_task,
        )

    def _observe(self, service: Service, policy: AutoscalePolicy, asked: Gauge | None) -> Observation:
        tasks = [task for task in self._store.tasks.by_service(service.id) if is_runnable(task)]
        waiting = [task for task in tasks if task.status.state is TaskState.PENDING and task.status.err]
        room, room_text = self._room(service, tasks)
        return Observation(
            replicas=service.spec.replicas,
            gauges=tuple(self._gauges(service, policy, tasks)) + ((asked,) if asked is not None else ()),
            waiting=waiting[0].status.err if waiting else "",
            room=room,
            room_text=room_text,
            is_paused=is_paused(service),
            is_updating=service.update_status is not None
            and service.update_status.state in (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED),
        )

    def _gauges(self, service: Service, policy: AutoscalePolicy, tasks: list[Task]) -> Iterable[Gauge]:
        if not policy.measures_tasks:
            return
        now = self._clock.now()
        warm = [task for task in tasks if _is_warm(task, policy, now=now)]
        loads = [self._loads.of(task.id, service.id, span=policy.interval) for task in warm]
        cpus = [load.nano_cpus / cpu_basis(service.spec) for load in loads if load and load.nano_cpus is not None]
        if policy.cpu_percent is not None:
            yield _gauge("CPU", cpus, policy.cpu_percent, unknown=len(warm) - len(cpus))
        if policy.memory_percent is not None:
            memory = [load.memory_bytes / max(memory_basis(service.spec), 1) for load in loads if load]
            yield _gauge("memory", memory, policy.memory_percent, unknown=len(warm) - len(memory))

    def _room(self, service: Service, tasks: list[Task]) -> tuple[int | None, str]:
        """How many tasks beyond those that are wanted its quotas let be placed; O(tasks) for a service that has one."""
        quotas = [quota for quota in cluster_quotas(self._store) if quota.covers(service.spec.labels)]
        if not quotas:
            return None, ""
        ledger = QuotaLedger(quotas)
        for task in self._store.tasks.all():
            ledger.look(task)
        placed = sum(bool(task.node_id) for task in tasks)
        rooms = [
            (budget.room(service.spec.task_template) - max(service.spec.replicas - placed, 0), budget)
            for budget in ledger.budgets(service.spec.labels)
        ]
        room, budget = min(rooms, key=lambda each: each[0])
        return room, f"quota {budget.quota.name} ({', '.join(budget.quota.limits())})"


def _is_warm(task: Task, policy: AutoscalePolicy, *, now: datetime) -> bool:
    since = task.status.running_since
    return task.status.state is TaskState.RUNNING and since is not None and now - since >= policy.warmup


def _gauge(what: str, uses: list[float], target_percent: int, *, unknown: int) -> Gauge:
    """``uses``: of each task, as a share of what is 100 %."""
    mean = f"{sum(uses) / len(uses):.0%}" if uses else "not measured yet"
    return Gauge(
        text=f"{what} {mean}, {target_percent}% wanted",
        shares=tuple(use * 100 / target_percent for use in uses),
        unknown=unknown,
    )


def _written(service: Service, decision: Decision, held: str | None, *, now: datetime, revision: int) -> Service | None:
    """The service with the number that was decided and what stands in the way (None: not sure yet); None when it says so."""
    status = service.autoscale or AutoscaleStatus()
    present = service.spec.replicas
    after = status
    is_due = (
        not held or not status.held or status.held_since is None or (now - status.held_since).total_seconds() >= _HELD_S
    )
    if held is not None and held != status.held and (is_due or decision.replicas != present):
        after = msgspec.structs.replace(after, held=held, held_since=now)
    if decision.replicas == present:
        return None if after == status else msgspec.structs.replace(service, autoscale=after, updated_at=now)
    scaling = Scaling(at=now, before=present, after=decision.replicas, reason=decision.reason)
    after = msgspec.structs.replace(after, scalings=(*status.scalings, scaling)[-SCALINGS_KEPT:])
    return msgspec.structs.replace(
        service,
        spec=with_replicas(service.spec, decision.replicas),
        # As for any change of the spec: who read it before and writes it back whole is told that it changed since. The tasks
        # are what they were, an update in work goes on, and the previous spec stays what a person would go back to.
        spec_version=service.spec_version + 1,
        spec_base_revision=revision,
        autoscale=after,
        updated_at=now,
    )
