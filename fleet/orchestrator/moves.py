"""Moving a running task to another node though nothing is wrong with it: what may move, and how one move goes on.

A move is a mark on the old task (``Task.move``), set by whoever decides about balance; all else follows from the tasks, so
whoever leads next goes on with it:

    marked ── start-first ──> successor made ──> it runs ──────────────> the old task is to stop
         │                                  └──> it ends, or 10 min ───> given up: the old task stays, the successor goes
         └─── stop-first ───> the old task is to stop, its successor waits for that (as when a node is drained)

A move is given up too when the service is updated meanwhile, or when with stop-first fewer tasks than the floor would run.
The *floor* is what an update would leave running, and at least one task: so one replica moves with start-first alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet import errors
from fleet.model.service import Service
from fleet.model.task import Move, Task, TaskState
from fleet.orchestrator.eviction import Place, place_of
from fleet.orchestrator.plan import NewId, Plan, Waiting, WaitingFor, new_task
from fleet.orchestrator.restart import hold_after
from fleet.orchestrator.update import UpdateState, update_config
from fleet.orchestrator.view import ServiceView, Slot

__all__ = [
    "LABEL",
    "MOVE_PATIENCE",
    "Mobility",
    "Mode",
    "availability_floor",
    "give_up",
    "is_settled",
    "mobility",
    "parse_mode",
    "plan_move",
]

LABEL: Final = "fleet.rebalance"
MOVE_PATIENCE: Final = timedelta(minutes=10)
"""A successor that does not run by then (an image that can not be had) is given up."""
_RETRY_AFTER: Final = timedelta(minutes=10)
"""A task whose move was given up is left alone so long."""
_SETTLED: Final = frozenset({"", UpdateState.COMPLETED, UpdateState.ROLLBACK_COMPLETED})


class Mode(enum.StrEnum):
    """Who may move a service's tasks: nobody, a person's command, or the cluster by itself too."""

    OFF = "off"
    MANUAL = "manual"
    AUTOMATIC = "automatic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mobility:
    """``tasks`` that may move, ``at_once`` of them at a time; none, and the ``reason``, if none may."""

    tasks: tuple[Task, ...] = ()
    at_once: int = 0
    reason: str = ""


def parse_mode(labels: Mapping[str, str], *, default: Mode = Mode.MANUAL) -> Mode:
    """What the label says. Raises ``UserError`` for a word that is none of the modes."""
    text = labels.get(LABEL)
    if text is None:
        return default
    if text not in list(Mode):
        raise errors.UserError(f"label {LABEL}: {text!r} is none of {', '.join(Mode)}")
    return Mode(text)


def availability_floor(service: Service) -> int:
    """How many tasks must go on running while one is moved."""
    config, replicas = update_config(service), service.spec.replicas
    if config.order == "start-first":
        return replicas
    return max(replicas - max(config.parallelism, 1), min(replicas, 1))


def mobility(view: ServiceView, *, now: datetime) -> Mobility:
    """Which tasks of a replicated service may move now."""
    service = view.service
    spec, config = service.spec, update_config(service)
    replicas = spec.replicas
    if spec.is_global or spec.is_job or service.pending_delete:
        return Mobility(reason="only replicated services move")
    state = service.update_status.state if service.update_status else ""
    if not is_settled(view):
        return Mobility(reason=f"it is being updated{f' ({state})' if state else ''}")
    running = [task for task in view.tasks if _runs(task) and place_of(task, view) is Place.GOOD]
    if len(running) < replicas:
        return Mobility(reason=f"{len(running)} of its {replicas} tasks run undisturbed")
    if LABEL not in spec.labels and (mount := _local_data(service)):
        return Mobility(reason=f"{mount} would stay behind (label {LABEL} on the service allows it)")
    at_once = max(config.parallelism, 1)
    if config.order != "start-first":
        at_once = min(at_once, replicas - availability_floor(service))
        if at_once <= 0:
            return Mobility(reason="its only task would stop for a while (update order start-first avoids that)")
    free = [task for task in running if task.move is None or now >= task.move.since + _RETRY_AFTER]
    if not free:
        return Mobility(reason="its moves were given up a short time ago")
    unbound = tuple(task for task in free if task.moved_from is None)
    if not unbound:
        return Mobility(reason="its tasks were moved by hand, with their data")
    return Mobility(tasks=unbound, at_once=at_once)


def plan_move(
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
    """Take the next step of moving ``old``; ``others`` are the slot's further tasks that are wanted and well placed."""
    move = old.move
    assert move is not None
    if is_paused or view.is_stale(old):
        return give_up(old, others, plan, now=now, reason="the service was updated meanwhile")
    if update_config(view.service).order == "start-first":
        return _start_first(view, slot, old, others, plan, now=now, new_id=new_id)
    stopping = {task.id for task in plan.shut_down} | {old.id}
    running = sum(_runs(task) and task.id not in stopping for task in view.tasks)
    if running < availability_floor(view.service):
        return give_up(old, others, plan, now=now, reason=f"only {running} other tasks of the service run")
    plan.want_shutdown(old, now=now)
    for task in others:
        plan.want_removal(task, now=now)
    hold = hold_after(view, slot, old, now=now)
    plan.create.append(
        new_task(view.service, slot=slot.key, now=now, new_id=new_id, hold=hold, follows=slot.newest, toward=move.to)
    )
    return None


