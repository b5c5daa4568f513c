"""The source's half of a move, and the one that decides.

files while it runs -> note *stopped*, stop -> files that changed -> note *committing*, commit -> note *moved*, remove here

Until *committing* is noted the container is this host's: any failure starts it again. After that only the target knows, so
it is asked (``settle``) until it has answered; an answer "not here" makes the container this host's again. So it never runs
twice, and it runs nowhere only while the two hosts cannot talk just at that moment, or both are down.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.containers import Container, ContainerEngine, Volume
from fleet.containers.config import DEFAULT_STOP_GRACE_S
from fleet.containers.moving import check_movable, portable_config
from fleet.containers.treestream import Pass, TreeReader
from fleet.containers.volumes import directory_size
from fleet.daemon.moves.notes import Notes
from fleet.daemon.moves.peers import Peers
from fleet.daemon.moves.words import CarriedVolume, Manifest, Outgoing, OutPhase, RunRequest
from fleet.images import ImageStore
from fleet.logs import get_logger
from fleet.model import wire

__all__ = ["Leaving", "Report", "carried_trees", "reader_of"]

log = get_logger("moves")

_LEAVING_MAX: Final = 8
_TRIES: Final = 2
_READY_S: Final = 300.0
_IMAGE_S: Final = 1800.0
_COMMIT_S: Final = 60.0
_ASK_S: Final = 60.0
_ASK_PAUSE_S: Final = 0.5
_ABORT_TRIES: Final = 100
"""After so many the target is left to its own: it gives up what falls silent, and at its next start."""
_MOUNT_POINTS: Final = frozenset({b"etc/hosts", b"etc/hostname", b"etc/resolv.conf"})

Report = Callable[[dict[str, Any]], None]
"""Told what happens: ``{"stage": ..., "bytes": ..., "total": ...}``."""


@dataclass(slots=True)
class _Move:
    id: str
    wish: RunRequest
    container: Container
    trees: list[Path]
    manifest: Manifest
    report: Report
    passes: list[Pass] = field(default_factory=list)
    bytes: int = 0
    skipped: int = 0


class Leaving:
    """One for the daemon."""

    def __init__(
        self, notes: Notes, *, engine: ContainerEngine, images: ImageStore, peers: Peers, clock: Clock
    ) -> None:
        self._notes = notes
        self._engine = engine
        self._images = images
        self._peers = peers
        self._clock = clock
        self._under_way: set[str] = set()
        self._undecided: dict[str, Outgoing] = {}
        self._to_abort: dict[str, Outgoing] = {}
        self._abort_tries = 0

    async def run(self, move_id: str, wish: RunRequest, report: Report) -> dict[str, Any]:
        """Move; what was moved. Raises ``FleetError`` when the container is (again) this host's, and as it was."""
        container = self._engine.get(wish.container)
        check_movable(container)
        if container.id in self._under_way or any(n.container_id == container.id for n in self._undecided.values()):
            raise errors.ConflictError(f"container {container.name} is being moved already")
        if len(self._under_way) >= _LEAVING_MAX:
            raise errors.UnavailableError(f"{_LEAVING_MAX} containers are leaving this host already: try again later")
        self._under_way.add(container.id)
        try:
            return await self._run(move_id, wish, container, report)
        finally:
            self._under_way.discard(container.id)

    async def _run(self, move_id: str, wish: RunRequest, container: Container, report: Report) -> dict[str, Any]:
        begun_s = self._clock.monotonic()
        move = await self._describe(move_id, wish, container, report)
        report({"stage": "preparing", "total": move.manifest.size_bytes})
        note = self._note(move)
        await self._in_thread(self._notes.write, note)
        try:
            await self._tell(move, "begin", wire.encode(move.manifest), answer_s=_IMAGE_S)
            if container.is_up:
                for number in range(len(move.trees)):
                    move.passes.append(await self._send_whole(move, number, "copying while it runs"))
        except BaseException:
            await asyncio.shield(self._abort(move, note))
            raise
        note = msgspec.structs.replace(self._note(move), phase=OutPhase.STOPPED)
        stopped_s = self._clock.monotonic()
        first_bytes = move.bytes
        try:
            await self._in_thread(self._notes.write, note)
            await self._stop(move, note)
            for number in range(len(move.trees)):
                if number < len(move.passes):
                    await self._send(move, number, "copying what changed", since=move.passes[number])
                else:
                    await self._send_whole(move, number, "copying")
            await self._tell(move, "ready", b"", answer_s=_READY_S)
            self._check_untouched(move)
            note = msgspec.structs.replace(note, phase=OutPhase.COMMITTING)
            await self._in_thread(self._notes.write, note)
        except BaseException as cause:
            await asyncio.shield(self._give_back(move, note, cause))
            raise
        await self._commit(move, note)
        standstill_s = self._clock.monotonic() - stopped_s
        await asyncio.shield(self._finish(note))
        return {
            "id": container.id,
            "name": container.name,
            "to": wish.target_name,
            "started": move.manifest.start,
            "volumes": [volume.name for volume in move.manifest.volumes],
            "bytes": move.bytes,
            "bytes_while_stopped": move.bytes - first_bytes,
            "skipped": move.skipped,
            "standstill_s": round(standstill_s, 3) if container.is_up else 0.0,
            "seconds": round(self._clock.monotonic() - begun_s, 3),
            "kept": wish.keep,
        }

    async def _describe(self, move_id: str, wish: RunRequest, container: Container, report: Report) -> _Move:
        engine = self._engine
        trees, carried = carried_trees(engine, container)
        image = self._images.get(container.image_id)
        sizes = [await self._in_thread(directory_size, tree) for tree in trees]
        reference = next(iter(image.references or image.repo_digests), "fleet/moved")
        config = portable_config(container)
        manifest = Manifest(
            container_id=container.id,
            name=container.name,
            config=config,
            image_id=image.id,
            image_digest=image.manifest_digest,
            image_reference=_repository(reference),
            machine=platform.machine(),
            volumes=tuple(carried),
            network_names={a.network_id: engine.networks.name_of(a.network_id) or "bridge" for a in config.networks
                           if a.network_id not in config.guest_of},
            size_bytes=sum(sizes),
            start=wish.start and container.is_up,
            stop_grace_s=config.stop_grace_s if config.stop_grace_s is not None else DEFAULT_STOP_GRACE_S,
        )  # fmt: skip
        return _Move(move_id, wish, container, trees, manifest, report)

    def _note(self, move: _Move) -> Outgoing:
        container = self._engine.get(move.container.id)  # its restart rule may have been changed meanwhile
        return Outgoing(
            id=move.id,
            container_id=container.id,
            name=container.name,
            target_name=move.wish.target_name,
            target_address=move.wish.target_address,
            phase=OutPhase.COPYING,
            was_running=move.container.is_up,
            restart=container.config.restart,
            auto_remove=container.config.auto_remove,
            keep=move.wish.keep,
            volumes=tuple(volume.name for volume in move.manifest.volumes if not volume.anonymous),
        )

    async def _stop(self, move: _Move, note: Outgoing) -> None:
        now = self._engine.get(note.container_id)
        if now.is_up != move.container.is_up or now.state.started_at != move.container.state.started_at:
            raise errors.ConflictError(f"container {note.name} was started or ended while it was copied: move it again")
        await self._engine.hold(note.container_id)
        if note.was_running:
            move.report({"stage": "stopping", "bytes": move.bytes})
            await self._engine.stop(note.container_id)

    def _check_untouched(self, move: _Move) -> None:
        now = self._engine.get(move.container.id)
        if now.is_up or now.state.started_at != move.container.state.started_at:
            raise errors.ConflictError(f"container {now.name} was started by somebody while it was moved")

    # Files ------------------------------------------------------------------------------------------------------

    async def _send_whole(self, move: _Move, number: int, stage: str) -> Pass:
        for left in reversed(range(_TRIES)):
            before = move.bytes
            try:
                return await self._send(move, number, stage, since=None)
            except errors.UnavailableError as cause:
                if not left or isinstance(cause, errors.StorageFullError):
                    raise
                log.warning("sending files again", container=move.container.name, cause=str(cause))
                move.bytes = before
        raise AssertionError("the last try returns or raises")

    async def _send(self, move: _Move, number: int, stage: str, *, since: Pass | None) -> Pass:
        reader = reader_of(move.container, move.trees, number, since=since)
        total = move.manifest.size_bytes
        before, failure = move.bytes, []

        async def pieces() -> AsyncIterator[bytes]:
            iterator = iter(reader)
            try:
                while (piece := await self._in_thread(next, iterator, None)) is not None:
                    yield piece
                    move.report({"stage": stage, "bytes": before + reader.result.bytes, "total": total})
            except errors.FleetError as cause:
                failure.append(cause)  # of this side: not to be mistaken for one of the connection
                raise
            except OSError as cause:
                where = cause.filename if isinstance(cause.filename, str) else ""
                failure.append(errors.RuntimeFault(f"read the container's files: {cause.strerror}: {where}"))
                raise failure[-1] from cause

        try:
            await self._peers.ask(
                "POST",
                move.wish.target_address,
                f"/cluster/v1/moves/{move.id}/files",
                host=move.wish.target_name,
                body=pieces(),
                query={"tree": str(number), "fresh": "0" if since is not None else "1"},
                answer_s=_READY_S,
            )
        except errors.FleetError as cause:
            if failure:
                raise failure[0] from cause
            raise
        move.bytes = before + reader.result.bytes
        if since is not None or not move.container.is_up:
            move.skipped += reader.result.skipped
        return reader.result

    # The end, either way ----------------------------------------------------------------------------------------

    async def _commit(self, move: _Move, note: Outgoing) -> None:
        """Returns when the target has it; raises when it has not, with the container running here again."""
        move.report({"stage": "starting there", "bytes": move.bytes})
        try:
            await self._tell(move, "commit", b"", answer_s=_COMMIT_S)
            return
        except errors.FleetError as cause:
            failure = cause
        self._undecided[note.id] = note
        deadline_s = self._clock.monotonic() + _ASK_S
        while True:
            try:
                arrived = await self._settle(note)
                break
            except errors.FleetError as cause:
                if self._clock.monotonic() > deadline_s:
                    raise errors.UnavailableError(
                        f"{note.target_name} was told to start container {note.name} and does not answer since ({cause}); "
                        "it stays stopped here, and that host is asked until it answers. If that host is lost for good: "
                        f"fleet container start {note.name}"
                    ) from failure
                await self._clock.sleep(_ASK_PAUSE_S)
        self._undecided.pop(note.id, None)
        if not arrived:
            await self._in_thread(self._notes.forget, await self._take_back(note))
            raise type(failure)(f"{failure}; it runs here again" if note.was_running else str(failure)) from failure

    async def _settle(self, note: Outgoing) -> bool:
        """Whether the target has it. Somebody who started it here meanwhile has decided otherwise."""
        with suppress(errors.NotFoundError):
            give_up = self._engine.get(note.container_id).is_up
            return await self._ask_settle(note, give_up=give_up)
        return True  # removed here by hand: whatever is there stays

    async def _ask_settle(self, note: Outgoing, *, give_up: bool) -> bool:
        answer = await self._peers.ask(
            "POST",
            note.target_address,
            f"/cluster/v1/moves/{note.id}/settle",
            host=note.target_name,
            query={"give_up": str(int(give_up))},
            answer_s=30.0,
        )
        return answer.get("arrived") is True

    async def _give_back(self, move: _Move, note: Outgoing, cause: BaseException) -> None:
        """Before the commit: abort there, and start here what ran; first here, for that is the standstill."""
        log.warning("move failed", container=note.name, target=note.target_name, cause=str(cause))
        await self._abort(move, await self._take_back(note))

    async def _take_back(self, note: Outgoing) -> Outgoing:
        """As it was before the move; the note then says no more than that the target has to hear of it."""
        try:
            await self._engine.let_go(note.container_id, restart=note.restart, auto_remove=note.auto_remove)
            if note.was_running:
                await self._engine.start(note.container_id)
        except errors.NotFoundError:
            log.info("removed by hand while it was moved", container=note.name)
        except errors.FleetError as cause:
            log.error("a container could not be started again", container=note.name, cause=str(cause))
        note = msgspec.structs.replace(note, phase=OutPhase.COPYING)
        await self._in_thread(self._notes.write, note)
        return note

    async def _abort(self, move: _Move, note: Outgoing) -> None:
        """Best effort: a target that does not hear of it gives up by itself."""
        with suppress(errors.FleetError):
            await self._tell(move, "settle", b"", answer_s=10.0)
        await self._in_thread(self._notes.forget, note)

    async def _finish(self, note: Outgoing) -> None:
        note = msgspec.structs.replace(note, phase=OutPhase.MOVED)
        await self._in_thread(self._notes.write, note)
        if not note.keep:
            with suppress(errors.NotFoundError):
                await self._engine.remove(note.container_id, force=False, volumes=True)
            for name in note.volumes:
                with suppress(errors.ConflictError):  # another container uses it here: that one keeps it
                    await self._engine.volumes.remove(name, force=True)
        with suppress(errors.FleetError):
            await self._peers.ask(
                "POST", note.target_address, f"/cluster/v1/moves/{note.id}/done", host=note.target_name, answer_s=10.0
            )
        await self._in_thread(self._notes.forget, note)
        log.info("container moved away", container=note.name, target=note.target_name)

    # Of this host -----------------------------------------------------------------------------------------------

    async def recover(self, left: list[Outgoing]) -> None:
        """At start, without any other host: what was not committed is started again; the rest waits for ``look_after``."""
        for note in left:
            if note.phase in (OutPhase.COPYING, OutPhase.STOPPED):
                log.info("a move was cut short; the container stays here", container=note.name)
                self._to_abort[note.id] = note if note.phase is OutPhase.COPYING else await self._take_back(note)
            else:
                self._undecided[note.id] = note

    async def look_after(self) -> None:
        """Ask targets about moves that are not decided. Called every few seconds; never raises what passes."""
        for note in list(self._to_abort.values()):
            self._abort_tries += 1
            try:
                await self._ask_settle(note, give_up=True)
            except errors.FleetError as cause:
                log.warning("a target has not heard yet of a move's end", target=note.target_name, cause=str(cause))
                if self._abort_tries < _ABORT_TRIES:
                    continue
            await self._in_thread(self._notes.forget, self._to_abort.pop(note.id))
        for note in list(self._undecided.values()):
            if note.container_id in self._under_way:
                continue
            try:
                if note.phase is OutPhase.MOVED or await self._settle(note):
                    await self._finish(note)
                else:
                    await self._in_thread(self._notes.forget, await self._take_back(note))
                del self._undecided[note.id]
            except errors.FleetError as cause:
                log.warning("move not decided yet", container=note.name, target=note.target_name, cause=str(cause))

    async def _tell(self, move: _Move, what: str, body: bytes, *, answer_s: float) -> None:
        await self._peers.ask(
            "POST",
            move.wish.target_address,
            f"/cluster/v1/moves/{move.id}/{what}",
            host=move.wish.target_name,
            body=body,
            answer_s=answer_s,
        )

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(call, *args)


