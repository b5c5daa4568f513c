"""The target's half of a move. Everything is the source's to ask for; a manager has announced the source.

expect (manager) -> begin: checks, image -> files: one stream a tree and pass -> ready: container made -> commit: started

Until *commit* is noted, whatever ends the move (an abort, silence, a crash of this daemon) removes what had come. From then
on the container is this host's: a daemon that starts after a crash starts it. *settle* tells the source which of the two it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fleet import errors
from fleet.agent.image_sources import close_all
from fleet.agent.node_facts import memory_total_bytes
from fleet.clock import Clock
from fleet.containers import Container, ContainerConfig, ContainerEngine, Status
from fleet.containers.host_access import host_access_of
from fleet.containers.moving import put_in_place
from fleet.containers.record import remove_tree
from fleet.containers.subids import IdRange
from fleet.containers.treestream import TreeWriter
from fleet.daemon.moves.notes import Notes
from fleet.daemon.moves.peers import Peers
from fleet.daemon.moves.words import Expected, Incoming, InPhase, Manifest
from fleet.images import ImageStore, PeerSource
from fleet.logs import get_logger
from fleet.model.ids import NodeId

__all__ = ["Arriving", "room_for", "write_tree"]

log = get_logger("moves")

_CONTAINER_ID: Final = re.compile(r"[0-9a-f]{64}")  # it becomes a folder's name
_COMING_MAX: Final = 8
_TREES_MAX: Final = 257
_TICKET_S: Final = 60.0
_SILENCE_S: Final = 120.0
_KEPT_FREE_BYTES: Final = 64 << 20
_BATCH: Final = 1 << 16


@dataclass(slots=True)
class _Ticket:
    expected: Expected
    until_s: float


@dataclass(slots=True)
class _Move:
    note: Incoming
    manifest: Manifest | None
    touched_s: float
    room_bytes: int = 0
    ids: IdRange | None = None
    """Those the container will have here: owners in its writable layer are written so; in volumes they are its own."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    over: bool = False


def refuse_host_access(config: ContainerConfig) -> None:
    """What a container is, its source says; so one that gets at its host comes only if the person who moves it says so: else
    whoever has taken a worker over could have other hosts too. Raises ``ForbiddenError``."""
    if found := host_access_of(config):
        raise errors.ForbiddenError(
            f"it asks for {' and '.join(found)}; whoever controls the host it is on would have that here too: move it with "
            "--allow-host-access if you trust that host"
        )


async def write_tree(
    path: Path,
    pieces: AsyncIterator[bytes],
    *,
    fresh: bool,
    room_bytes: int,
    ids: IdRange | None,
    touched: Callable[[int], None],
) -> int:
    """One pass over one tree, which ``fresh`` empties first; returns its bytes of contents, and tells ``touched`` meanwhile.
    Raises as ``TreeWriter``."""
    if fresh:
        await asyncio.to_thread(remove_tree, path)
        await asyncio.to_thread(path.mkdir, mode=0o755)
    writer = TreeWriter(path, room_bytes=room_bytes, ids=ids)
    try:
        batch = bytearray()
        async for piece in pieces:
            batch += piece
            if len(batch) >= _BATCH:
                touched(writer.bytes)
                await asyncio.to_thread(writer.feed, bytes(batch))
                batch.clear()
        await asyncio.to_thread(writer.feed, bytes(batch))
        await asyncio.to_thread(writer.finish)
    finally:
        writer.close()
    touched(writer.bytes)
    return writer.bytes


def room_for(size_bytes: int, folder: Path) -> int:
    """How many bytes may come. Raises ``StorageFullError`` when so many will not fit."""
    free = shutil.disk_usage(folder).free - _KEPT_FREE_BYTES
    if size_bytes > free:
        raise errors.StorageFullError(
            f"its files take {size_bytes >> 20} MiB and {max(0, free) >> 20} MiB are free: "
            "free some space there and try again"
        )
    return free


