"""A plan: what to do next, as data. Nothing happened yet; the manager writes it, or plans again when it comes too late.

Every task in a bucket is the *new* value to write, carrying the version it was planned from; a task to delete is as read.
Buckets are filled in any order, since each task is in at most one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.service import Service
from fleet.model.task import Hold, MovedFrom, Task, TaskState, TaskStatus
from fleet.orchestrator.view import SlotKey, wanted_spec

__all__ = ["NewId", "Plan", "Waiting", "WaitingFor", "new_task"]

NewId = Callable[[], TaskId]
"""A fresh random id at each call; chance comes from the caller."""


class WaitingFor(enum.StrEnum):
    """Why nothing more is done now."""

    RESTART_DELAY = "restart delay"
    OLD_TASK = "old task to stop"
    UPDATED_TASK = "updated task to run"
    PROGRESS_DEADLINE = "updated task to run, or its deadline to pass"
    UPDATE_DELAY = "update delay"
    UPDATE_MONITOR = "update monitor"
    UPDATE_PAUSED = "paused update"
    MOVED_TASK = "moved task to run"
    MOVED_DATA = "data of a moved task to come"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """``until`` is when it is over at the latest; None when only an event can end it."""

    reason: WaitingFor
    service_id: ServiceId
    slot: SlotKey | None = None
    until: datetime | None = None


@dataclass(slots=True)
class Plan:
    """Empty when there is nothing to do. ``changed_services`` get their update's status, or their previous spec."""

    create: list[Task] = field(default_factory=list)
    release: list[Task] = field(default_factory=list)
    move: list[Task] = field(default_factory=list)
    """Their ``move`` goes on, or is given up."""
    shut_down: list[Task] = field(default_factory=list)
    remove: list[Task] = field(default_factory=list)
    orphan: list[Task] = field(default_factory=list)
    delete_tasks: list[Task] = field(default_factory=list)
    changed_services: list[Service] = field(default_factory=list)
    delete_services: list[Service] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    looks_again: list[datetime] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Nothing to write (it may still be waiting)."""
        return not any(True for _ in self.tasks()) and not self.changed_services and not self.delete_services

    @property
    def wake_at(self) -> datetime | None:
        """The earliest instant at which planning again may give something without any event; None for never."""
        instants = [waiting.until for waiting in self.waiting if waiting.until is not None]
        return min([*instants, *self.looks_again], default=None)

    def tasks(self) -> Iterator[Task]:
        """All tasks of all buckets."""
        for bucket in (
            self.create,
            self.release,
            self.move,
            self.shut_down,
            self.remove,
            self.orphan,
            self.delete_tasks,
        ):
            yield from bucket

    def explain(self) -> str:
        """One sentence for the log: ``3 created, 1 shut down``. A change of the service is written alone, and said alone."""
        if self.changed_services:
            return ", ".join(f"update {s.update_status.state}" for s in self.changed_services if s.update_status)
        counts = {
            "created": self.create,
            "released": self.release,
            "moving or staying": self.move,
            "shut down": self.shut_down,
            "marked for removal": self.remove,
            "orphaned": self.orphan,
            "deleted": self.delete_tasks,
        }
        parts = [f"{len(bucket)} {verb}" for verb, bucket in counts.items() if bucket]
        parts += [f"service {s.spec.name} deleted" for s in self.delete_services]
        return ", ".join(parts) or "nothing to do"

    def want_shutdown(self, task: Task, *, now: datetime) -> None:
        """Into *shut down*, also if it was to be released."""
        if self.release:
            self.release = [other for other in self.release if other.id != task.id]
        told = task.told_to_stop or not task.status.state.is_terminal
        self.shut_down.append(
            msgspec.structs.replace(
                task, desired_state=TaskState.SHUTDOWN, told_to_stop=told, hold=None, updated_at=now
            )
        )

    def want_removal(self, task: Task, *, now: datetime) -> None:
        """Into *remove*, unless it is wanted already."""
        if task.desired_state is not TaskState.REMOVE:
            self.remove.append(msgspec.structs.replace(task, desired_state=TaskState.REMOVE, hold=None, updated_at=now))

    def want_running(self, task: Task, *, now: datetime) -> None:
        """Into *release*."""
        self.release.append(msgspec.structs.replace(task, desired_state=TaskState.RUNNING, hold=None, updated_at=now))


def new_task(
    service: Service,
    *,
    slot: SlotKey,
    now: datetime,
    new_id: NewId,
    hold: Hold | None = None,
    follows: Task | None = None,
    like: Task | None = None,
    toward: NodeId | None = None,
    place: NodeId | None = None,
    moved_from: MovedFrom | None = None,
) -> Task:
    """A task for the slot, from the service's current spec, or made ``like`` another while an update is paused. No node but
    ``place`` will do for it, if that is given.

    It is younger than the task it ``follows`` even when clocks of managers disagree, since age orders a slot's tasks.
    """
    created_at = now
    if follows is not None and follows.created_at >= now:
        created_at = follows.created_at + datetime.resolution
    return Task(
        id=new_id(),
        created_at=created_at,
        updated_at=created_at,
        service_id=service.id,
        service_name=service.spec.name,
        service_labels=service.spec.labels,
        slot=slot if isinstance(slot, int) else 0,
        node_id=slot if not isinstance(slot, int) else place or NodeId(""),
        spec=like.spec if like is not None else wanted_spec(service),
        spec_version=like.spec_version if like is not None else service.spec_version,
        request=service.request,
        job_iteration=service.job_iteration,
        status=TaskStatus(timestamp=now, state=TaskState.NEW, message="created"),
        desired_state=TaskState.READY if hold is not None else TaskState.RUNNING,
        hold=hold,
        toward=toward or NodeId(""),
        moved_from=moved_from,
    )
