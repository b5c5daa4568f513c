"""What every engine promises (see ``fleet.store.engine``), on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from support.etcd import EtcdCluster, RebasedEtcd, has_etcd
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.engines.etcd import EtcdEngine
from fleet.engines.sqlite import SqliteEngine
from fleet.store.engine import (
    CompactedError,
    Compare,
    CompareFailed,
    Deleted,
    Engine,
    Entry,
    LeaseLostError,
    Put,
    Txn,
    WatchBatch,
)

Body = Callable[[Engine], Awaitable[None]]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One real member for the module."""
    if not has_etcd():
        pytest.skip("needs etcd (package etcd-server)")
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a test body against a started engine."""
    cluster: EtcdCluster | None = request.getfixturevalue("etcd") if request.param == "etcd" else None

    def make() -> Engine:
        if cluster is not None:
            return RebasedEtcd(EtcdEngine(cluster.endpoints, cluster_id="c1", prefix=f"/{tmp_path.name}"))
        return MemoryEngine() if request.param == "memory" else SqliteEngine(tmp_path / "state", cluster_id="c1")

    def runner(body: Body) -> None:
        async def main() -> None:
            engine: Engine = make()
            await engine.start()
            try:
                async with asyncio.timeout(60):
                    await body(engine)
            finally:
                await engine.close()

        asyncio.run(main())

    return runner


def put(*pairs: tuple[str, bytes], compares: tuple[Compare, ...] = (), deletes: tuple[str, ...] = ()) -> Txn:
    return Txn(compares=compares, puts=tuple(Put(k, v) for k, v in pairs), deletes=deletes)


async def take(engine: Engine, prefix: str, start: int, count: int) -> list[WatchBatch]:
    result: list[WatchBatch] = []
    watch = engine.watch(prefix, start)
    async for batch in watch:
        result.append(batch)
        if len(result) == count:
            break
    await watch.aclose()  # type: ignore[attr-defined]
    return result


def test_each_changing_transaction_adds_one_revision(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        first = await engine.commit(put(("/a", b"1"), ("/b", b"2")))
        assert first == 2
        assert await engine.commit(put(("/a", b"3"))) == 3
        assert await engine.commit(Txn(compares=(Compare("/a", 3),))) == 3
        assert await engine.commit(Txn(deletes=("/absent",))) == 3
        assert await engine.commit(Txn(deletes=("/a",))) == 4

    run(body)


def test_entries_carry_their_revisions(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        await engine.commit(put(("/a", b"1")))
        await engine.commit(put(("/a", b"2")))
        assert await engine.get("/a") == Entry("/a", b"2", 3, 2, 0)
        await engine.commit(Txn(deletes=("/a",)))
        assert await engine.get("/a") is None
        await engine.commit(put(("/a", b"3")))
        assert await engine.get("/a") == Entry("/a", b"3", 5, 5, 0)

    run(body)


def test_failed_compare_writes_nothing_and_names_the_keys(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        await engine.commit(put(("/a", b"1"), ("/b", b"1")))
        with pytest.raises(CompareFailed) as caught:
            await engine.commit(
                put(("/a", b"x"), ("/n", b"x"), compares=(Compare("/a", 1), Compare("/b", 2), Compare("/c", 7)))
            )
        assert caught.value.actual == {"/a": 2, "/c": 0}
        assert caught.value.revision == 2
        assert (await engine.list("/")).revision == 2
        assert await engine.get("/n") is None

    run(body)


def test_compare_with_zero_holds_only_while_absent(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        create = put(("/a", b"1"), compares=(Compare("/a", 0),))
        await engine.commit(create)
        with pytest.raises(CompareFailed):
            await engine.commit(create)
        await engine.commit(Txn(deletes=("/a",)))
        await engine.commit(create)

    run(body)


def test_of_concurrent_creators_exactly_one_wins(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        results = await asyncio.gather(
            *(engine.commit(put(("/k", str(i).encode()), compares=(Compare("/k", 0),))) for i in range(40)),
            return_exceptions=True,
        )
        winners = [i for i, result in enumerate(results) if isinstance(result, int)]
        assert len(winners) == 1
        entry = await engine.get("/k")
        assert entry is not None
        assert entry.value == str(winners[0]).encode()

    run(body)


def test_list_is_sorted_and_keeps_to_the_prefix(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        await engine.commit(put(("/t/b", b"2"), ("/t/a", b"1"), ("/tt", b"x"), ("/s/a", b"x"), ("/t/ä", b"3")))
        listing = await engine.list("/t/")
        assert [entry.key for entry in listing.entries] == ["/t/a", "/t/b", "/t/ä"]

    run(body)


def test_list_at_a_revision_shows_the_past(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        await engine.commit(put(("/a", b"1"), ("/b", b"1")))
        await engine.commit(put(("/a", b"2"), deletes=("/b",)))
        await engine.commit(put(("/c", b"3")))
        past = await engine.list("/", at_revision=2)
        assert [(e.key, e.value, e.mod_revision) for e in past.entries] == [("/a", b"1", 2), ("/b", b"1", 2)]
        assert past.revision == 2
        middle = await engine.list("/", at_revision=3)
        assert [(e.key, e.value) for e in middle.entries] == [("/a", b"2")]
        with pytest.raises(errors.UnavailableError):
            await engine.list("/", at_revision=9)

    run(body)


def test_watch_gives_each_transaction_once_in_order(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        await engine.commit(put(("/a", b"1"), ("/x", b"1")))
        await engine.commit(put(("/x", b"2")))
        await engine.commit(put(("/b", b"1"), deletes=("/a",)))
        batches = await take(engine, "/", 1, 3)
        assert [batch.revision for batch in batches] == [2, 3, 4]
        assert batches[2].events == (Entry("/b", b"1", 4, 4), Deleted("/a"))
        assert [b.revision for b in await take(engine, "/a", 1, 2)] == [2, 4]
        assert [b.revision for b in await take(engine, "/", 4, 1)] == [4]

    run(body)


def test_watch_waits_for_what_is_yet_to_come(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        pending = asyncio.create_task(take(engine, "/a/", 1, 50))
        await asyncio.sleep(0.01)
        for i in range(50):
            await engine.commit(put((f"/a/{i}", b"1"), ("/b", b"x")))
        batches = await pending
        assert [batch.revision for batch in batches] == list(range(2, 52))
        assert all(len(batch.events) == 1 for batch in batches)

    run(body)


def test_a_watch_sees_a_commit_no_later_than_its_caller(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        seen: list[int] = []

        async def follow() -> None:
            async for batch in engine.watch("/", 1):
                seen.append(batch.revision)  # noqa: PERF401 - read while it grows

        follower = asyncio.create_task(follow())
        revisions = await asyncio.gather(*(engine.commit(put((f"/{i}", b"1"))) for i in range(30)))
        while not seen or seen[-1] < max(revisions):
            await asyncio.sleep(0)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        assert seen == sorted(revisions)

    run(body)


def test_bounds_are_enforced(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        fits = put(*((f"/{i}", b"") for i in range(engine.ops_max)))
        await engine.commit(fits)
        with pytest.raises(errors.TooLargeError):
            await engine.commit(put(*((f"/{i}", b"") for i in range(engine.ops_max + 1))))
        with pytest.raises(errors.TooLargeError):
            await engine.commit(put(("/big", b"x" * 1_500_000)))
        with pytest.raises(errors.InvariantError):
            await engine.commit(put(("/a", b"1"), deletes=("/a",)))

    run(body)


def test_revoking_a_lease_deletes_its_keys_at_one_revision(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        lease = await engine.grant(60)
        await engine.commit(Txn(puts=(Put("/a", b"1", lease), Put("/b", b"1", lease), Put("/c", b"1", lease))))
        await engine.commit(put(("/c", b"now without lease")))
        await engine.revoke(lease)
        assert [entry.key for entry in (await engine.list("/")).entries] == ["/c"]
        batches = await take(engine, "/", 4, 1)
        assert set(batches[0].events) == {Deleted("/a"), Deleted("/b")}
        with pytest.raises(LeaseLostError):
            await engine.commit(Txn(puts=(Put("/d", b"1", lease),)))
        with pytest.raises(LeaseLostError):
            await engine.keep_alive(lease)
        await engine.revoke(lease)

    run(body)


def test_a_lease_ends_unless_kept_alive(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        unit = getattr(engine, "lease_scale", 1.0)
        long, short = await engine.grant(0.3 * unit), await engine.grant(0.15 * unit)
        await engine.commit(Txn(puts=(Put("/long", b"1", long), Put("/short", b"1", short))))
        for _ in range(8):
            await asyncio.sleep(0.08 * unit)
            await engine.keep_alive(long)
        assert [entry.key for entry in (await engine.list("/")).entries] == ["/long"]
        batches = await take(engine, "/long", 3, 1)
        assert batches[0].events == (Deleted("/long"),)

    run(body)


def test_a_closed_engine_ends_watches_and_refuses_work(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        follower = asyncio.create_task(take(engine, "/", 1, 1))
        await asyncio.sleep(0.01)
        await engine.close()
        assert await follower == []
        with pytest.raises(errors.UnavailableError):
            await engine.commit(put(("/a", b"1")))
        await engine.close()

    run(body)


def test_a_cancelled_watch_leaves_the_engine_usable(run: Callable[[Body], None]) -> None:
    async def body(engine: Engine) -> None:
        follower = asyncio.create_task(take(engine, "/", 1, 1))
        await asyncio.sleep(0.01)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
        assert await engine.commit(put(("/a", b"1"))) == 2

    run(body)


def test_memory_engine_reports_compacted_history() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        for i in range(5):
            await engine.commit(put(("/a", str(i).encode())))
        engine.compact(4)
        with pytest.raises(CompactedError):
            await take(engine, "/", 4, 1)
        assert [b.revision for b in await take(engine, "/", 5, 2)] == [5, 6]
        await engine.close()

    asyncio.run(main())
