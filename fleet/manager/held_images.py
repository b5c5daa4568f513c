"""Which nodes have which images, by what their agents said last; a hint, kept in memory by the leader alone."""

from __future__ import annotations

from collections.abc import Iterable

from fleet import errors
from fleet.images.reference import parse_reference
from fleet.model.ids import NodeId

__all__ = ["HeldImages"]


class HeldImages:
    """Names are complete references, with a tag or a digest, and digests. Bounded by what agents may say."""

    def __init__(self) -> None:
        self._names: dict[NodeId, frozenset[str]] = {}
        self._nodes: dict[str, set[NodeId]] = {}

    def set(self, node_id: NodeId, names: Iterable[str]) -> None:
        """In place of what the node said before."""
        before, now = self._names.get(node_id, frozenset()), frozenset(names)
        for name in before - now:
            self._nodes[name].discard(node_id)
            if not self._nodes[name]:
                del self._nodes[name]
        for name in now - before:
            self._nodes.setdefault(name, set()).add(node_id)
        self._names[node_id] = now

    def named(self, name: str) -> frozenset[NodeId]:
        """Nodes that have exactly this."""
        return frozenset(self._nodes.get(name, ()))

    def holders(self, image: str) -> frozenset[NodeId]:
        """Nodes that need not fetch the image as a service names it: by its digest, if it has one, else by its tag."""
        try:
            reference = parse_reference(image)
        except errors.UserError:
            return frozenset()
        if reference.digest is None:
            return self.named(str(reference))
        return self.named(reference.digest) | self.named(str(reference.with_digest(reference.digest)))
