"""Tasks: list and inspect. Nobody changes a task through the API, but for the wish that it moves (``task_moves``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fleet import errors
from fleet.api.http import Filters
from fleet.manager.control.context import Context
from fleet.manager.control.filters import any_prefix, has_labels
from fleet.model.node import Node
from fleet.model.service import TaskSpec
from fleet.model.task import Task, TaskState, task_name
from fleet.orchestrator.view import ServiceView
from fleet.scheduler.constraints import match_all, parse_constraints

__all__ = ["TaskControl"]

FILTERS: Final = frozenset({"id", "name", "label", "service", "node", "desired-state", "_up-to-date"})

_DESIRED: Final = {
    "running": frozenset({TaskState.READY, TaskState.RUNNING}),
    "shutdown": frozenset({TaskState.SHUTDOWN, TaskState.REMOVE}),
    "accepted": frozenset({TaskState.ACCEPTED}),
    "ready": frozenset({TaskState.READY}),
    "remove": frozenset({TaskState.REMOVE}),
    "complete": frozenset({TaskState.COMPLETE}),
}


class TaskControl:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._store = context.store

    def find(self, text: str) -> Task:
        """By id, full name (``web.1.<id>``) or unique prefix of the id."""
        return self._store.tasks.find(text)

    def list(self, filters: Filters | None = None) -> list[Task]:
        """Filters: ``id`` and ``name`` (prefixes), ``label`` (of the service or the task), ``service`` and ``node`` (id, name
        or prefix; raises ``NotFoundError``), ``desired-state``, ``_up-to-date`` (made from the current spec).
        """
        wanted = filters or {}
        found = self._candidates(wanted)
        for check in self._checks(wanted):
            found = [task for task in found if check(task)]
        return list(found)

    def _checks(self, wanted: Filters) -> Iterator[Callable[[Task], bool]]:
        """Only what was asked for: this list is polled, and may hold ten thousand tasks."""
        states = _desired_states(wanted)
        if states is not None:
            yield lambda task: task.desired_outcome in states
        nodes = {self._store.nodes.find(text).id for text in wanted.get("node", ())}
        if nodes:
            yield lambda task: task.node_id in nodes
        if wanted.get("id"):
            yield lambda task: any_prefix(wanted, "id", task.id)
        if wanted.get("name"):
            yield lambda task: any_prefix(wanted, "name", task_name(task))
        if wanted.get("label"):
            yield lambda task: has_labels(wanted, "label", {**task.service_labels, **task.labels})
        if "_up-to-date" in wanted:
            yield self._up_to_date()

    def _candidates(self, filters: Filters) -> Sequence[Task]:
        """By the index that narrows most."""
        services = filters.get("service")
        if services:
            ids = dict.fromkeys(self._store.services.find(text).id for text in services)
            return tuple(task for id_ in ids for task in self._store.tasks.by_service(id_))
        if filters.get("node"):
            nodes = dict.fromkeys(self._store.nodes.find(text).id for text in filters["node"])
            return tuple(task for id_ in nodes for task in self._store.tasks.by_node(id_))
        return self._store.tasks.all()

    def _up_to_date(self) -> Callable[[Task], bool]:
        nodes = {node.id: node for node in self._store.nodes.all()}

        def check(task: Task) -> bool:
            service = self._store.services.get(task.service_id)
            return service is not None and not ServiceView(service=service, tasks=(), nodes=nodes, fits=_fits).is_stale(
                task
            )

        return check


def _fits(spec: TaskSpec, node: Node) -> bool:
    return match_all(parse_constraints(spec.placement.constraints), node)


def _desired_states(filters: Filters) -> frozenset[TaskState] | None:
    texts = filters.get("desired-state")
    if not texts:
        return None
    result: frozenset[TaskState] = frozenset()
    for text in texts:
        states = _DESIRED.get(text)
        if states is None:
            raise errors.UserError(f"invalid desired-state {text!r}: one of {', '.join(_DESIRED)}")
        result |= states
    return result
