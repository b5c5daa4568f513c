"""Terms: one leader at a time, whose writes count only while it is one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import make_node

from fleet import errors
from fleet.clock import SystemClock
from fleet.manager import leadership
from fleet.manager.leadership import LEADER_KEY, Leader, Leadership, is_refused
from fleet.manager.majority import Majority
from fleet.model.ids import NodeId
from fleet.store import Put, Store, Transaction, Txn

DEADLINE_S = 20.0


class Manager:
    """One of several on an engine of their own making: store, leadership, and how often it has led."""

    def __init__(self, engine: MemoryEngine, store: Store, name: str, **options: object) -> None:
        self.store = store
        self.terms = 0
        self.leadership = Leadership(
            engine,
            store,
            SystemClock(),
            node_id=NodeId(name),
            address=f"{name}:1",
            **options,  # type: ignore[arg-type]
        )
        self.task = asyncio.create_task(self.leadership.run(self._term))

    async def _term(self) -> None:
        self.terms += 1
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def scene(body: Callable[[MemoryEngine, Callable[..., Awaitable[Manager]]], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        made: list[Manager] = []

        async def make(name: str, **options: object) -> Manager:
            manager = Manager(engine, await Store.open(engine), name, **options)
            made.append(manager)
            return manager

        try:
            await body(engine, make)
        finally:
            for manager in made:
                await manager.stop()
                await manager.store.close()
            await engine.close()

    asyncio.run(main())


def test_one_leads_and_the_other_follows_when_it_stops() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        one = await make("one")
        await until(lambda: one.leadership.is_leading, "one leads")
        two = await make("two")
        await until(lambda: two.leadership.leader == Leader(node_id=NodeId("one"), address="one:1"), "two knows")
        assert not two.leadership.is_leading
        assert two.store.fence is None
        await one.stop()  # it gives its lease up
        await until(lambda: two.leadership.is_leading, "two leads")
        assert (one.terms, two.terms) == (1, 1)

    scene(body)


def test_what_a_deposed_leader_writes_does_not_count() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        one = await make("one")
        await until(lambda: one.leadership.is_leading, "one leads")
        await one.store.commit(Transaction().create(make_node("n1")))
        fence = one.store.fence
        entry = await engine.get(LEADER_KEY)
        assert entry is not None
        await engine.revoke(entry.lease)
        one.store.fence = fence  # as if it had not noticed
        with pytest.raises(errors.UnavailableError, match="no longer the leader"):
            await one.store.commit(Transaction().create(make_node("n2")))
        assert one.store.nodes.get("node-n2") is None

    scene(body)


def test_a_lost_lease_ends_the_term_and_another_begins() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        one = await make("one")
        await until(lambda: one.leadership.is_leading, "one leads")
        entry = await engine.get(LEADER_KEY)
        assert entry is not None
        await engine.revoke(entry.lease)
        await until(lambda: one.terms == 2, "a second term")

    scene(body)


def test_a_leader_whose_host_refuses_connections_is_replaced_before_its_lease_ends() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        async def refused(_address: str) -> bool:
            return True

        one = await make("one")
        await until(lambda: one.leadership.is_leading, "one leads")
        two = await make("two", suspects=lambda: True, probe=refused)
        await until(lambda: two.leadership.is_leading, "two leads")
        await until(lambda: not one.leadership.is_leading, "one has noticed")

    scene(body)


def test_a_leader_that_answers_is_left_alone_though_the_session_is_broken() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        probes: list[str] = []

        async def answered(address: str) -> bool:
            probes.append(address)
            return False

        one = await make("one")
        await until(lambda: one.leadership.is_leading, "one leads")
        two = await make("two", suspects=lambda: True, probe=answered)
        await until(lambda: len(probes) >= 3, "two has looked")
        assert probes[0] == "one:1"
        assert (one.terms, two.terms) == (1, 0)

    scene(body)


def test_one_that_is_not_eligible_never_leads_and_steps_down() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        eligible = True
        one = await make("one", is_eligible=lambda: eligible)
        await until(lambda: one.leadership.is_leading, "one leads")
        eligible = False
        one.leadership.step_down()
        await until(lambda: not one.leadership.is_leading, "one has stepped down")
        two = await make("two")
        await until(lambda: two.leadership.is_leading, "two leads")
        assert one.terms == 1

    scene(body)


def test_a_former_lifes_key_is_taken_over_at_once() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        lease = await engine.grant(60)
        key = msgspec.json.encode(Leader(node_id=NodeId("one"), address="one:1"))
        await engine.commit(Txn(puts=(Put(LEADER_KEY, key, lease),)))  # the engine has fenced that process off
        again = await make("one")
        await until(lambda: again.leadership.is_leading, "one leads again")
        two = await make("two")
        await until(lambda: two.leadership.leader is not None, "two knows")
        assert not two.leadership.is_leading

    scene(body)


def test_a_failed_term_is_told() -> None:
    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        store = await Store.open(engine)

        async def broken() -> None:
            raise errors.InvariantError("a loop broke")

        one = Leadership(engine, store, SystemClock(), node_id=NodeId("one"), address="one:1")
        with pytest.raises(errors.InvariantError, match="a loop broke"):
            await one.run(broken)
        assert await engine.get(LEADER_KEY) is None
        await store.close()

    scene(body)


def test_work_that_goes_on_after_its_term_is_told_and_stays_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "_END_S", 0.1)

    async def body(engine: MemoryEngine, make: Callable[..., Awaitable[Manager]]) -> None:
        store = await Store.open(engine)
        over = asyncio.Event()

        async def never_told() -> None:
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue

        one = Leadership(engine, store, SystemClock(), node_id=NodeId("one"), address="one:1")
        running = asyncio.create_task(one.run(never_told))
        await until(lambda: one.is_leading, "one leads")
        one.step_down()
        with pytest.raises(errors.InvariantError, match="goes on"):
            async with asyncio.timeout(DEADLINE_S):
                await running
        assert store.fence is not None
        over.set()
        await store.close()

    scene(body)


def test_only_a_refusal_counts_as_dead() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert not await is_refused(f"127.0.0.1:{port}")
        server.close()
        await server.wait_closed()
        assert await is_refused(f"127.0.0.1:{port}")

    asyncio.run(main())


def test_a_majority_that_is_gone_is_noticed_and_so_is_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    from fleet.manager import majority as module

    for name in ("_PERIOD_S", "_ANSWER_S", "_LOST_S"):
        monkeypatch.setattr(module, name, 0.02)

    class Engine(MemoryEngine):
        gone = False

        async def get(self, key: str):  # type: ignore[no-untyped-def]
            if self.gone:
                raise errors.UnavailableError("no quorum")
            return await super().get(key)

    async def main() -> None:
        engine = Engine()
        await engine.start()
        majority = Majority(engine, SystemClock())
        task = asyncio.create_task(majority.run())
        majority.require()
        engine.gone = True
        await until(lambda: majority.is_lost, "it is noticed")
        with pytest.raises(errors.UnavailableError, match="try again"):
            majority.require()
        engine.gone = False
        await until(lambda: not majority.is_lost, "it is back")
        majority.require()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.close()

    asyncio.run(main())


def test_a_manager_that_nobody_shares_the_state_with_is_never_without_a_majority() -> None:
    class Slow(MemoryEngine):
        has_others = False

        async def get(self, key: str) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        engine = Slow()
        await engine.start()
        clock = Quick()
        majority = Majority(engine, clock)
        task = asyncio.create_task(majority.run())
        await asyncio.sleep(0)
        clock.time += 60
        await asyncio.sleep(0.01)
        majority.require()
        assert majority.age_s == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.close()

    asyncio.run(main())


class Quick(SystemClock):
    """Its time is what the test says."""

    time = 0.0

    def monotonic(self) -> float:
        return self.time


def test_a_lease_lasts_longer_than_the_pauses_between_its_renewals() -> None:
    assert leadership.LEASE_S > 3 * leadership._KEEP_ALIVE_S
