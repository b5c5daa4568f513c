"""Whether, when and after whom a task is replaced (RST-01..08; SwarmKit manager/orchestrator/restart).

A task that ended by itself is replaced if its policy allows, at desired state *ready* so that its image is there when
the delay is over; the delay is a date in its ``hold``, so a new leader keeps it. A task that ended because its node was
drained or lost is replaced without delay. Attempts are counted in the history that the store keeps for the slot, so they
survive leaders too; the reaper keeps as many as this needs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet.model.defaults import nanoseconds, restart_condition, restart_delay
from fleet.model.service import RestartCondition
from fleet.model.task import Hold, Task, TaskState
from fleet.orchestrator.eviction import Place, is_lost, place_of
from fleet.orchestrator.plan import Plan, Waiting, WaitingFor
from fleet.orchestrator.view import ServiceView, Slot, ended_by_itself, slot_key

__all__ = ["OLD_TASK_PATIENCE", "Replacement", "decide_replacement", "hold_after", "may_run", "plan_release"]

OLD_TASK_PATIENCE: Final = timedelta(seconds=60)
"""A replacement starts at the latest so long after it was made, even if the old task does not stop (RST-04)."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """The newest task of a slot is to be followed by another, held back as ``hold`` says."""

    hold: Hold | None


def decide_replacement(
    view: ServiceView, slot: Slot, *, now: datetime, old_stays: bool = False, is_new_spec: bool = False
) -> Replacement | None:
    """How the newest task of a slot, which is none that can stay, is replaced; None when the policy says to leave it.

    ``old_stays``: nothing is to be waited for, since the old task runs on until its successor does. ``is_new_spec``: its
    successor is made from another spec, which has not failed yet, so there is no delay.
    """
    newest = slot.newest
    condition = restart_condition(newest.spec)
    if not ended_by_itself(newest):
        if condition is RestartCondition.NONE and not view.service.spec.is_global:
            return None
        return Replacement(None if old_stays else hold_after(view, slot, newest, now=now))
    if not _could_not_move(newest) and not _policy_allows(condition, slot):
        return None
    hold = None if old_stays else hold_after(view, slot, now=now)
    delay = restart_delay(newest.spec)
    if is_new_spec or delay <= timedelta(0) or place_of(newest, view) in (Place.UNSUITABLE, Place.LOST):
        return Replacement(hold)
    # A task that failed while still held back does not shorten the wait: no tight loop on a bad image (RST-07).
    before = newest.hold.not_before if newest.hold is not None else None
    start = max(now, before) if before is not None else now
    return Replacement(msgspec.structs.replace(hold or Hold(), not_before=start + delay))


def hold_after(view: ServiceView, slot: Slot, *stopping: Task, now: datetime) -> Hold | None:
    """Hold a replacement until ``stopping`` have stopped, and whoever of the slot was told to before them.

    None when there is nobody to wait for: they have stopped, never ran, or can not say. The task that is replaced may itself
    have waited for one that still runs, so looking at the newest is not enough.
    """
    for task in (*stopping, *slot.tasks):
        if (task in stopping or task.desired_state.rank > TaskState.RUNNING.rank) and may_run(view, task):
            return Hold(after_task=task.id, after_deadline=now + OLD_TASK_PATIENCE)
    return None


def may_run(view: ServiceView, task: Task) -> bool:
    """Whether its container may be running, and its end would be heard of."""
    state = task.status.state
    return TaskState.ASSIGNED.rank <= state.rank and not state.is_terminal and not is_lost(view.nodes.get(task.node_id))


def plan_release(view: ServiceView, slot: Slot, task: Task, plan: Plan, *, now: datetime) -> None:
    """Let a held task run when nothing holds it any more, else note what it waits for. Other tasks are left alone."""
    if task.desired_state is not TaskState.READY:
        return
    hold = task.hold or Hold()
    waits: list[Waiting] = []
    if hold.not_before is not None and now < hold.not_before:
        waits.append(_waiting(WaitingFor.RESTART_DELAY, task, hold.not_before))
    if _waits_for_old(view, slot, task, hold, now=now):
        waits.append(_waiting(WaitingFor.OLD_TASK, task, hold.after_deadline))
    if waits:
        plan.waiting.extend(waits)
    else:
        plan.want_running(task, now=now)


def _waits_for_old(view: ServiceView, slot: Slot, held: Task, hold: Hold, *, now: datetime) -> bool:
    if hold.after_task is None or (hold.after_deadline is not None and now >= hold.after_deadline):
        return False
    return any(
        may_run(view, task)
        for task in slot.tasks
        if task.id == hold.after_task
        or (task.created_at < held.created_at and task.desired_state.rank > TaskState.RUNNING.rank)
    )


def _waiting(reason: WaitingFor, task: Task, until: datetime | None) -> Waiting:
    return Waiting(reason=reason, service_id=task.service_id, slot=slot_key(task), until=until)


def _could_not_move(task: Task) -> bool:
    """Its data could not be had, so its program never began: no failure of the program that a policy could be about."""
    return task.moved_from is not None and task.status.state is TaskState.REJECTED


def _policy_allows(condition: RestartCondition, slot: Slot) -> bool:
    if condition is RestartCondition.NONE:
        return False
    if condition is RestartCondition.ON_FAILURE and slot.newest.status.state is TaskState.COMPLETE:
        return False
    return _has_attempts_left(slot)


def _has_attempts_left(slot: Slot) -> bool:
    """Whether fewer than ``max_attempts`` restarts were made, within the window if there is one (RST-05, RST-06).

    A restart is a task that follows one that ended by itself, both from the spec of the newest: replacing evicted tasks
    costs no attempt, nor does a move that failed, and a new spec starts anew.
    """
    newest = slot.newest
    policy = newest.spec.restart_policy
    if policy is None or policy.max_attempts <= 0:
        return True
    alike = [task for task in slot.tasks if task.spec == newest.spec]
    restarts = [
        later.created_at
        for earlier, later in itertools.pairwise(alike)
        if ended_by_itself(earlier) and not _could_not_move(earlier)
    ]
    if policy.window_ns > 0:
        since = newest.status.timestamp - nanoseconds(policy.window_ns)
        restarts = [instant for instant in restarts if instant >= since]
    return len(restarts) < policy.max_attempts
