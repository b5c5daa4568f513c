"""What the two hosts of a task's move may do: they ask a manager, which tells them from its tables.

Everything told here only ever turns from no to yes, or is asked again: so tables that are a moment old do no harm.
"""

from __future__ import annotations

from fleet import errors
from fleet.api.task_moves import Standing, Verdict
from fleet.model.ids import NodeId
from fleet.model.task import Task, TaskState, is_runnable
from fleet.store import Store

__all__ = ["standing_of"]


def standing_of(store: Store, task_id: str, *, asks: NodeId) -> Standing:
    """Of the task that takes another's data over. Raises ``NotFoundError`` while no such task is known here, ``ForbiddenError``
    for a node that has no part in it."""
    task = store.tasks.get(task_id)
    if task is None or task.moved_from is None:
        raise errors.NotFoundError(f"no task {task_id} that takes another's data over is known here")
    source = task.moved_from
    if asks not in (task.node_id, source.node):
        raise errors.ForbiddenError(f"node {asks} has no part in the move of task {task_id}")
    node, old = store.nodes.get(source.node), store.tasks.get(source.task)
    may_finish = old is None or old.desired_state.rank > TaskState.RUNNING.rank or old.status.state.is_terminal
    return Standing(
        task=task.id,
        node=task.node_id,
        from_task=source.task,
        from_node=source.node,
        from_name=(node.description.hostname if node is not None else "") or source.node,
        from_address=node.cluster_addr if node is not None and not node.removed else "",
        may_copy=task.is_arriving and is_runnable(task),
        may_finish=may_finish,
        verdict=_verdict(task, old),
    )


def _verdict(task: Task, old: Task | None) -> Verdict:
    given_up = old is not None and old.move is not None and old.move.successor == task.id and bool(old.move.ended)
    if task.has_run and not given_up:
        return Verdict.MOVED
    if given_up or not is_runnable(task):
        return Verdict.OVER
    return Verdict.OPEN
