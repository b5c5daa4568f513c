"""Moving a running task to another node with its data: its volumes of that node, and what its container wrote.

Begun by a mark on the old task (``Task.move`` with ``data``), which a person asked for. The successor names whose data it takes
over (``Task.moved_from``) and has its node from the beginning; its agent fetches the data while it prepares it:

    marked ──> successor made ──> it is *copied* ──> the old task is to stop ──> the rest is fetched, it is *ready* ──> it starts
                    │                                                                  │
                    └── given up: the old task stays, the successor goes               └── given up: another one is made on the
                                                                                           old node, with the old data

So never do two run, and the old data is untouched until a task runs with it elsewhere. The successor starts only when it is
*ready*, which it is not before its agent has everything, which the old node's gives only once the container has ended.

Given up is what ends before it runs, has no place, or is not heard of getting on for ``MOVE_PATIENCE``. That long the old
node is waited for too if it is down: who asked to keep the data would not have an empty task elsewhere at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from fleet.model.defaults import stop_grace
from fleet.model.ids import NodeId
from fleet.model.task import Hold, Move, MovedFrom, Task, TaskState
from fleet.orchestrator.eviction import Place, is_lost, place_of
from fleet.orchestrator.moves import MOVE_PATIENCE, give_up
from fleet.orchestrator.plan import NewId, Plan, Waiting, WaitingFor, new_task
from fleet.orchestrator.restart import decide_replacement, hold_after, may_run
from fleet.orchestrator.view import ServiceView, Slot, ended_by_itself

__all__ = ["is_before_stop", "is_carried", "is_held", "plan_arrival", "plan_carrying", "return_data"]


def is_carried(slot: Slot) -> bool:
    """Whether data is on its way to the slot's next task."""
    return any(is_held(task) for task in slot.tasks)


def is_held(task: Task) -> bool:
    """Whether it waits for another's data; released, it is like any other."""
    return task.is_arriving and task.desired_state is TaskState.READY


def is_before_stop(task: Task, view: ServiceView) -> bool:
    """Whether it is to take over from a task that is still wanted to run: then it may go without a trace."""
    old = view.tasks_by_id.get(task.moved_from.task) if task.moved_from is not None else None
    return old is not None and old.is_moving and task.is_arriving


def plan_carrying(
    view: ServiceView,
    slot: Slot,
    old: Task,
    others: list[Task],
    plan: Plan,
    *,
    now: datetime,
    new_id: NewId,
    is_paused: bool,
) -> None:
    """The old task is still wanted to run; ``others`` are the slot's further tasks that are wanted and well placed."""
    move = old.move
    assert move is not None
    if is_paused or view.is_stale(old):
        return give_up(old, others, plan, now=now, reason="the service was updated meanwhile")
    if not move.successor:
        successor = new_task(
            view.service,
            slot=slot.key,
            now=now,
            new_id=new_id,
            hold=Hold(after_task=old.id),
            follows=slot.newest,
            place=move.to,
            moved_from=MovedFrom(task=old.id, node=old.node_id),
        )
        plan.create.append(successor)
        plan.move.append(_with(old, msgspec.structs.replace(move, successor=successor.id), now=now))
        for task in others:
            plan.want_removal(task, now=now)
        return None
    found = next((task for task in others if task.id == move.successor), None)
    if found is None:
        gone = view.tasks_by_id.get(move.successor)
        why = f": {_end_of(view, gone)}" if gone is not None else ""
        return give_up(old, others, plan, now=now, reason=f"task {move.successor} in its place ended{why}")
    if found.status.copied or found.status.state.rank >= TaskState.READY.rank:
        plan.want_shutdown(old, now=now)
        for task in others:
            if task is not found:
                plan.want_removal(task, now=now)
        return None
    deadline = _deadline(found)
    if (failure := _failure(found, deadline, now=now)) is not None:
        return give_up(old, others, plan, now=now, reason=failure)
    return _wait(view, slot, plan, until=deadline)


