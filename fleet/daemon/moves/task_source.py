"""The source's half of a task's move: it gives the data of a task's container to the host of the task that follows it.

It decides nothing: a manager tells whom to give it to (``manager.task_moves``). A tree is given as often as it is asked for;
what was given last to a task is known until this daemon ends, so that the next pass can be what changed. *The rest* is given
only when the container has ended and the managers do not want it to run any more, so nothing can change after it.

When the managers say that the successor has run elsewhere, the container and its named volumes are removed here. Until then, or
when it comes to nothing, all stays as it is.
"""

from __future__ import annotations

import asyncio
import platform
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleet import errors
from fleet.agent.manager_calls import ManagerCalls
from fleet.api.task_moves import Offer, OfferedTree, Standing, Verdict
from fleet.clock import Clock
from fleet.containers import Container, ContainerEngine
from fleet.containers.moving import TASK_LABEL
from fleet.containers.treestream import Pass
from fleet.containers.volumes import directory_size
from fleet.daemon.moves.leaving import carried_trees, reader_of
from fleet.daemon.moves.task_notes import OfferNote, TaskNotes
from fleet.logs import get_logger
from fleet.model import wire
from fleet.model.ids import NodeId, TaskId

__all__ = ["TaskSource", "ask_standing"]

log = get_logger("task-moves")

_OFFERS_MAX: Final = 8
_UNKNOWN_S: Final = 60.0
"""A task that managers do not know so long after it was asked for is none any more."""


async def ask_standing(calls: ManagerCalls | None, task_id: str) -> Standing:
    """What a manager says. Raises ``UnavailableError`` when none can be asked, ``NotFoundError``, ``ForbiddenError``."""
    if calls is None:
        raise errors.UnavailableError("this host is in no cluster", retry_after_s=1)
    answer = await calls.ask("GET", f"/cluster/v1/tasks/{task_id}/move")
    return wire.parse_builtins(answer, Standing, what="standing of a task's move")


@dataclass(slots=True)
class _Offering:
    note: OfferNote
    touched_s: float
    may_finish: bool = False
    passes: dict[int, tuple[str, Pass]] = field(default_factory=dict)
    failure: errors.FleetError | None = None
    """Of the last stream, which could only break off; raised at the next question."""


@dataclass(frozen=True, slots=True)
class TreeStream:
    """``pieces`` of one tree, whole if ``fresh``; ``mark`` names the pass, for the next one to follow."""

    mark: str
    fresh: bool
    pieces: AsyncGenerator[bytes, None]


