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

import msgspec

from fleet.containers import assemble, cdi, mounts, without_root
from fleet.containers.config import ContainerConfig, NetworkMode, check_config, normal_target
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.events import Action
from fleet.containers.names import new_container_id, pick_name
from fleet.containers.ports import ImageView
from fleet.containers.record import Container, ExitStatus, MountPoint, Status
from fleet.containers.runs import Runs
from fleet.containers.subids import IdRange
from fleet.containers.volumes import VolumeStore
from fleet.errors import ConflictError, FleetError, NotFoundError, RejectedFault, RuntimeFault, UserError

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

    async def create(self, config: ContainerConfig, *, container_id: str = "") -> Container:
        """Make a container; it is durable when this returns, and not started. ``container_id``: of one that had it elsewhere.

        Raises ``UserError`` for a bad config, ``RejectedFault`` for what this host lacks (no such image, no bind
        source), ``ConflictError``
        for a taken name.
        """
        check_config(config)
        core = self._core
        core.apparmor.check(config)
        config = self._resolved(without_root.adapt(config, core.controllers) if core.rootless else config)
        try:
            image = core.images.get(config.image)
        except NotFoundError as cause:
            raise RejectedFault(f"no such image: {config.image}") from cause
        if len(core.entries) >= _CONTAINERS_MAX:
            raise RuntimeFault(
                f"this host has {_CONTAINERS_MAX} containers already: remove stopped ones with container prune"
            )
        if container_id and (container_id in core.entries or container_id in self.under_way):
            raise ConflictError(f"container {container_id[:12]} is on this host already")
        container_id = container_id or new_container_id()
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

    def _resolved(self, config: ContainerConfig) -> ContainerConfig:
        """Names of containers whose namespaces are shared, as ids; so a later renaming changes nothing. Raises
        ``NotFoundError``, ``UserError``.
        """
        changes: dict[str, str] = {}
        if config.network_mode is NetworkMode.CONTAINER:
            donor = self._core.find(config.network_container).record
            if donor.config.network_mode is NetworkMode.CONTAINER:
                # Its own donor has the files in /etc, and is the one whose end matters.
                donor = self._core.find(donor.config.network_container).record
            changes |= {
                "network_container": donor.id,
                "hostname": donor.hostname,
                "domainname": donor.config.domainname,
            }
            if config.uts_mode == "host":
                del changes["hostname"], changes["domainname"]
        for field in ("pid_mode", "ipc_mode"):
            kind, _, other = getattr(config, field).partition(":")
            if kind != "container":
                continue
            donor = self._core.find(other).record
            if field == "ipc_mode" and donor.config.ipc_mode != "shareable":
                raise UserError(
                    f"can't join IPC of container {donor.id}: non-shareable IPC "
                    "(hint: use IpcMode:shareable for the donor container)"
                )
            changes[field] = f"container:{donor.id}"
        return msgspec.structs.replace(config, **changes) if changes else config

    async def _volumes_from(self, config: ContainerConfig) -> tuple[MountPoint, ...]:
        """What the containers named by ``volumes_from`` have mounted, but for targets the config names itself; of two
        the first wins. Their anonymous volumes are kept from now on: they are no longer one container's.
        """
        taken = {normal_target(target) for target in (*(m.target for m in config.mounts), *config.volume_targets)}
        points: list[MountPoint] = []
        for text in config.volumes_from:
            name, colon, mode = text.partition(":")
            if colon and mode not in ("ro", "rw", "z", "Z"):
                raise UserError(f"invalid mode for volumes-from: {mode}")
            for point in self._core.find(name).record.mounts:
                if point.kind == "tmpfs" or point.target in taken:
                    continue
                taken.add(point.target)
                if point.anonymous:
                    await self._volumes.keep(point.name)
                read_only = point.read_only or mode == "ro"
                points.append(msgspec.structs.replace(point, read_only=read_only, anonymous=False))
        return tuple(points)

    async def ids_of(self, config: ContainerConfig) -> IdRange | None:
        """The ids a container made of this now would have. Raises ``NotFoundError`` without its image."""
        merged = assemble.merge(config, self._core.images.get(config.image).config)
        return await self._choose_ids(self._resolved(config), merged)

    async def _choose_ids(self, config: ContainerConfig, merged: assemble.Merged) -> IdRange | None:
        entries = self._core.entries
        return await self._core.user_namespaces.choose(
            config,
            user=merged.user,
            find=lambda container_id: entries[container_id].record if container_id in entries else None,
            sources=self._sources(config, merged),
        )

    def _sources(self, config: ContainerConfig, merged: assemble.Merged) -> set[str]:
        """Where what the container would have mounted is, or will be. Raises ``NotFoundError``."""
        sources = {str(self._volumes.place_of(""))} if merged.volume_targets else set()
        for mount in config.mounts:
            if mount.type == "bind":
                sources.add(mount.source)
            if mount.type == "volume" and mount.volume_options and mount.volume_options.driver_config:
                sources.add(mount.volume_options.driver_config.options.get("device", ""))
            if mount.type == "volume":
                sources.add(str(self._volumes.place_of(mount.source)))
        for text in config.volumes_from:
            sources |= {point.source for point in self._core.find(text.partition(":")[0]).record.mounts}
        return sources - {""}

    async def _build(
        self, container_id: str, name: str, config: ContainerConfig, image: ImageView, made: list[str]
    ) -> Container:
        merged = assemble.merge(config, image.config)
        assemble.plan_capabilities(add=config.capabilities_add, drop=config.capabilities_drop)
        if config.cdi_devices:  # asked again at each start; here for an early answer
            cdi.resolve(config.cdi_devices, await self._core.in_thread(cdi.read_kinds, self._core.cdi_directories))
        borrowed = await self._volumes_from(config)
        covered = {point.target for point in borrowed}
        targets = tuple(target for target in merged.volume_targets if normal_target(target) not in covered)
        points = borrowed + await mounts.resolve_mounts(
            assemble.planned_mounts(config.mounts, targets),
            volumes=self._volumes,
            layer_dirs=image.layer_dirs,
            owner=container_id,
            made=made,
        )
        return Container(
            id=container_id,
            ids=await self._choose_ids(config, merged),
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
