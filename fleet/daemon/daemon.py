"""fleetd, assembled: builds the parts in order of dependence, runs them, and takes them down in reverse.

Stopping the daemon stops nothing it started: containers, their supervisor, networks and the DNS process go on, and the next
daemon takes them up. State on disk below ``data_root`` (survives a reboot) and ``exec_root`` (does not):

    data_root/  fleetd.lock   host-id      one daemon a folder; which kernel objects are ours
                images/                    content by digest, unpacked layers
                containers/ volumes/       records, writable layers, logs; named volumes
                moves/                     containers on their way to or from another host
                runtime/                   the supervisor's durable exit codes
                network/                   addresses handed out on local networks
                swarm/                     state.json identity/ store/ agent/
    exec_root/  fleet.sock runtime/ network/ files/ (secrets, on a tmpfs)
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import secrets
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fleet import __version__, errors
from fleet.agent.image_sources import ImageLocator
from fleet.builder.build import remove_leftovers
from fleet.clock import SystemClock
from fleet.containers.apparmor import AppArmor
from fleet.containers.engine import ContainerEngine
from fleet.daemon.addresses import split_address
from fleet.daemon.app import engine_app
from fleet.daemon.config import METRICS_PORT, DaemonConfig
from fleet.daemon.dashboard import BrowserGuard, DashboardPages
from fleet.daemon.doctor import Doctor, HostDoctor
from fleet.daemon.events import EventLog
from fleet.daemon.listeners import Listener, tcp_socket, unix_socket
from fleet.daemon.membership import Membership
from fleet.daemon.memory import give_back_unused
from fleet.daemon.metrics import Exposition, RequestFigures, metrics_app
from fleet.daemon.moves import Moves
from fleet.daemon.notify import notify
from fleet.daemon.rootless.inside import Inside
from fleet.images import ImageStore
from fleet.logs import get_logger
from fleet.network.host import HostNetwork
from fleet.network.topology import NetworkSpec
from fleet.node_runtime.cgroup_layout import layout_for
from fleet.node_runtime.client import RuntimeClient

__all__ = ["BRIDGE", "Daemon"]

log = get_logger("daemon")

_UPKEEP_S: Final = 60.0

BRIDGE = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.29.0.0/16", gateway="172.29.0.1")
"""Where containers go that name no network. Beside Docker's 172.17/16, so that both can live on one host."""