class TaskSource:
    """One for the daemon. ``calls`` is set while this host is a member."""

    def __init__(self, notes: TaskNotes, *, engine: ContainerEngine, clock: Clock) -> None:
        self.calls: ManagerCalls | None = None
        self._notes = notes
        self._engine = engine
        self._clock = clock
        self._offers: dict[TaskId, _Offering] = {}

    def recover(self, left: list[OfferNote]) -> None:
        """At start."""
        for note in left:
            self._offers[note.task] = _Offering(note, self._clock.monotonic())

    async def offer(self, task_id: str, peer: NodeId) -> Offer:
        """What there is for the task, to its node. Raises ``ForbiddenError``, ``NotFoundError`` when the container is gone,
        ``ConflictError`` for what cannot be carried."""
        standing = await self._allowed(task_id, peer)
        container = self._container(standing.from_task)
        known = self._offers.get(standing.task)
        if known is None and len(self._offers) >= _OFFERS_MAX:
            raise errors.UnavailableError(f"{_OFFERS_MAX} tasks are leaving this host already", retry_after_s=2)
        trees, carried = carried_trees(self._engine, container)
        note = OfferNote(
            task=standing.task,
            from_task=standing.from_task,
            volumes=tuple(volume.name for volume in carried if not volume.anonymous),
        )
        await asyncio.to_thread(self._notes.write, note)
        self._offers.setdefault(standing.task, _Offering(note, self._clock.monotonic()))
        sizes = [await asyncio.to_thread(directory_size, tree) for tree in trees]
        return Offer(
            image_id=container.image_id,
            machine=platform.machine(),
            size_bytes=sum(sizes),
            is_up=container.is_up,
            volumes=tuple(
                OfferedTree(target=volume.target, name=volume.name, anonymous=volume.anonymous) for volume in carried
            ),
        )

    async def has_ended(self, task_id: str, peer: NodeId) -> bool:
        """Whether the rest can be had. Raises what made the last stream break off."""
        offering = self._known(task_id)
        if offering.failure is not None:
            failure, offering.failure = offering.failure, None
            raise failure
        if self._container(offering.note.from_task).is_up:
            return False
        if not offering.may_finish:
            offering.may_finish = (await self._allowed(task_id, peer)).may_finish
        return offering.may_finish

    async def tree(self, task_id: str, peer: NodeId, number: int, *, after: str, is_rest: bool) -> TreeStream:
        """One tree: whole, or what changed since the pass ``after``, if that is known still."""
        offering = self._known(task_id)
        standing = await self._allowed(task_id, peer)
        container = self._container(standing.from_task)
        if is_rest and (container.is_up or not standing.may_finish):
            raise errors.ConflictError(f"task {standing.from_task} has not ended")
        trees, _ = carried_trees(self._engine, container)
        if not 0 <= number < len(trees):
            raise errors.UserError(f"tree {number} is none of its {len(trees)}")
        mark, since = offering.passes.get(number, ("", None))
        if not after or mark != after:
            since = None
        mark = secrets.token_hex(8)
        pieces = self._pieces(offering, container, trees, number, since=since, mark=mark)
        return TreeStream(mark=mark, fresh=since is None, pieces=pieces)

    async def _pieces(
        self,
        offering: _Offering,
        container: Container,
        trees: list[Path],
        number: int,
        *,
        since: Pass | None,
        mark: str,
    ) -> AsyncGenerator[bytes, None]:
        reader = reader_of(container, trees, number, since=since)
        iterator = iter(reader)
        try:
            while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
                offering.touched_s = self._clock.monotonic()
                yield piece
        except errors.FleetError as cause:
            offering.failure = cause
            return
        except OSError as cause:
            where = cause.filename if isinstance(cause.filename, str) else ""
            offering.failure = errors.RuntimeFault(f"read the container's files: {cause.strerror}: {where}")
            return
        offering.passes[number] = (mark, reader.result)

    async def _allowed(self, task_id: str, peer: NodeId) -> Standing:
        try:
            standing = await ask_standing(self.calls, task_id)
        except errors.NotFoundError as cause:  # the manager that was asked may not have heard of it yet
            raise errors.UnavailableError(str(cause), retry_after_s=1) from cause
        if standing.node != peer or not standing.may_copy:
            raise errors.ForbiddenError(f"the data of task {standing.from_task} is not for node {peer} now")
        return standing

    def _known(self, task_id: str) -> _Offering:
        offering = self._offers.get(TaskId(task_id))
        if offering is None:
            raise errors.UnavailableError(f"nothing is offered to task {task_id} here: ask anew", retry_after_s=1)
        offering.touched_s = self._clock.monotonic()
        return offering

    def _container(self, task_id: TaskId) -> Container:
        found = next((c for c in self._engine.list() if c.labels.get(TASK_LABEL) == task_id), None)
        if found is None:
            raise errors.NotFoundError(f"the container of task {task_id} is gone from this host, and its data with it")
        return found

    async def look_after(self) -> None:
        """Let go what has arrived elsewhere. Called every few seconds; raises nothing that passes."""
        for offering in list(self._offers.values()):
            note = offering.note
            try:
                standing = await ask_standing(self.calls, note.task)
                if standing.verdict is Verdict.OPEN:
                    continue
                if standing.verdict is Verdict.MOVED and standing.node != standing.from_node:
                    await self._let_go(note)
            except errors.NotFoundError:
                if self._clock.monotonic() - offering.touched_s < _UNKNOWN_S:
                    continue
            except errors.FleetError as cause:
                log.warning("what became of a moved task is not known yet", task=note.task, cause=str(cause))
                continue
            if self._offers.get(note.task) is offering:
                del self._offers[note.task]
            await asyncio.to_thread(self._notes.forget, note)

    async def _let_go(self, note: OfferNote) -> None:
        try:
            container = self._container(note.from_task)
        except errors.NotFoundError:
            pass  # it was removed with its task
        else:
            await self._engine.remove(container.id, force=False, volumes=True)
        for name in note.volumes:
            try:
                await self._engine.volumes.remove(name, force=True)
            except errors.ConflictError as cause:  # another container here uses it: that one keeps it
                log.info("a volume of a moved task stays", volume=name, cause=str(cause))
        log.info("task moved away", task=note.from_task, successor=note.task)
