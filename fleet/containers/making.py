"""How containers come to be and cease to be. Both are one rename: a directory appears whole, or is gone.

A crash before the first rename leaves ``.new-*`` and perhaps anonymous volumes, which carry the container's id; a crash
during a removal leaves a
record that says *removing*. ``fleet.containers.recovery`` finishes either.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from fleet.containers import assemble, mounts
from fleet.containers.config import ContainerConfig, check_config
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.events import Action
from fleet.containers.names import new_container_id, pick_name
from fleet.containers.ports import ImageView
from fleet.containers.record import Container, ExitStatus, Status
from fleet.containers.runs import Runs
from fleet.containers.volumes import VolumeStore
from fleet.errors import ConflictError, FleetError, NotFoundError, RejectedFault, RuntimeFault

__all__ = ["Making"]

_CONTAINERS_MAX: Final = 4096


class Making:
    """Creates and removes for one engine."""

    def __init__(self, core: Core, runs: Runs, volumes: VolumeStore) -> None:
        self._core = core
        self._runs = runs
        self._volumes = volumes
        self._emptying = False
        self.under_way: dict[str, str] = {}
        """Container id -> image id of creations under way: their images and volumes are in use as well."""

    async def create(self, config: ContainerConfig) -> Container:
        """Make a container; it is durable when this returns, and not started.

        Raises ``UserError`` for a bad config, ``RejectedFault`` for what this host lacks (no such image, no bind
        source), ``ConflictError``
        for a taken name.
        """
        check_config(config)
        core = self._core
        try:
            image = core.images.get(config.image)
        except NotFoundError as cause:
            raise RejectedFault(f"no such image: {config.image}") from cause
        if len(core.entries) >= _CONTAINERS_MAX:
            raise RuntimeFault(
                f"this host has {_CONTAINERS_MAX} containers already: remove stopped ones with container prune"
            )
        container_id = new_container_id()
        name = config.name or pick_name(core.names)
        core.reserve_name(name, container_id)
        made: list[str] = []
        self.under_way[container_id] = image.id
        try:
            record = await self._build(container_id, name, config, image, made)
            if config.files:
                await core.in_thread(core.files.write, container_id, config.files)
            await core.in_thread(core.records.create, record)
        except BaseException:
            await asyncio.shield(self._undo_create(container_id, name, made))
            raise
        finally:
            del self.under_way[container_id]
        core.entries[container_id] = Entry(record, saved=True)
        core.emit(Action.CREATE, record)
        return record

    async def _build(
        self, container_id: str, name: str, config: ContainerConfig, image: ImageView, made: list[str]
    ) -> Container:
        merged = assemble.merge(config, image.config)
        assemble.plan_capabilities(add=config.capabilities_add, drop=config.capabilities_drop)
        points = await mounts.resolve_mounts(
            assemble.planned_mounts(config.mounts, merged.volume_targets),
            volumes=self._volumes,
            layer_dirs=image.layer_dirs,
            owner=container_id,
            made=made,
        )
        return Container(
            id=container_id,
            name=name,
            created_at=self._core.clock.now(),
            config=config.without_data(),
            image_id=image.id,
            image_name=config.image,
            args=merged.args,
            env=merged.env,
            working_dir=merged.working_dir,
            user=merged.user,
            stop_signal=merged.stop_signal,
            labels=merged.labels,
            healthcheck=merged.healthcheck,
            exposed_ports=merged.exposed_ports,
            mounts=points,
        )

    async def _undo_create(self, container_id: str, name: str, made: Sequence[str]) -> None:
        core = self._core
        if core.names.get(name) == container_id:
            del core.names[name]
        await core.in_thread(core.files.remove, container_id)
        await core.in_thread(core.records.discard, container_id)
        for volume in made:
            with contextlib.suppress(ConflictError, NotFoundError):
                await self._volumes.remove(volume)

    async def remove(self, entry: Entry, *, force: bool, volumes: bool) -> None:
        """End it if need be, let go of everything, forget it. When that fails it stays, as *dead*, and may be removed again."""
        core = self._core
        entry.removing = True
        try:
            self._runs.cancel_restart(entry)
            if force and entry.starting:
                async with entry.lock:
                    pass
            if force:
                await self._runs.kill_and_wait(entry)
            async with entry.lock:
                entry.change_state(status=Status.REMOVING, remove_volumes=volumes)
                entry.needs_release = True
                await self._runs.release(entry)  # writes *removing* first
                await core.in_thread(core.files.remove, entry.id)
                if not volumes:
                    for point in entry.record.mounts:
                        if point.anonymous:
                            await self._volumes.keep(point.name)
                await core.in_thread(core.records.discard, entry.id)
                entry.streams.close()
                entry.removed.set_result(entry.record.state.exit or ExitStatus())
        except BaseException as cause:
            entry.removing = False
            if isinstance(cause, FleetError):
                entry.change_state(status=Status.DEAD, error=str(cause))
            raise
        entry.announce_health()
        record = entry.record
        del core.entries[entry.id]
        if core.names.get(record.name) == entry.id:
            del core.names[record.name]
        core.emit(Action.DESTROY, record)
        if not self._emptying:
            self._emptying = True
            core.spawn(self._empty_trash(), what="free the space of removed containers")
        if volumes:
            for point in record.mounts:
                if point.anonymous:
                    with contextlib.suppress(ConflictError, NotFoundError):
                        await self._volumes.remove(point.name)

    async def _empty_trash(self) -> None:
        self._emptying = False  # what is removed from now on needs another round
        try:
            await self._core.in_thread(self._core.records.empty_trash)
        except OSError as cause:
            self._core.log.error("free the space of removed containers", path=cause.filename, cause=cause.strerror)