class Daemon:
    """``run`` until ``stop`` is called or a part fails for good."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._stopping = asyncio.Event()
        self._cause: BaseException | None = None

    def stop(self) -> None:
        """Ask ``run`` to return; idempotent, callable from signal handlers of the loop."""
        self._stopping.set()

    def _fatal(self, cause: BaseException) -> None:
        self._cause = self._cause or cause
        self._stopping.set()

    async def run(self) -> None:
        """Raises what made the daemon unable to go on."""
        config = self._config
        clock = SystemClock()
        inside = Inside(config.exec_root) if config.rootless else None
        async with AsyncExitStack() as stack:
            for folder in (config.data_root, config.exec_root):
                await asyncio.to_thread(_prepare_root, folder)
                stack.callback(os.close, _lock(folder))
            owner = await asyncio.to_thread(_host_id, config.data_root)
            cgroup_parent = inside.cgroup_parent(config.cgroup_parent) if inside else config.cgroup_parent
            runtime = await RuntimeClient.open(
                state_dir=config.data_root / "runtime",
                run_dir=config.exec_root / "runtime",
                cgroup_parent=cgroup_parent,
            )
            stack.push_async_callback(runtime.close)
            images = await ImageStore.open(config.data_root / "images")
            stack.push_async_callback(images.close)
            registries = config.registry_options
            if inside is not None:
                registries = dataclasses.replace(registries, unreachable=inside.why_no_network())
            locator = ImageLocator(registries)
            underlay = _Underlay()
            network = HostNetwork(
                run_dir=config.exec_root / "network",
                state_dir=config.data_root / "network",
                owner=owner,
                underlay_address=underlay,
                outside=inside,
                open_namespace=runtime.open_network_namespace,
                shelter=runtime.shelter,
            )
            for sentence in await network.open():
                log.info("network taken up", what=sentence)
            await runtime.shelter(network.dns_pid())
            stack.push_async_callback(network.close)
            await network.ensure_network(BRIDGE)
            engine = await ContainerEngine.open(
                data_root=config.data_root,
                exec_root=config.exec_root,
                runtime=runtime,
                images=images,
                network=network,
                clock=clock,
                default_network=BRIDGE.id,
                user_namespaces=config.userns_remap == "auto" and inside is None,
                apparmor=AppArmor(config.data_root / "apparmor") if inside is None else None,
                rootless=inside is not None,
                controllers=layout_for(cgroup_parent).unified_controllers,
            )
            if config.userns_remap == "auto" and inside is None and not engine.user_namespaces.by_default:
                log.info("containers have the host's user ids", why=engine.user_namespaces.why_not)
            stack.push_async_callback(engine.close)
            await engine.recover()
            await remove_leftovers(engine)
            moves = Moves(config.data_root / "moves", engine=engine, images=images, clock=clock)
            stack.push_async_callback(moves.close)
            await moves.recover()
            doctor = Doctor(HostDoctor(network, apparmor=engine.apparmor), moves.peers)
            stack.callback(doctor.host.close)
            events = EventLog(clock)
            membership = Membership(
                config,
                clock,
                engine=engine,
                images=images,
                network=network,
                locator=locator,
                events=events,
                moves=moves,
                doctor=doctor.host,
                fatal=self._fatal,
            )
            underlay.ask = membership.underlay_address
            requests = RequestFigures()
            exposition = Exposition(membership=membership, engine=engine, images=images, requests=requests, clock=clock)
            app = engine_app(
                config=config,
                membership=membership,
                engine=engine,
                images=images,
                bridge=BRIDGE,
                locator=locator,
                events=events,
                moves=moves,
                doctor=doctor,
                exposition=exposition,
                requests=requests,
                clock=clock,
            )
            pages = DashboardPages(app, mode=config.dashboard)
            guarded = BrowserGuard(pages, hosts=config.dashboard_hosts)
            listeners = self._listeners(guarded, metrics_app(exposition))
            await membership.open()
            stack.push_async_callback(membership.close)
            tasks = [asyncio.create_task(listener.run(), name=listener.name) for listener in listeners]
            upkeep = [
                asyncio.create_task(events.follow_containers(engine), name="container events"),
                asyncio.create_task(_keep_network_true(network, engine, membership), name="network upkeep"),
                asyncio.create_task(give_back_unused(), name="memory upkeep"),
                asyncio.create_task(moves.run(), name="moves"),
            ]
            tasks += upkeep
            for listener in listeners:
                await listener.started()
            log.info("ready", version=__version__, hosts=list(config.hosts), data_root=str(config.data_root))
            notify("READY=1")
            try:
                await self._until_stopped(tasks)
            finally:
                notify("STOPPING=1")
                log.info("stopping", cause=str(self._cause or "asked to"))
                for listener in listeners:
                    listener.stop()
                for task in upkeep:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for listener in listeners:
                    listener.forget()
        if self._cause is not None:
            raise self._cause

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        stop = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait((stop, *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
                raise errors.InvariantError(f"{task.get_name()} ended by itself")
        finally:
            stop.cancel()

    def _listeners(self, app: Any, metrics: Any) -> list[Listener]:
        config = self._config
        result = []
        for host in config.hosts:
            parts = urlsplit(host)
            if parts.scheme == "unix":
                result.append(Listener(app, [unix_socket(Path(parts.path), group=_group(config.group))], name=host))
                continue
            tls = _server_tls(config)
            address, port = parts.hostname or "", parts.port or (2376 if tls else 2375)
            if tls is None and not address.startswith("127.") and address != "localhost":
                raise errors.UserError(
                    f"listen on {host}: without TLS anybody who reaches this port is root here; "
                    "give --tlscert and --tlskey, or listen on 127.0.0.1"
                )
            result.append(Listener(app, [tcp_socket(address, port)], name=host, tls=tls, half_open=True))
        if config.metrics_addr:
            address, port = split_address(config.metrics_addr, default_port=METRICS_PORT, what="--metrics-addr")
            result.append(Listener(metrics, [tcp_socket(address, port)], name=f"metrics at {address}:{port}"))
        return result


async def _keep_network_true(network: HostNetwork, engine: ContainerEngine, membership: Membership) -> None:
    """Until cancelled: compare the kernel with what should be there, mend drift, and say what was mended."""
    while True:
        await asyncio.sleep(_UPKEEP_S)
        wanted = {BRIDGE.id, *(made.id for made in engine.networks.all())}
        if membership.agent is not None:
            wanted |= membership.agent.worker.assigned_networks()
        try:
            mended = await network.reconcile(
                keep_sandboxes={container.id for container in engine.list()}, keep_networks=wanted
            )
        except errors.FleetError as cause:
            log.warning("network not compared", cause=str(cause))
            continue
        for sentence in mended:
            log.warning("network mended", what=sentence)


class _Underlay:
    """This host's VXLAN address, asked of the membership once there is one."""

    def __init__(self) -> None:
        self.ask: Callable[[], str] = lambda: "127.0.0.1"

    def __call__(self) -> str:
        return self.ask()


def _prepare_root(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as cause:
        raise errors.UserError(f"folder {folder}: {cause.strerror}") from cause


def _lock(folder: Path) -> int:
    """Hold the folder for this process; released by the kernel when it ends. Raises ``ConflictError`` naming the holder."""
    descriptor = os.open(folder / "fleetd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise errors.ConflictError(
            f"another fleetd (process {holder}) uses {folder}; stop it, or give this one other --data-root and --exec-root"
        ) from cause
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _host_id(data_root: Path) -> str:
    """Eight hex digits that mark this daemon's kernel objects; made once."""
    path = data_root / "host-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        made = secrets.token_hex(4)
        temporary = path.with_suffix(".new")
        temporary.write_text(made + "\n")
        temporary.replace(path)
        return made


def _group(name: str) -> int | None:
    if not name:
        return None
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as cause:
        raise errors.UserError(f"--group: there is no group {name!r} on this host") from cause


def _server_tls(config: DaemonConfig) -> ssl.SSLContext | None:
    if not (config.tlscert or config.tlskey or config.tlsverify):
        return None
    if not (config.tlscert and config.tlskey):
        raise errors.UserError("TLS needs both --tlscert and --tlskey")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(config.tlscert, config.tlskey)
        if config.tlsverify and config.tlscacert is None:
            raise errors.UserError("--tlsverify needs --tlscacert: the authority of client certificates")
        if config.tlscacert is not None:
            context.load_verify_locations(config.tlscacert)
            context.verify_mode = ssl.CERT_REQUIRED if config.tlsverify else ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as cause:
        raise errors.UserError(f"TLS certificate, key or authority: {cause}") from cause
    return context