def carried_trees(engine: ContainerEngine, container: Container) -> tuple[list[Path], list[CarriedVolume]]:
    """The writable layer and the volumes, as trees and without the first. Raises ``ConflictError`` for what is not carried."""
    trees = [engine.directory(container.id) / "upper"]
    carried: list[CarriedVolume] = []
    for point in container.mounts:
        if point.kind != "volume" or any(other.name == point.name for other in carried):
            continue
        volume: Volume = engine.volumes.get(point.name)
        if volume.device:
            raise errors.ConflictError(
                f"volume {volume.name} stands for the directory {volume.device} of this host, which is not carried: "
                "mount the directory itself, or copy it into a volume"
            )
        trees.append(engine.volumes.path(volume))
        carried.append(
            CarriedVolume(target=point.target, name=point.name, anonymous=point.anonymous, labels=volume.labels)
        )
    return trees, carried


def reader_of(container: Container, trees: list[Path], number: int, *, since: Pass | None) -> TreeReader:
    """Of one tree. The writable layer's owners are sent as the container sees them; in volumes they are that already."""
    if number == 0:
        return TreeReader(trees[0], since=since, hidden=_MOUNT_POINTS, ids=container.ids)
    return TreeReader(trees[number], since=since)


def _repository(reference: str) -> str:
    """``registry:5000/name`` of ``registry:5000/name:tag`` or ``name@sha256:...``."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
