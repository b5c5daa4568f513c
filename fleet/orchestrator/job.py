"""Jobs: tasks that are to end well, a number of times or once on each node, and then are left alone (ORC-05..07).

    replicated job   ``total_completions`` slots end well, ``max_concurrent`` of them in work at a time
    global job       once on each node that is ready, active and satisfies the constraints, also on those that come later

An *iteration* is one run of the whole job; tasks carry its number. Asking for it again (``update --force``) begins the next
one, and the tasks of the one before are removed. A slot is *done* once a task of it is complete, whatever the restart
policy says; a failed task is followed by another as its policy allows, and where it does not the slot is *given up*: it
counts as used, so a job that cannot succeed comes to an end. A task whose node is lost or drained is replaced.

A job's task is wanted *running* like any other; that it is to end by itself shows in its iteration alone, and Docker's
``DesiredState: complete`` is said by the API. So agents, scheduler and reaper need not know of jobs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from fleet.model.ids import TaskId
from fleet.model.service import Service
from fleet.model.task import Task, TaskState
from fleet.orchestrator.global_ import is_eligible, plan_ineligible
from fleet.orchestrator.plan import NewId, Plan, new_task
from fleet.orchestrator.slot import settle_slot
from fleet.orchestrator.view import ServiceView, Slot, SlotKey, group_slots, slot_key

__all__ = ["current_tasks", "is_over", "plan_job"]

CREATES_MAX: Final = 1000
"""New tasks in one plan, as for replicated services."""


def current_tasks(service: Service, tasks: Iterable[Task]) -> list[Task]:
    """The tasks of the iteration in work."""
    return [task for task in tasks if task.job_iteration == service.job_iteration]


def is_over(view: ServiceView, *, now: datetime) -> bool:
    """Whether the iteration in work has come to its end: no task of it is left, and it needs no other."""
    if any(not task.status.state.is_terminal for task in current_tasks(view.service, view.tasks)):
        return False
    return not plan_job(view, now=now, new_id=lambda: TaskId("")).create


def plan_job(view: ServiceView, *, now: datetime, new_id: NewId) -> Plan:
    """What the job needs now. Empty when it is done, or in work as it should be, however often asked."""
    plan = Plan()
    current = current_tasks(view.service, view.tasks)
    for task in view.tasks:
        if task.job_iteration != view.service.job_iteration:
            plan.want_removal(task, now=now)
    found = group_slots(current)
    slots = {key: slot for key, slot in found.items() if slot.newest.desired_state is not TaskState.REMOVE}
    if view.service.spec.mode.global_job is not None:
        free = _plan_global(view, slots, plan, now=now, new_id=new_id)
    else:
        free = _plan_replicated(view, slots, plan, now=now, new_id=new_id)
    plan.create.extend(new_task(view.service, slot=key, now=now, new_id=new_id) for key in free)
    return plan


def _is_done(slot: Slot) -> bool:
    return any(task.status.state is TaskState.COMPLETE for task in slot.tasks)


def _stop_others(slot: Slot, plan: Plan, *, now: datetime) -> None:
    """The task that was to follow one that had to leave its node, and completed all the same before it was stopped."""
    for task in slot.runnable:
        plan.want_shutdown(task, now=now)


def _settle(view: ServiceView, slot: Slot, plan: Plan, *, now: datetime, new_id: NewId) -> None:
    settle_slot(view, slot, plan, now=now, new_id=new_id, start_first=False, is_paused=False)


def _plan_replicated(
    view: ServiceView, slots: Mapping[SlotKey, Slot], plan: Plan, *, now: datetime, new_id: NewId
) -> list[SlotKey]:
    """Settles what is not done; the slots to begin."""
    open_slots = {key: slot for key, slot in slots.items() if not _is_done(slot)}
    for key in slots.keys() - open_slots.keys():
        _stop_others(slots[key], plan, now=now)
    for slot in open_slots.values():
        _settle(view, slot, plan, now=now, new_id=new_id)
    leaving = {task.id for task in plan.shut_down}
    followed = {slot_key(task) for task in plan.create}
    in_work = sum(
        key in followed or any(task.id not in leaving for task in slot.runnable) for key, slot in open_slots.items()
    )
    spec = view.service.spec
    room = min(spec.concurrency - in_work, spec.completions - len(slots), CREATES_MAX)
    free = (number for number in itertools.count(1) if number not in slots)
    return list(itertools.islice(free, max(room, 0)))


def _plan_global(
    view: ServiceView, slots: Mapping[SlotKey, Slot], plan: Plan, *, now: datetime, new_id: NewId
) -> list[SlotKey]:
    """Settles what is not done; the nodes to begin on."""
    eligible = {node.id for node in view.nodes.values() if is_eligible(view, node)}
    for key, slot in slots.items():
        if _is_done(slot):
            _stop_others(slot, plan, now=now)
            continue
        if key in eligible:
            _settle(view, slot, plan, now=now, new_id=new_id)
        else:
            plan_ineligible(view, slot, plan, now=now, start_first=False)
    return sorted(eligible - slots.keys())
