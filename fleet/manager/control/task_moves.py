"""Moving a task to a node with its data: whether it can be, asking for it, and how far it is.

Asking for it is a mark on the task; the rest follows from that (``orchestrator.carrying``), whoever leads.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from fleet import errors
from fleet.manager.control.context import Context
from fleet.manager.matching import cluster_quotas, cluster_strategy, satisfies_constraints
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeState
from fleet.model.service import Service
from fleet.model.task import Move, Task, TaskState, is_runnable, task_name
from fleet.orchestrator.moves import is_settled
from fleet.orchestrator.view import ServiceView
from fleet.scheduler.explain import explain_nodes
from fleet.scheduler.place import make_demand_of
from fleet.scheduler.pool import build_views
from fleet.scheduler.quotas import over_quota
from fleet.store import Store, Transaction

__all__ = ["MoveReport", "MoveStage", "TaskMoveControl"]

_CONTAINER_ID_MIN = 12


class MoveStage(enum.StrEnum):
    """``moved``, ``stayed`` (the task itself runs on) and ``returned`` (another runs in its place, with its data) are ends;
    ``lost``: the slot's data is used by no task any more, since its node is gone or the service was changed."""

    COPYING = "copying"
    STOPPING = "stopping"
    STARTING = "starting"
    MOVED = "moved"
    STAYED = "stayed"
    RETURNING = "returning"
    RETURNED = "returned"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """``successor``: the task in its place, as far as there is one. ``message``: how far it is, or why it did not come about."""

    task: Task
    to: Node | None
    stage: MoveStage
    successor: Task | None
    message: str


