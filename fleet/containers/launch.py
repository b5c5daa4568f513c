"""The way from a container's record to a running process: namespace, files in /etc, secrets, spec, supervisor.

Everything made here carries the container's id; ``fleet.containers.runs`` lets go of it when a step fails.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fleet.containers import assemble, cdi, hostfiles, mounts
from fleet.containers.attach import Attachments
from fleet.containers.config import NetworkMode
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.record import Container, HealthState, NetworkAddress, Status
from fleet.errors import ConflictError, NotFoundError, RejectedFault, UnavailableError
from fleet.network.topology import AttachmentSpec, Sandbox, SandboxSpec

__all__ = ["Launcher", "addresses_of", "hosts_of"]


class Launcher:
    """Starts what ``Runs`` decided to start."""

    def __init__(self, core: Core, attachments: Attachments) -> None:
        self._core = core
        self._attachments = attachments

    async def launch(self, entry: Entry, saved: asyncio.Future[None]) -> None:
        """Make it run; its record then says so. ``saved`` is done when the record is durable, and awaited before
        anything runs.
        """
        core = self._core
        entry.change(apparmor=await core.apparmor.choose(entry.record.config))
        record = entry.record
        try:
            image = core.images.get(record.image_id)
        except NotFoundError as cause:
            raise RejectedFault(f"no such image: {record.config.image}") from cause
        directory = core.records.directory(record.id)
        etc_directory = self._joined(record)
        netns_fd, sandbox = await self._enter_network(record)
        stdin_fd, attach_fd = self._attachments.prepare(entry)
        try:
            sources = await core.in_thread(self._lay_files, record, directory, sandbox)
            spec = assemble.plan_spec(
                record,
                layer_dirs=image.layer_dirs,
                directory=directory,
                file_sources=sources,
                etc_directory=etc_directory,
            )
            if record.config.cdi_devices:
                kinds = await core.in_thread(cdi.read_kinds, core.cdi_directories)
                spec = assemble.with_devices(spec, cdi.resolve(record.config.cdi_devices, kinds))
            await saved
            started = await core.runtime.start(spec, netns_fd=netns_fd, stdin_fd=stdin_fd, attach_fd=attach_fd)
        finally:
            for fd in (netns_fd, stdin_fd):
                if fd is not None:
                    os.close(fd)
        await self._attachments.started(entry)
        if started.terminal_fd is not None:
            os.close(started.terminal_fd)  # the supervisor keeps it; whoever attaches asks for it
        entry.change(networks=addresses_of(sandbox))
        entry.change_state(
            status=Status.RUNNING,
            pid=started.pid,
            started_at=started.started_at,
            exit=None,
            starting_boot="",
            health=HealthState() if record.healthcheck else None,
        )

    def _joined(self, record: Container) -> Path | None:
        """Check that the containers whose namespaces are shared run; the directory of the one that shares its network.

        Raises ``ConflictError`` in Docker's words.
        """
        config = record.config
        for what, mode in (("PID", config.pid_mode), ("IPC", config.ipc_mode)):
            kind, _, other = mode.partition(":")
            if kind == "container":
                self._running(other, f"cannot join {what} namespace of a non running container")
        if config.network_mode is not NetworkMode.CONTAINER:
            return None
        donor = self._running(config.network_container, "cannot join network of a non running container")
        return self._core.records.directory(donor.config.network_container or donor.id)

    def _running(self, container_id: str, sentence: str) -> Container:
        entry = self._core.entries.get(container_id)
        if entry is None:
            raise NotFoundError(f"No such container: {container_id}")
        if not entry.record.is_up:
            raise ConflictError(f"{sentence}: {container_id}")
        return entry.record

    async def _enter_network(self, record: Container) -> tuple[int | None, Sandbox | None]:
        config = record.config
        if not config.network_mode.has_sandbox:
            return None, None
        attachments = config.networks
        if config.network_mode is NetworkMode.BRIDGE:
            attachments = (AttachmentSpec(network_id=self._core.default_network, address=None, mac=None),)
        if config.guest_of:
            attachments = tuple([await joined(self._core, record, each) for each in attachments])
        sandbox = await self._core.network.create_sandbox(
            SandboxSpec(
                id=record.id,
                attachments=attachments,
                host_ports=config.host_ports,
                dns_servers=config.dns_servers,
                dns_search=config.dns_search,
                dns_options=config.dns_options,
                names=tuple(dict.fromkeys((record.name, *config.network_names, record.id[:12]))),
                ids=(record.ids.first_id, record.ids.count) if record.ids else None,
            )
        )
        return self._core.network.open_netns(record.id), sandbox

    def _lay_files(self, record: Container, directory: Path, sandbox: Sandbox | None) -> list[tuple[str, Path]]:
        """Blocks: checks what the container will be given, and writes its files in /etc."""
        mounts.check_sources(record.mounts)
        sources = self._core.files.sources(record.id, record.config.files)
        config = record.config
        base = _read(self._core.host_files / "hosts") if config.network_mode is NetworkMode.HOST else ""
        texts = {
            "hostname": hostfiles.hostname_text(record.hostname),
            "hosts": hosts_of(record, sandbox, base=base),
            "resolv.conf": sandbox.resolv_conf
            if sandbox
            else hostfiles.resolv_conf_text(
                _read(self._core.host_files / "resolv.conf"),
                servers=config.dns_servers,
                search=config.dns_search,
                options=config.dns_options,
            ),
        }
        for name, text in texts.items():
            path = directory / name
            path.write_text(text)
            path.chmod(0o644)
        return sources


async def joined(core: Core, record: Container, attachment: AttachmentSpec) -> AttachmentSpec:
    """The attachment as the network room takes it: with the managers' address, where the network is the cluster's."""
    if attachment.network_id not in record.config.guest_of:
        return attachment
    if core.overlays is None:
        raise UnavailableError(
            f"network {attachment.network_id} is a swarm's, and this host is in none: join the swarm again, or create the "
            "container anew without it"
        )
    return await core.overlays.join(record.id, attachment, names=(record.name, record.id[:12]))


def hosts_of(record: Container, sandbox: Sandbox | None, *, base: str = "") -> str:
    """The container's /etc/hosts; ``base`` are the host's lines, for those that share its network."""
    interfaces = sandbox.interfaces if sandbox else ()
    return hostfiles.hosts_text(
        hostname=record.hostname,
        domainname=record.config.domainname,
        addresses=[address for i in interfaces for address in (i.address, i.address6) if address],
        extra_hosts=record.config.extra_hosts,
        host_gateway=next((i.gateway for i in interfaces if i.gateway), "") or "",
        base=base,
    )


def addresses_of(sandbox: Sandbox | None) -> tuple[NetworkAddress, ...]:
    """Where it is, as its record shows it."""
    return tuple(
        NetworkAddress(
            network_id=interface.network_id,
            address=interface.address,
            prefix_len=interface.prefix_len,
            mac=interface.mac,
            gateway=interface.gateway or "",
            address6=interface.address6,
            prefix_len6=interface.prefix_len6,
            gateway6=interface.gateway6,
        )
        for interface in (sandbox.interfaces if sandbox else ())
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
