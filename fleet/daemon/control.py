"""This host as a manager: which state engine it uses, opening the state, moving it, and the role that stands on it.

There are three places for the cluster's state, and a host is told by what it finds: an *external* etcd (``--store``), the
*own* etcd of fleet (``own_state``), or, for a single manager, an SQLite file. The file becomes an own etcd by itself when a
second manager asks for its kit.

Opening never ends in failure for want of a majority or of another manager: it is tried again, and meanwhile containers and
agent go on and ``error`` says what is waited for.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from fleet import errors
from fleet.cancellation import cancel_and_wait
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.daemon.config import DaemonConfig
from fleet.daemon.events import EventLog
from fleet.daemon.joining import KitRequest, ManagerKit
from fleet.daemon.locks import Locks
from fleet.daemon.node_identity import IdentityKeeper
from fleet.daemon.own_state import OwnState, fetch_kit
from fleet.daemon.service_logs import ServiceLogs
from fleet.daemon.state_engine import choose_engine, erase_state
from fleet.daemon.swarm_state import SwarmState
from fleet.engines.etcd_member import find_etcd
from fleet.identity.keys import generate_request
from fleet.identity.tokens import parse_unlock_key
from fleet.logs import get_logger
from fleet.manager.admission import release_other_managers
from fleet.manager.role import ManagerRole
from fleet.manager.sealing_rotation import keep_sealing_keys
from fleet.model.cluster import RaftConfig
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import Node
from fleet.store import Kind, Store
from fleet.store.backup import backup_lines, put_into
from fleet.store.engine import Engine
from fleet.store.sealing import AesSealer, load_or_create_key, save_key

__all__ = ["Control", "Spawn"]

log = get_logger("control")

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]

_REOPEN_FIRST_S: Final = 1.0
_REOPEN_MAX_S: Final = 15.0
_RETRY_S: Final = 1.0
_PATIENCE_S: Final = 3.0
"""For how long a start of the daemon waits for the state; then it goes on opening while everything else begins."""


class Control:
    """``begin`` and ``end`` it; in between ``role`` is there whenever the state could be opened.

    ``state`` is this host's membership, ``tls`` its client context, ``suspects_leader`` whether its session is broken.
    ``spawn`` runs a task whose failure ends the daemon.
    """

    def __init__(
        self,
        folder: Path,
        config: DaemonConfig,
        clock: Clock,
        *,
        containers: ContainerEngine,
        events: EventLog,
        spawn: Spawn,
    ) -> None:
        self._folder = folder
        self._config = config
        self._clock = clock
        self._containers = containers
        self._events = events
        self._spawn = spawn
        self._own = OwnState(folder, clock, run_folder=config.exec_root / "etcd")
        self.locks = Locks(folder, self._own)
        self._moving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._state: Callable[[], SwarmState] | None = None
        self._keeper: IdentityKeeper | None = None
        self._suspects_leader: Callable[[], bool] = lambda: False
        self._engine: Engine | None = None
        self._sealer: AesSealer | None = None
        self._raft = RaftConfig()
        self.store: Store | None = None
        self.role: ManagerRole | None = None
        self.logs: ServiceLogs | None = None
        self.error = ""
        """Why there is no role; empty when there is one, or none is wanted."""

    @property
    def raft_term(self) -> int | None:
        """Of the etcd that keeps the state, as last heard; None where a file keeps it."""
        term: int | None = getattr(self._engine, "raft_term", None)
        return term

    @property
    def _keeps_own(self) -> bool:
        """Whether the state is in an etcd that fleet keeps on this host."""
        return self._own.is_used and not self._config.store

    # -- opening and closing

    async def open_state(
        self, cluster_id: ClusterId, node_id: NodeId, *, entries: dict[str, bytes] | None = None
    ) -> tuple[Engine, Store]:
        """Both started; the caller closes them. ``entries`` go into an empty engine first.

        Raises ``UnavailableError``, and ``UserError`` when the state is another's."""
        folder = self._folder / "store"
        await asyncio.to_thread(lambda: folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        key = await asyncio.to_thread(_store_key, folder, self.locks.passphrase)
        engine: Engine
        if self._keeps_own:
            engine = await self._own.open(cluster_id=cluster_id, node_id=node_id)
        else:
            engine = await asyncio.to_thread(
                choose_engine, self._config, folder, cluster_id=cluster_id, node_id=node_id, clock=self._clock
            )
        try:
            await engine.start()
            if entries is not None:
                await put_into(engine, entries)
            self._sealer = AesSealer(key)
            return engine, await Store.open(engine, sealer=self._sealer)
        except BaseException:
            await engine.close()
            raise

    async def begin(
        self,
        state: Callable[[], SwarmState],
        keeper: IdentityKeeper,
        *,
        suspects_leader: Callable[[], bool],
    ) -> None:
        """Be a manager, in a moment or as soon as the state can be opened. Raises ``UserError`` when it is another cluster's."""
        self._state, self._keeper, self._suspects_leader = state, keeper, suspects_leader
        if not self._config.store:
            await self._own.remove_leftovers()
        opening = self._spawn(self._open(), "opening of the state")
        self._tasks.append(opening)
        await asyncio.wait({opening}, timeout=_PATIENCE_S)
        if opening.done():
            opening.result()
        elif not self.error:
            self.error = "the cluster's state cannot be reached yet; trying on"

    async def _begin_again(self) -> None:
        await self.end()
        assert self._state is not None
        assert self._keeper is not None
        await self.begin(self._state, self._keeper, suspects_leader=self._suspects_leader)

    async def _take(self) -> None:
        assert self._state is not None
        assert self._keeper is not None
        state, keeper = self._state(), self._keeper
        own = f"{state.advertise_address}:{state.cluster_port}"
        others = [address for address in state.managers if address != own]
        if not (self._folder / "store.key").exists() and others:
            await self._equip_self(state, others)
        if self._keeps_own:
            await self._own.ask_for_vote(others, self._keeper.client_tls(), peer=_peer(state))
        self._engine, self.store = await self.open_state(state.cluster_id, state.node_id)
        role = ManagerRole(
            self.store,
            self._engine,
            self._clock,
            node_id=state.node_id,
            cluster_addr=own,
            has_external_store=bool(self._config.store),
            suspects_leader=self._suspects_leader,
            release=self._release,
            identity=lambda: keeper.identity,
        )
        self.logs = ServiceLogs(store=self.store, engine=self._containers, node_id=state.node_id, tls=keeper.client_tls)
        self.role = role
        if self._keeps_own:
            self._tasks.append(self._spawn(self._own.keep(), "etcd"))
        self._tasks.append(self._spawn(self._follow_keys(self.store, state.node_id), "keys"))
        self._tasks.append(self._spawn(role.run(), "manager"))
        self._tasks.append(self._spawn(self._events.follow_store(self.store), "cluster events"))
        self.error = ""

    async def _equip_self(self, state: SwarmState, others: list[str]) -> None:
        assert self._keeper is not None
        if not self._config.store:
            try:
                await asyncio.to_thread(find_etcd)
            except errors.UserError as cause:
                raise errors.UnavailableError(f"this node is to be a manager: {cause}") from cause
        key = generate_request()
        kit = await fetch_kit(others, self._keeper.client_tls(), key=key, peer=_peer(state))
        if kit.member is not None:
            await self._own.settle_in(kit.member, key, node_id=state.node_id, peer=_peer(state))
        # Last: without it the next start asks for a kit again.
        await asyncio.to_thread(save_key, self._folder / "store.key", kit.sealing_key, passphrase=self.locks.passphrase)

    async def _open(self) -> None:
        """Until it is open. State that turns out to be another's ends the daemon."""
        pause_s = _REOPEN_FIRST_S
        while True:
            try:
                await self._take()
            except errors.UnavailableError as cause:
                self._cannot_open(cause)
            else:
                return
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _REOPEN_MAX_S)

    def _cannot_open(self, cause: errors.UnavailableError) -> None:
        self.error = f"the cluster's state cannot be reached: {cause}"
        log.warning("state not opened; trying again", cause=str(cause))

    async def end(self) -> None:
        """Manage no more for now; an own etcd goes on. Idempotent."""
        await self._end_role()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
        self.error = ""

    async def _end_role(self) -> None:
        """Everything that uses the store, and the store; the engine stays open."""
        current = asyncio.current_task()
        tasks, self._tasks = [task for task in self._tasks if task is not current], []
        await cancel_and_wait(*reversed(tasks))
        self.role = self.logs = None
        store, self.store = self.store, None
        if store is not None:
            await store.close()

    async def erase(self, cluster_id: ClusterId) -> None:
        """End, and remove the cluster's state from wherever it is: this was the last manager."""
        await self._end_role()
        await erase_state(self._engine, self._config, cluster_id)
        await self.end()
        await self.forget()

    async def forget(self) -> None:
        """Remove what this host has of the cluster's state; it has ended. Idempotent."""
        await self._own.erase()
        await asyncio.to_thread(self.locks.forget)
        await asyncio.to_thread(shutil.rmtree, self._folder / "store", ignore_errors=True)
        await asyncio.to_thread((self._folder / "store.key").unlink, missing_ok=True)

    async def await_removal(self) -> None:
        """See ``OwnState``."""
        await self._own.await_removal()

    def others(self) -> int | None:
        """How many managers there are besides this one; None while the state is not open."""
        if self.store is None or self._state is None:
            return None
        own = self._state().node_id
        return sum(node.manager_status is not None and node.id != own for node in self.store.nodes.all())

    # -- locked

    async def _follow_keys(self, store: Store, node_id: NodeId) -> None:
        """Keep the keys on disk as the cluster says: locked (``swarm update --autolock``) and the right ones."""
        with store.subscribe(Kind.CLUSTER, Kind.AUTHORITY, Kind.NODE) as changes:
            while True:
                for cluster in store.clusters.all():
                    wanted = parse_unlock_key(cluster.unlock_key) if cluster.unlock_key else None
                    if wanted != self.locks.passphrase:
                        assert self._keeper is not None
                        await self.locks.change(wanted, self._keeper.relock)
                    raft = cluster.spec.raft
                    if raft != self._raft and await asyncio.to_thread(
                        self._own.keep_snapshots, interval=raft.snapshot_interval, kept=raft.keep_old_snapshots
                    ):
                        log.info(
                            "etcd makes snapshots otherwise from its next start on", interval=raft.snapshot_interval
                        )
                    self._raft = raft
                try:
                    if self._sealer is not None:
                        await keep_sealing_keys(store, self._sealer, self._clock, node_id, save=self._save_key)
                except (errors.UnavailableError, errors.ConflictError) as cause:
                    log.warning("the managers are not told yet that this one keeps the new key", cause=str(cause))
                    await self._clock.sleep(_RETRY_S)
                    continue
                await changes.wait()

    async def _save_key(self, keys: bytes) -> None:
        await asyncio.to_thread(save_key, self._folder / "store.key", keys, passphrase=self.locks.passphrase)

    # -- begun anew, kept elsewhere

    async def begin_anew(self) -> None:
        """Go on without the other managers, whose majority is lost for good. Raises ``UnsupportedError`` on an etcd that is not
        fleet's to repair."""
        if self._config.store:
            raise errors.UnsupportedError(
                f"the state is in an etcd of yours ({self._config.store}): repair or restore that; fleet goes on when it answers"
            )
        if self._own.is_used:
            await self.end()
            await self._own.begin_anew()
            await self._begin_again()
        store, state = self._open_store()
        await release_other_managers(store, self._clock, own=state.node_id)

    async def backup(self, cluster_id: ClusterId) -> AsyncIterator[bytes]:
        """See ``fleet.store.backup``."""
        self._open_store()
        assert self._engine is not None
        key = await asyncio.to_thread(_store_key, self._folder / "store", self.locks.passphrase)
        async for line in backup_lines(
            self._engine, cluster_id=cluster_id, created_at=self._clock.now(), sealing_key=key
        ):
            yield line

    # -- other managers

    async def equip(self, node_id: NodeId, wish: KitRequest) -> ManagerKit:
        """What a new manager needs from one that is. The first time it is asked, the state moves to an own etcd.

        Raises ``UnavailableError`` while that cannot be done, ``UserError`` when this host has no etcd.
        """
        key = await asyncio.to_thread(_store_key, self._folder / "store", self.locks.passphrase)
        if self._config.store:
            return ManagerKit(sealing_key=key)
        async with self._moving:
            if not self._own.is_used:
                # Not to be left half-done because the asking host went away.
                await asyncio.shield(asyncio.create_task(self._move(), name="move to etcd"))
            store, state = self._open_store()
            member = await self._own.let_in(
                store, node_id=node_id, cluster_id=state.cluster_id, csr_pem=wish.csr_pem, peer=wish.peer
            )
        return ManagerKit(sealing_key=key, member=member)

    async def give_vote(self, peer: str) -> None:
        """A new manager's etcd member is running: let it vote once it has caught up."""
        await self._own.give_vote(peer)

    async def _release(self, node: Node) -> None:
        """Before a node ceases to be a manager."""
        if self._keeps_own:
            await self._own.let_go(node.id)

    def _open_store(self) -> tuple[Store, SwarmState]:
        if self.store is None or self._state is None:
            raise errors.UnavailableError(self.error or "the cluster's state is being opened", retry_after_s=1.0)
        return self.store, self._state()

    async def _move(self) -> None:
        store, state = self._open_store()
        engine = self._engine
        assert engine is not None
        assert self._keeper is not None
        log.info("a second manager is coming: the state moves to an etcd")
        await self._own.begin_move(store, node_id=state.node_id, cluster_id=state.cluster_id, peer=_peer(state))
        try:
            async with aclosing(self._own.copy(engine, state.cluster_id)) as copy:
                await copy.first()
                began = self._clock.monotonic()
                await self._end_role()
                await copy.rest()
                await copy.finish(state.cluster_id)
                await asyncio.to_thread(self._own.set_mark)
        except BaseException:
            log.error("the state has not moved; it stays where it was")
            if self.store is None:
                await self.end()
            if not self._own.is_used:
                await self._own.erase()
            raise
        finally:
            if self.store is None:
                await self._begin_again()
        log.info("the state has moved", keys=copy.objects, paused_s=round(self._clock.monotonic() - began, 3))


def _peer(state: SwarmState) -> str:
    """host:port of this host's etcd member for the others: the port after the cluster listener's."""
    return f"{state.advertise_address}:{state.cluster_port + 1}"


def _store_key(folder: Path, passphrase: bytes | None) -> bytes:
    """The key that the state is sealed with at rest; beside the state, not in it, so that a copy of the
    database alone tells nothing."""
    is_new = not any(entry.name not in ("lock", "in-own-etcd", "in-etcd") for entry in folder.iterdir())
    return load_or_create_key(folder.parent / "store.key", is_new=is_new, passphrase=passphrase)