def _start_first(
    view: ServiceView, slot: Slot, old: Task, others: list[Task], plan: Plan, *, now: datetime, new_id: NewId
) -> None:
    move = old.move
    assert move is not None
    if not move.successor:
        successor = new_task(view.service, slot=slot.key, now=now, new_id=new_id, follows=slot.newest, toward=move.to)
        plan.create.append(successor)
        plan.move.append(_with(old, msgspec.structs.replace(move, successor=successor.id), now=now))
        for task in others:
            plan.want_removal(task, now=now)
        return
    found = next((task for task in others if task.id == move.successor), None)
    deadline = move.since + MOVE_PATIENCE
    if found is None:
        gone = view.tasks_by_id.get(move.successor)
        why = f" ({gone.status.err or gone.status.state.value})" if gone is not None else ""
        give_up(old, others, plan, now=now, reason=f"task {move.successor} in its place ended{why}")
    elif found.status.state is TaskState.RUNNING:
        for task in (old, *(other for other in others if other is not found)):
            plan.want_shutdown(task, now=now)
    elif now >= deadline:
        status = found.status
        why = status.err or f"it is {status.state.value}"
        give_up(old, others, plan, now=now, reason=f"task {found.id} in its place does not run ({why})")
    else:
        plan.waiting.append(
            Waiting(reason=WaitingFor.MOVED_TASK, service_id=view.service.id, slot=slot.key, until=deadline)
        )


def is_settled(view: ServiceView) -> bool:
    """No update is at work or stopped half-way, and none is due."""
    state = view.service.update_status.state if view.service.update_status else ""
    return state in _SETTLED and not any(view.is_stale(task) for task in view.tasks if _runs(task))


def give_up(old: Task, others: list[Task], plan: Plan, *, now: datetime, reason: str) -> None:
    """The old task stays. What was to follow it goes without a trace in the slot's history, by which restarts are judged."""
    assert old.move is not None
    plan.move.append(_with(old, msgspec.structs.replace(old.move, ended=reason), now=now))
    for task in others:
        plan.want_removal(task, now=now)


def _with(task: Task, move: Move, *, now: datetime) -> Task:
    return msgspec.structs.replace(task, move=move, updated_at=now)


def _runs(task: Task) -> bool:
    return task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING


def _local_data(service: Service) -> str:
    """A mount that is of one host; empty without."""
    for mount in service.spec.task_template.container_spec.mounts:
        if mount.type in ("volume", "bind"):
            return f"its {mount.type} {mount.source or mount.target}"
    return ""
