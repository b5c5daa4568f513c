"""The cluster's state in an etcd that fleet keeps itself: one member on every manager, begun when the second manager comes.

    swarm/etcd/                the member (``fleet.engines.etcd_member``)
    swarm/store/in-own-etcd    the mark: from here on the state is there, and nowhere else

**The move** from the first manager's SQLite file: the member is started and most of the state copied while everything goes
on; then this manager's role is ended, the rest is copied, and the mark is written, which is the one instant that counts. A
crash before it leaves the file in charge, and the next start removes the half-made member; a crash after it leaves etcd in
charge, and the next start removes the file.

**A new manager** asks one that is for its *kit*: the sealing key, a certificate of the state authority for its own key, and
how to find the others, who have let it in as a learner by then. It starts its member and asks for a vote, which is given once
it has caught up. Asked again after a crash, all of that happens anew, or finds itself done.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

import httpx
import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.daemon.joining import KitRequest, ManagerKit, MemberKit, ask_managers, checked
from fleet.daemon.state_engine import prefix_of, write_mark
from fleet.engines.etcd import EtcdEngine
from fleet.engines.etcd_cluster import EtcdCluster, initial_cluster
from fleet.engines.etcd_member import EtcdMember, MemberFile, MemberTls, find_etcd
from fleet.engines.migrate import StoreCopy
from fleet.identity.authority import RootAuthority, create_root
from fleet.identity.keys import KeyRequest, generate_request, lock_key, unlock_key
from fleet.logs import get_logger
from fleet.model.cluster import STATE_AUTHORITY, Authority
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole
from fleet.store import Store, Transaction
from fleet.store.engine import Engine

__all__ = ["OwnState", "fetch_kit"]

log = get_logger("own-state")

_MARK: Final = "in-own-etcd"
_VOTED: Final = "voted"
_LIFETIME: Final = timedelta(days=3650)
"""What cuts a manager off is its removal from the members, and that its peers' ports are the managers' alone."""
_KIT_S: Final = 60.0
_VOTE_S: Final = 90.0
_REMOVED_S: Final = 10.0


class OwnState:
    """Of the ``swarm`` folder; ``run_folder`` is in memory. ``peer``: host:port of this host's member, as the others reach it."""

    def __init__(self, folder: Path, clock: Clock, *, run_folder: Path) -> None:
        self.passphrase: bytes | None = None
        """What the member's key on disk is locked with."""
        self._keys = run_folder
        self._folder = folder / "etcd"
        self._store = folder / "store"
        self._clock = clock
        self._member: EtcdMember | None = None

    @property
    def is_used(self) -> bool:
        """Whether the state is here."""
        return (self._store / _MARK).exists()

    @property
    def member(self) -> EtcdMember:
        """The open one."""
        if self._member is None:
            raise errors.UnavailableError("this host's etcd is not open", retry_after_s=1.0)
        return self._member

    # -- opening

    async def open(self, *, cluster_id: ClusterId, node_id: NodeId) -> EtcdEngine:
        """The engine on the running, voting member; not started. Raises ``UnavailableError`` while it has no majority."""
        member = await self._started()
        await member.wait_ready()
        return EtcdEngine(
            [member.endpoint],
            cluster_id=cluster_id,
            prefix=prefix_of(cluster_id),
            client=node_id,
            tls=member.tls,
            known_at=f"this host's etcd ({self._folder})",
        )

    async def _started(self) -> EtcdMember:
        if self._member is None:
            member = await asyncio.to_thread(self._load)
            await member.start()
            self._member = member
        else:
            await (
                self._member.start()
            )  # it may have ended while it was waited for, and only an open state is kept running
        return self._member

    def _load(self) -> EtcdMember:
        member = EtcdMember(self._folder, self._clock, key_folder=self._keys)
        member.provide_key(unlock_key(member.key_file.read_text(), self.passphrase))
        return member

    def relock(self, opens: bytes | None, passphrase: bytes | None) -> None:
        """The key on disk, locked with ``opens`` or not at all, is from now on locked with ``passphrase``, or not. Blocks. Raises
        ``LockedError`` if it is locked with something else."""
        if EtcdMember.exists(self._folder):
            member = EtcdMember(self._folder, self._clock, key_folder=self._keys)
            member.keep_key(lock_key(unlock_key(member.key_file.read_text(), opens), passphrase))
        self.passphrase = passphrase

    def keep_snapshots(self, *, interval: int, kept: int) -> bool:
        """See ``EtcdMember``; nothing while there is no member. Blocks."""
        return self._member is not None and self._member.keep_snapshots(interval=interval, kept=kept)

    async def begin_anew(self) -> None:
        """The member becomes the only one, with the state it has. The next ``open`` starts it as usual."""
        member = await asyncio.to_thread(self._load)
        await member.start(force_new_cluster=True)
        await member.wait_ready()
        await member.stop()
        (self._folder / _VOTED).touch()
        self._member = None

    async def keep(self) -> None:
        """Keep the member's process alive; until cancelled."""
        await self.member.keep()

    async def remove_leftovers(self) -> None:
        """Whatever a move, a join or a demotion that was interrupted has left here. Blocking parts run in a thread."""
        if self.is_used:
            for name in ("state.db", "state.db-wal", "state.db-shm"):
                (self._store / name).unlink(missing_ok=True)
        elif self._folder.exists():
            await self.erase()

    async def erase(self) -> None:
        """End the member and forget it; idempotent."""
        self._member = None
        if await asyncio.to_thread(EtcdMember.exists, self._folder):
            await EtcdMember(self._folder, self._clock, key_folder=self._keys).erase()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        (self._store / _MARK).unlink(missing_ok=True)

    async def await_removal(self) -> None:
        """Until the others have removed this member, for which its vote may be needed; not for long."""
        if self._member is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REMOVED_S):
                    await self._member.ended()

    # -- the move

    async def begin_move(self, store: Store, *, node_id: NodeId, cluster_id: ClusterId, peer: str) -> None:
        """Start a member of its own cluster here. Raises ``UserError`` when there is no usable etcd on this host."""
        await asyncio.to_thread(find_etcd)
        await self.erase()
        root = await state_root(store, self._clock, cluster_id)
        key = generate_request()
        certificate = _issue(root, key.csr_pem, node_id=node_id, cluster_id=cluster_id, peer=peer, clock=self._clock)
        tls = MemberTls(ca_pem=root.cert_pem, certificate_pem=certificate, key_pem=key.key_pem)
        file = MemberFile(
            name=node_id,
            peer=peer,
            client_port=_free_port(),
            token=cluster_id,
            initial_cluster=f"{node_id}=https://{peer}",
            joins=False,
        )
        member = await asyncio.to_thread(self._make, file, tls)
        await member.start()
        self._member = member
        await member.wait_ready()

    def _make(self, file: MemberFile, tls: MemberTls) -> EtcdMember:
        member = EtcdMember.create(self._folder, self._clock, key_folder=self._keys, file=file, tls=tls)
        member.provide_key(tls.key_pem)
        member.keep_key(lock_key(tls.key_pem, self.passphrase))
        return member

    def copy(self, source: Engine, cluster_id: ClusterId) -> StoreCopy:
        """Of the present engine, into the member."""
        return StoreCopy(source, endpoint=self.member.endpoint, tls=self.member.tls, prefix=prefix_of(cluster_id))

    def set_mark(self) -> None:
        """From now on the state is here. Durable when it returns; blocks."""
        self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_mark(self._store / _MARK, "see ../etcd")

    # -- another manager

    async def let_in(
        self, store: Store, *, node_id: NodeId, cluster_id: ClusterId, csr_pem: str, peer: str
    ) -> MemberKit:
        """Let the node's member in as a learner and say what it needs. Raises ``UnavailableError`` while another is on its way,
        or members are missing."""
        root = await state_root(store, self._clock, cluster_id)
        certificate = _issue(root, csr_pem, node_id=node_id, cluster_id=cluster_id, peer=peer, clock=self._clock)
        async with contextlib.aclosing(self._cluster()) as cluster:
            await cluster.add_learner(peer, name=node_id)
            flag = initial_cluster(await cluster.members(), name=node_id, peer=peer)
        log.info("a manager's etcd member was let in", node=node_id, peer=peer)
        return MemberKit(
            ca_pem=root.cert_pem, certificate_pem=certificate, initial_cluster=flag, token=self.member.token
        )

    async def give_vote(self, peer: str) -> None:
        """See ``EtcdCluster.promote``."""
        async with contextlib.aclosing(self._cluster()) as cluster:
            await cluster.promote(peer)

    async def let_go(self, node_id: NodeId) -> None:
        """The node's member is none any more. Raises ``UnavailableError`` if the rest would have no majority."""
        async with contextlib.aclosing(self._cluster()) as cluster:
            await cluster.remove_named(node_id)

    def _cluster(self) -> EtcdCluster:
        return EtcdCluster(self.member.endpoint, self.member.tls, self._clock)

    # -- being the other manager

    async def settle_in(self, kit: MemberKit, key: KeyRequest, *, node_id: NodeId, peer: str) -> None:
        """Make this host's member of the kit. The mark is set: there is no other state here."""
        await asyncio.to_thread(find_etcd)
        await self.erase()
        file = MemberFile(
            name=node_id,
            peer=peer,
            client_port=_free_port(),
            token=kit.token,
            initial_cluster=kit.initial_cluster,
            joins=True,
        )
        tls = MemberTls(ca_pem=kit.ca_pem, certificate_pem=kit.certificate_pem, key_pem=key.key_pem)
        await asyncio.to_thread(self._make, file, tls)
        await asyncio.to_thread(self.set_mark)

    async def ask_for_vote(self, managers: Iterable[str], tls: ssl.SSLContext, *, peer: str) -> None:
        """Start the member and have it promoted by one of the managers, unless it has been. Raises ``UnavailableError``."""
        member = await self._started()
        if not member.joined or (self._folder / _VOTED).exists():
            return
        async with httpx.AsyncClient(verify=tls, timeout=_VOTE_S, trust_env=False) as client:

            async def ask(manager: str) -> None:
                checked(await client.post(f"https://{manager}/cluster/v1/managers/vote", content=peer))

            await ask_managers(managers, ask, failure="this host's etcd has no vote yet", on=(errors.UnavailableError,))
        (self._folder / _VOTED).touch()


