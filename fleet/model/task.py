"""Tasks: one attempt to run one container on one node; never restarted, only replaced.

Ownership of a task's fields (one writer each):
``desired_state``, ``hold``       the orchestrator (only ever grows)
``status`` up to *assigned*       the manager (allocator: pending, scheduler: assigned)
``status`` after that             the agent, except *orphaned* (manager, for a node that is gone for good)
``node_id``                       the scheduler, once (the orchestrator for global services and where data is)
``move``                          the rebalancer or the API begins it, the orchestrator goes on with it and ends it
``network_attachments``           the allocator, before *pending*
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Final

import msgspec

from fleet.model.common import GenericResource, Version
from fleet.model.ids import NetworkId, NodeId, ServiceId, TaskId
from fleet.model.service import PortConfig, TaskSpec
from fleet.model.wire import Value

__all__ = [
    "Attachment",
    "ContainerStatus",
    "Hold",
    "Move",
    "MovedFrom",
    "Preempted",
    "PortStatus",
    "Task",
    "TaskState",
    "TaskStatus",
    "is_runnable",
    "later",
    "task_name",
]


class TaskState(enum.StrEnum):
    """Observed states in the order in which they may only grow; *remove* is a desired state alone."""

    NEW = "new"
    PENDING = "pending"
    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    PREPARING = "preparing"
    READY = "ready"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETE = "complete"
    SHUTDOWN = "shutdown"
    FAILED = "failed"
    REJECTED = "rejected"
    REMOVE = "remove"
    ORPHANED = "orphaned"

    @property
    def rank(self) -> int:
        """SwarmKit's number of the state; comparisons go by it."""
        return _RANKS[self]

    @property
    def is_terminal(self) -> bool:
        """The container will not run again: complete, shutdown, failed, rejected, (remove,) orphaned."""
        return _RANKS[self] > _RANKS[TaskState.RUNNING]


_RANKS: Final = {
    TaskState.NEW: 0,
    TaskState.PENDING: 64,
    TaskState.ASSIGNED: 192,
    TaskState.ACCEPTED: 256,
    TaskState.PREPARING: 320,
    TaskState.READY: 384,
    TaskState.STARTING: 448,
    TaskState.RUNNING: 512,
    TaskState.COMPLETE: 576,
    TaskState.SHUTDOWN: 640,
    TaskState.FAILED: 704,
    TaskState.REJECTED: 768,
    TaskState.REMOVE: 800,
    TaskState.ORPHANED: 832,
}


def later(first: TaskState, second: TaskState) -> TaskState:
    """The greater of two observations: states only grow, so it is the newer one whatever order they arrived in."""
    return first if first.rank >= second.rank else second


class ContainerStatus(Value, frozen=True, kw_only=True):
    """What the agent knows of the task's container."""

    container_id: str = ""
    pid: int = 0
    exit_code: int = 0


class PortStatus(Value, frozen=True, kw_only=True):
    """Host-mode ports as they were really bound."""

    ports: tuple[PortConfig, ...] = ()


class TaskStatus(Value, frozen=True, kw_only=True):
    """The observed state. ``err`` says in a sentence why a task is pending, failed or rejected."""

    timestamp: datetime
    state: TaskState = TaskState.NEW
    message: str = ""
    err: str = ""
    container_status: ContainerStatus | None = None
    port_status: PortStatus | None = None
    applied_by: NodeId = NodeId("")
    applied_at: datetime | None = None
    running_since: datetime | None = None
    """When the manager first learned that it runs, by the manager's clock; stays once it has ended. Fleet's own."""
    copied: bool = False
    """Of a task with ``moved_from``: the other's data was copied while that ran, so it can be stopped now. Fleet's own."""


