"""The tree by which a service's tasks spread over values of labels, and over nodes within the last of them (SCH-12).

One level a preference, one branch a value; a node without the label is in the branch of the empty value. The next task
goes to the branch with the fewest tasks of the service that still has a node for it, then likewise one level down, and
at the bottom to the best node. A branch without room is left out, so its share overflows to the others.

Both levels are heaps. Only the chosen node and its branches change between two choices, and they are put back with
their new rank, so the heaps stay true without being rebuilt: O(levels * log nodes) a task.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from fleet import errors
from fleet.model.ids import NodeId, ServiceId
from fleet.model.node import Node
from fleet.model.service import PlacementPreference
from fleet.scheduler.constraints import attribute_reader
from fleet.scheduler.node_view import NodeView

__all__ = ["Rank", "SpreadTree", "parse_preferences", "rank"]

Rank = tuple[int, int, int, NodeId]
"""Least is best: recent failures, tasks of the service, tasks in all, and the id so that equals are decided alike."""


def rank(view: NodeView, *, service_id: ServiceId, spec_version: int) -> Rank:
    """How good the node is for one more task of the service (SCH-10, SCH-11)."""
    return (
        view.recent_failures(service_id, spec_version),
        view.count(service_id),
        view.tasks_total,
        view.node.id,
    )


def parse_preferences(preferences: Sequence[PlacementPreference]) -> list[Callable[[Node], str]]:
    """Readers of the values to spread over. Raises ``UserError`` for a preference that names no attribute of nodes."""
    readers = []
    for preference in preferences:
        if preference.spread is None:
            raise errors.UserError("placement preference: only spread is known")
        readers.append(attribute_reader(preference.spread.spread_descriptor))
    return readers


class SpreadTree:
    """Candidate nodes of one service, taken best first."""

    def __init__(
        self,
        views: Sequence[NodeView],
        *,
        candidates: frozenset[NodeId],
        readers: Sequence[Callable[[Node], str]],
        service_id: ServiceId,
        spec_version: int,
    ) -> None:
        """Tasks on nodes that are no candidates still count for their branch: it has them."""
        self._root = _grow(views, candidates, readers, service_id, spec_version)

    def take(self) -> NodeView | None:
        """The best node for one more task, taken out until ``put_back``; None when no node has room."""
        return self._root.take()

    def put_back(self, view: NodeView) -> None:
        """Return the node last taken, on which a task was placed and which has room for more."""
        self._root.placed(view)

    def drop(self) -> None:
        """Leave out the node last taken, on which a task was placed and which has no room for another."""
        self._root.placed(None)


class _Leaf:
    """Nodes that agree in all preferences."""

    def __init__(self, views: Sequence[NodeView], rank_of: Callable[[NodeView], Rank]) -> None:
        self._rank_of = rank_of
        self._heap = [(rank_of(view), view) for view in views]
        heapq.heapify(self._heap)  # ids make ranks unique: views are never compared

    def __bool__(self) -> bool:
        return bool(self._heap)

    def take(self) -> NodeView | None:
        return heapq.heappop(self._heap)[1] if self._heap else None

    def placed(self, view: NodeView | None) -> None:
        if view is not None:
            heapq.heappush(self._heap, (self._rank_of(view), view))


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


def _grow(
    views: Sequence[NodeView],
    candidates: frozenset[NodeId],
    readers: Sequence[Callable[[Node], str]],
    service_id: ServiceId,
    spec_version: int,
) -> _Leaf | _Fork:
    if not readers:
        chosen = [view for view in views if view.node.id in candidates]
        return _Leaf(chosen, lambda view: rank(view, service_id=service_id, spec_version=spec_version))
    by_value: dict[str, list[NodeView]] = {}
    for view in views:
        by_value.setdefault(readers[0](view.node), []).append(view)
    return _Fork(
        [
            (
                sum(view.count(service_id) for view in group),
                value,
                _grow(group, candidates, readers[1:], service_id, spec_version),
            )
            for value, group in by_value.items()
        ]
    )