async def fetch_kit(managers: Iterable[str], tls: ssl.SSLContext, *, key: KeyRequest, peer: str) -> ManagerKit:
    """Ask managers, one after the other, with this node's certificate, which must name it a manager.

    Raises ``UnavailableError`` when none gives it, with what each said.
    """
    body = msgspec.json.encode(KitRequest(csr_pem=key.csr_pem, peer=peer))
    async with httpx.AsyncClient(verify=tls, timeout=_KIT_S, trust_env=False) as client:

        async def ask(manager: str) -> ManagerKit:
            answer = checked(await client.post(f"https://{manager}/cluster/v1/managers/kit", content=body))
            return msgspec.json.decode(answer.content, type=ManagerKit)

        return await ask_managers(
            managers,
            ask,
            failure="no manager gives this node what a manager needs",
            on=(errors.UnavailableError, msgspec.DecodeError),
        )


async def state_root(store: Store, clock: Clock, cluster_id: ClusterId) -> RootAuthority:
    """The state authority, made the first time."""
    while True:
        found = store.authorities.get(STATE_AUTHORITY)
        if found is not None:
            return RootAuthority(cert_pem=found.certificate_pem, key_pem=found.key_pem)
        now = clock.now()
        made = create_root(cluster_id, now)
        authority = Authority(
            id=STATE_AUTHORITY, certificate_pem=made.cert_pem, key_pem=made.key_pem, created_at=now, updated_at=now
        )
        with contextlib.suppress(errors.ConflictError):
            await store.commit(Transaction().create(authority))


def _issue(
    root: RootAuthority, csr_pem: str, *, node_id: NodeId, cluster_id: ClusterId, peer: str, clock: Clock
) -> str:
    return root.issue(
        csr_pem,
        node_id=node_id,
        role=NodeRole.MANAGER,
        cluster_id=cluster_id,
        lifetime=_LIFETIME,
        now=clock.now(),
        addresses=(peer.rpartition(":")[0].strip("[]"), "127.0.0.1"),
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
