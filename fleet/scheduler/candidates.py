"""The nodes that can take one kind of task, in order of their load, kept true from change to change.

A *kind* is all that a demand asks of a node whatever service it is for (``Demand.key``), and the attributes it spreads
over. So a thousand services of one shape share an index, and one task is placed without looking at every node:

- Nodes without tasks of the service and without failures differ in score and load alone. They lie in a heap a branch, the
  best at the top. An entry is valid while it *is* (not equals) what is held for its node; one that is not is thrown away
  when it comes up.
- The few others, known from ``NodePool.special``, are ranked anew for each group (``spread``).
- Nodes that can not take the task are counted by the filter that excludes them, so "nothing fits" is answered, and
  explained, from the counts.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Final

from fleet.model.ids import NodeId
from fleet.scheduler.filters import Demand, explain_counts, failing_filter_of_kind
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.spread import Entry, parse_preferences

__all__ = ["Branch", "Candidates"]

Branch = tuple[str, ...]
"""A value for each preference."""

_STALE_MAX: Final = 64
"""Beyond twice its nodes and this many, a heap is cleaned of entries that are no longer valid."""


class Candidates:
    """``seen`` is the number of the pool's last change that is taken in."""

    def __init__(self, demand: Demand) -> None:
        """Raises ``UserError`` for preferences that name no attribute of nodes."""
        self._demand = demand
        self._readers = parse_preferences(demand.preferences)
        self._entries: dict[NodeId, Entry] = {}
        self._excluded: dict[NodeId, str] = {}
        self._counts: Counter[str] = Counter()
        self._sizes: Counter[Branch] = Counter()
        self._branch_of: dict[NodeId, Branch] = {}
        self.heaps: dict[Branch, list[Entry]] = {}
        self.seen = 0

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def branch(self, view: NodeView) -> Branch:
        """Where the node belongs, whether or not it can take the task."""
        return tuple(reader(view.node) for reader in self._readers) if self._readers else ()

    def is_valid(self, entry: Entry) -> bool:
        """Whether an entry of a heap still says how its node is."""
        return self._entries.get(entry[-1]) is entry

    def explain(self, *, full: int) -> str:
        """Why no node can take the task; ``full`` more nodes have reached the replicas they may have."""
        return explain_counts(self._counts | Counter({"max replicas": full} if full else {}))

    def update(self, changed: Iterable[tuple[NodeId, NodeView | None]], *, at: int) -> None:
        """Look at nodes that changed (None: gone) up to the pool's change ``at``."""
        first = not self.heaps
        for node_id, view in changed:
            self._forget(node_id)
            if view is None:
                continue
            failing = failing_filter_of_kind(self._demand, view)
            if failing is not None:
                self._excluded[node_id] = failing.name
                self._counts[failing.name] += 1
                continue
            branch = self.branch(view)
            entry = self._entries[node_id] = (-self._demand.score(view), *self._demand.load(view), node_id)
            if self._readers:
                self._branch_of[node_id] = branch
            self._sizes[branch] += 1
            heap = self.heaps.setdefault(branch, [])
            if first:
                heap.append(entry)
            else:
                heapq.heappush(heap, entry)
                if len(heap) > 2 * self._sizes[branch] + _STALE_MAX:
                    self.heaps[branch] = [each for each in heap if self.is_valid(each)]
                    heapq.heapify(self.heaps[branch])
        if first:
            for heap in self.heaps.values():
                heapq.heapify(heap)
        self.seen = at

    def _forget(self, node_id: NodeId) -> None:
        if self._entries.pop(node_id, None) is not None:
            branch = self._branch_of.pop(node_id, ())
            self._sizes[branch] -= 1
            if not self._sizes[branch]:
                del self._sizes[branch], self.heaps[branch]
            return
        excluded = self._excluded.pop(node_id, None)
        if excluded is not None:
            self._counts[excluded] -= 1
