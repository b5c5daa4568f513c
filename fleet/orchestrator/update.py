"""The rolling update: stale tasks are replaced, some slots at a time, watched, and stopped or undone when it goes wrong.

Level-triggered like the rest: which slots are done, in work or waiting follows from the tasks; the service's
``update_status`` holds only what tasks can not tell: when it began and whether it was paused (UPD-01..11).

    (none) --stale slots--> updating --all run for monitor--> completed
                               |--failures > ratio: pause----> paused             until the spec is updated again
                               '--failures > ratio: rollback-> rollback_started   spec <- previous spec
    rollback_started --all run for monitor--> rollback_completed
                               '--failures > ratio-----------> rollback_paused    (whatever its failure action but continue)

A slot is *in work* from its first task of the new spec until that task has run for the delay. An *attempt* is a task
of the new spec made since the update began; an attempt that ended by itself before, or soon after, it ran is a failure, and so
is one that does not run when the progress deadline is over, if there is one (B18).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet.model.autoscale import keeping_replicas
from fleet.model.defaults import nanoseconds
from fleet.model.service import Service, UpdateConfig, UpdateStatus
from fleet.model.task import Task, TaskState
from fleet.orchestrator.plan import NewId, Plan, Waiting, WaitingFor, new_task
from fleet.orchestrator.restart import decide_replacement, hold_after
from fleet.orchestrator.view import ServiceView, Slot, SlotKey, ended_by_itself, slot_key

__all__ = ["UpdateState", "is_paused", "plan_update", "update_config"]


_ROLLED_BACK: Final = "update rolled back"


class UpdateState:
    """Docker's words for ``UpdateStatus.State``."""

    UPDATING: Final = "updating"
    PAUSED: Final = "paused"
    COMPLETED: Final = "completed"
    ROLLBACK_STARTED: Final = "rollback_started"
    ROLLBACK_PAUSED: Final = "rollback_paused"
    ROLLBACK_COMPLETED: Final = "rollback_completed"


def update_config(service: Service) -> UpdateConfig:
    """The configuration of the update in work: that for rollbacks while one is under way."""
    chosen = service.spec.rollback_config if _is_rollback(service) else service.spec.update_config
    return chosen or UpdateConfig()


