"""Statuses of tasks as agents report them, of all sessions together, written in few, large transactions.

A report is acknowledged after its transaction is durable. One that could not be written ends its session instead; the agent
says it again after it has reconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec

from fleet import errors
from fleet.api import dispatch
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.sessions import ChannelClosed, Session
from fleet.model.ids import NodeId, TaskId
from fleet.model.task import Task, TaskState, TaskStatus, later
from fleet.store import Store, Transaction

__all__ = ["Reports"]

log = get_logger("dispatcher")

_REPORTS_MAX: Final = 10_000
_COMMIT_TRIES: Final = 8


class Reports:
    """``run`` writes what ``take`` collected meanwhile."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._reports: list[tuple[Session, dispatch.Report]] = []
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def take(self, session: Session, report: dispatch.Report) -> None:
        """Collect it; waits while too many are not written yet, so that their agents wait too."""
        await self._room.wait()
        self._reports.append((session, report))
        self._ready.set()
        if len(self._reports) >= _REPORTS_MAX:
            self._room.clear()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            batch, self._reports = self._reports, []
            self._room.set()
            newest: dict[TaskId, tuple[NodeId, TaskStatus]] = {}
            for session, report in batch:
                for item in report.tasks:
                    known = newest.get(item.task_id)
                    if known is None or later(known[1].state, item.status.state) is item.status.state:
                        newest[item.task_id] = (session.node_id, item.status)
            try:
                await self._commit(newest)
            except errors.UnavailableError as cause:
                log.warning("task statuses not written", tasks=len(newest), cause=str(cause))
                for session, _ in batch:
                    await session.channel.close("the manager could not store the report")
                continue
            for session, report in batch:
                with contextlib.suppress(ChannelClosed):
                    await session.channel.send(dispatch.encode(dispatch.Reported(number=report.number)))

    async def _commit(self, newest: dict[TaskId, tuple[NodeId, TaskStatus]]) -> None:
        for _ in range(_COMMIT_TRIES):
            changed = {
                task_id: task
                for task_id, (node_id, status) in newest.items()
                if (task := self._with_status(task_id, node_id, status)) is not None
            }
            if not changed:
                return
            results = await self._store.commit_all(Transaction().replace(task) for task in changed.values())
            again: dict[TaskId, tuple[NodeId, TaskStatus]] = {}
            for task_id, result in zip(changed, results, strict=True):
                if isinstance(result, errors.ConflictError):
                    again[task_id] = newest[task_id]
                elif isinstance(result, errors.FleetError) and not isinstance(result, errors.NotFoundError):
                    raise result
            newest = again
        raise errors.UnavailableError(f"{len(newest)} tasks kept changing while their status was written")

    def _with_status(self, task_id: TaskId, node_id: NodeId, status: TaskStatus) -> Task | None:
        task = self._store.tasks.get(task_id)
        if task is None or task.node_id != node_id:
            return None
        old = task.status
        if status.state.rank < old.state.rank or old.state is TaskState.ORPHANED:
            return None
        now = self._clock.now()
        new = msgspec.structs.replace(
            status, applied_by=old.applied_by, applied_at=old.applied_at, running_since=old.running_since
        )
        if new == old:
            return None
        running_since = old.running_since or (now if status.state is TaskState.RUNNING else None)
        new = msgspec.structs.replace(new, applied_by=node_id, applied_at=now, running_since=running_since)
        return msgspec.structs.replace(task, status=new, updated_at=now)
