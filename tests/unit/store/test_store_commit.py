"""Transactions: conditions, names, atomicity, reading one's own writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import make_network, make_node, make_secret, make_service, make_task

from fleet import errors
from fleet.store import (
    Compare,
    EngineFailedError,
    Kind,
    Listing,
    Put,
    Store,
    Transaction,
    Txn,
    WatchBatch,
)
from fleet.store import store as store_module

replace = msgspec.structs.replace


def renamed(service, name):  # type: ignore[no-untyped-def]
    return replace(service, spec=replace(service.spec, name=name))


def test_a_committed_object_is_in_the_tables_with_its_version(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        revision = await store.commit(Transaction().create(make_service("web")))
        stored = store.services.by_name("web")
        assert stored is not None
        assert stored.version.index == revision
        assert stored is store.services.get("service-web")

    run_store(body)


def test_stale_replace_names_object_and_both_versions(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web")))
        read = store.services.find("web")
        await store.commit(Transaction().replace(replace(read, spec_version=2)))
        with pytest.raises(errors.OutOfSequenceError) as caught:
            await store.commit(Transaction().replace(replace(read, spec_version=3)))
        assert str(caught.value) == ("update out of sequence: service web changed since it was read (version 2, now 3)")
        assert store.services.find("web").spec_version == 2

    run_store(body)


def test_of_concurrent_replaces_one_wins(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web")))
        read = store.services.find("web")
        results = await asyncio.gather(
            *(store.commit(Transaction().replace(replace(read, spec_version=i))) for i in range(10, 20)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, int) for result in results) == 1
        assert sum(isinstance(result, errors.OutOfSequenceError) for result in results) == 9

    run_store(body)


def test_a_taken_name_is_refused_as_docker_says_it(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web")))
        with pytest.raises(errors.ConflictError) as caught:
            await store.commit(Transaction().create(make_service("web", id_="other")))
        assert str(caught.value) == "name conflicts with an existing object: service web already exists"
        assert store.services.get("other") is None
        await store.commit(Transaction().create(make_network("web")))  # another kind's names are its own

    run_store(body)


def test_renaming_frees_the_old_name_and_takes_the_new(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web")))
        await store.commit(Transaction().replace(renamed(store.services.find("web"), "shop")))
        assert store.services.by_name("web") is None
        await store.commit(Transaction().create(make_service("web", id_="second")))
        with pytest.raises(errors.ConflictError, match="service shop already exists"):
            await store.commit(Transaction().replace(renamed(store.services.find("second"), "shop")))

    run_store(body)


def test_a_service_being_removed_gives_its_name_away_and_keeps_it_away(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web", id_="one")))
        await store.commit(Transaction().replace(replace(store.services.find("web"), pending_delete=True)))
        with pytest.raises(errors.NotFoundError):
            store.services.find("one")
        await store.commit(Transaction().create(make_service("web", id_="two")))
        going = store.services.get("one")
        assert going is not None
        await store.commit(Transaction().delete(going))
        assert store.services.find("web").id == "two"
        with pytest.raises(errors.ConflictError):
            await store.commit(Transaction().create(make_service("web", id_="three")))

    run_store(body)


def test_deleting_frees_the_name(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_secret("s")))
        await store.commit(Transaction().delete(store.secrets.find("s")))
        await store.commit(Transaction().create(make_secret("s", id_="again")))
        assert store.secrets.find("s").id == "again"

    run_store(body)


def test_one_failing_step_keeps_all_others_back(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web")))
        tx = Transaction().create(make_task("t")).create(make_service("web", id_="other"))
        with pytest.raises(errors.ConflictError):
            await store.commit(tx)
        assert len(store.tasks) == 0

    run_store(body)


def test_require_guards_without_writing(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_network("net")))
        network = store.networks.find("net")
        before = store.revision
        await store.commit(Transaction().require(network))
        assert store.revision == before
        await store.commit(Transaction().delete(network))
        with pytest.raises(errors.OutOfSequenceError, match="network net was removed"):
            await store.commit(Transaction().require(network).create(make_service("web")))
        assert len(store.services) == 0

    run_store(body)


def test_replace_any_overwrites_but_never_resurrects(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_task("t")))
        old = store.tasks.find("t")
        await store.commit(Transaction().replace(replace(old, spec_version=2)))
        results = await asyncio.gather(
            *(store.commit(Transaction().replace_any(replace(old, spec_version=i))) for i in (7, 8))
        )
        assert len(set(results)) == 2
        assert store.tasks.find("t").spec_version in (7, 8)
        await store.commit(Transaction().delete(store.tasks.find("t")))
        with pytest.raises(errors.NotFoundError, match=r"task web\.1\.t not found"):
            await store.commit(Transaction().replace_any(old))
        assert len(store.tasks) == 0

    run_store(body)


def test_replace_any_meets_a_concurrent_removal(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_task("t")))
        task = store.tasks.find("t")
        removed, written = await asyncio.gather(
            store.commit(Transaction().delete(task)),
            store.commit(Transaction().replace_any(task)),
            return_exceptions=True,
        )
        assert isinstance(removed, int)
        assert isinstance(written, errors.NotFoundError)

    run_store(body)


def test_an_object_never_read_cannot_be_replaced(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        with pytest.raises(errors.InvariantError, match="never read"):
            await store.commit(Transaction().replace(make_service("web")))

    run_store(body)


def test_a_transaction_touches_an_object_once() -> None:
    tx = Transaction().create(make_task("t"))
    with pytest.raises(errors.InvariantError, match=r"task web\.1\.t twice"):
        tx.merge(Transaction().create(make_task("t")))


def test_independent_transactions_fail_alone(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web7")))
        txs = [Transaction().create(make_service(f"web{i}", id_=f"id{i}")) for i in range(100)]
        results = await store.commit_all(txs)
        assert isinstance(results[7], errors.ConflictError)
        assert sum(isinstance(result, int) for result in results) == 99
        assert len(store.services) == 100

    run_store(body)


def test_transactions_on_one_object_in_a_batch_stay_in_order(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_task("t")))
        task = store.tasks.find("t")
        results = await store.commit_all([Transaction().replace(task), Transaction().replace(task)])
        assert [isinstance(result, int) for result in results] == [True, False]

    run_store(body)


def test_a_batch_on_a_full_disk_raises_the_storage_error(run_store) -> None:
    async def body(store: Store, engine: MemoryEngine) -> None:
        engine.refuse = errors.StorageFullError("full")
        with pytest.raises(errors.StorageFullError):
            await store.commit_all([Transaction().create(make_task("a")), Transaction().create(make_task("b"))])

    run_store(body)


def test_a_lost_fence_stops_every_write(run_store) -> None:
    async def body(store: Store, engine: MemoryEngine) -> None:
        held = await engine.commit(Txn(puts=(Put("/fleet/leader", b"me"),)))
        store.fence = Compare("/fleet/leader", held)
        await store.commit(Transaction().create(make_task("a")))
        await engine.commit(Txn(puts=(Put("/fleet/leader", b"another"),)))
        with pytest.raises(errors.UnavailableError, match="no longer the leader"):
            await store.commit(Transaction().create(make_task("b")))
        assert [task.id for task in store.tasks] == ["a"]

    run_store(body)


def test_another_managers_writes_show_up_and_conflict(run_store) -> None:
    async def body(store: Store, engine: MemoryEngine) -> None:
        other = await Store.open(engine)
        await other.commit(Transaction().create(make_node("n1")))
        node = other.nodes.find("n1")
        await store.commit(Transaction().replace(replace(node, cluster_addr="x")))  # read elsewhere, written here
        assert store.nodes.find("n1").cluster_addr == "x"
        with pytest.raises(errors.OutOfSequenceError):
            await other.commit(Transaction().replace(node))
        await other.close()

    run_store(body)


def test_a_reopened_store_shows_the_same(run_store) -> None:
    async def body(store: Store, engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_service("web")).create(make_task("t", node_id="n")))
        await store.commit(Transaction().replace(replace(store.tasks.find("t"), slot=4)))
        again = await Store.open(engine)
        assert again.revision == store.revision
        for kind in Kind:
            assert set(map(repr, again.table(kind).all())) == set(map(repr, store.table(kind).all()))
        assert again.tasks.by_slot(make_task().service_id, 4) == (again.tasks.find("t"),)
        await again.close()

    run_store(body)


def test_a_failed_engine_fails_the_store_and_says_why(run_store) -> None:
    async def body(store: Store, engine: MemoryEngine) -> None:
        with store.subscribe() as changes:
            engine.fail("disk on fire")
            with pytest.raises(EngineFailedError, match="disk on fire"):
                await changes.wait()
        assert "disk on fire" in str(await store.failed())
        with pytest.raises(EngineFailedError):
            await store.commit(Transaction().create(make_task("a")))

    run_store(body)


class StuckEngine(MemoryEngine):
    """Confirms writes and shows none of them; ``refuse_reads`` is how many reads find nobody first."""

    refuse_reads = 0

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        if self.refuse_reads:
            self.refuse_reads -= 1
            raise errors.UnavailableError("no majority")
        return await super().list(prefix, at_revision=at_revision)

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        await asyncio.Event().wait()
        yield WatchBatch(0, ())


def test_a_feed_that_stands_still_while_the_engine_answers_fails_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_FEED_S", 0.01)

    async def main() -> None:
        engine = StuckEngine()
        await engine.start()
        store = await Store.open(engine)
        engine.refuse_reads = 30  # cut off: that is waited for
        with pytest.raises(EngineFailedError, match="its feed is stuck at revision"):
            await store.commit(Transaction().create(make_task("a")))
        assert engine.refuse_reads == 0
        assert "stuck" in str(await store.failed())
        await store.close()
        await engine.close()

    asyncio.run(asyncio.wait_for(main(), 30))


class Rot13Sealer:
    """Not a cipher: shows that what is stored is not what was given."""

    def seal(self, key: str, plain: bytes, digest: str = "") -> bytes:
        return key.encode() + bytes(byte ^ 0x55 for byte in plain)

    def is_sealed_with(self, digest: str, sealed: bytes) -> bool:
        return not sealed.startswith(b"{")

    def unseal(self, key: str, sealed: bytes) -> bytes:
        assert sealed.startswith(key.encode())
        return bytes(byte ^ 0x55 for byte in sealed[len(key.encode()) :])


def test_secrets_are_sealed_in_the_engine_and_plain_in_the_table() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine, sealer=Rot13Sealer())
        await store.commit(Transaction().create(make_secret("s", data=b"hunter2")).create(make_task("t")))
        entry = await engine.get("/fleet/secret/secret-s")
        assert entry is not None
        assert b"secret-s" in entry.value[:30]
        assert b"Data" not in entry.value
        again = await Store.open(engine, sealer=Rot13Sealer())
        assert again.secrets.find("s").spec.data == b"hunter2"
        await again.close()
        await store.close()
        await engine.close()

    asyncio.run(main())
