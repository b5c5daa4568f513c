"""The etcd engine against three real members: what is killed, and what must still be true."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.etcd import EtcdCluster, has_etcd

from fleet import errors
from fleet.engines.etcd import EtcdEngine, OutcomeUnknownError
from fleet.store.engine import CompactedError, Put, Txn

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)")]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path, size=3) as cluster:
        yield cluster


def test_no_acknowledged_write_is_lost_when_members_and_then_all_are_killed(three: EtcdCluster) -> None:
    async def main() -> None:
        engine = EtcdEngine(three.endpoints, cluster_id="c1")
        await engine.start()
        first_term = engine.raft_term
        acknowledged: dict[str, int] = {}
        refused: set[str] = set()
        seen: list[int] = []
        stop = asyncio.Event()

        async def write(worker: int) -> None:
            number = 0
            while not stop.is_set():
                key, number = f"/{worker}/{number}", number + 1
                try:
                    acknowledged[key] = await engine.commit(Txn(puts=(Put(key, b"x"),)))
                except OutcomeUnknownError:
                    pass
                except errors.UnavailableError as cause:
                    assert cause.retry_after_s
                    refused.add(key)

        async def follow() -> None:
            async for batch in engine.watch("/", 1):
                seen.append(batch.revision)  # noqa: PERF401 - read while it grows

        follower = asyncio.create_task(follow())
        writers = [asyncio.create_task(write(i)) for i in range(4)]
        for victim in range(3):
            before = len(acknowledged)
            await asyncio.to_thread(three.kill, victim)
            while len(acknowledged) < before + 50:
                await asyncio.sleep(0.01)
            three.start(victim)
            await asyncio.to_thread(three.wait_ready)
        for victim in range(3):
            three.kill(victim)
        with pytest.raises(errors.UnavailableError, match="try again"):
            await engine.get("/0/0")
        with pytest.raises(errors.UnavailableError) as caught:
            await engine.commit(Txn(puts=(Put("/while-away", b""),)))
        assert caught.value.retry_after_s
        for victim in range(3):
            three.start(victim)
        await asyncio.to_thread(three.wait_ready)
        before = len(acknowledged)
        while len(acknowledged) < before + 20:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*writers)
        assert engine.raft_term > first_term > 0, "all were killed, so they have elected a leader since"
        found = {entry.key: entry.mod_revision for entry in (await engine.list("/")).entries}
        assert acknowledged.items() <= found.items()
        assert not refused & found.keys(), "refused as not made, and there"
        while not seen or seen[-1] < max(found.values()):
            await asyncio.sleep(0.01)
        assert seen == sorted(found.values())
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await engine.close()

    async def bounded() -> None:
        async with asyncio.timeout(120):
            await main()

    asyncio.run(bounded())


def test_compacted_history_and_another_clusters_prefix_are_refused(tmp_path: Path) -> None:
    async def main(cluster: EtcdCluster) -> None:
        engine = EtcdEngine(cluster.endpoints, cluster_id="c1", prefix="/one")
        await engine.start()
        revisions = [await engine.commit(Txn(puts=(Put("/a", str(i).encode()),))) for i in range(5)]
        cluster.compact(revisions[3])
        with pytest.raises(CompactedError) as caught:
            await anext(engine.watch("/", revisions[0]))
        assert caught.value.oldest == revisions[3]
        with pytest.raises(CompactedError):
            await engine.list("/", at_revision=revisions[0])
        assert (await anext(engine.watch("/", revisions[4]))).revision == revisions[4]
        stranger = EtcdEngine(cluster.endpoints, cluster_id="c2", prefix="/one")
        with pytest.raises(errors.UserError, match="belongs to cluster c1"):
            await stranger.start()
        await stranger.close()
        neighbour = EtcdEngine(cluster.endpoints, cluster_id="c2", prefix="/two")
        await neighbour.start()
        assert (await neighbour.list("/")).entries == ()
        await neighbour.commit(Txn(puts=(Put("/b", b""),)))
        # What changed nothing must not name a revision of the neighbour's: whoever waits for it in a watch would hang.
        assert await engine.commit(Txn(deletes=("/absent",))) == revisions[4]
        await neighbour.close()
        await engine.close()

    with EtcdCluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_a_successor_fences_the_late_writes_of_its_predecessor(tmp_path: Path) -> None:
    async def main(cluster: EtcdCluster) -> None:
        old = EtcdEngine(cluster.endpoints, cluster_id="c1")
        await old.start()
        await old.commit(Txn(puts=(Put("/a", b"old"),)))
        new = EtcdEngine(cluster.endpoints, cluster_id="c1")
        await new.start()
        for late in (Txn(puts=(Put("/a", b"late"),)), Txn(deletes=("/a",))):
            with pytest.raises(errors.UnavailableError, match="taken this manager's place"):
                await old.commit(late)
        entry = await new.get("/a")
        assert entry is not None
        assert entry.value == b"old"
        await old.close()
        await new.close()

    with EtcdCluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_what_a_killed_predecessor_had_on_its_way_does_not_take_the_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the manager that is there holds the lead and can write nothing, for ever."""

    async def main(cluster: EtcdCluster) -> None:
        killed = EtcdEngine(cluster.endpoints, cluster_id="c1")
        arrives, asked, landed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        call = killed._call

        async def late(path: str, body: dict[str, Any], *, repeatable: bool) -> dict[str, Any]:
            writes = path.endswith("/put") or (path.endswith("/txn") and "holder" in str(base64_texts(body)))
            if not writes:
                return await call(path, body, repeatable=repeatable)
            asked.set()
            await arrives.wait()
            await call(path, body, repeatable=repeatable)
            landed.set()
            return await asyncio.get_running_loop().create_future()  # it does not live to see the answer

        monkeypatch.setattr(killed, "_call", late)
        starting = asyncio.create_task(killed.start())
        await asked.wait()
        new = EtcdEngine(cluster.endpoints, cluster_id="c1")
        await new.start()
        arrives.set()
        await landed.wait()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await new.commit(Txn(puts=(Put("/a", b"mine"),)))
        await killed.close()
        await new.close()

    with EtcdCluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def base64_texts(body: object) -> list[str]:
    """Every string of the request, decoded."""
    if isinstance(body, dict):
        return [text for value in body.values() for text in base64_texts(value)]
    if isinstance(body, list):
        return [text for value in body for text in base64_texts(value)]
    try:
        return [base64.b64decode(str(body), validate=True).decode()]
    except ValueError:
        return []