def is_paused(service: Service) -> bool:
    """Whether an update stopped half-way and waits for a person."""
    return _state(service) in (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """One slot in an update. ``fresh`` tasks are of the new spec; ``attempts`` are those made since the update began
    (it begins anew when a user changes the service meanwhile). ``reached_at``: when the first fresh one ran, or ended.
    """

    slot: Slot
    is_stale: bool
    fresh: tuple[Task, ...]
    attempts: tuple[Task, ...]
    reached_at: datetime | None


def plan_update(view: ServiceView, slots: Mapping[SlotKey, Slot], plan: Plan, *, now: datetime, new_id: NewId) -> None:
    """Take the next step of the service's update, or begin or end it. ``plan`` has the slots' other needs already."""
    service = view.service
    started_at = _started_at(service)
    if started_at is None and all(task.spec_version >= service.task_spec_version for task in view.tasks):
        return
    progress = _progress(view, slots, plan, since=started_at or now)
    stale = [each for each in progress if each.is_stale]
    if started_at is None:
        if not stale:
            return
        if is_paused(service):
            plan.waiting.append(Waiting(reason=WaitingFor.UPDATE_PAUSED, service_id=service.id))
            return
        status = UpdateStatus(state=UpdateState.UPDATING, started_at=now, message="update in progress")
        service = msgspec.structs.replace(service, update_status=status, updated_at=now)
        plan.changed_services.append(service)
    config = update_config(service)
    failed = _failures(progress, config, now=now)
    touched = len(stale) + sum(1 for each in progress if each.attempts and not each.is_stale)
    if failed and len(failed) / max(touched, 1) > config.max_failure_ratio and config.failure_action != "continue":
        plan.changed_services[:] = [_give_up(service, config, failed[-1], now=now)]
        return
    plan.waiting.extend(_deadlines(service, progress, config, now=now))
    unfinished = any(each.fresh and each.reached_at is None for each in progress)
    room = config.parallelism or len(progress)
    if stale:
        room -= sum(_is_in_work(each, config, plan, service, now=now) for each in progress)
    for each in stale:
        if each.fresh and config.order == "start-first":
            unfinished |= _retry(view, each, plan, now=now, new_id=new_id)
        else:
            unfinished = True
            if room > 0:
                room -= 1
                _begin_slot(view, each.slot, config, plan, now=now, new_id=new_id)
    if not unfinished and not plan.changed_services:
        _finish(service, progress, config, plan, now=now)


def _progress(view: ServiceView, slots: Mapping[SlotKey, Slot], plan: Plan, *, since: datetime) -> list[_Progress]:
    made: dict[SlotKey, list[Task]] = {}
    for task in plan.create:
        made.setdefault(slot_key(task), []).append(task)
    leaving = {task.id for task in plan.shut_down}
    version = view.service.task_spec_version
    found = []
    for key in sorted(slots, key=str if view.service.spec.is_global else None):
        slot, new = slots[key], made.pop(key, [])
        runnable = [task for task in slot.runnable if task.id not in leaving] + new
        stale = all(view.is_stale(task) for task in runnable or [slot.newest])
        fresh = tuple(task for task in (*slot.tasks, *new) if task.spec_version >= version)
        reached = [
            task.status.running_since or _when(task)
            for task in fresh
            if task.status.state.rank >= TaskState.RUNNING.rank
        ]
        found.append(
            _Progress(
                slot=slot,
                is_stale=stale and not new,
                fresh=fresh,
                attempts=tuple(task for task in fresh if task.created_at >= since),
                reached_at=min(reached, default=None),
            )
        )
    return found


def _when(task: Task) -> datetime:
    """When the manager learned of the task's state: agents' clocks may differ."""
    return task.status.applied_at or task.status.timestamp


def _is_in_work(each: _Progress, config: UpdateConfig, plan: Plan, service: Service, *, now: datetime) -> bool:
    if not each.fresh:
        return False
    if each.reached_at is None:
        if (until := _deadline(each, config)) is not None and now >= until:
            return False
        plan.waiting.append(Waiting(reason=WaitingFor.UPDATED_TASK, service_id=service.id, slot=each.slot.key))
        return True
    until = each.reached_at + nanoseconds(config.delay_ns)
    if now < until:
        plan.waiting.append(
            Waiting(reason=WaitingFor.UPDATE_DELAY, service_id=service.id, slot=each.slot.key, until=until)
        )
        return True
    return False


def _failures(progress: list[_Progress], config: UpdateConfig, *, now: datetime) -> list[Task]:
    """The first failed attempt of each slot that has one, oldest slot first (UPD-06)."""
    monitor = nanoseconds(config.monitor_ns)
    found = (
        next((t for t in each.attempts if _failed_soon(t, monitor)), None) or _overdue(each, config, now=now)
        for each in progress
    )
    return [task for task in found if task is not None]


def _deadline(each: _Progress, config: UpdateConfig) -> datetime | None:
    """When the slot must have a task that runs; None once it has, or without a deadline. Counts from its first attempt."""
    if not config.progress_deadline_ns or each.reached_at is not None or not each.attempts:
        return None
    return min(task.created_at for task in each.attempts) + nanoseconds(config.progress_deadline_ns)


def _overdue(each: _Progress, config: UpdateConfig, *, now: datetime) -> Task | None:
    until = _deadline(each, config)
    return each.attempts[-1] if until is not None and now >= until else None


def _deadlines(service: Service, progress: list[_Progress], config: UpdateConfig, *, now: datetime) -> list[Waiting]:
    return [
        Waiting(reason=WaitingFor.PROGRESS_DEADLINE, service_id=service.id, slot=each.slot.key, until=until)
        for each in progress
        if (until := _deadline(each, config)) is not None and now < until
    ]


def _failed_soon(task: Task, monitor: timedelta) -> bool:
    """Ended by itself before it ran, or within the monitor period of having begun to."""
    if not ended_by_itself(task):
        return False
    since = task.status.running_since
    return since is None or _when(task) - since < monitor


def _begin_slot(
    view: ServiceView, slot: Slot, config: UpdateConfig, plan: Plan, *, now: datetime, new_id: NewId
) -> None:
    leaving = {task.id for task in plan.shut_down}
    old = [task for task in slot.runnable if task.id not in leaving]
    hold = None
    if config.order != "start-first":
        for task in old:
            plan.want_shutdown(task, now=now)
        hold = hold_after(view, slot, *old, now=now)
    task = new_task(view.service, slot=slot.key, now=now, new_id=new_id, hold=hold, follows=slot.newest)
    plan.create.append(task)
    if hold is not None:
        plan.waiting.append(
            Waiting(reason=WaitingFor.OLD_TASK, service_id=view.service.id, slot=slot.key, until=hold.after_deadline)
        )


def _retry(view: ServiceView, each: _Progress, plan: Plan, *, now: datetime, new_id: NewId) -> bool:
    """Start-first: the successor is no more while the old task runs on. Whether another is made, by its policy."""
    replacement = decide_replacement(view, Slot(each.slot.key, each.fresh), now=now)
    if replacement is None:
        return False
    task = new_task(
        view.service, slot=each.slot.key, now=now, new_id=new_id, hold=replacement.hold, follows=each.slot.newest
    )
    plan.create.append(task)
    if replacement.hold is not None and replacement.hold.not_before is not None:
        plan.looks_again.append(replacement.hold.not_before)
    return True


def _give_up(service: Service, config: UpdateConfig, task: Task, *, now: datetime) -> Service:
    """The service paused, or with its previous spec again (UPD-07, UPD-08)."""
    if ended_by_itself(task):
        cause = f"due to failure or early termination of task {task.id}"
    else:
        state, limit = task.status.state.value, nanoseconds(config.progress_deadline_ns)
        cause = f"because task {task.id} does not run after {limit.total_seconds():g} s (it is {state})"
    rollback = _is_rollback(service)
    started_at = service.update_status.started_at if service.update_status else now
    if rollback or config.failure_action != "rollback" or service.previous_spec is None:
        word = "rollback" if rollback else "update"
        state = UpdateState.ROLLBACK_PAUSED if rollback else UpdateState.PAUSED
        status = UpdateStatus(state=state, started_at=started_at, message=f"{word} paused {cause}")
        return msgspec.structs.replace(service, update_status=status, updated_at=now)
    status = UpdateStatus(state=UpdateState.ROLLBACK_STARTED, started_at=now, message=f"{_ROLLED_BACK} {cause}")
    return msgspec.structs.replace(
        service,
        spec=keeping_replicas(service.previous_spec, service.spec),
        spec_base_revision=service.version.index,
        previous_spec=None,
        spec_version=service.spec_version + 1,
        task_spec_version=service.spec_version + 1,
        update_status=status,
        updated_at=now,
    )


def _finish(service: Service, progress: list[_Progress], config: UpdateConfig, plan: Plan, *, now: datetime) -> None:
    """Done once the last slot has been watched for the monitor period (UPD-10)."""
    last = max((each.reached_at for each in progress if each.reached_at is not None), default=None)
    until = last + nanoseconds(config.monitor_ns) if last is not None else now
    if now < until:
        plan.waiting.append(Waiting(reason=WaitingFor.UPDATE_MONITOR, service_id=service.id, until=until))
        return
    before = service.update_status or UpdateStatus()
    rollback = _is_rollback(service)
    cause = f": {before.message}" if rollback and before.message.startswith(_ROLLED_BACK) else ""
    status = UpdateStatus(
        state=UpdateState.ROLLBACK_COMPLETED if rollback else UpdateState.COMPLETED,
        started_at=before.started_at,
        completed_at=now,
        message=f"rollback completed{cause}" if rollback else "update completed",
    )
    plan.changed_services.append(msgspec.structs.replace(service, update_status=status, updated_at=now))


def _state(service: Service) -> str:
    return service.update_status.state if service.update_status else ""


def _is_rollback(service: Service) -> bool:
    return _state(service) in (UpdateState.ROLLBACK_STARTED, UpdateState.ROLLBACK_PAUSED)


def _started_at(service: Service) -> datetime | None:
    """When the update in work began; None when none is."""
    if _state(service) not in (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED):
        return None
    assert service.update_status is not None
    return service.update_status.started_at or service.updated_at
