"""What must be true of every plan. Tests check each plan; the manager checks before it writes: a broken plan is a bug."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from fleet import errors
from fleet.model.ids import TaskId
from fleet.model.task import Task, TaskState, is_runnable
from fleet.orchestrator.eviction import Place, place_of
from fleet.orchestrator.plan import Plan
from fleet.orchestrator.update import update_config
from fleet.orchestrator.view import ServiceView, SlotKey, slot_key

__all__ = ["apply_plan", "check_plan"]


def check_plan(view: ServiceView, plan: Plan, *, now: datetime) -> None:
    """Raises ``InvariantError`` with the first broken promise."""
    before = {task.id: task for task in view.tasks}
    _check_buckets(before, plan)
    for task in plan.release:
        old = before[task.id]
        _require(old.desired_state is TaskState.READY, "released though not held", old)
        held_until = old.hold.not_before if old.hold is not None else None
        _require(held_until is None or now >= held_until, "released before its restart delay was over", old)
        has_data = not old.is_arriving or old.status.state.rank >= TaskState.READY.rank
        _require(has_data, "released before its data came", old)
    for task in plan.create:
        _require(not view.service.pending_delete, "made for a service that is to be deleted", task)
        _require(not task.status.state.is_terminal, "made in a terminal state", task)
    _check_slots(view, plan)


def apply_plan(tasks: dict[TaskId, Task], plan: Plan) -> dict[TaskId, Task]:
    """The tasks as they are once the plan is written."""
    result = dict(tasks)
    for task in plan.tasks():
        result[task.id] = task
    for task in plan.delete_tasks:
        del result[task.id]
    return result


def _check_buckets(before: dict[TaskId, Task], plan: Plan) -> None:
    counts = Counter(task.id for task in plan.tasks())
    twice = [task_id for task_id, count in counts.items() if count > 1]
    if twice:
        raise errors.InvariantError(f"plan acts on task {twice[0]} twice")
    made = {task.id for task in plan.create}
    for task in plan.tasks():
        if task.id in made:
            _require(task.id not in before, "made though it exists", task)
            continue
        old = before.get(task.id)
        if old is None:
            raise errors.InvariantError(f"plan acts on task {task.id}, which is not in its view")
        grows = task.desired_state.rank >= old.desired_state.rank
        _require(grows, f"wanted {task.desired_state} after {old.desired_state}", task)
        _require(task.status.state.rank >= old.status.state.rank, "observed state taken back", task)


def _check_slots(view: ServiceView, plan: Plan) -> None:
    """No slot twice, unless an old task waits for its successor; no more slots than replicas."""
    before = {task.id: task for task in view.tasks}
    runnable: dict[SlotKey, list[Task]] = {}
    for task in apply_plan(before, plan).values():
        if is_runnable(task):
            runnable.setdefault(slot_key(task), []).append(task)
    overlap = update_config(view.service).order == "start-first"
    for tasks in runnable.values():
        fresh = [t for t in tasks if not view.is_stale(t) and place_of(t, view) is Place.GOOD]
        _require(len(fresh) <= 1, "shares its slot with its like", tasks[0])
        is_followed = overlap or any(task.move is not None and task.move.data for task in tasks)
        _require(len(tasks) <= (2 if is_followed else 1), "shares its slot", tasks[0])
    spec = view.service.spec
    if not spec.is_global and not spec.is_job and len(runnable) > spec.replicas:
        raise errors.InvariantError(f"plan leaves {len(runnable)} slots of {spec.name}, wanted {spec.replicas}")


def _require(condition: bool, complaint: str, task: Task) -> None:
    if not condition:
        raise errors.InvariantError(f"plan: task {task.id} of {task.service_name}.{slot_key(task)} {complaint}")
