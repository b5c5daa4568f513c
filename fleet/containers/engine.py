"""The container engine of one host: containers and volumes by name, over the supervisor, the image store and the network.

One engine per data directory, on one event loop. It holds no container alive: after ``close``, or a crash, containers
go on, and the next engine
adopts them by ``recover``. Everything acknowledged was durable before the answer.

Concurrency: steps of one container come one after another (its lock), containers are independent; at most eight starts
are in flight;
files are written by eight threads. Waiting for an exit never polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from fleet.clock import Clock, SystemClock
from fleet.containers import assemble, moving, without_root
from fleet.containers.apparmor import AppArmor
from fleet.containers.attach import Attachment, Attachments
from fleet.containers.config import ContainerConfig, FileMount, RestartRule, is_name
from fleet.containers.connecting import Connecting
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.events import Action, ContainerEvent, Subscription
from fleet.containers.execs import ExecConfig, Execs
from fleet.containers.exits import exit_of
from fleet.containers.forwarding import Forwarding
from fleet.containers.logs import follow_log
from fleet.containers.making import Making
from fleet.containers.networks import HostNetworks
from fleet.containers.ports import Images, Networks, Overlays, Runtime
from fleet.containers.record import Container, ExitStatus, Status
from fleet.containers.recovery import Recovered, recover, start_by_rule
from fleet.containers.runs import Runs
from fleet.containers.subids import IdRange
from fleet.containers.user_namespaces import UserNamespaces
from fleet.containers.volumes import Volume, VolumeStore
from fleet.errors import ConflictError, FleetError, RuntimeFault, UserError
from fleet.network.topology import AttachmentSpec
from fleet.node_runtime.events import ContainerProcess, ContainerStats, Exited, Oom, RuntimeEvent, SupervisorRestarted
from fleet.node_runtime.logs import LogLine
from fleet.node_runtime.spec import ResourceLimits

__all__ = ["ContainerEngine", "WaitCondition"]

WaitCondition = Literal["not-running", "next-exit", "removed"]


_REMOVE_PAUSE_S: Final = 1.0
PREDEFINED_NETWORKS: Final = ("bridge", "host", "none", "default")


class ContainerEngine:
    """See the module. Made by ``open``."""

    def __init__(self, core: Core, *, volumes_root: Path, networks_root: Path) -> None:
        self._core = core
        self.execs = Execs(core)
        """Exec sessions (create, start with descriptors, inspect, wait)."""
        self._attachments = Attachments(core)
        self._forwarding = Forwarding(core)
        self._runs = Runs(
            core, self.execs, self._attachments, forwarding=self._forwarding, auto_remove=self._auto_remove
        )
        self.volumes = VolumeStore(volumes_root, clock=core.clock, in_use=self._volume_users)
        """Named volumes of this host."""
        self._making = Making(core, self._runs, self.volumes)
        self.networks = HostNetworks(
            networks_root,
            network=core.network,
            clock=core.clock,
            hub=core.hub,
            predefined=PREDEFINED_NETWORKS,
            users=self._network_users,
        )
        """Networks that people made on this host."""
        self._connecting = Connecting(core)

    @classmethod
    async def open(
        cls,
        *,
        data_root: Path,
        exec_root: Path,
        runtime: Runtime,
        images: Images,
        network: Networks,
        clock: Clock | None = None,
        default_network: str = "bridge",
        host_files: Path = Path("/etc"),
        user_namespaces: bool = False,
        rootless: bool = False,
        apparmor: AppArmor | None = None,
        controllers: frozenset[str] = frozenset(),
    ) -> Self:
        """Read what is on disk and begin to listen to the supervisor. ``user_namespaces``: for every container that can have one,
        where that is possible; ``apparmor``: the profiles of this host's containers, of a host that is to have any; ``rootless``:
        this process is root of a user namespace only, and ``controllers`` of cgroups are what it may limit with. ``data_root``
        must be on a disk that overlayfs can write to, ``exec_root`` is for this boot (``/run``). Call ``recover`` next, once the
        networks are there. Raises ``RuntimeFault``.
        """
        core = Core(
            data_root=data_root,
            exec_root=exec_root,
            runtime=runtime,
            images=images,
            network=network,
            clock=clock or SystemClock(),
            default_network=default_network,
            host_files=host_files,
            rootless=rootless,
            apparmor=apparmor or AppArmor(data_root / "apparmor"),
            controllers=controllers,
        )
        engine = cls(core, volumes_root=data_root / "volumes", networks_root=data_root / "networks")
        try:
            records, problems = await core.in_thread(core.records.open)
            await core.in_thread(core.files.open)
            problems += await engine.volumes.open()
            problems += await core.in_thread(engine.networks.open)
        except OSError as cause:
            await core.close()
            raise RuntimeFault(
                f"open the container engine in {data_root}: {cause.strerror}: {cause.filename}"
            ) from cause
        for problem in problems:
            core.log.error("record not readable", problem=problem)
        for record in records:
            core.entries[record.id] = Entry(record, saved=True)
            core.names[record.name] = record.id
        core.spawn(engine._listen(), what="listen to the supervisor")
        if apparmor is not None:
            await apparmor.enable()
        if user_namespaces:
            await core.user_namespaces.enable(data_root)
        return engine

    async def close(self) -> None:
        """Stop listening and probing. Containers, their networks and secrets stay."""
        await self._core.close()

    async def destroy(self) -> None:
        """Close, and unmount what ``open`` mounted; for a host that fleet leaves, when no container is left."""
        if self._core.entries:
            raise ConflictError(f"{len(self._core.entries)} containers are left: remove them first")
        await self._core.close()
        await asyncio.to_thread(self._core.files.destroy)

    async def recover(self) -> Recovered:
        """Make records and reality agree: see ``fleet.containers.recovery``. Also starts what a restart rule wants running."""
        unfinished: list[Entry] = []
        without = await self.networks.ensure()
        result = await recover(self._core, self._runs, finish_removal=unfinished)
        notes = [*without, *result.notes]
        for entry in unfinished:
            try:
                state = entry.record.state
                volumes = state.remove_volumes if state.status is Status.REMOVING else True  # else it is made to vanish
                await self._making.remove(entry, force=True, volumes=volumes)
                notes.append(f"finished the removal of container {entry.id[:12]}")
            except FleetError as cause:
                notes.append(f"container {entry.id[:12]}: {cause}")
        orphans = await self.volumes.remove_orphans({*self._core.entries, *self._making.under_way})
        notes += [f"removed the anonymous volume {name[:12]}, whose container is gone" for name in orphans]
        notes += await self._mend_networks()
        notes += await start_by_rule(self._core, self._runs)
        for entry in self._core.entries.values():
            self._forwarding.resume(entry)
        for note in notes:
            self._core.log.info("recovered", what=note)
        return replace(result, notes=tuple(notes))

    # --- create and remove ---

    async def create(self, config: ContainerConfig, *, container_id: str = "") -> Container:
        """Make a container; it is durable when this returns, and not started. ``container_id``: of one moved here.

        Raises ``UserError`` for a bad config, ``RejectedFault`` for what this host lacks (no such image, no bind
        source), ``ConflictError`` for a taken name.
        """
        return await self._making.create(config, container_id=container_id)

    async def remove(self, name_or_id: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container with its writable layer and log; with ``volumes`` also its anonymous volumes. ``force``
        kills it first.

        Raises ``ConflictError`` when it runs and ``force`` is not given, or when its removal is under way.
        """
        entry = self._core.find(name_or_id)
        if entry.removing:
            raise ConflictError(f"removal of container {entry.id[:12]} is already in progress")
        if not force and (entry.record.is_up or entry.starting or entry.record.state.status is Status.RESTARTING):
            raise ConflictError(
                f'cannot remove container "/{entry.record.name}": container is running: '
                "stop the container before removing or force remove"
            )
        await self._making.remove(entry, force=force, volumes=volumes)

    async def _auto_remove(self, entry: Entry) -> None:
        """``--rm``: it ended, and goes with its anonymous volumes."""
        await self._making.remove(entry, force=False, volumes=True)

    async def hold(self, container_id: str) -> None:
        """See ``moving.hold``."""
        await moving.hold(self._core, self._core.find(container_id))

    async def let_go(self, container_id: str, *, restart: RestartRule, auto_remove: bool) -> None:
        """See ``moving.let_go``."""
        await moving.let_go(self._core, self._core.find(container_id), restart=restart, auto_remove=auto_remove)

    # --- run ---

    async def start(self, name_or_id: str, *, files: Sequence[FileMount] | None = None) -> bool:
        """Start; False when it runs already. ``files`` lays secrets and configs down anew, as a reboot loses them; their
        targets must be those the container was made with. Raises ``RejectedFault`` for faults of image or spec,
        ``RuntimeFault`` otherwise.
        """
        entry = self._core.find(name_or_id)
        if files is not None and not entry.record.is_up:
            if [file.target for file in files] != [file.target for file in entry.record.config.files]:
                raise UserError(f"container {entry.record.name}: the files given are not those it was made with")
            await self._core.in_thread(self._core.files.write, entry.id, files)
        return await self._runs.start(entry)

    async def stop(self, name_or_id: str, *, grace_s: float | None = None, signal: str | int | None = None) -> bool:
        """Stop signal, then SIGKILL after ``grace_s`` (the container's own, or 10). Returns when it ended; False: it
        was not running.
        """
        entry = self._core.find(name_or_id)
        return await self._runs.stop(entry, grace_s=grace_s, signal=signal)

    async def restart(self, name_or_id: str, *, grace_s: float | None = None, signal: str | int | None = None) -> None:
        """Stop when it runs, then start."""
        entry = self._core.find(name_or_id)
        await self._runs.stop(entry, grace_s=grace_s, signal=signal)
        await self._runs.start(entry)
        self._core.emit(Action.RESTART, entry.record)

    async def kill(self, name_or_id: str, signal: str | int = "SIGKILL") -> None:
        """Send a signal and return at once. Raises ``ConflictError`` when it does not run."""
        entry = self._core.find(name_or_id)
        number = assemble.parse_signal(signal)
        if not entry.record.is_up:
            raise ConflictError(f"cannot kill container: {name_or_id}: container {entry.id} is not running")
        if number in (9, assemble.parse_signal(entry.record.stop_signal)):
            entry.change_state(stopped_by_hand=True)
        await self._runs.signal(entry, number)

    async def wait(self, name_or_id: str, condition: WaitCondition = "not-running") -> ExitStatus:
        """How it ended: at once when it does not run (``not-running``), at the next end, or when it is removed. Cancels
        safely.
        """
        entry = self._core.find(name_or_id)
        state = entry.record.state
        if condition == "removed":
            return await asyncio.shield(entry.removed)
        up = entry.record.is_up or entry.starting or state.status is Status.RESTARTING
        if condition == "not-running" and not up:
            return state.exit or ExitStatus()
        return await asyncio.shield(entry.next_exit)

    async def wait_healthy(self, name_or_id: str) -> bool:
        """True once its health check passes (at once, when it runs without one); False when it ends or becomes unhealthy."""
        entry = self._core.find(name_or_id)
        while True:
            if not (entry.record.is_up or entry.starting):
                return False
            health = entry.record.state.health
            if entry.record.is_up and (health is None or health.status != "starting"):
                return health is None or health.status == "healthy"
            await asyncio.shield(entry.health_changed)

    async def wait_unhealthy(self, name_or_id: str) -> None:
        """Returns when its health check has failed often enough; for ever, when it has none. Cancels safely."""
        entry = self._core.find(name_or_id)
        while True:
            health = entry.record.state.health
            if entry.record.is_up and health is not None and health.status == "unhealthy":
                return
            await asyncio.shield(entry.health_changed)

    async def pause(self, name_or_id: str) -> None:
        """Freeze every process. Raises ``ConflictError`` when it does not run or is paused."""
        entry = self._core.find(name_or_id)
        async with entry.lock:
            if entry.record.state.status is Status.PAUSED:
                raise ConflictError(f"Container {entry.id} is already paused")
            if not entry.record.is_up:
                raise ConflictError(f"Container {entry.id} is not running")
            await self._core.runtime.pause(entry.id)
            if entry.record.is_up:
                entry.change_state(status=Status.PAUSED)
                self._core.emit(Action.PAUSE, entry.record)
                await self._core.save(entry)

    async def unpause(self, name_or_id: str) -> None:
        """Thaw. Raises ``ConflictError`` when it is not paused."""
        entry = self._core.find(name_or_id)
        async with entry.lock:
            await self._runs.resume(entry)
            await self._core.save(entry)

    async def update(
        self, name_or_id: str, *, resources: ResourceLimits | None = None, restart: RestartRule | None = None
    ) -> Container:
        """Change limits (at once, also of a running container; without root those that can be had) and the restart rule."""
        entry = self._core.find(name_or_id)
        if resources is not None and self._core.rootless:
            resources = without_root.keep_limits(resources, self._core.controllers) if self._core.controllers else None
        async with entry.lock:
            if resources is not None and entry.record.is_up:
                await self._core.runtime.update(entry.id, resources)
            config = entry.record.config
            entry.change(
                config=msgspec.structs.replace(
                    config, resources=resources or config.resources, restart=restart or config.restart
                )
            )
            await self._core.save(entry)
        self._core.emit(Action.UPDATE, entry.record)
        return entry.record

    async def rename(self, name_or_id: str, new_name: str) -> None:
        """Raises ``UserError`` for a bad name, ``ConflictError`` for a taken one."""
        entry = self._core.find(name_or_id)
        new_name = new_name.removeprefix("/")
        if not is_name(new_name):
            raise UserError(f"invalid container name ({new_name}): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        async with entry.lock:
            old_name = entry.record.name
            if new_name == old_name:
                raise UserError("renaming a container with the same name as its current name")
            self._core.reserve_name(new_name, entry.id)
            entry.change(name=new_name)
            try:
                await self._core.save(entry)
            except FleetError:
                entry.change(name=old_name)
                del self._core.names[new_name]
                raise
            del self._core.names[old_name]
        self._core.emit(Action.RENAME, entry.record, oldName=old_name)

    # --- look ---

    def get(self, name_or_id: str) -> Container:
        """The container as it is now. Raises ``NotFoundError``."""
        return self._core.find(name_or_id).record

    def list(self) -> Sequence[Container]:
        """All containers, newest first."""
        return sorted((e.record for e in self._core.entries.values()), key=lambda r: (r.created_at, r.id), reverse=True)

    def images_in_use(self) -> Collection[str]:
        """Ids of the images containers were made from; they must not be removed."""
        return {entry.record.image_id for entry in self._core.entries.values()} | set(self._making.under_way.values())

    def subscribe(self) -> Subscription:
        """Events from now on; use it with ``with``."""
        return self._core.hub.subscribe()

    def directory(self, container_id: str) -> Path:
        """The container's directory on this host (writable layer in ``upper``)."""
        return self._core.records.directory(container_id)

    def log_path(self, container_id: str) -> Path:
        """The newest log file (Docker's json-file form)."""
        return assemble.log_path(self.directory(container_id))

    def logs(
        self,
        name_or_id: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: datetime | None = None,
        until: datetime | None = None,
        tail: int | None = None,
        follow: bool = False,
    ) -> AsyncIterator[LogLine]:
        """Lines of its output. ``follow`` ends after the last line when the container ends. Raises ``UserError``
        without a log.
        """
        entry = self._core.find(name_or_id)
        if entry.record.config.log.driver == "none":
            raise UserError("configured logging driver does not support reading")
        return follow_log(
            self.log_path(entry.id),
            entry,
            stdout=stdout,
            stderr=stderr,
            since=since,
            until=until,
            tail=tail,
            follow=follow,
        )

    async def stats(self, name_or_id: str) -> ContainerStats | None:
        """What a running container uses; None when it does not run."""
        entry = self._core.find(name_or_id)
        return await self._core.runtime.stats(entry.id) if entry.record.is_up else None

    async def stats_of_all(self) -> ContainerStats:
        """What all containers of this host use together, and used since it started; nothing where there are no cgroups."""
        return await self._core.runtime.stats_of_all()

    async def processes(self, name_or_id: str) -> Sequence[ContainerProcess]:
        """The processes in it, by the host's process ids. Raises ``ConflictError`` when it does not run."""
        entry = self._core.find(name_or_id)
        if not entry.record.is_up:
            raise ConflictError(f"Container {entry.id} is not running")
        return await self._core.runtime.processes(entry.id)

    async def attach(self, name_or_id: str, *, stdin: bool = False) -> Attachment:
        """Its output from now on (from the first byte, when it is not started yet) and, with ``stdin``, its input."""
        return await self._attachments.attach(self._core.find(name_or_id), stdin=stdin)

    async def resize(self, name_or_id: str, *, rows: int, columns: int) -> None:
        """Set the size of its terminal. Raises ``ConflictError`` when it does not run."""
        entry = self._core.find(name_or_id)
        if not entry.record.is_up:
            raise ConflictError(f"Container {entry.id} is not running")
        await self._core.runtime.resize(entry.id, rows=rows, columns=columns)

    def exec_create(self, name_or_id: str, config: ExecConfig) -> str:
        """Note an exec in a running container; run it with ``execs.start``. Raises ``ConflictError`` when it does not run."""
        return self.execs.create(self._core.find(name_or_id), config)

    async def ids_of(self, config: ContainerConfig) -> IdRange | None:
        """The ids a container made of this now would have; None: the host's."""
        return await self._making.ids_of(config)

    @property
    def rootless(self) -> bool:
        """Whether this process is root of a user namespace only."""
        return self._core.rootless

    @property
    def controllers(self) -> frozenset[str]:
        """The cgroup controllers that limit containers where ``rootless`` holds."""
        return self._core.controllers

    @property
    def apparmor(self) -> AppArmor:
        """Under which profiles containers run."""
        return self._core.apparmor

    @property
    def user_namespaces(self) -> UserNamespaces:
        """Which containers have ids of their own here."""
        return self._core.user_namespaces

    # --- volumes, with events ---

    async def remove_volume(self, name: str, *, force: bool = False) -> None:
        """``VolumeStore.remove`` and its event."""
        await self.volumes.remove(name, force=force)
        self._volume_event(Action.VOLUME_DESTROY, name)

    async def create_volume(self, name: str, *, driver: str, labels: dict[str, str], options: dict[str, str]) -> Volume:
        """``VolumeStore.create`` and its event."""
        volume = await self.volumes.create(name, driver=driver, labels=labels, options=options)
        self._volume_event(Action.VOLUME_CREATE, volume.name)
        return volume

    # --- networks ---

    @property
    def overlays(self) -> Overlays | None:
        """The cluster's networks; set it when this host joins one, to None when it leaves."""
        return self._core.overlays

    @overlays.setter
    def overlays(self, overlays: Overlays | None) -> None:
        self._core.overlays = overlays

    def guests(self) -> set[tuple[str, str]]:
        """(container id, network id) of those that are, or just now come to be, on networks of the cluster by hand."""
        return {
            (entry.id, network_id)
            for entry in self._core.entries.values()
            if entry.record.is_up or entry.starting or entry.lock.locked()
            for network_id in entry.record.config.guest_of
        }

    async def connect(
        self, name_or_id: str, attachment: AttachmentSpec, *, network: str, is_overlay: bool = False
    ) -> None:
        """See ``Connecting``."""
        await self._connecting.connect(self._core.find(name_or_id), attachment, network=network, is_overlay=is_overlay)

    async def disconnect(self, name_or_id: str, network_id: str, *, network: str) -> None:
        """See ``Connecting``."""
        await self._connecting.disconnect(self._core.find(name_or_id), network_id, network=network)

    def _network_users(self, network_id: str) -> Collection[str]:
        records = [entry.record for entry in self._core.entries.values() if entry.record.is_up]
        return {record.name for record in records if any(card.network_id == network_id for card in record.networks)}

    async def _mend_networks(self) -> Sequence[str]:
        notes = []
        for entry in list(self._core.entries.values()):
            if entry.lock.locked():
                continue
            async with entry.lock:
                try:
                    if await self._connecting.mend(entry):
                        notes.append(f"container {entry.record.name}: finished the change of its networks")
                except FleetError as cause:
                    notes.append(f"container {entry.record.name}: its networks are not as they should be: {cause}")
        return notes

    def _volume_event(self, action: Action, name: str) -> None:
        self._core.hub.send(
            ContainerEvent(action=action, id=name, time=self._core.clock.now(), attributes={"driver": "local"})
        )

    def _volume_users(self, name: str) -> Collection[str]:
        return {e.id for e in self._core.entries.values() if any(point.name == name for point in e.record.mounts)}

    # --- the supervisor's voice ---

    async def _listen(self) -> None:
        """Apply what the supervisor reports, for as long as the engine lives."""
        while True:
            async for event in self._core.runtime.subscribe():
                await self._heard(event)
            await self._core.clock.sleep(_REMOVE_PAUSE_S)  # the stream ended without an error: the client is closing

    async def _heard(self, event: RuntimeEvent) -> None:
        match event:
            case Exited():
                entry = self._core.entries.get(event.id)
                if entry is not None:
                    self._runs.exited(entry, exit_of(event))
            case Oom():
                entry = self._core.entries.get(event.id)
                if entry is not None:
                    self._runs.oom(entry)
            case SupervisorRestarted():
                await self.recover()