def plan_arrival(view: ServiceView, slot: Slot, held: list[Task], plan: Plan, *, now: datetime, new_id: NewId) -> None:
    """The old task is to stop, or has ended; ``held`` are the slot's tasks that wait for its data, and no other is wanted."""
    successor = held[-1]
    for task in held[:-1]:
        plan.want_removal(task, now=now)
    assert successor.moved_from is not None
    old = view.tasks_by_id.get(successor.moved_from.task)
    if old is not None and ended_by_itself(old):
        until_then = tuple(task for task in slot.tasks if task.created_at <= old.created_at)
        if decide_replacement(view, Slot(slot.key, until_then), now=now) is None:
            plan.want_removal(successor, now=now)
            return
    hold = successor.hold or Hold()
    if successor.status.state.rank >= TaskState.READY.rank:
        if hold.not_before is not None and now < hold.not_before:
            reason = WaitingFor.RESTART_DELAY
            plan.waiting.append(
                Waiting(reason=reason, service_id=view.service.id, slot=slot.key, until=hold.not_before)
            )
        elif any(task is not successor and _stops(view, task) for task in slot.tasks):
            plan.waiting.append(Waiting(reason=WaitingFor.OLD_TASK, service_id=view.service.id, slot=slot.key))
        else:
            plan.want_running(successor, now=now)
        return
    deadline = _deadline(successor, of=old)
    down_since = _down_since(view, successor.node_id)
    if down_since is not None:
        deadline = down_since + MOVE_PATIENCE
    if _failure(successor, deadline, now=now, waits_for_room=True) is None:
        _wait(view, slot, plan, until=deadline)
        return
    plan.want_shutdown(successor, now=now)
    if return_data(view, slot, successor, plan, now=now, new_id=new_id) is None:
        hold_it = hold_after(view, slot, successor, now=now)
        plan.create.append(
            new_task(view.service, slot=slot.key, now=now, new_id=new_id, hold=hold_it, follows=slot.newest)
        )


def return_data(
    view: ServiceView, slot: Slot, newest: Task, plan: Plan, *, now: datetime, new_id: NewId
) -> bool | None:
    """``newest`` was to take data over and never ran: its successor uses the data where it is.

    Returns whether there is one; None when that node cannot be had, so that the slot is filled like any other.
    """
    source = newest.moved_from
    assert source is not None
    old = view.tasks_by_id.get(source.task)
    returned = newest.node_id == source.node
    if old is None or not _can_return(view, newest, source.node, now=now):
        return None
    if not returned and old.move is not None and old.move.ended:
        return None  # that move was given up while the old task ran on, which has ended since for a reason of its own
    hold = Hold(after_task=newest.id)
    if returned:  # it was there already: like any other it is tried as its policy says
        replacement = decide_replacement(view, slot, now=now)
        if replacement is None:
            return False
        hold = replacement.hold or hold
    successor = new_task(
        view.service,
        slot=slot.key,
        now=now,
        new_id=new_id,
        hold=hold,
        follows=slot.newest,
        like=old,
        place=source.node,
        moved_from=source,
    )
    plan.create.append(successor)
    if old.move is not None and not old.move.ended and old.desired_state.rank > TaskState.RUNNING.rank:
        ended = f"task {newest.id} in its place did not come to run: {_end_of(view, newest)}"
        plan.move.append(_with(old, msgspec.structs.replace(old.move, ended=ended), now=now))
    return True


def _can_return(view: ServiceView, newest: Task, node_id: NodeId, *, now: datetime) -> bool:
    node = view.nodes.get(node_id)
    if node is None or node.removed:
        return False
    if is_lost(node):
        return node.down_since is None or now < node.down_since + MOVE_PATIENCE
    there = msgspec.structs.replace(newest, node_id=node_id, move=None, preempted=None)
    return place_of(there, view) is Place.GOOD


def _deadline(task: Task, *, of: Task | None = None) -> datetime:
    """When it is not waited for any longer: agents report how far they are, and a container may take its time to stop."""
    heard = [task.created_at, task.status.applied_at, of.status.applied_at if of is not None else None]
    grace = stop_grace(of.spec) if of is not None else timedelta(0)
    return max(instant for instant in heard if instant is not None) + MOVE_PATIENCE + grace


def _failure(task: Task, deadline: datetime, *, now: datetime, waits_for_room: bool = False) -> str | None:
    status = task.status
    if status.state is TaskState.PENDING and status.err and not waits_for_room:
        return status.err
    if now >= deadline:
        return f"task {task.id} in its place does not get on ({status.err or status.message or status.state.value})"
    return None


def _end_of(view: ServiceView, task: Task) -> str:
    if task.status.err or task.status.state.is_terminal:
        return task.status.err or f"it is {task.status.state.value}"
    return "its node is down" if is_lost(view.nodes.get(task.node_id)) else f"it was {task.status.state.value}"


def _stops(view: ServiceView, task: Task) -> bool:
    return task.desired_state.rank > TaskState.RUNNING.rank and may_run(view, task)


def _down_since(view: ServiceView, node_id: NodeId) -> datetime | None:
    node = view.nodes.get(node_id)
    return node.down_since if node is not None and is_lost(node) else None


def _wait(view: ServiceView, slot: Slot, plan: Plan, *, until: datetime) -> None:
    plan.waiting.append(Waiting(reason=WaitingFor.MOVED_DATA, service_id=view.service.id, slot=slot.key, until=until))


def _with(task: Task, move: Move, *, now: datetime) -> Task:
    return msgspec.structs.replace(task, move=move, updated_at=now)
