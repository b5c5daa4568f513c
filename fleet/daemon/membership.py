"""This host's place in a cluster: founding one, joining, leaving, and taking up again after a restart.

States (Docker's ``LocalNodeState``): *inactive* (in no cluster), *pending* (joining), *active*, *error* (was a member and
cannot be one now; the text says why).

Order of writes, so that a crash at any point leaves either no membership or a whole one: (1) the manager's database or the
certificate, (2) the identity, (3) ``state.json``. Only (3) makes this host a member; what (1) and (2) left behind without it
is removed by the next init or join. Leaving removes (3) first.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import httpx
import msgspec

from fleet import errors
from fleet.agent.agent import Agent
from fleet.agent.image_sources import ImageLocator
from fleet.agent.node_facts import describe_host
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.daemon.addresses import CLUSTER_PORT, has_global_ipv6, split_address
from fleet.daemon.cluster_app import cluster_app
from fleet.daemon.config import DaemonConfig
from fleet.daemon.control import Control
from fleet.daemon.doctor import HostDoctor
from fleet.daemon.events import EventLog
from fleet.daemon.joining import (
    JOIN_TIMEOUT_S,
    InitRequest,
    JoinSwarmRequest,
    ask_managers,
    parse_availability,
    request_to_join,
)
from fleet.daemon.listeners import Listener, tcp_socket
from fleet.daemon.moves import Moves
from fleet.daemon.node_identity import REMOVED_FILE, USERS_FILE, IdentityKeeper, known_users
from fleet.daemon.place import choose_place, listen_host
from fleet.daemon.service_logs import ServiceLogs
from fleet.daemon.swarm_state import SwarmState, SwarmStateFile
from fleet.engines.etcd_member import find_etcd
from fleet.identity.keys import (
    LockedError,
    NodeIdentity,
    generate_request,
    load_identity,
    make_identity,
    remove_identity,
    save_identity,
)
from fleet.identity.tokens import check_root, parse_token, parse_unlock_key
from fleet.images import ImageStore
from fleet.logs import get_logger
from fleet.manager.admission import JoinRequest, found_cluster, take_over_cluster
from fleet.manager.majority import Majority
from fleet.manager.role import ManagerRole, new_id
from fleet.model.cluster import DEFAULT_ADDRESS_POOL, DEFAULT_DATA_PATH_PORT
from fleet.model.common import TlsInfo
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeDescription, NodeRole
from fleet.network.host import HostNetwork
from fleet.store.backup import BackupReader
from fleet.store.sealing import save_key

__all__ = ["Membership"]

log = get_logger("membership")


_LOOK_S: Final = 0.05

NOT_A_MANAGER: Final = (
    "This node is not a swarm manager. "
    'Use "fleet swarm init" or "fleet swarm join" to connect this node to swarm and try again.'
)
LOCKED: Final = (
    'Swarm is encrypted and needs to be unlocked before it can be used. Please use "fleet swarm unlock" to unlock it.'
)
WORKER_ONLY: Final = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)


@dataclass(slots=True)
class _Active:
    """Everything that exists only while this host is a member."""

    state: SwarmState
    keeper: IdentityKeeper
    agent: Agent
    listener: Listener
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Membership:
    """``open`` at daemon start, ``close`` at its end; the rest are the swarm verbs. One verb at a time."""

    def __init__(
        self,
        config: DaemonConfig,
        clock: Clock,
        *,
        engine: ContainerEngine,
        images: ImageStore,
        network: HostNetwork,
        locator: ImageLocator,
        events: EventLog,
        moves: Moves,
        doctor: HostDoctor,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._engine = engine
        self._images = images
        self._network = network
        self._locator = locator
        self._events = events
        self._moves = moves
        self._doctor = doctor
        self._fatal = fatal
        self._folder = config.data_root / "swarm"
        self._file = SwarmStateFile(self._folder)
        self._identity_folder = self._folder / "identity"
        self._control = Control(self._folder, config, clock, containers=engine, events=events, spawn=self._spawn)
        self._active: _Active | None = None
        self._verb = asyncio.Lock()
        self._error = ""
        self._locked = False
        self.is_pending = False

    # What others ask ------------------------------------------------------------------------------------------

    @property
    def state(self) -> SwarmState | None:
        """Present while this host is a member."""
        return self._active.state if self._active else None

    @property
    def error(self) -> str:
        """Why this host is not what it should be; empty if it is."""
        return self._error or self._control.error

    @property
    def local_state(self) -> str:
        """Docker's word for it."""
        if self._active is not None:
            return "active"
        if self._locked:
            return "locked"
        return "pending" if self.is_pending else "error" if self.error else "inactive"

    @property
    def identity(self) -> NodeIdentity | None:
        return self._active.keeper.identity if self._active else None

    @property
    def agent(self) -> Agent | None:
        return self._active.agent if self._active else None

    def manager(self) -> ManagerRole:
        """The manager role. Raises ``UnavailableError`` with Docker's text when this host has none."""
        if self._locked:
            raise errors.UnavailableError(LOCKED)
        if self._active is None:
            raise errors.UnavailableError(f"{NOT_A_MANAGER}{f' ({self.error})' if self.error else ''}")
        if self._control.role is None:
            if self._active.state.role is NodeRole.MANAGER:
                raise errors.UnavailableError(self.error or "the cluster's state is being opened", retry_after_s=1.0)
            raise errors.UnavailableError(WORKER_ONLY)
        return self._control.role

    @property
    def has_control(self) -> bool:
        """Whether ``manager`` has an answer: not at a worker, nor while the cluster's state cannot be reached."""
        return self._active is not None and self._control.role is not None

    def known_users(self) -> frozenset[str]:
        """Names of the cluster's users as this node was last told; also while it is locked or cannot be a member."""
        return self._active.keeper.users if self._active is not None else known_users(self._identity_folder)

    @property
    def raft_term(self) -> int | None:
        """Of the etcd that keeps the cluster's state; None where it is kept in a file, or not here."""
        return self._control.raft_term

    def majority(self) -> Majority | None:
        """Whether the state is sure to be the newest; None where this host has none."""
        return self._control.role.majority if self._control.role is not None else None

    def service_logs(self) -> ServiceLogs:
        """Reader of tasks' logs; managers only, see ``manager``."""
        self.manager()
        assert self._control.logs is not None
        return self._control.logs

    def underlay_address(self) -> str:
        """Where this host's VXLAN ends; loopback while in no cluster."""
        state = self.state
        return (state.data_path_address or state.advertise_address) if state else "127.0.0.1"

    def description(self) -> NodeDescription:
        """This host, as told to managers."""
        tls_info = self._active.keeper.tls_info if self._active else TlsInfo()
        return describe_host(
            hostname=self._config.hostname,
            labels=self._config.engine_labels,
            tls_info=tls_info,
            tunnel_key=self._network.tunnel_key,
        )

    # Life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up the membership this host had; a broken one is kept as an error, so that it can be left."""
        state = await asyncio.to_thread(self._file.load)
        if state is None:
            return
        try:
            identity = await asyncio.to_thread(load_identity, self._identity_folder)
        except LockedError:
            self._locked = True
            log.warning("this manager is locked: fleet swarm unlock")
            return
        await self._take_up(state, identity)

    async def unlock(self, unlock_key: str) -> None:
        """Take up the membership of a locked manager.

        Raises ``ConflictError`` if it is not locked, ``UserError`` for a wrong key."""
        async with self._verb:
            if not self._locked:
                raise errors.ConflictError("swarm is not locked")
            given = parse_unlock_key(unlock_key)
            state = await asyncio.to_thread(self._file.load)
            assert state is not None
            identity, passphrase, other = await asyncio.to_thread(self._unlocked, given)
            await asyncio.to_thread(self._control.locks.take_up, passphrase, other)
            self._locked = False
            await self._take_up(state, identity)

    def _unlocked(self, given: bytes) -> tuple[NodeIdentity | None, bytes, bytes | None]:
        """The identity, what opened it, and the key beside that if a change of keys was cut short."""
        other = self._control.locks.other(given)
        for passphrase, remaining in ((given, other), (other, given)):
            if passphrase is not None:
                with suppress(LockedError):
                    return load_identity(self._identity_folder, passphrase=passphrase), passphrase, remaining
        raise errors.UserError("swarm could not be unlocked: invalid key provided")

    async def _take_up(self, state: SwarmState, identity: NodeIdentity | None) -> None:
        if identity is None or identity.cluster_id != state.cluster_id:
            self._error = "the node's certificate is missing; leave the swarm and join again"
            log.error("not a member any more", cause=self.error)
            return
        if identity.role is not state.role:  # the certificate changed, then the host went down
            state = msgspec.structs.replace(state, role=identity.role)
            await asyncio.to_thread(self._file.save, state)
        await self._activate(state, identity)

    async def close(self) -> None:
        """Stop taking part; containers go on."""
        async with self._verb:
            await self._deactivate()

    async def init(self, request: InitRequest) -> str:
        """Found a cluster; returns the node's id. Raises ``UnavailableError`` when already in one (Docker: 503)."""
        self._refuse_rootless("swarm init")
        if request.force_new_cluster:
            return await self._begin_anew()
        async with self._verb:
            self._refuse_member()
            place = await choose_place(request.listen_addr, request.advertise_addr, request.data_path_addr)
            cluster_id = ClusterId(new_id())
            availability = parse_availability(request.availability)
            port_ = request.data_path_port or DEFAULT_DATA_PATH_PORT
            if not 1024 <= port_ <= 49151:
                raise errors.UserError(f"--data-path-port: {port_} is not between 1024 and 49151")
            await self._clean()
            place.probe()
            node_id = NodeId(new_id())
            engine, store = await self._control.open_state(cluster_id, node_id)
            try:
                identity = await found_cluster(
                    store,
                    self._clock,
                    new_id,
                    cluster_id=cluster_id,
                    node_id=node_id,
                    key=generate_request(),
                    spec=request.spec,
                    hostname=self._config.hostname,
                    address=place.address,
                    cluster_addr=place.cluster_addr,
                    availability=availability,
                    data_path_port=port_,
                    address_pools=request.default_addr_pool or DEFAULT_ADDRESS_POOL,
                    subnet_size=request.subnet_size or 24,
                    ingress_ipv6=await asyncio.to_thread(has_global_ipv6),
                )
            finally:
                await store.close()
                await engine.close()
            await self._become_member(place.state(identity, managers=(place.cluster_addr,)), identity)
            log.info("cluster founded", cluster=cluster_id, node=identity.node_id, address=place.cluster_addr)
            return identity.node_id

    async def _begin_anew(self) -> str:
        """``--force-new-cluster``: this manager goes on alone with the state it has; the other managers are to be workers."""
        async with self._verb:
            active = self._active
            if active is None or active.state.role is not NodeRole.MANAGER:
                raise errors.UnavailableError(
                    "force-new-cluster: this host has no state to begin from; run it on a manager, or restore a backup "
                    "(fleet swarm restore)"
                )
            await self._control.begin_anew()
            return active.state.node_id

    async def backup(self) -> AsyncIterator[bytes]:
        """The cluster's state as a file, see ``fleet.store.backup``; managers only."""
        self.manager()
        assert self._active is not None
        async for piece in self._control.backup(self._active.state.cluster_id):
            yield piece

    async def restore(self, pieces: AsyncIterator[bytes], *, listen_addr: str, advertise_addr: str) -> str:
        """Take a cluster up again from a backup, as its only manager; returns this host's new node id.

        Raises ``UserError`` for anything else than a whole backup with its key, ``UnavailableError`` when in a cluster.
        """
        async with self._verb:
            self._refuse_member()
            if self._config.store:
                raise errors.UnsupportedError(
                    "restore: start fleetd without --store; the state begins in a file of its own"
                )
            reader = BackupReader()
            async for piece in pieces:
                reader.feed(piece)
            header, entries = reader.finish()
            if header.sealing_key is None:
                raise errors.UserError("the backup was made without its key and cannot be opened")
            place = await choose_place(listen_addr, advertise_addr, "")
            await self._clean()
            place.probe()
            node_id, key = NodeId(new_id()), generate_request()
            await asyncio.to_thread(self._folder.mkdir, mode=0o711, parents=True, exist_ok=True)
            await asyncio.to_thread(save_key, self._folder / "store.key", header.sealing_key)
            engine, store = await self._control.open_state(header.cluster_id, node_id, entries=entries)
            try:
                identity = await take_over_cluster(
                    store,
                    self._clock,
                    node_id=node_id,
                    key=key,
                    hostname=self._config.hostname,
                    address=place.address,
                    cluster_addr=place.cluster_addr,
                )
            finally:
                await store.close()
                await engine.close()
            await self._become_member(place.state(identity, managers=(place.cluster_addr,)), identity)
            log.info("cluster restored", cluster=header.cluster_id, node=node_id, revision=header.revision)
            return node_id

    def _refuse_rootless(self, verb: str) -> None:
        if self._config.rootless:
            raise errors.UnsupportedError(
                f"{verb}: this fleetd runs without root, so other hosts' containers cannot be reached from its network namespace "
                "(VXLAN, published ports of every node); run fleetd as root on hosts of a cluster"
            )

    async def join(self, request: JoinSwarmRequest) -> None:
        """Join the cluster of ``remote_addrs``. Raises ``UserError``/``UnauthorizedError`` for a bad token or a foreign
        root, ``UnavailableError`` when no manager can be reached."""
        self._refuse_rootless("swarm join")
        async with self._verb:
            self._refuse_member()
            if not request.remote_addrs:
                raise errors.UserError("at least one RemoteAddr is required to join")
            token = parse_token(request.join_token)
            availability = parse_availability(request.availability)
            place = await choose_place(request.listen_addr, request.advertise_addr, request.data_path_addr)
            await self._clean()
            self.is_pending = True
            try:
                key = generate_request()
                wish = JoinRequest(
                    token=request.join_token.strip(),
                    csr_pem=key.csr_pem,
                    hostname=self._config.hostname,
                    address=place.data_path or place.address,
                    availability=availability,
                    labels=request.labels,
                    has_store=bool(self._config.store),
                    lacks=await asyncio.to_thread(_lacks),
                )
                answer = await ask_managers(
                    request.remote_addrs,
                    lambda remote: request_to_join(remote, wish, lambda pem: check_root(token, pem)),
                    failure="could not reach a manager to join",
                )
            finally:
                self.is_pending = False
            identity = make_identity(cert_pem=answer.certificate_pem, key_pem=key.key_pem, ca_pem=answer.ca_pem)
            await self._become_member(place.state(identity, managers=answer.managers), identity)
            log.info("joined", cluster=answer.cluster_id, node=answer.node_id, role=identity.role.value)
        agent = self.agent
        if agent is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(JOIN_TIMEOUT_S):
                    await agent.session.connected.wait()
                    while identity.role is NodeRole.MANAGER and not self.has_control:
                        await self._clock.sleep(_LOOK_S)
                return
            raise errors.UnavailableError(
                "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. "
                f"({self.error or agent.session.last_error})"
            )

    async def leave(self, *, force: bool) -> None:
        """Leave: tasks here are stopped and removed, the cluster's networks and this host's membership are gone."""
        async with self._verb:
            active = self._active
            if active is None and self._locked:
                if not force:
                    raise errors.UnavailableError(LOCKED)
                await self._clean()
                self._locked = False
                return
            if active is None:
                if not self.error:
                    raise errors.UnavailableError("This node is not part of a swarm")
                await self._clean()
                self._error = ""
                return
            if active.state.role is NodeRole.MANAGER and not force:
                raise errors.UnavailableError(
                    "You are attempting to leave the swarm on a node that is participating as a manager. "
                    f"{_cost_of_leaving(self._others(active))} Use `--force` to ignore this message. "
                )
            is_last = active.state.role is NodeRole.MANAGER and self._others(active) == 0
            networks = active.agent.worker.assigned_networks()
            await asyncio.to_thread(self._file.remove)
            await self._deactivate(erase=is_last)
            self._error = ""
            # After the agent has ended: it would open its session again, and the node be ready.
            if not is_last:
                await self._say_farewell(active)
                await self._control.await_removal()
            await self._remove_tasks()
            for network_id in networks:
                await self._network.remove_network(network_id)
            await self._network.apply_published(())
            await self._clean()
            log.info("left", cluster=active.state.cluster_id, node=active.state.node_id)

    # Parts ----------------------------------------------------------------------------------------------------

    def _others(self, active: _Active) -> int:
        """How many managers there are besides this one, as far as is known here."""
        others = self._control.others()
        return len(active.state.managers) - 1 if others is None else others

    def _refuse_member(self) -> None:
        if self._active is not None or self.error or self._locked:
            raise errors.UnavailableError(
                'This node is already part of a swarm. Use "fleet swarm leave" to leave this swarm and join another one.'
            )

    async def _become_member(self, state: SwarmState, identity: NodeIdentity) -> None:
        await asyncio.to_thread(save_identity, self._identity_folder, identity)
        await asyncio.to_thread(self._file.save, state)
        await self._activate(state, identity)

    async def _clean(self) -> None:
        """Remove what a former membership or an interrupted init or join left."""
        await asyncio.to_thread(self._file.remove)
        await asyncio.to_thread(remove_identity, self._identity_folder)
        for name in (REMOVED_FILE, USERS_FILE):
            (self._identity_folder / name).unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._folder / "agent", ignore_errors=True)
        await self._control.forget()

    async def _activate(self, state: SwarmState, identity: NodeIdentity) -> None:
        keeper = IdentityKeeper(
            self._identity_folder,
            identity,
            self._clock,
            managers=lambda: self.state.managers if self.state else (),
            role_changed=self._role_changed,
            passphrase=self._control.locks.passphrase,
        )
        tls = keeper.client_tls
        folder = self._folder / "agent"
        await asyncio.to_thread(lambda: folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        host, port = split_address(state.listen_address, default_port=CLUSTER_PORT, what="listen address")
        listening = tcp_socket(listen_host(host), port)
        listener = Listener(
            cluster_app(
                cluster_id=state.cluster_id,
                manager=self.manager,
                images=self._images,
                engine=self._engine,
                removed=lambda: keeper.removed,
                control=self._control,
                moves=self._moves,
                doctor=self._doctor,
            ),
            [listening],
            name="cluster",
            tls=keeper.listener_tls,
        )
        own = f"{state.advertise_address}:{state.cluster_port}"
        agent = Agent(
            state_dir=folder,
            engine=self._engine,
            images=self._images,
            network=self._network,
            locator=self._locator,
            clock=self._clock,
            tls=tls,
            cluster_id=state.cluster_id,
            node_id=state.node_id,
            address=state.data_path_address or state.advertise_address,
            cluster_port=state.cluster_port,
            managers=state.managers,
            managers_changed=self._managers_changed,
            trust_changed=keeper.follow,
            description=self.description,
            data=self._moves.task_target,
        )
        active = _Active(state=state, keeper=keeper, agent=agent, listener=listener)
        self._active = active
        self._error = ""
        self._locator.tls = tls
        self._locator.own_address = own
        self._locator.managers = lambda: self.state.managers if self.state else ()
        self._moves.join(tls, self._locator.managers)
        try:
            if state.role is NodeRole.MANAGER:
                await self._begin_control(active)
            elif (self._folder / "store").exists():  # demoted, then the host went down
                await self._control.forget()
        except BaseException:
            listening.close()
            self._active = None
            raise
        active.tasks.append(self._spawn(listener.run(), "cluster listener"))
        active.tasks.append(self._spawn(agent.run(), "agent"))
        active.tasks.append(self._spawn(keeper.run(), "node identity"))

    async def _begin_control(self, active: _Active) -> None:
        await self._control.begin(
            lambda: active.state,
            active.keeper,
            suspects_leader=lambda: not active.agent.session.connected.is_set(),
        )

    def _role_changed(self) -> None:
        active = self._active
        if active is not None:
            active.tasks.append(self._spawn(self._follow_role(active), "change of role"))

    async def _follow_role(self, active: _Active) -> None:
        """Promoted or demoted: the certificate says so already."""
        async with self._verb:
            role = active.keeper.identity.role
            if self._active is not active or role is active.state.role:
                return
            active.state = msgspec.structs.replace(active.state, role=role)
            await asyncio.to_thread(self._file.save, active.state)
            log.info("role changed", role=role.value)
            if role is NodeRole.MANAGER:
                await self._begin_control(active)
                return
            await self._control.end()
            await self._control.forget()

    def _spawn(self, work: Awaitable[None], name: str) -> asyncio.Task[None]:
        async def watched() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException as cause:
                log.error("part failed", part=name, cause=repr(cause))
                self._fatal(cause)
                raise

        return asyncio.create_task(watched(), name=name)

    async def _deactivate(self, *, erase: bool = False) -> None:
        active, self._active = self._active, None
        if active is None:
            return
        self._locator.tls = None
        self._moves.leave_cluster()
        active.listener.stop()
        current = asyncio.current_task()
        tasks = [task for task in active.tasks if task is not current]
        for task in reversed(tasks):
            if task.get_name() != "cluster listener":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if erase:
            await self._control.erase(active.state.cluster_id)
        else:
            await self._control.end()

    def _managers_changed(self, managers: tuple[str, ...]) -> None:
        active = self._active
        if active is None or active.state.managers == managers:
            return
        active.state = msgspec.structs.replace(active.state, managers=managers)
        self._file.save(active.state)

    async def _remove_tasks(self) -> None:
        for container in list(self._engine.list()):
            if "com.docker.swarm.task.id" in container.labels:
                with suppress(errors.NotFoundError):
                    await self._engine.stop(container.id, grace_s=5.0)
                with suppress(errors.NotFoundError):
                    await self._engine.remove(container.id, force=True, volumes=True)

    async def _say_farewell(self, active: _Active) -> None:
        async with httpx.AsyncClient(verify=active.keeper.client_tls(), timeout=3.0, trust_env=False) as client:
            own = f"{active.state.advertise_address}:{active.state.cluster_port}"
            for manager in active.state.managers:
                if manager == own:
                    continue
                try:
                    answer = await client.post(f"https://{manager}/cluster/v1/leave")
                except httpx.HTTPError as cause:
                    log.warning("manager not told of leaving", manager=manager, cause=str(cause))
                    continue
                if answer.status_code < 400:
                    return


def _lacks() -> str:
    try:
        find_etcd()
    except errors.UserError as cause:
        return str(cause)
    return ""


def _cost_of_leaving(others: int) -> str:
    if not others:
        return "Removing the last manager erases all current state of the swarm."
    return (
        f"{others} manager{'s are' if others > 1 else ' is'} left then; demote the node first (fleet node demote), so that the "
        "others let go of it in order."
    )
