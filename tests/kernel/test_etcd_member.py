"""etcd processes that fleet keeps: growing to three, whom they let in, a lost member, a lost majority, a full quota."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from support.etcd import has_etcd
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.clock import SystemClock
from fleet.daemon.own_state import OwnState
from fleet.engines.etcd import EtcdEngine
from fleet.engines.etcd_cluster import EtcdCluster, initial_cluster
from fleet.engines.etcd_member import EtcdMember, MemberFile, MemberTls
from fleet.engines.etcd_wire import MembersRefusedError
from fleet.identity.authority import RootAuthority, create_root
from fleet.identity.keys import generate_request
from fleet.model.cluster import Authority
from fleet.model.ids import ClusterId, NodeId, encode_id
from fleet.model.node import NodeRole
from fleet.store import Store, Transaction
from fleet.store.engine import Put, Txn

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)")]

CLUSTER = ClusterId(encode_id(b"c" * 16))
CLOCK = SystemClock()


class Managers:
    """Members of one cluster, as their managers would make them; every one's process is ended by ``end``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = create_root(CLUSTER, CLOCK.now())
        self.members: list[EtcdMember] = []
        self.peers: list[str] = []

    def tls(self, root: RootAuthority) -> MemberTls:
        key = generate_request()
        certificate = root.issue(
            key.csr_pem,
            node_id=NodeId(encode_id(os.urandom(16))),
            role=NodeRole.MANAGER,
            cluster_id=CLUSTER,
            lifetime=timedelta(days=1),
            now=CLOCK.now(),
            addresses=["127.0.0.1"],
        )
        return MemberTls(ca_pem=self.root.cert_pem, certificate_pem=certificate, key_pem=key.key_pem)

    async def add(self, *, quota_bytes: int = 1 << 30) -> EtcdMember:
        """The first one begins the cluster, the others join it and get a vote."""
        name, peer = f"m{len(self.members)}", f"127.0.0.1:{_free_port()}"
        flag = f"{name}=https://{peer}"
        cluster = self.cluster() if self.members else None
        try:
            if cluster is not None:
                await _once_well(partial(cluster.add_learner, peer, name=name))
                flag = initial_cluster(await cluster.members(), name=name, peer=peer)
            file = MemberFile(
                name=name,
                peer=peer,
                client_port=_free_port(),
                token=CLUSTER,
                initial_cluster=flag,
                joins=cluster is not None,
            )
            member = EtcdMember.create(
                self._folder / name, CLOCK, file=file, tls=self.tls(self.root), quota_bytes=quota_bytes
            )
            self.members.append(member)
            self.peers.append(peer)
            await member.start()
            if cluster is not None:
                await cluster.promote(peer)
            await member.wait_ready()
        finally:
            if cluster is not None:
                await cluster.aclose()
        return member

    def cluster(self, at: int = 0) -> EtcdCluster:
        return EtcdCluster(self.members[at].endpoint, self.members[at].tls, CLOCK)

    def engine(self, at: int = 0) -> EtcdEngine:
        member = self.members[at]
        return EtcdEngine([member.endpoint], cluster_id=CLUSTER, client=member.name, tls=member.tls)

    async def end(self) -> None:
        for member in self.members:
            await member.stop()