class Attachment(Value, frozen=True, kw_only=True):
    """The task's place on one network. ``addresses`` are CIDR strings such as ``10.0.1.5/24``, at most one of each family."""

    network_id: NetworkId
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The IPv4 address without its prefix length; empty while there is none."""
        return next((address.partition("/")[0] for address in self.addresses if ":" not in address), "")

    @property
    def address6(self) -> str:
        """The IPv6 address without its prefix length; empty when there is none."""
        return next((address.partition("/")[0] for address in self.addresses if ":" in address), "")


class Hold(Value, frozen=True, kw_only=True):
    """Why a task at desired *ready* is not yet released to *running*: a restart delay and/or the task it replaces."""

    not_before: datetime | None = None
    after_task: TaskId | None = None
    after_deadline: datetime | None = None
    """Release even if ``after_task`` has not stopped by then (RST-04)."""


class Move(Value, frozen=True, kw_only=True):
    """A running task is to leave its node though nothing is wrong there. Set by the rebalancer, or for a person who asked; the
    rest is the orchestrator's.

    ``successor``: made to take its place, with start-first or ``data``. ``ended``: why it stays where it is after all.
    ``data``: its volumes and its writable layer go along, so the other node must be ``to``.
    """

    to: NodeId
    since: datetime
    successor: TaskId = TaskId("")
    ended: str = ""
    data: bool = False


class MovedFrom(Value, frozen=True, kw_only=True):
    """Whose data a task takes over before it starts: its slot's former task, and the node that has its container. That may be
    its own node, when a move did not come about and the old data is used where it is."""

    task: TaskId
    node: NodeId


class Preempted(Value, frozen=True, kw_only=True):
    """A running task is to give its room to one of higher priority. Set by the scheduler; the rest is the orchestrator's."""

    by: TaskId
    service: str
    """Whose task that is, by name."""
    since: datetime


class Task(Value, frozen=True, kw_only=True):
    """See the module. ``slot`` is 1.. for replicated services, 0 for global ones (keyed by node)."""

    id: TaskId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    labels: dict[str, str] = {}
    service_id: ServiceId
    slot: int = 0
    node_id: NodeId = NodeId("")
    spec: TaskSpec
    status: TaskStatus
    desired_state: TaskState = TaskState.RUNNING
    network_attachments: tuple[Attachment, ...] = msgspec.field(default=(), name="NetworksAttachments")
    assigned_generic_resources: tuple[GenericResource, ...] = ()
    job_iteration: Version | None = None
    """Which run of a job it belongs to; None for services that are no jobs."""
    # Below: fleet's own, not part of Docker's object.
    service_name: str = ""
    service_labels: dict[str, str] = {}
    spec_version: int = 0
    """The service's ``spec_version`` this task was made from."""
    request: str = ""
    """The service's ``request`` when this task was made."""
    ports: tuple[PortConfig, ...] = ()
    """The service's published ports as allocated when the task was made."""
    hold: Hold | None = None
    """Set by the orchestrator with desired state *ready*; cleared on release."""
    move: Move | None = None
    preempted: Preempted | None = None
    toward: NodeId = NodeId("")
    """The node that the orchestrator would have it on; the scheduler takes another when that can not take it."""
    moved_from: MovedFrom | None = None
    """Set by the orchestrator when it makes the task, together with ``node_id``: no other node will do."""
    told_to_stop: bool = False
    """It was to stop before it had ended: then it did not end by itself, whatever its state says. An agent that is killed after
    it stopped the container, and has lost the wish, finds one that *completed* or *failed*."""

    @property
    def is_moving(self) -> bool:
        """To leave its node, which has not come about yet."""
        return self.move is not None and not self.move.ended and is_runnable(self)

    @property
    def is_arriving(self) -> bool:
        """It is to take over another's data, and has not run with it yet."""
        return self.moved_from is not None and not self.has_run

    @property
    def has_run(self) -> bool:
        """As far as the managers know."""
        return self.status.running_since is not None or self.status.state is TaskState.RUNNING

    @property
    def desired_outcome(self) -> TaskState:
        """The desired state as Docker tells it: a job's task that may run is wanted *complete* (TSK-07)."""
        if self.job_iteration is not None and self.desired_state is TaskState.RUNNING:
            return TaskState.COMPLETE
        return self.desired_state


def task_name(task: Task) -> str:
    """``web.1.<id>``; a global service's tasks are keyed by node: ``web.<node id>.<id>`` (TSK-13)."""
    return f"{task.service_name}.{task.slot or task.node_id}.{task.id}"


def is_runnable(task: Task) -> bool:
    """Counts toward its slot: wanted to run (or to be ready for it) and not ended."""
    return task.desired_state.rank <= TaskState.RUNNING.rank and not task.status.state.is_terminal
