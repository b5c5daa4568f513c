"""What one slot needs, whoever owns it: end what ended, evict, replace, keep one, release.

The update of a stale but healthy task is not decided here: it must take turns with other slots (``update``).
"""

from __future__ import annotations

from datetime import datetime

from fleet.model.task import Task, TaskState
from fleet.orchestrator.carrying import is_before_stop, is_held, plan_arrival, plan_carrying, return_data
from fleet.orchestrator.eviction import Place, place_of
from fleet.orchestrator.moves import plan_move
from fleet.orchestrator.plan import NewId, Plan, new_task
from fleet.orchestrator.restart import OLD_TASK_PATIENCE, decide_replacement, plan_release
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

    ``start_first``: a task of an older spec, or one that must leave its node, runs on until its successor does.
    ``is_paused``: an update stopped half-way, so what must be replaced is replaced by its like.
    """
    keepers: list[Task] = []
    leaving: list[Task] = []
    moving: list[Task] = []
    for task in slot.tasks:
        if task.desired_state.rank > TaskState.RUNNING.rank:
            continue
        place = Place.LOST if task.status.state.is_terminal else place_of(task, view)
        if place is Place.GOOD:
            keepers.append(task)
        elif place is Place.MOVING:
            moving.append(task)
        elif place is Place.UNSUITABLE and start_first and task.status.state is TaskState.RUNNING:
            leaving.append(task)
        elif is_before_stop(task, view):
            plan.want_removal(task, now=now)
        else:
            plan.want_shutdown(task, now=now)
    if moving and not leaving:
        old, others = moving[-1], [*moving[:-1], *keepers]
        step = plan_carrying if old.move is not None and old.move.data else plan_move
        step(view, slot, old, others, plan, now=now, new_id=new_id, is_paused=is_paused)
        return
    keepers += moving
    held = [task for task in keepers if is_held(task)]
    if held and len(held) == len(keepers):
        for task in leaving:  # its data is what its successor waits for
            plan.want_shutdown(task, now=now)
        plan_arrival(view, slot, held, plan, now=now, new_id=new_id)
        return
    for task in held:
        plan.want_removal(task, now=now)
        keepers.remove(task)
    if leaving:
        keepers = _see_off(view, slot, leaving, keepers, plan, now=now, is_paused=is_paused)
        leaving = [task for task in leaving if task.id not in {gone.id for gone in plan.shut_down[-len(slot.tasks) :]}]
    if not keepers:
        made = _replace_newest(view, slot, plan, now=now, new_id=new_id, is_paused=is_paused, old_stays=bool(leaving))
        if not made and slot.newest in leaving:
            plan.want_shutdown(slot.newest, now=now)
        return
    for task in keep_one(view, keepers, plan, now=now, start_first=start_first and not leaving):
        plan_release(view, slot, task, plan, now=now)


def _see_off(
    view: ServiceView,
    slot: Slot,
    leaving: list[Task],
    keepers: list[Task],
    plan: Plan,
    *,
    now: datetime,
    is_paused: bool,
) -> list[Task]:
    """Start-first: a running task that must leave its node stays until its successor runs, but not for ever.

    Returns the tasks that can succeed it. A minute after the first successor was made it goes in any case: draining a
    node must come to an end, even if there is no other place.
    """
    leaver = leaving[-1]
    successors = [task for task in keepers if is_paused or not view.is_stale(task)]
    first = next((task for task in slot.tasks if task.created_at > leaver.created_at), None)
    deadline = first.created_at + OLD_TASK_PATIENCE if first is not None else now + OLD_TASK_PATIENCE
    served = any(task.status.state is TaskState.RUNNING for task in keepers)
    if served or now >= deadline:
        for task in leaving:
            plan.want_shutdown(task, now=now)
        return keepers
    plan.looks_again.append(deadline)
    for task in leaving[:-1]:
        plan.want_shutdown(task, now=now)
    for task in keepers:
        if task not in successors:
            plan.want_shutdown(task, now=now)
    return successors


def _replace_newest(
    view: ServiceView,
    slot: Slot,
    plan: Plan,
    *,
    now: datetime,
    new_id: NewId,
    is_paused: bool,
    old_stays: bool,
) -> bool:
    """Whether there is a successor now."""
    newest = slot.newest
    if newest.is_arriving and (back := return_data(view, slot, newest, plan, now=now, new_id=new_id)) is not None:
        return back
    is_stale = view.is_stale(newest)
    replacement = decide_replacement(view, slot, now=now, old_stays=old_stays, is_new_spec=is_stale and not is_paused)
    if replacement is None:
        return False
    like = newest if is_paused and is_stale else None
    task = new_task(
        view.service, slot=slot.key, now=now, new_id=new_id, hold=replacement.hold, follows=newest, like=like
    )
    plan.create.append(task)
    if task.hold is not None:
        # Notes what it will wait for, so that somebody wakes up in time.
        plan_release(view, slot, task, plan, now=now)
    return True


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
