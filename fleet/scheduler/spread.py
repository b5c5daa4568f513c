"""The tree by which a service's tasks spread over values of labels, and over nodes within the last of them (SCH-12).

One level a preference, one branch a value; a node without the label is in the branch of the empty value. The next task
goes to the branch with the fewest tasks of the service that still has a node for it, then likewise one level down, and
at the bottom to the best node. A branch without room is left out, so its share overflows to the others.

The tree is made for one group from two sources: the nodes that are special to the service (they carry it, have its image, or
it fails there), ranked here in a heap; and all others that can take the task, which lie in order already (``Candidates``).
O(special nodes + branches) to make, O(levels * log nodes) a task; nodes that are not chosen are not looked at.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fleet import errors
from fleet.model.ids import NodeId
from fleet.model.node import Node
from fleet.model.service import PlacementPreference
from fleet.scheduler.constraints import attribute_reader
from fleet.scheduler.filters import Demand
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.wishes import Strategy

__all__ = ["Rank", "SpreadTree", "parse_preferences", "rank"]

Rank = tuple[int, int, int, int, int, bool, NodeId]
"""Least is best: recent failures, minus the score, tasks of the service if they are to spread, load by the strategy (to
spread: tasks in all), whether it has to fetch the image, and the id so that equals are decided alike."""

Entry = tuple[int, int, int, NodeId]
"""(minus the score, the load, the node): what is left of a rank without failures, tasks of the service, and its image."""


def rank(view: NodeView, demand: Demand) -> Rank:
    """How good the node is for one more such task (SCH-10, SCH-11)."""
    node_id = view.node.id
    failures = view.recent_failures(demand.service_id, demand.spec_version) if view.failures else 0
    score = demand.score(view) if demand.has_weights or view.taints else 0
    if demand.strategy is Strategy.SPREAD:
        own = view.tasks_by_service.get(demand.service_id, 0)
        return (failures, -score, own, view.tasks_total, 0, node_id not in demand.holders, node_id)
    return (failures, -score, 0, *demand.load(view), node_id not in demand.holders, node_id)


def parse_preferences(preferences: Sequence[PlacementPreference]) -> list[Callable[[Node], str]]:
    """Readers of the values to spread over. Raises ``UserError`` for a preference that names no attribute of nodes."""
    readers = []
    for preference in preferences:
        if preference.spread is None:
            raise errors.UserError("placement preference: only spread is known")
        readers.append(attribute_reader(preference.spread.spread_descriptor))
    return readers


class Branches(Protocol):
    """What the tree needs of ``Candidates``."""

    heaps: dict[tuple[str, ...], list[Entry]]

    def __contains__(self, node_id: NodeId) -> bool: ...
    def branch(self, view: NodeView) -> tuple[str, ...]: ...
    def is_valid(self, entry: Entry) -> bool: ...


class SpreadTree:
    """Candidate nodes of one group, taken best first. ``close`` it, and touch all nodes taken, before the next."""

    def __init__(
        self, views: Mapping[NodeId, NodeView], candidates: Branches, special: Sequence[NodeView], demand: Demand
    ) -> None:
        """Tasks on nodes that are no candidates still count for their branch: it has them."""
        able: dict[tuple[str, ...], list[NodeView]] = {}
        load: Counter[tuple[str, ...]] = Counter()
        for view in special:
            branch = candidates.branch(view)
            load[branch] += view.count(demand.service_id)
            is_full = 0 < demand.max_replicas <= view.count(demand.service_id)
            if view.node.id in candidates and not is_full:
                able.setdefault(branch, []).append(view)
        names = frozenset(view.node.id for view in special)
        self._leaves = [
            _Leaf(views, candidates, branch, demand=demand, special=names, able=able.get(branch, ()))
            for branch in candidates.heaps
        ]
        self._root = _grow(self._leaves, load, 0, len(demand.preferences))

    def take(self) -> NodeView | None:
        """The best node for one more task, taken out until ``put_back``; None when no node has room."""
        return self._root.take()

    def put_back(self, view: NodeView) -> None:
        """Return the node last taken, on which a task was placed and which has room for more."""
        self._root.placed(view)

    def drop(self) -> None:
        """Leave out the node last taken, on which a task was placed and which has no room for another."""
        self._root.placed(None)

    def close(self) -> None:
        """Give back to the candidates what was passed over."""
        for leaf in self._leaves:
            leaf.close()


class _Leaf:
    """Nodes that agree in all preferences."""

    def __init__(
        self,
        views: Mapping[NodeId, NodeView],
        candidates: Branches,
        branch: tuple[str, ...],
        *,
        demand: Demand,
        special: frozenset[NodeId],
        able: Sequence[NodeView],
    ) -> None:
        """``able``: those of the ``special`` nodes in this branch that have room."""
        self.branch = branch
        self._views = views
        self._others = candidates.heaps[branch]
        self._is_valid = candidates.is_valid
        self._special = special
        self._passed_over: list[Entry] = []
        self._demand = demand
        self._is_top = False
        """Whether the node last taken is the first of the heap, where it stays until ``placed``."""
        self._heap = [(rank(view, demand), view) for view in able]
        heapq.heapify(self._heap)  # ids make ranks unique: views are never compared

    def __bool__(self) -> bool:
        return bool(self._heap) or self._has_other()

    def take(self) -> NodeView | None:
        if self._has_other():
            score, load, tasks, node_id = self._others[0]
            if not self._heap or (0, score, 0, load, tasks, True, node_id) < self._heap[0][0]:
                heapq.heappop(self._others)
                self._is_top = False
                return self._views[node_id]
        self._is_top = True
        return self._heap[0][1] if self._heap else None

    def placed(self, view: NodeView | None) -> None:
        if not self._is_top:
            if view is not None:
                heapq.heappush(self._heap, (rank(view, self._demand), view))
        elif view is not None:
            heapq.heapreplace(self._heap, (rank(view, self._demand), view))
        else:
            heapq.heappop(self._heap)

    def close(self) -> None:
        for entry in self._passed_over:
            heapq.heappush(self._others, entry)
        self._passed_over = []

    def _has_other(self) -> bool:
        """Whether a node that is not special has room; it is then the first of the heap."""
        others = self._others
        while others:
            entry = others[0]
            if not self._is_valid(entry):
                heapq.heappop(others)
            elif entry[-1] in self._special:
                self._passed_over.append(heapq.heappop(others))
            else:
                return True
        return False


class _Fork:
    """Branches by the value of one attribute."""

    def __init__(self, branches: list[tuple[int, str, _Leaf | _Fork]]) -> None:
        """``branches``: (tasks of the service, value, subtree)."""
        self._heap = [branch for branch in branches if branch[2]]
        heapq.heapify(self._heap)  # values are unique: subtrees are never compared
        self._taken: tuple[int, str, _Leaf | _Fork] | None = None

    def __bool__(self) -> bool:
        return bool(self._heap) or self._taken is not None

    def take(self) -> NodeView | None:
        if not self._heap:
            return None
        self._taken = heapq.heappop(self._heap)
        return self._taken[2].take()

    def placed(self, view: NodeView | None) -> None:
        assert self._taken is not None
        tasks, value, subtree = self._taken
        self._taken = None
        subtree.placed(view)
        if subtree:
            heapq.heappush(self._heap, (tasks + 1, value, subtree))


def _grow(leaves: Sequence[_Leaf], load: Counter[tuple[str, ...]], depth: int, levels: int) -> _Leaf | _Fork:
    """``load``: tasks of the service in each branch that has any. The leaves agree in their first ``depth`` values."""
    if depth == levels:
        return leaves[0] if leaves else _Fork([])
    by_value: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        by_value.setdefault(leaf.branch[depth], []).append(leaf)
    loads: Counter[str] = Counter()
    above = leaves[0].branch[:depth] if leaves else ()
    for branch, count in load.items():
        if branch[:depth] == above:
            loads[branch[depth]] += count
    return _Fork([(loads[value], value, _grow(group, load, depth + 1, levels)) for value, group in by_value.items()])
