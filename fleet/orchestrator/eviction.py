"""Tasks whose place is lost: node drained, down, removed, tainted, against their constraints (SCH-22), or given to another.

One road for all: desired state *shutdown* for the task, a replacement at once, without the restart delay, because
nothing failed. A drained node is alive, so the replacement waits until the old task has stopped; a lost one can not
tell, so it does not. What is observed of a task on a lost node stays as it was: its agent may come back and say more,
and after a day the reaper declares it orphaned (HLT-05).
"""

from __future__ import annotations

import enum

from fleet.model.node import Availability, Node, NodeState
from fleet.model.taints import keeps_away, service_tolerations
from fleet.model.task import Task, TaskState
from fleet.orchestrator.view import ServiceView

__all__ = ["Place", "is_lost", "place_of"]


class Place(enum.Enum):
    """What a task's node means for it."""

    GOOD = "good"
    UNSUITABLE = "unsuitable"
    """Drained, tainted and not tolerating it, against its constraints, or preempted: it must leave, and can be told so."""
    MOVING = "moving"
    """To leave it for a better one (``moves``), or with its data (``carrying``)."""
    LOST = "lost"
    """Down or removed: it can not be told."""


def place_of(task: Task, view: ServiceView) -> Place:
    """*Good* also for a task without a node: it has nothing to lose. Where data is that a task needs, a node that is down is
    waited for, for a while (``carrying``)."""
    if not task.node_id:
        return Place.GOOD
    node = view.nodes.get(task.node_id)
    if node is None or is_lost(node):
        if node is None or node.removed:
            return Place.LOST
        if task.is_moving and task.move is not None and task.move.data:
            return Place.MOVING
        waits = task.is_arriving and task.status.state.rank < TaskState.ASSIGNED.rank
        return Place.GOOD if waits else Place.LOST
    if node.spec.availability is Availability.DRAIN:
        return Place.UNSUITABLE
    if task.spec.placement.constraints and not view.fits(task.spec, node):
        return Place.UNSUITABLE
    if task.preempted is not None:
        return Place.UNSUITABLE
    if keeps_away(node.spec.labels, service_tolerations(view.service.spec.labels), is_running=True):
        return Place.UNSUITABLE
    return Place.MOVING if task.is_moving else Place.GOOD


def is_lost(node: Node | None) -> bool:
    """Whether nothing can be heard from the node. *Unknown* and *disconnected* nodes may answer any moment."""
    return node is None or node.removed or node.status.state is NodeState.DOWN
