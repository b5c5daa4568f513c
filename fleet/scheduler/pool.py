"""All nodes as placing sees them, kept between passes and fed by events; with the indexes that make placing sub-linear.

What is kept, and what keeps it true:

``views``       one ``NodeView`` a node. A task that appears is added; after any other change that matters for placing the
                node's view is built again from its tasks, so there is no subtraction that could go wrong.
``hosts``       which nodes carry tasks of a service.
``failing``     which nodes a version of a service has failed on too often of late.
``Candidates``  one for each kind of demand met of late: which nodes can take it, in order (``candidates``).

A change *touches* its node. Indexes of ``Candidates`` catch up with the nodes touched since they were last asked: they
look at each changed node once, and at no other. Tasks placed are *assumed* at once, before they are written; the event
that confirms one changes nothing, and one that was not written is given back by ``set_task`` with what the store has.

Bounded: entries of all ``Candidates`` together by ``ENTRIES_MAX``, the least recently asked leaving first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from fleet.model.common import GenericResource
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import Node
from fleet.model.task import Task, TaskState, is_runnable
from fleet.scheduler.candidates import Candidates
from fleet.scheduler.filters import Demand
from fleet.scheduler.node_view import FAILURES_MAX, NodeView
from fleet.scheduler.quotas import Budget, Quota, QuotaLedger

__all__ = ["NodePool", "build_views"]

ENTRIES_MAX: Final = 1_000_000
"""Some 200 bytes each; a kind of demand has one for each node."""
_KINDS_MIN: Final = 4

Failures = Mapping[NodeId, Mapping[tuple[ServiceId, int], int]]


class NodePool(Mapping[NodeId, NodeView]):
    """Views by node. Change it through its methods alone: they keep the indexes."""

    def __init__(self) -> None:
        self._views: dict[NodeId, NodeView] = {}
        self._tasks_on: dict[NodeId, dict[TaskId, Task]] = {}
        self._node_of: dict[TaskId, NodeId] = {}
        self._dirty: set[NodeId] = set()
        self._hosts: dict[ServiceId, set[NodeId]] = {}
        self._failing: dict[tuple[ServiceId, int], set[NodeId]] = {}
        self._failures: Failures = {}
        self._service_ids: dict[str, ServiceId] = {}
        """By name, of services that have or had tasks: names that another service took over are overwritten."""
        self._touched: dict[NodeId, int] = {}
        """Node -> number of its last change, in the order of these numbers."""
        self._changes = 0
        self._candidates: dict[object, Candidates] = {}
        self._quotas = QuotaLedger()

    def __getitem__(self, node_id: NodeId) -> NodeView:
        return self._views[node_id]

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    # -- events

    def set_node(self, node: Node) -> None:
        """A node appeared or changed in any way; one that is removed is left out."""
        if node.removed:
            self.remove_node(node.id)
        else:
            view = self._views.get(node.id)
            if view is None or view.node is not node:
                self._build(node)

    def remove_node(self, node_id: NodeId) -> None:
        """The node is gone; idempotent. Its tasks are remembered, should it come back."""
        view = self._views.pop(node_id, None)
        if view is not None:
            self._leave_hosts(view)
            self._touch(node_id)

    def set_task(self, task: Task) -> None:
        """A task appeared or changed. One that has ended, or has no place yet, counts nowhere."""
        # A preassigned task (global) has a node before it is placed there: placing counts it.
        counts = bool(task.node_id) and task.status.state.rank >= TaskState.ASSIGNED.rank
        if task.service_name:
            self._service_ids[task.service_name] = task.service_id
        if not counts or task.status.state.is_terminal:
            self.remove_task(task.id)
            return
        known_on = self._node_of.get(task.id)
        if known_on is not None and known_on != task.node_id:
            self.remove_task(task.id)
            known_on = None
        self._quotas.look(task)
        here = self._tasks_on.setdefault(task.node_id, {})
        known = here.get(task.id)
        here[task.id] = task
        self._node_of[task.id] = task.node_id
        if known is None:
            view = self._views.get(task.node_id)
            if view is not None and task.node_id not in self._dirty:
                view.add(task)
                if is_runnable(task):
                    self._hosts.setdefault(task.service_id, set()).add(task.node_id)
                self._touch(task.node_id)
        elif _weight(known) != _weight(task):
            self._dirty.add(task.node_id)

    def remove_task(self, task_id: TaskId) -> None:
        """The task ended or is gone; idempotent."""
        self._quotas.forget(task_id)
        node_id = self._node_of.pop(task_id, None)
        if node_id is not None:
            del self._tasks_on[node_id][task_id]
            if not self._tasks_on[node_id]:
                del self._tasks_on[node_id]
            self._dirty.add(node_id)

    def set_failures(self, failures: Failures) -> None:
        """Recent failures by node (``FailureLog.recent``), in place of those set before."""
        for node_id in self._failures.keys() | failures.keys():
            view = self._views.get(node_id)
            if view is not None:
                view.failures = failures.get(node_id) or {}
        self._failures = failures
        self._failing = {}
        for node_id, counts in failures.items():
            for version, count in counts.items():
                if count >= FAILURES_MAX:
                    self._failing.setdefault(version, set()).add(node_id)

    def set_quotas(self, quotas: tuple[Quota, ...]) -> None:
        """In place of those set before."""
        if quotas != self._quotas.quotas:
            self._quotas = QuotaLedger(quotas)
            for tasks in self._tasks_on.values():
                for task in tasks.values():
                    self._quotas.look(task)

    def refresh(self) -> None:
        """Build the views of nodes that lost tasks; to be called after events, before placing."""
        dirty, self._dirty = self._dirty, set()
        for node_id in dirty:
            view = self._views.get(node_id)
            if view is not None:
                self._build(view.node)

    # -- for placing

    def candidates(self, demand: Demand) -> Candidates:
        """The nodes that can take such a task, up to date."""
        found = self._candidates.pop(demand.key, None)
        if found is None:
            found = Candidates(demand)
            found.update(self._views.items(), at=self._changes)
        elif found.seen < self._changes:
            found.update(self._touched_since(found.seen), at=self._changes)
        self._candidates[demand.key] = found
        kinds_max = max(_KINDS_MIN, ENTRIES_MAX // (len(self._views) + 1))
        while len(self._candidates) > kinds_max:
            del self._candidates[next(iter(self._candidates))]
        return found

    def service_id_of(self, name: str) -> ServiceId | None:
        """The service of that name; None when it has no tasks."""
        return self._service_ids.get(name)

    def tasks_on(self, node_id: NodeId) -> Collection[Task]:
        """Tasks that have that node and have not ended."""
        return self._tasks_on.get(node_id, {}).values()

    def budgets(self, service_labels: Mapping[str, str]) -> list[Budget]:
        """What is left for a service with these labels, if it has quotas."""
        return self._quotas.budgets(service_labels)

    def special(
        self, service_id: ServiceId, spec_version: int, *, also: frozenset[NodeId] = frozenset()
    ) -> list[NodeView]:
        """Views of nodes that carry the service, on which this version fails, or which are named; all others are alike but for
        their load."""
        nodes = also | self._hosts.get(service_id, also) | self._failing.get((service_id, spec_version), also)
        return [self._views[node_id] for node_id in nodes if node_id in self._views]

    def assumed(self, task: Task, view: NodeView, picked: tuple[GenericResource, ...]) -> None:
        """Note a task that ``view.assume`` has counted. ``touch_all`` must follow for its node."""
        node_id = view.node.id
        self._node_of[task.id] = node_id
        self._quotas.assume(task)
        counted = msgspec.structs.replace(task, assigned_generic_resources=picked) if picked else task
        self._tasks_on.setdefault(node_id, {})[task.id] = counted

    def touch_all(self, service_id: ServiceId, node_ids: set[NodeId]) -> None:
        """Tasks of the service were assumed on these nodes."""
        if node_ids:
            self._hosts.setdefault(service_id, set()).update(node_ids)
        for node_id in node_ids:
            self._touch(node_id)

    def _build(self, node: Node) -> None:
        before = self._views.get(node.id)
        if before is not None:
            self._leave_hosts(before)
        view = NodeView(node, failures=self._failures.get(node.id))
        for task in self._tasks_on.get(node.id, {}).values():
            view.add(task)
        for service_id in view.tasks_by_service:
            self._hosts.setdefault(service_id, set()).add(node.id)
        self._views[node.id] = view
        self._dirty.discard(node.id)
        self._touch(node.id)

    def _leave_hosts(self, view: NodeView) -> None:
        for service_id in view.tasks_by_service:
            nodes = self._hosts.get(service_id)
            if nodes is not None:
                nodes.discard(view.node.id)
                if not nodes:
                    del self._hosts[service_id]

    def _touch(self, node_id: NodeId) -> None:
        self._changes += 1
        self._touched.pop(node_id, None)
        self._touched[node_id] = self._changes
        if len(self._touched) > 2 * len(self._views) + 1000:  # names of nodes long gone
            self._touched = {each: at for each, at in self._touched.items() if each in self._views}
            self._candidates.clear()

    def _touched_since(self, seen: int) -> Iterator[tuple[NodeId, NodeView | None]]:
        for node_id, at in reversed(self._touched.items()):
            if at <= seen:
                return
            yield node_id, self._views.get(node_id)


def build_views(nodes: Iterable[Node], tasks: Iterable[Task], *, failures: Failures | None = None) -> NodePool:
    """A pool of all nodes that are not removed, with the tasks that are on them."""
    pool = NodePool()
    pool.set_failures(failures or {})
    for task in tasks:
        pool.set_task(task)
    for node in nodes:
        pool.set_node(node)
    pool.refresh()
    return pool


def _weight(task: Task) -> tuple[object, ...]:
    """All of a living task that counts on its node."""
    return (is_runnable(task), task.spec.resources.reservations, task.ports, task.assigned_generic_resources)
