"""What hosts say about the data of a task that moves: a manager to both, and the one that has it to the one that fetches it."""

from __future__ import annotations

import enum

from fleet.model.ids import NodeId, TaskId
from fleet.model.wire import Value

__all__ = ["Offer", "OfferedTree", "Standing", "Verdict"]


class Verdict(enum.StrEnum):
    """``moved``: the task has run with the data, which is its own from now on. ``over``: it never will."""

    OPEN = "open"
    MOVED = "moved"
    OVER = "over"


class Standing(Value, frozen=True, kw_only=True):
    """A manager to either host. ``may_copy``: the task is to take the data over. ``may_finish``: the old task is not to run any
    more, so what it has left when its container has ended is all."""

    task: TaskId
    node: NodeId
    from_task: TaskId
    from_node: NodeId
    from_name: str
    from_address: str
    may_copy: bool
    may_finish: bool
    verdict: Verdict


class OfferedTree(Value, frozen=True, kw_only=True):
    """A volume mounted at ``target`` in the container."""

    target: str
    name: str
    anonymous: bool


class Offer(Value, frozen=True, kw_only=True):
    """What there is to fetch: tree 0 is the writable layer, the others are ``volumes`` in their order. ``is_up``: it may change
    yet. ``machine``: programs in the writable layer are for it (``x86_64``)."""

    image_id: str
    machine: str
    size_bytes: int
    is_up: bool
    volumes: tuple[OfferedTree, ...] = ()
