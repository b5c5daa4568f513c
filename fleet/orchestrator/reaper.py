"""What can be forgotten: tasks that served their time, services without tasks; and what will never be heard of again.

- A task to be removed goes once its agent said it ended, or it never had an agent, or its node is gone for good (TSK-10).
- A task that was stopped before it got a node leaves no trace worth keeping.
- Of each slot's ended tasks the newest stay, up to the history limit, or as many as counting restarts needs (TSK-15).
- Tasks on a node that is removed, or has been down for a day, are orphaned: their addresses are free again (HLT-05).
- A task whose service is gone is to be removed (ORC-11); a service to be deleted goes after its last task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import Node, NodeState
from fleet.model.service import Service
from fleet.model.task import Task, TaskState, is_runnable
from fleet.orchestrator.plan import Plan
from fleet.orchestrator.view import Slot, ended_by_itself, group_slots

__all__ = ["ORPHAN_AFTER", "plan_reaping"]

ORPHAN_AFTER: Final = timedelta(hours=24)


def plan_reaping(
    services: Mapping[ServiceId, Service],
    tasks: Iterable[Task],
    nodes: Mapping[NodeId, Node],
    *,
    history_limit: int,
    now: datetime,
) -> Plan:
    """What to delete, orphan and mark. ``tasks`` may be any services' whole sets; ``history_limit`` < 0 keeps all.

    Services are deleted only if their tasks are among ``tasks`` (none, when none are left).
    """
    plan = Plan()
    by_service: dict[ServiceId, list[Task]] = {}
    for task in tasks:
        by_service.setdefault(task.service_id, []).append(task)
    for service_id, found in by_service.items():
        left = [task for task in found if not _reap_one(task, nodes, plan, now=now)]
        service = services.get(service_id)
        if service is None:
            for task in left:
                plan.want_removal(task, now=now)
        else:
            for slot in group_slots(left).values():
                _reap_history(slot, plan, limit=history_limit)
    plan.delete_services.extend(
        service for service in services.values() if service.pending_delete and service.id not in by_service
    )
    return plan


def _reap_one(task: Task, nodes: Mapping[NodeId, Node], plan: Plan, *, now: datetime) -> bool:
    """Whether the task was dealt with for now."""
    unwanted = task.desired_state.rank > TaskState.RUNNING.rank
    was_assigned = task.status.state.rank >= TaskState.ASSIGNED.rank
    if unwanted and not was_assigned:
        plan.delete_tasks.append(task)
        return True
    if task.desired_state is TaskState.REMOVE and (task.status.state.is_terminal or _is_gone(task, nodes)):
        plan.delete_tasks.append(task)
        return True
    if not unwanted or task.status.state.is_terminal or not was_assigned:
        return False
    node = nodes.get(task.node_id)
    due = now if node is None or node.removed else _orphan_instant(node)
    if due is None:
        return False
    if now < due:
        plan.looks_again.append(due)
        return False
    status = msgspec.structs.replace(
        task.status, state=TaskState.ORPHANED, timestamp=now, message="orphaned", err="its node is gone"
    )
    plan.orphan.append(msgspec.structs.replace(task, status=status, updated_at=now))
    return True


def _is_gone(task: Task, nodes: Mapping[NodeId, Node]) -> bool:
    node = nodes.get(task.node_id)
    return node is None or node.removed


def _orphan_instant(node: Node) -> datetime | None:
    if node.status.state is not NodeState.DOWN or node.down_since is None:
        return None
    return node.down_since + ORPHAN_AFTER


def _reap_history(slot: Slot, plan: Plan, *, limit: int) -> None:
    """Delete the oldest ended tasks beyond the limit; never the newest task, which tells what became of the slot."""
    if limit < 0:
        return
    excess = len(slot.tasks) - limit
    needed = _counted(slot) | _carried(slot)
    for task in slot.tasks[:-1]:
        if excess <= 0:
            return
        if task.id in needed:
            continue
        if task.status.state.is_terminal and task.desired_state is TaskState.SHUTDOWN:
            plan.delete_tasks.append(task)
            excess -= 1


def _carried(slot: Slot) -> set[TaskId]:
    """The tasks whose data another is to take over, or was to and did not: their containers must stay."""
    return {
        task.moved_from.task
        for task in slot.tasks
        if task.moved_from is not None and task.is_arriving and (is_runnable(task) or task is slot.newest)
    }


def _counted(slot: Slot) -> set[TaskId]:
    """The tasks that counting the slot's restarts needs, whatever else is in it: see ``restart``."""
    policy = slot.newest.spec.restart_policy
    if policy is None or policy.max_attempts <= 0:
        return set()
    failed = [task for task in slot.tasks if ended_by_itself(task) and task.spec == slot.newest.spec]
    return {task.id for task in failed[-(policy.max_attempts + 1) :]}