@asynccontextmanager
async def opened(engine: EtcdEngine) -> AsyncIterator[EtcdEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def run(folder: Path, test: Callable[[Managers], Awaitable[None]]) -> None:
    async def main() -> None:
        managers = Managers(folder)
        try:
            await test(managers)
        finally:
            await managers.end()

    asyncio.run(main())


async def _once_well(change: Callable[[], Awaitable[None]]) -> None:
    """etcd refuses while a member has been connected to the others for less than 5 s."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await change()
            except MembersRefusedError as cause:
                assert cause.retry_after_s
                await asyncio.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_three_members_replace_a_lost_one_and_the_last_goes_on_alone(tmp_path: Path) -> None:
    async def test(managers: Managers) -> None:
        for _ in range(3):
            await managers.add()
        async with opened(managers.engine()) as engine:
            await engine.commit(Txn(puts=(Put("/a", b"1"),)))
            lost = managers.members[2]
            await lost.erase()
            await engine.commit(Txn(puts=(Put("/b", b"2"),)))
        cluster = managers.cluster()
        try:
            await _once_well(partial(cluster.remove_named, "m2"))
            assert sorted(member.name for member in await cluster.members()) == ["m0", "m1"]
        finally:
            await cluster.aclose()
        await managers.add()
        async with opened(managers.engine(at=3)) as engine:
            assert [entry.key for entry in (await engine.list("/")).entries] == ["/a", "/b"]

        for gone in (0, 1):
            await managers.members[gone].erase()
        left = managers.members[3]
        with pytest.raises(errors.UnavailableError, match="is not ready after"):
            await left.wait_ready(timeout_s=0.5)
        await left.start(force_new_cluster=True)
        await left.wait_ready()
        async with opened(managers.engine(at=3)) as engine:
            await engine.commit(Txn(puts=(Put("/c", b"3"),)))
            assert [entry.key for entry in (await engine.list("/")).entries] == ["/a", "/b", "/c"]
        cluster = managers.cluster(at=3)
        try:
            assert [member.name for member in await cluster.members()] == [left.name]
        finally:
            await cluster.aclose()

    run(tmp_path, test)


def test_a_certificate_of_the_clusters_nodes_opens_neither_port(tmp_path: Path) -> None:
    async def test(managers: Managers) -> None:
        member = await managers.add()
        foreign = managers.tls(create_root(CLUSTER, CLOCK.now()))
        (tmp_path / "node.crt").write_text(foreign.certificate_pem)
        (tmp_path / "node.key").write_text(foreign.key_pem)
        for address, path in ((member.endpoint, "/version"), (f"https://{managers.peers[0]}", "/members")):
            own = ssl.create_default_context(cafile=str(member.tls.ca))
            own.load_cert_chain(str(member.tls.certificate), str(member.tls.key))
            async with httpx.AsyncClient(verify=own, trust_env=False) as client:
                assert (await client.get(address + path)).status_code == 200
            node = ssl.create_default_context(cafile=str(member.tls.ca))
            node.load_cert_chain(str(tmp_path / "node.crt"), str(tmp_path / "node.key"))
            async with httpx.AsyncClient(verify=node, trust_env=False) as client:
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
                    await client.get(address + path)

    run(tmp_path, test)


def test_writers_refused_for_a_full_quota_go_on_once_the_history_is_given_up(tmp_path: Path) -> None:
    async def test(managers: Managers) -> None:
        member = await managers.add(quota_bytes=16 << 20)
        async with opened(managers.engine()) as engine:
            # One key again and again, all but its newest version is history; beside it one key a write, to tell it by.
            big = bytes(256 << 10)
            kept: list[str] = []

            async def write(worker: int) -> None:
                for number in range(500):
                    key = f"/n/{worker}/{number:03}"
                    await engine.commit(Txn(puts=(Put("/a", big), Put(key, b""))))
                    kept.append(key)

            results = await asyncio.gather(*map(write, range(8)), return_exceptions=True)
            assert {type(result) for result in results} == {errors.StorageFullError}
            # etcd applies the writes that reach the quota and refuses them all the same.
            kept.sort()
            assert [entry.key for entry in (await engine.list("/n/")).entries] == kept
            with pytest.raises(errors.StorageFullError):
                await engine.commit(Txn(puts=(Put("/b", b""),)))
            await member.make_room()
            await engine.commit(Txn(puts=(Put("/b", b""),)))
            assert [entry.key for entry in (await engine.list("/")).entries] == ["/a", "/b", *kept]

    run(tmp_path, test)


def test_a_killed_member_is_started_again_and_a_running_one_taken_up(tmp_path: Path) -> None:
    async def test(managers: Managers) -> None:
        member = await managers.add()
        again = EtcdMember(tmp_path / member.name, CLOCK)
        await again.start()  # as the next fleetd does
        pid = again._running()
        assert pid is not None and again._process is None
        keeper = asyncio.create_task(again.keep())
        try:
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                while (found := again._running()) is None or found == pid:
                    await asyncio.sleep(0.05)
            await again.wait_ready()
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await again.stop()

    run(tmp_path, test)


def test_a_member_that_dies_while_it_is_opened_is_started_again_by_the_next_opening(tmp_path: Path) -> None:
    """Only an open state's etcd is kept running; so until then whoever opens it has to look."""

    async def main() -> None:
        node_id = NodeId(encode_id(b"n" * 16))
        memory = MemoryEngine()
        await memory.start()
        store = await Store.open(memory)
        root = create_root(CLUSTER, CLOCK.now())
        now = CLOCK.now()
        authority = Authority(certificate_pem=root.cert_pem, key_pem=root.key_pem, created_at=now, updated_at=now)
        await store.commit(Transaction().create(authority))
        own = OwnState(tmp_path, CLOCK, run_folder=tmp_path / "run")
        await own.begin_move(store, node_id=node_id, cluster_id=CLUSTER, peer=f"127.0.0.1:{_free_port()}")
        try:
            await own.member.stop()
            opening = asyncio.create_task(own.open(cluster_id=CLUSTER, node_id=node_id))
            while (pid := own.member._running()) is None:
                await asyncio.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(errors.UnavailableError, match="ended before it was ready"):
                async with asyncio.timeout(20):
                    await opening
            async with asyncio.timeout(60):
                engine = await own.open(cluster_id=CLUSTER, node_id=node_id)
            await engine.close()
        finally:
            await own.erase()
            await store.close()
            await memory.close()

    asyncio.run(main())