class Arriving:
    """One for the daemon; ``moves`` of it owns the loop that calls ``look_after``."""

    def __init__(
        self, notes: Notes, *, engine: ContainerEngine, images: ImageStore, peers: Peers, clock: Clock
    ) -> None:
        self._notes = notes
        self._engine = engine
        self._images = images
        self._clock = clock
        self._tickets: dict[str, _Ticket] = {}
        self._moves: dict[str, _Move] = {}
        self._peers = peers

    # Of the manager ---------------------------------------------------------------------------------------------

    def expect(self, move_id: str, expected: Expected) -> None:
        """A container may come from that node within a minute. Raises ``UnavailableError`` when too many do."""
        now = self._clock.monotonic()
        for known in [known for known, ticket in self._tickets.items() if ticket.until_s < now]:
            del self._tickets[known]
        if len(self._tickets) + len(self._coming()) >= _COMING_MAX:
            raise errors.UnavailableError(f"{_COMING_MAX} containers are moving here already: try again later")
        self._tickets[move_id] = _Ticket(expected, now + _TICKET_S)

    def _coming(self) -> list[_Move]:
        """Not those that are here and whose source has not let go yet."""
        return [move for move in self._moves.values() if move.note.phase is not InPhase.COMMITTED]

    # Of the source ----------------------------------------------------------------------------------------------

    async def begin(self, move_id: str, source: NodeId, manifest: Manifest) -> None:
        """Check that the container can run here, and get its image. Raises ``FleetError`` with the reason why not."""
        ticket = self._tickets.pop(move_id, None)
        if ticket is None or ticket.expected.source_node != source or ticket.until_s < self._clock.monotonic():
            raise errors.ForbiddenError("no manager has announced this move")
        if _CONTAINER_ID.fullmatch(manifest.container_id) is None:
            raise errors.UserError("a container's id is 64 hexadecimal digits")
        if any(move.note.container_id == manifest.container_id for move in self._coming()):
            raise errors.ConflictError("the container is moving here already")
        note = Incoming(
            id=move_id,
            source_node=source,
            source_name=ticket.expected.source_name,
            phase=InPhase.RECEIVING,
            container_id=manifest.container_id,
            name=manifest.name,
            start=manifest.start,
        )
        move = _Move(note, None, self._clock.monotonic())
        self._moves[move_id] = move
        async with move.lock:  # a source that gives up meanwhile is heard after this
            try:
                move.room_bytes = await asyncio.to_thread(room_for, manifest.size_bytes, self._notes.folder)
                if not ticket.expected.host_access:
                    refuse_host_access(manifest.config)
                config = self._local_config(manifest)
                self._check(manifest, config)
                config = await self._with_image(manifest, config, ticket.expected)
                await asyncio.to_thread(self._begin_files, note, 1 + len(manifest.volumes))
                move.ids = await self._engine.ids_of(config)
                move.manifest = msgspec.structs.replace(manifest, config=config)
                move.touched_s = self._clock.monotonic()
            except BaseException:
                await asyncio.shield(self._end(move))
                raise

    def _begin_files(self, note: Incoming, trees: int) -> None:
        self._notes.write(note)
        try:
            for number in range(trees):
                (self._notes.staging(note.id) / str(number)).mkdir(mode=0o755, parents=True)
            self._notes.staging(note.id).chmod(0o700)
        except OSError as cause:
            raise errors.RuntimeFault(f"make room for the files: {cause.strerror}") from cause

    def _local_config(self, manifest: Manifest) -> ContainerConfig:
        """Ids of networks are a host's own; those of the cluster are the same everywhere."""
        config, networks = manifest.config, []
        for attachment in config.networks:
            if attachment.network_id in config.guest_of:
                networks.append(attachment)
                continue
            name = manifest.network_names.get(attachment.network_id, attachment.network_id)
            try:
                network_id = "bridge" if name == "bridge" else self._engine.networks.find(name).id
            except errors.NotFoundError:
                raise errors.ConflictError(
                    f"network {name} does not exist there: make it first (fleet network create {name})"
                ) from None
            networks.append(
                type(attachment)(
                    network_id=network_id,
                    address=attachment.address,
                    address6=attachment.address6,
                    mac=attachment.mac,
                    aliases=attachment.aliases,
                )
            )
        return msgspec.structs.replace(config, networks=tuple(networks))

    def _check(self, manifest: Manifest, config: ContainerConfig) -> None:
        if manifest.machine != platform.machine():
            raise errors.RejectedFault(
                f"this host is {platform.machine()} and the container's is {manifest.machine}: its programs cannot run here"
            )
        if len(manifest.volumes) >= _TREES_MAX:
            raise errors.UserError(f"more than {_TREES_MAX - 1} volumes")
        for text in (manifest.container_id, manifest.name):
            with contextlib.suppress(errors.NotFoundError):
                holder = self._engine.get(text)
                if text in (holder.id, holder.name):
                    raise errors.ConflictError(
                        f"container {holder.name} ({holder.id[:12]}) is there already: rename or remove one of them"
                    )
        for volume in manifest.volumes:
            if not volume.anonymous:
                self._refuse_volume(volume.name)
        if config.resources.memory_bytes > memory_total_bytes():
            raise errors.RejectedFault(
                f"its memory limit is {config.resources.memory_bytes >> 20} MiB and the host has "
                f"{memory_total_bytes() >> 20} MiB: lower the limit (fleet container update --memory)"
            )
        for mount in config.mounts:
            options = mount.bind_options
            if (
                mount.type == "bind"
                and not (options and options.create_mountpoint)
                and not os.path.lexists(mount.source)
            ):
                raise errors.RejectedFault(f"bind source {mount.source} does not exist there: make it first")
        taken = {
            (port.protocol, port.host_port): other.name
            for other in self._engine.list()
            if other.is_up
            for port in other.config.host_ports
        }
        for port in config.host_ports:
            if holder_name := taken.get((port.protocol, port.host_port)):
                raise errors.ConflictError(
                    f"port {port.host_port}/{port.protocol} is published by container {holder_name} there: stop it first"
                )

    def _refuse_volume(self, name: str) -> None:
        with contextlib.suppress(errors.NotFoundError):
            self._engine.volumes.get(name)
            raise errors.ConflictError(
                f"a volume {name} is there already, and would be overwritten: remove it first (fleet volume rm {name})"
            )

    async def _with_image(self, manifest: Manifest, config: ContainerConfig, expected: Expected) -> ContainerConfig:
        try:
            self._images.get(manifest.image_id)
        except errors.NotFoundError:
            sources = [PeerSource(f"https://{expected.source_address}", self._peers.context())]
            try:
                fetched = await self._images.fetch(f"{manifest.image_reference}@{manifest.image_digest}", sources)
            finally:
                await close_all(sources)
            if fetched.id != manifest.image_id:
                raise errors.RejectedFault(f"the image came as {fetched.id}, not {manifest.image_id}") from None
        try:
            same = self._images.get(config.image).id == manifest.image_id
        except errors.NotFoundError:
            await self._images.tag(manifest.image_id, config.image)
            same = True
        return config if same else msgspec.structs.replace(config, image=manifest.image_id)

    def _of(self, move_id: str, source: NodeId) -> _Move:
        move = self._moves.get(move_id)
        if move is None or move.note.source_node != source or move.over:
            raise errors.NotFoundError(f"move {move_id[:12]} is not known there (any more): it was given up")
        move.touched_s = self._clock.monotonic()
        return move

    async def files(self, move_id: str, source: NodeId, *, tree: int, fresh: bool, pieces: AsyncIterator[bytes]) -> int:
        """One pass over one tree: 0 is the writable layer, then the volumes in their order; ``fresh`` empties it first.

        Returns the bytes of contents. A failure ends nothing by itself: the source may send a fresh pass, or abort.
        """
        move = self._of(move_id, source)
        async with move.lock:
            self._of(move_id, source)
            if move.note.phase is not InPhase.RECEIVING or move.manifest is None:
                raise errors.ConflictError("the files of this move came already")
            if not 0 <= tree <= len(move.manifest.volumes):
                raise errors.UserError(f"tree {tree} is none of this move's")
            path = self._notes.staging(move_id) / str(tree)

            def touched(_bytes: int) -> None:
                move.touched_s = self._clock.monotonic()

            ids = None if tree else move.ids
            return await write_tree(path, pieces, fresh=fresh, room_bytes=move.room_bytes, ids=ids, touched=touched)

    async def ready(self, move_id: str, source: NodeId) -> None:
        """Everything came: make volumes and the container, not started."""
        move = self._of(move_id, source)
        async with move.lock:
            self._of(move_id, source)
            if move.note.phase is not InPhase.RECEIVING or move.manifest is None:
                raise errors.ConflictError("this move is ready already")
            manifest = move.manifest
            named = [volume for volume in manifest.volumes if not volume.anonymous]
            for volume in named:
                self._refuse_volume(volume.name)
            move.note = msgspec.structs.replace(
                move.note, phase=InPhase.READY, volumes=tuple(volume.name for volume in named)
            )
            try:
                await asyncio.to_thread(self._notes.write, move.note)
                for volume in named:
                    await self._engine.volumes.create(volume.name, labels=volume.labels)
                container = await self._engine.create(manifest.config, container_id=manifest.container_id)
                if container.ids != move.ids:
                    raise errors.ConflictError(
                        "the user ids of containers on this host were changed just now: try again"
                    )
                await self._place(move, manifest, container)
            except BaseException:
                await asyncio.shield(self._end(move))
                raise

    async def _place(self, move: _Move, manifest: Manifest, container: Container) -> None:
        staging = self._notes.staging(move.note.id)
        sources = {point.target: point for point in container.mounts if point.kind == "volume"}
        try:
            for number, volume in enumerate(manifest.volumes, 1):
                point = sources.get(volume.target)
                if point is None:
                    raise errors.RejectedFault(f"the container made here has no volume at {volume.target}")
                path = self._engine.volumes.path(self._engine.volumes.get(point.name))
                await asyncio.to_thread(put_in_place, staging / str(number), path)
            upper = self._engine.directory(container.id) / "upper"
            await asyncio.to_thread(put_in_place, staging / "0", upper)
        except OSError as cause:
            raise errors.RuntimeFault(f"put its files in place: {cause.strerror}: {cause.filename}") from cause

    async def commit(self, move_id: str, source: NodeId) -> None:
        """It is this host's from now on: start it. When it cannot be started, nothing of it is left here, and it is not."""
        move = self._of(move_id, source)
        async with move.lock:
            self._of(move_id, source)
            if move.note.phase is InPhase.RECEIVING:
                raise errors.ConflictError("its files have not come yet")
            if move.note.phase is InPhase.READY:
                note = msgspec.structs.replace(move.note, phase=InPhase.COMMITTED)
                try:
                    await asyncio.to_thread(self._notes.write, note)
                    move.note = note
                    await asyncio.to_thread(remove_tree, self._notes.staging(move_id))
                    if note.start:
                        await self._engine.start(note.container_id)
                except BaseException:
                    await asyncio.shield(self._end(move))
                    raise
                log.info("container moved here", container=note.name, source=note.source_name, started=note.start)

    async def settle(self, move_id: str, source: NodeId, *, give_up: bool) -> bool:
        """Whether the container is this host's. If not, or with ``give_up``, nothing of it is here when this returns."""
        ticket = self._tickets.get(move_id)
        if ticket is not None and ticket.expected.source_node == source:
            del self._tickets[move_id]
        move = self._moves.get(move_id)
        if move is None or move.note.source_node != source:
            return False
        async with move.lock:
            if move.over:
                return False
            if move.note.phase is InPhase.COMMITTED and not give_up:
                return True
            await self._end(move)
            return False

    async def done(self, move_id: str, source: NodeId) -> None:
        """The source let go: the note is not needed any more. Idempotent."""
        move = self._moves.get(move_id)
        if move is not None and move.note.source_node == source and move.note.phase is InPhase.COMMITTED:
            del self._moves[move_id]
            await asyncio.to_thread(self._notes.forget, move.note)

    # Of this host -----------------------------------------------------------------------------------------------

    async def recover(self, left: list[Incoming]) -> None:
        """At start: finish what was committed, remove the rest. Raises nothing: what fails is logged and tried again."""
        for note in left:
            move = _Move(note, None, self._clock.monotonic())
            self._moves[note.id] = move
            if note.phase is not InPhase.COMMITTED:
                log.info("removing what came of an unfinished move", container=note.name, source=note.source_name)
                await self._end(move)
                continue
            try:
                if note.start and self._engine.get(note.container_id).state.status is Status.CREATED:
                    await self._engine.start(note.container_id)
            except errors.NotFoundError:
                await self._end(move)  # it was removed by hand after it had come
            except errors.FleetError as cause:
                log.error("a moved container could not be started", container=note.name, cause=str(cause))
                await self._end(move)

    async def look_after(self) -> None:
        """Give up moves whose source has fallen silent, and finish removals that failed. Called every few seconds."""
        now = self._clock.monotonic()
        for move in list(self._moves.values()):
            if move.note.phase is InPhase.COMMITTED and not move.over:
                continue
            patience_s = _SILENCE_S + (move.manifest.stop_grace_s if move.manifest else 0)
            if move.over or (now - move.touched_s > patience_s and not move.lock.locked()):
                log.warning("move given up", container=move.note.name, source=move.note.source_name)
                await self._end(move)

    async def _end(self, move: _Move) -> None:
        """Remove everything that came. Tolerates absence; what cannot be removed now is tried again by ``look_after``."""
        move.over = True
        note = move.note
        try:
            if note.phase is not InPhase.RECEIVING:
                with contextlib.suppress(errors.NotFoundError):
                    await self._engine.remove(note.container_id, force=True, volumes=True)
                for name in note.volumes:
                    await self._engine.volumes.remove(name, force=True)
            await asyncio.to_thread(self._notes.forget, note)
            self._moves.pop(note.id, None)
        except (errors.FleetError, OSError) as cause:
            log.error("what came of a move could not be removed yet", container=note.name, cause=str(cause))
