"""The target's half of a task's move: the agent's ``TaskData``, which fetches what a task takes over and puts it in place.

    offer ──> every tree, while the old container runs ──> told that it may stop ──> wait for its end ──> what changed ──> placed

Files come to a folder of their own. What is not *placed*, which is noted last, is begun anew after a crash: the source has
everything until the managers know that the task runs. When they say that it never will, what was made for it goes: so a
later try finds the host as this one did.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from fleet import errors
from fleet.agent.controller import Progress
from fleet.agent.manager_calls import ManagerCalls
from fleet.api.task_moves import Offer, Standing, Verdict
from fleet.clock import Clock
from fleet.containers import Container, ContainerEngine
from fleet.containers.moving import put_in_place
from fleet.containers.subids import IdRange
from fleet.daemon.moves.arriving import room_for, write_tree
from fleet.daemon.moves.peers import Peers
from fleet.daemon.moves.task_notes import FetchNote, TaskNotes
from fleet.daemon.moves.task_source import ask_standing
from fleet.daemon.moves.words import check_answer
from fleet.logs import get_logger
from fleet.model import wire
from fleet.model.ids import TaskId
from fleet.model.task import Task, task_name

__all__ = ["FRESH_HEADER", "MARK_HEADER", "TaskTarget"]

log = get_logger("task-moves")

FRESH_HEADER: Final = "X-Fleet-Fresh"
MARK_HEADER: Final = "X-Fleet-Pass"

_FETCHES_MAX: Final = 8
_TREES_MAX: Final = 257
_TRIES: Final = 30
_TRY_PAUSE_S: Final = 1.0
"""So a source whose daemon is started anew is waited for without beginning with everything again."""
_LOOK_S: Final = 0.1
"""Between questions whether the old container has ended: part of the standstill."""
_FIRST_BYTE_S: Final = 300.0
"""The source flushes its disk before it sends anything."""
_REPORT_S: Final = 1.0
_UNKNOWN_S: Final = 60.0


@dataclass(slots=True)
class _Fetch:
    """One that is under way. ``done``: bytes that came."""

    task: Task
    standing: Standing
    offer: Offer
    ids: IdRange | None
    room_bytes: int
    progress: Progress
    marks: dict[int, str]
    done: int = 0
    told_s: float = 0.0


class TaskTarget:
    """One for the daemon. ``calls`` is set while this host is a member."""

    def __init__(self, notes: TaskNotes, *, engine: ContainerEngine, peers: Peers, clock: Clock) -> None:
        self.calls: ManagerCalls | None = None
        self._notes = notes
        self._engine = engine
        self._peers = peers
        self._clock = clock
        self._known: dict[TaskId, FetchNote] = {}
        self._offers: dict[TaskId, Offer] = {}
        self._active: set[TaskId] = set()
        self._since_s: dict[TaskId, float] = {}
        self._most: dict[tuple[TaskId, bool], int] = {}
        """The most bytes that ever came, before and after the end of the old container. Managers give up on what makes no
        progress, so a try that comes no further than one before it must not look like any."""

    def recover(self, left: list[FetchNote]) -> None:
        """At start."""
        for note in left:
            self._known[note.task] = note
            self._since_s[note.task] = self._clock.monotonic()

    def is_placed(self, task: Task) -> bool:
        note = self._known.get(task.id)
        return note is not None and note.placed

    async def fetch(self, task: Task, *, image_id: str, ids: IdRange | None, progress: Progress) -> None:
        if len(self._active) >= _FETCHES_MAX:
            raise errors.UnavailableError(f"{_FETCHES_MAX} tasks are moving here already", retry_after_s=2)
        while len(self._most) > 8 * _FETCHES_MAX:
            del self._most[next(iter(self._most))]
        self._active.add(task.id)
        try:
            fetch = await self._begin(task, image_id, ids, progress)
            trees = range(1 + len(fetch.offer.volumes)) if fetch.offer.machine else range(0)
            where = f"from {fetch.standing.from_name}"
            if fetch.offer.is_up:
                for number in trees:
                    await self._tree(fetch, number, f"copying data {where} while it runs", is_rest=False)
            if (task.id, True) not in self._most:
                self._most[task.id, True] = 0
                progress(f"copied data {where}; the old task is to stop", True)
            if fetch.offer.machine:
                await self._ended(fetch)
            fetch.done = 0
            for number in trees:
                await self._tree(fetch, number, f"copying what changed {where}", is_rest=True)
            self._offers[task.id] = fetch.offer
        except errors.StorageFullError as cause:
            raise errors.RejectedFault(str(cause)) from cause  # waiting would not free anything
        finally:
            self._active.discard(task.id)

    async def _begin(self, task: Task, image_id: str, ids: IdRange | None, progress: Progress) -> _Fetch:
        standing = await self._standing(task.id)
        if not standing.may_copy or not standing.from_address:
            raise errors.UnavailableError(
                f"the data of task {standing.from_task} on {standing.from_name} cannot be fetched now", retry_after_s=1
            )
        is_elsewhere = standing.from_node != standing.node
        try:
            offer = wire.parse_builtins(await self._ask(standing, "POST", "offer"), Offer, what="offer")
        except errors.NotFoundError as cause:
            if is_elsewhere:
                raise
            log.warning("the old container is gone; its named volumes are used", task=task.id, cause=str(cause))
            offer = Offer(image_id=image_id, machine="", size_bytes=0, is_up=False)
        self._check(standing, offer, image_id)
        note = FetchNote(
            task=task.id,
            name=task_name(task),
            volumes=tuple(volume.name for volume in offer.volumes if not volume.anonymous) if is_elsewhere else (),
        )
        room_bytes = await asyncio.to_thread(room_for, offer.size_bytes, self._notes.folder)
        await asyncio.to_thread(self._notes.write, note)
        self._known[task.id] = note
        self._since_s[task.id] = self._clock.monotonic()
        await asyncio.to_thread(self._notes.make_staging, task.id, 1 + len(offer.volumes))
        return _Fetch(task, standing, offer, ids, room_bytes, progress, marks={})

    def _check(self, standing: Standing, offer: Offer, image_id: str) -> None:
        if offer.machine not in ("", platform.machine()):
            raise errors.RejectedFault(
                f"this host is {platform.machine()} and {standing.from_name} {offer.machine}: programs cannot run here"
            )
        if offer.image_id != image_id:
            raise errors.RejectedFault(
                f"the image is another one here ({image_id}) than on {standing.from_name} ({offer.image_id}): pull it on both, "
                "or name it by digest"
            )
        if len(offer.volumes) >= _TREES_MAX:
            raise errors.RejectedFault(f"more than {_TREES_MAX - 1} volumes")
        if standing.from_node == standing.node:
            return
        for volume in offer.volumes:
            if volume.anonymous:
                continue
            with contextlib.suppress(errors.NotFoundError):
                self._engine.volumes.get(volume.name)
                raise errors.RejectedFault(
                    f"a volume {volume.name} is on this host already, and would be overwritten: remove it first "
                    f"(fleet volume rm {volume.name}), or choose a node without it"
                )

    async def _standing(self, task_id: TaskId) -> Standing:
        try:
            return await ask_standing(self.calls, task_id)
        except errors.NotFoundError as cause:  # the manager that was asked may not have heard of it yet
            raise errors.UnavailableError(str(cause), retry_after_s=1) from cause

    async def _ask(self, standing: Standing, method: str, what: str) -> dict[str, Any]:
        return await self._peers.ask(
            method,
            standing.from_address,
            f"/cluster/v1/task-moves/{standing.task}/{what}",
            host=standing.from_name,
            answer_s=60.0,
        )

    async def _ended(self, fetch: _Fetch) -> None:
        failures = 0
        while True:
            try:
                if (await self._ask(fetch.standing, "GET", "ended")).get("ended") is True:
                    return
                failures = 0
            except errors.UnavailableError:
                failures += 1
                if failures >= _TRIES:
                    raise
                await self._clock.sleep(_TRY_PAUSE_S)
                await self._offer_again(fetch)
            await self._clock.sleep(_LOOK_S)

    async def _offer_again(self, fetch: _Fetch) -> None:
        """A source whose daemon was started anew must be asked for its offer first."""
        with contextlib.suppress(errors.UnavailableError):
            await self._ask(fetch.standing, "POST", "offer")

    async def _tree(self, fetch: _Fetch, number: int, text: str, *, is_rest: bool) -> None:
        """One pass over one tree; tried again when the connection breaks, then from its beginning."""
        volume = fetch.offer.volumes[number - 1] if number else None
        if volume is not None and not volume.anonymous and fetch.standing.from_node == fetch.standing.node:
            return
        for left in reversed(range(_TRIES)):
            before = fetch.done
            try:
                fetch.marks[number] = await self._stream(fetch, number, text, is_rest=is_rest)
                return
            except errors.StorageFullError:
                raise
            except errors.UnavailableError as cause:
                fetch.done = before
                fetch.marks.pop(number, None)
                if not left:
                    raise
                log.warning("fetching files again", task=fetch.task.id, tree=number, cause=str(cause))
                await self._clock.sleep(_TRY_PAUSE_S)
                with contextlib.suppress(errors.UnavailableError):
                    await self._ask(fetch.standing, "GET", "ended")  # raises what made it break off
                await self._offer_again(fetch)

    async def _stream(self, fetch: _Fetch, number: int, text: str, *, is_rest: bool) -> str:
        standing = fetch.standing
        query = {"after": fetch.marks.get(number, ""), "rest": str(int(is_rest))}
        url = f"https://{standing.from_address}/cluster/v1/task-moves/{standing.task}/trees/{number}"
        before = fetch.done

        def touched(size_bytes: int) -> None:
            fetch.done = before + size_bytes
            self._report(fetch, text, is_rest=is_rest)

        try:
            async with (
                self._peers.client(answer_s=_FIRST_BYTE_S) as client,
                client.stream("GET", url, params=query) as response,
            ):
                if not response.is_success:
                    await response.aread()
                    check_answer(response, standing.from_name)
                pieces: AsyncIterator[bytes] = response.aiter_raw()
                await write_tree(
                    self._notes.staging(fetch.task.id) / str(number),
                    _until_broken(pieces, standing.from_name),
                    fresh=response.headers.get(FRESH_HEADER) != "0",
                    room_bytes=fetch.room_bytes,
                    ids=None if number else fetch.ids,
                    touched=touched,
                )
                return str(response.headers.get(MARK_HEADER, ""))
        except httpx.HTTPError as cause:
            raise errors.UnavailableError(
                f"{standing.from_name} cannot be reached at {standing.from_address}: {str(cause) or type(cause).__name__}"
            ) from cause
        except errors.UserError as cause:
            if "broke off" in str(cause):
                raise errors.UnavailableError(f"{standing.from_name}: {cause}") from cause
            raise

    def _report(self, fetch: _Fetch, text: str, *, is_rest: bool) -> None:
        now_s, key = self._clock.monotonic(), (fetch.task.id, is_rest)
        if fetch.done > self._most.get(key, -1) and now_s - fetch.told_s >= _REPORT_S:
            self._most[key], fetch.told_s = fetch.done, now_s
            fetch.progress(f"{text}: {fetch.done >> 20} of about {fetch.offer.size_bytes >> 20} MiB", False)

    async def place(self, task: Task, container: Container) -> None:
        note, offer = self._known.get(task.id), self._offers.pop(task.id, None)
        if note is None or offer is None:
            raise errors.InvariantError(f"task {task.id}: its data was not fetched")
        staging = self._notes.staging(task.id)
        points = {point.target: point for point in container.mounts if point.kind == "volume"}
        try:
            for number, volume in enumerate(offer.volumes, 1):
                if not volume.anonymous and volume.name not in note.volumes:
                    continue
                point = points.get(volume.target)
                if point is None:
                    raise errors.RejectedFault(f"the container made here has no volume at {volume.target}")
                path = self._engine.volumes.path(self._engine.volumes.get(point.name))
                await asyncio.to_thread(put_in_place, staging / str(number), path)
            if offer.machine:
                upper = self._engine.directory(container.id) / "upper"
                await asyncio.to_thread(put_in_place, staging / "0", upper)
        except OSError as cause:
            raise errors.RuntimeFault(f"put its files in place: {cause.strerror}: {cause.filename}") from cause
        note = msgspec.structs.replace(note, placed=True)
        await asyncio.to_thread(self._notes.write, note)
        self._known[task.id] = note
        await asyncio.to_thread(self._notes.clear_staging, task.id)

    async def discard(self, task: Task) -> None:
        await self._discard(task.id)

    async def _discard(self, task_id: TaskId) -> None:
        self._offers.pop(task_id, None)
        await asyncio.to_thread(self._notes.clear_staging, task_id)
        note = self._known.get(task_id)
        if note is None:
            return
        for name in note.volumes:
            with contextlib.suppress(errors.ConflictError):  # another container has come to use it
                await self._engine.volumes.remove(name, force=True)
        await asyncio.to_thread(self._notes.forget, note)
        self._known.pop(task_id, None)
        self._since_s.pop(task_id, None)

    async def look_after(self) -> None:
        """Forget what has come to its end, either way. Called every few seconds; raises nothing that passes."""
        for note in list(self._known.values()):
            if note.task in self._active:
                continue
            try:
                standing = await ask_standing(self.calls, note.task)
                if standing.verdict is Verdict.OPEN:
                    continue
                is_elsewhere = standing.from_node != standing.node
                if standing.verdict is Verdict.OVER and is_elsewhere and not await self._end(note):
                    continue
            except errors.NotFoundError:
                # It was forgotten before this host could ask whether it ever ran: rather leave a volume than lose one.
                if self._clock.monotonic() - self._since_s.get(note.task, 0.0) < _UNKNOWN_S:
                    continue
            except errors.FleetError as cause:
                log.warning("what became of a task that moved here is not known yet", task=note.task, cause=str(cause))
                continue
            await asyncio.to_thread(self._notes.forget, note)
            self._known.pop(note.task, None)
            self._since_s.pop(note.task, None)
            for is_rest in (False, True):
                self._most.pop((note.task, is_rest), None)

    async def _end(self, note: FetchNote) -> bool:
        """Whether everything of a task that never ran is gone."""
        try:
            container = self._engine.get(note.name)
        except errors.NotFoundError:
            pass
        else:
            if container.is_up:
                return False
            await self._engine.remove(container.id, force=False, volumes=True)
        await self._discard(note.task)
        return True


async def _until_broken(pieces: AsyncIterator[bytes], host: str) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    except httpx.HTTPError as cause:
        raise errors.UnavailableError(f"{host}: the connection broke ({str(cause) or type(cause).__name__})") from cause
