"""Finding objects, indexes, subscriptions."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import make_node, make_service, make_task

from fleet import errors
from fleet.model.ids import NodeId, ServiceId
from fleet.store import Action, Kind, Store, Transaction

replace = msgspec.structs.replace
WEB = ServiceId("service-web")


def test_find_goes_by_id_then_name_then_prefix(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(
            Transaction()
            .create(make_service("abc", id_="id1"))
            .create(make_service("x", id_="abc9"))
            .create(make_service("y", id_="abd1"))
            .create(make_service("id1", id_="zzz"))
        )
        assert store.services.find("id1").id == "id1"
        assert store.services.find("abc").id == "id1"
        assert store.services.find("abc9").spec.name == "x"
        assert store.services.find("abd").spec.name == "y"
        with pytest.raises(errors.UserError, match=r"service ab is ambiguous \(2 matches found\)"):
            store.services.find("ab")
        with pytest.raises(errors.NotFoundError, match=r"^service nope not found$"):
            store.services.find("nope")
        with pytest.raises(errors.NotFoundError):
            store.services.find("")

    run_store(body)


def test_nodes_are_found_by_host_name_and_several_are_ambiguous(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_node("w", id_="n1")).create(make_node("w", id_="n2")))
        with pytest.raises(errors.UserError, match="node w is ambiguous"):
            store.nodes.find("w")
        assert store.nodes.by_name("w") is None
        gone = store.nodes.find("n2")
        await store.commit(Transaction().replace(replace(gone, removed=True)))
        assert store.nodes.find("w").id == "n1"

    run_store(body)


def test_tasks_are_found_by_their_full_name(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_task("t1")).create(make_task("t2", slot=0, node_id="n")))
        assert store.tasks.find("web.1.t1").id == "t1"
        assert store.tasks.find("web.n.t2").id == "t2"
        with pytest.raises(errors.NotFoundError):
            store.tasks.find("web.2.t1")

    run_store(body)


def test_task_indexes_follow_changes(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_task("a", slot=1)).create(make_task("b", slot=1)))
        await store.commit(Transaction().create(make_task("g", slot=0, node_id="n1")))
        assert {task.id for task in store.tasks.by_slot(WEB, 1)} == {"a", "b"}
        assert {task.id for task in store.tasks.by_slot(WEB, 0, NodeId("n1"))} == {"g"}
        assert {task.id for task in store.tasks.by_node(NodeId(""))} == {"a", "b"}
        await store.commit(Transaction().replace(replace(store.tasks.find("a"), node_id=NodeId("n1"))))
        assert {task.id for task in store.tasks.by_node(NodeId("n1"))} == {"a", "g"}
        assert {task.id for task in store.tasks.by_slot(WEB, 1)} == {"a", "b"}
        await store.commit(Transaction().delete(store.tasks.find("a")))
        assert {task.id for task in store.tasks.by_service(WEB)} == {"b", "g"}
        assert {task.id for task in store.tasks.by_node(NodeId("n1"))} == {"g"}

    run_store(body)


def test_changes_are_folded_per_object(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        await store.commit(Transaction().create(make_task("a")))
        first = store.tasks.find("a")
        with store.subscribe(Kind.TASK) as feed:
            await store.commit(Transaction().create(make_service("web")))  # another kind
            await store.commit(Transaction().replace(replace(first, slot=2)))
            await store.commit(Transaction().replace(replace(store.tasks.find("a"), slot=3)))
            await store.commit(Transaction().create(make_task("b")))
            await store.commit(Transaction().delete(store.tasks.find("b")))
            changes = await feed.wait()
        assert not changes.resync
        assert [(c.id, c.action) for c in changes] == [("a", Action.UPDATE)]
        assert changes.changes[0].old is first
        assert changes.changes[0].new is store.tasks.find("a")

    run_store(body)


def test_look_then_subscribe_has_no_gap(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        seen: set[str] = set()

        async def write() -> None:
            for i in range(200):
                await store.commit(Transaction().create(make_task(f"t{i}")))

        writer = asyncio.create_task(write())
        while len(store.tasks) < 50:
            await asyncio.sleep(0)
        seen |= {task.id for task in store.tasks}
        with store.subscribe(Kind.TASK) as feed:
            await writer
            seen |= {change.id for change in feed.take()}
        assert len(seen) == 200

    run_store(body)


def test_a_lagging_subscriber_is_told_to_resync_once(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        with store.subscribe(Kind.TASK, pending_max=5) as feed:
            for i in range(10):
                await store.commit(Transaction().create(make_task(f"t{i}")))
            changes = await feed.wait()
            assert changes.resync
            assert changes.changes == ()
            await store.commit(Transaction().create(make_task("later")))
            changes = await feed.wait()
            assert not changes.resync
            assert [change.id for change in changes] == ["later"]

    run_store(body)


def test_waiting_is_cancelled_without_losing_changes(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        with store.subscribe() as feed:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await feed.wait()
            await store.commit(Transaction().create(make_task("a")))
            assert [change.id for change in await feed.wait()] == ["a"]

    run_store(body)


def test_closing_ends_waiters_and_iteration(run_store) -> None:
    async def body(store: Store, _engine: MemoryEngine) -> None:
        feed = store.subscribe()
        other = store.subscribe()

        async def iterate() -> int:
            return sum([1 async for _ in other])

        waiting, iterating = asyncio.create_task(feed.wait()), asyncio.create_task(iterate())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(errors.UnavailableError):
            await waiting
        assert await iterating == 0
        with pytest.raises(errors.UnavailableError):
            await store.subscribe().wait()

    run_store(body)


def test_a_watch_that_fell_behind_history_is_made_good(run_store) -> None:
    async def body(store: Store, engine: MemoryEngine) -> None:
        """The store is paused while history goes away, as after a long disconnection."""
        await store.commit(Transaction().create(make_task("stays")).create(make_task("goes")))
        lagging = await Store.open(engine)
        follower = lagging._follower
        assert follower is not None
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await store.commit(Transaction().delete(store.tasks.find("goes")).create(make_task("new")))
        await store.commit(Transaction().replace(replace(store.tasks.find("stays"), slot=9)))
        engine.compact(engine.revision)
        with lagging.subscribe(Kind.TASK) as feed:
            lagging._follower = asyncio.create_task(lagging._follow())
            assert (await feed.wait()).resync
        assert {(task.id, task.slot, task.version) for task in lagging.tasks} == {
            (task.id, task.slot, task.version) for task in store.tasks
        }
        await lagging.close()

    run_store(body)
