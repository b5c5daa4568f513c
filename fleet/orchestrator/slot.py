"""What one slot needs, whoever owns it: end what ended, evict, replace, keep one, release.

The update of a stale but healthy task is not decided here: it must take turns with other slots (``update``).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from fleet.model.task import Task, TaskState
from fleet.orchestrator.eviction import Place, place_of
from fleet.orchestrator.plan import NewId, Plan, new_task
from fleet.orchestrator.restart import decide_replacement, plan_release
from fleet.orchestrator.view import ServiceView, Slot

__all__ = ["keep_one", "settle_slot"]


def settle_slot(
    view: ServiceView,
    slot: Slot,
    plan: Plan,
    *,
    now: datetime,
    new_id: NewId,
    start_first: bool,
    is_paused: bool,
) -> None:
    """Fill ``plan`` with what the slot needs to have one good task, or none if its policy says so.

    ``start_first``: a task of an older spec may run beside its successor until that one runs. ``is_paused``: an update
    stopped half-way, so what must be replaced is replaced by its like.
    """
    keepers: list[Task] = []
    for task in slot.tasks:
        if task.desired_state.rank > TaskState.RUNNING.rank:
            continue
        if task.status.state.is_terminal or place_of(task, view) is not Place.GOOD:
            plan.want_shutdown(task, now=now)
        else:
            keepers.append(task)
    if not keepers:
        _replace_newest(view, slot, plan, now=now, new_id=new_id, is_paused=is_paused)
        return
    for task in keep_one(view, keepers, plan, now=now, start_first=start_first):
        plan_release(view, task, plan, now=now)


def _replace_newest(
    view: ServiceView, slot: Slot, plan: Plan, *, now: datetime, new_id: NewId, is_paused: bool
) -> None:
    replacement = decide_replacement(view, slot, now=now)
    if replacement is None:
        return
    newest = slot.newest
    like = newest if is_paused and view.is_stale(newest) else None
    task = new_task(
        view.service, slot=slot.key, now=now, new_id=new_id, hold=replacement.hold, follows=newest, like=like
    )
    plan.create.append(task)
    if task.hold is not None:
        # Notes what it will wait for, so that somebody wakes up in time.
        plan_release(replace(view, tasks=[*view.tasks, task]), task, plan, now=now)


def keep_one(view: ServiceView, keepers: list[Task], plan: Plan, *, now: datetime, start_first: bool) -> list[Task]:
    """Of several runnable tasks in a slot the best stays; with start-first, the old one until the new one runs."""
    if len(keepers) == 1:
        return keepers
    best = max(keepers, key=lambda task: (not view.is_stale(task), task.status.state.rank, task.created_at, task.id))
    kept = [best]
    if start_first and best.status.state is not TaskState.RUNNING and not view.is_stale(best):
        stale = [task for task in keepers if view.is_stale(task)]
        kept += [max(stale, key=lambda task: (task.status.state.rank, task.id))] if stale else []
    for task in keepers:
        if not any(task is other for other in kept):
            plan.want_shutdown(task, now=now)
    return kept