class TaskMoveControl:
    """``move`` writes what is wanted, ``report`` reads what came of it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def named(self, text: str) -> Task | None:
        """The task that a container's name or id, or a slot's (``web.1``), means; no prefix of its own id does. None if none."""
        try:
            task = self.find(text)
        except errors.NotFoundError:
            return None
        container = task.status.container_status.container_id if task.status.container_status else ""
        is_meant = text in (task.id, task_name(task), f"{task.service_name}.{task.slot}")
        return task if is_meant or (len(text) >= _CONTAINER_ID_MIN and container.startswith(text)) else None

    def find(self, text: str) -> Task:
        """A task by id, full name, unique prefix of the id, ``web.1`` (the one of that slot that runs), or by its container's id.
        Raises ``NotFoundError``, ``UserError`` if ambiguous, ``ConflictError`` if none of the slot runs."""
        name, _, number = text.rpartition(".")
        if name and number.isdigit():
            slot = [task for task in self._store.tasks.all() if (task.service_name, task.slot) == (name, int(number))]
            running = [task for task in slot if is_runnable(task) and task.status.state is TaskState.RUNNING]
            if running:
                return max(running, key=lambda task: task.created_at)
            if slot:
                raise errors.ConflictError(f"{text}: no task of it runs; fleet service ps {name} tells why")
        if len(text) >= _CONTAINER_ID_MIN:
            for task in self._store.tasks.all():
                container = task.status.container_status
                if container is not None and container.container_id and container.container_id.startswith(text):
                    return task
        return self._store.tasks.find(text)

    async def move(self, text: str, node_text: str) -> Task:
        """Have the task moved to the node of that id or name, with its volumes and what its container wrote; returns it marked.

        Raises ``NotFoundError``, ``UserError`` for what no task can, ``ConflictError`` for what this one can not now, with the
        reason. Nothing has been copied when this returns.
        """
        task_id = self.find(text).id
        node_id = self._store.nodes.find(node_text, "node").id

        def marked() -> Transaction:
            task = self._store.tasks.find(task_id)
            service = self._store.services.get(task.service_id)
            node = self._store.nodes.get(node_id)
            if service is None or node is None:
                raise errors.NotFoundError(f"the service or the node of the move of task {task_id} is gone")
            check_task(self._store, service, task, node)
            now = self._context.now()
            move = Move(to=node_id, since=now, data=True)
            return Transaction().require(service).replace(msgspec.structs.replace(task, move=move, updated_at=now))

        await self._context.guarded(marked)
        return self._store.tasks.find(task_id)

    def report(self, task_id: str) -> MoveReport:
        """Of the last move of the task of that id. Raises ``NotFoundError`` when there is none, or the task is forgotten."""
        task = self._store.tasks.get(task_id)
        if task is None or task.move is None or not task.move.data:
            raise errors.NotFoundError(
                f"task {task_id} was not moved, or is forgotten: fleet service ps tells what runs"
            )
        node = self._store.nodes.get(task.move.to)
        successor = self._store.tasks.get(task.move.successor) if task.move.successor else None
        stage, successor, message = self._stage(task, task.move, successor)
        return MoveReport(task=task, to=node, stage=stage, successor=successor, message=message)

    def _stage(self, task: Task, move: Move, successor: Task | None) -> tuple[MoveStage, Task | None, str]:
        if is_runnable(task):
            if move.ended:
                return MoveStage.STAYED, None, move.ended
            return MoveStage.COPYING, successor, _progress(successor)
        if successor is not None and successor.has_run and not move.ended:
            return MoveStage.MOVED, successor, ""
        if successor is not None and is_runnable(successor):
            starts = successor.status.state.rank >= TaskState.READY.rank
            stops = not task.status.state.is_terminal
            stage = MoveStage.STARTING if starts else MoveStage.STOPPING if stops else MoveStage.COPYING
            return stage, successor, _progress(successor)
        others = (
            other
            for other in self._store.tasks.by_service(task.service_id)
            if other.moved_from is not None and other.moved_from.task == task.id and other.id != move.successor
        )
        last = max(others, key=lambda other: other.created_at, default=None)
        why = move.ended or (successor.status.err if successor is not None else "") or "its successor ended"
        if last is not None and last.has_run:
            return MoveStage.RETURNED, last, why
        if last is not None and is_runnable(last):
            return MoveStage.RETURNING, last, why
        service = self._store.services.get(task.service_id)
        slot = [t for t in self._store.tasks.by_service(task.service_id) if t.slot == task.slot and is_runnable(t)]
        if service is not None and not slot and not move.ended:
            return MoveStage.RETURNING, None, why  # what follows is decided just now
        return MoveStage.LOST, None, why


def _progress(successor: Task | None) -> str:
    return (successor.status.err or successor.status.message) if successor is not None else "a task is made for it"


def check_task(store: Store, service: Service, task: Task, node: Node) -> None:
    """Whether the task can move to the node with its data now. Raises ``UserError`` or ``ConflictError`` with the reason."""
    name, there = task_name(task), node.description.hostname or node.id
    spec = service.spec
    if spec.is_job:
        raise errors.UserError(f"task {name} is of a job: its tasks end, and are not moved")
    if spec.is_global:
        raise errors.UserError(f"task {name} is of a global service, which has one on every node: it is not moved")
    if service.pending_delete:
        raise errors.ConflictError(f"service {spec.name} is being removed")
    tasks = store.tasks.by_service(service.id)
    view = ServiceView(
        service=service, tasks=tasks, nodes={n.id: n for n in store.nodes.all()}, fits=satisfies_constraints
    )
    if not is_settled(view):
        state = service.update_status.state if service.update_status else "about to begin"
        raise errors.ConflictError(
            f"service {spec.name} is being updated ({state}): wait for its end (fleet service ps {spec.name})"
        )
    if task.is_moving:
        raise errors.ConflictError(f"task {name} is being moved already")
    if not is_runnable(task) or task.status.state is not TaskState.RUNNING:
        raise errors.ConflictError(
            f"task {name} does not run (it is {task.status.state.value}): fleet service ps {spec.name} tells which one does"
        )
    if any(other.slot == task.slot and other.id != task.id and is_runnable(other) for other in tasks):
        raise errors.ConflictError(f"task {name} is being replaced: wait until its successor runs")
    if task.node_id == node.id:
        raise errors.UserError(f"task {name} is on {there} already")
    if not node.cluster_addr or node.removed:
        raise errors.ConflictError(f"node {there} cannot be reached by other nodes")
    source = view.nodes.get(task.node_id)
    if source is None or source.status.state is not NodeState.READY:
        raise errors.ConflictError(f"the node of task {name}, which has its data, is not ready: wait until it is")
    ours, theirs = source.description.platform.architecture, node.description.platform.architecture
    if ours != theirs:
        raise errors.ConflictError(
            f"task {name} cannot go to {there}: that is {theirs}, and what its container wrote is for {ours}"
        )
    if reasons := why_not(store, task, node.id):
        raise errors.ConflictError(f"task {name} cannot go to {there}: {'; '.join(reasons)}")


def why_not(store: Store, task: Task, node_id: NodeId) -> tuple[str, ...]:
    """What the scheduler's filters have against a task like this one on that node."""
    tasks = store.tasks.all()
    pool = build_views(store.nodes.all(), tasks)
    pool.set_quotas(cluster_quotas(store))
    over = over_quota(pool.budgets(task.service_labels), task)
    if over is not None:
        return (f"{over} (while it moves, both its tasks count)",)
    make_demand = make_demand_of(
        pool,
        network_drivers={network.id: network.spec.needed_plugin for network in store.networks.all()},
        strategy=cluster_strategy(store),
    )
    verdicts = explain_nodes(make_demand(msgspec.structs.replace(task, node_id=NodeId(""))), pool)
    return next((verdict.reasons for verdict in verdicts if verdict.view.node.id == node_id), ("it is gone",))
