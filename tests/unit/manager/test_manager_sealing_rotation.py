"""The key that secrets are sealed with is replaced, and nothing is ever stored that some manager cannot open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_node

from fleet import errors
from fleet.clock import SystemClock
from fleet.manager.sealing_rotation import (
    begin_sealing_rotation,
    is_rotating,
    keep_sealing_keys,
    next_sealing_steps,
    waits_for,
)
from fleet.model.cluster import SEALING_AUTHORITY, Authority, Cluster
from fleet.model.ids import ClusterId, NodeId, SecretId
from fleet.model.node import ManagerStatus, Node, NodeRole
from fleet.model.secret import Secret, SecretSpec
from fleet.store import AesSealer, Store, Transaction
from fleet.store.sealing import key_digest
from fleet.store.transaction import compile_transaction

OLD, NEW, THIRD = b"o" * 32, b"n" * 32, b"t" * 32


def secret(name: str) -> Secret:
    return Secret(
        id=SecretId(f"id-{name}"), created_at=NOW, updated_at=NOW, spec=SecretSpec(name=name, data=name.encode())
    )


def manager(name: str) -> Node:
    node = make_node(name)
    spec = msgspec.structs.replace(node.spec, role=NodeRole.MANAGER)
    return msgspec.structs.replace(node, spec=spec, manager_status=ManagerStatus(addr=f"{name}:2377"))


class World:
    """Two managers, each with a store and keys of its own, over one engine."""

    def __init__(self, engine: MemoryEngine, sealers: list[AesSealer], stores: list[Store]) -> None:
        self.engine, self.sealers, self.stores = engine, sealers, stores
        self.store = stores[0]
        self.disks = {0: OLD, 1: OLD}

    @property
    def authority(self) -> Authority | None:
        return self.store.authorities.get(SEALING_AUTHORITY)

    async def begin(self, key: bytes = NEW) -> None:
        cluster = next(iter(self.store.clusters.all()))
        shown, tx = begin_sealing_rotation(self.authority, cluster, key, NOW)
        await self.level(await self.store.commit(tx.replace(shown)))

    async def level(self, revision: int | None = None) -> None:
        for store in self.stores:
            await store.wait_revision(revision or max(s.revision for s in self.stores))

    async def keep(self, index: int) -> None:
        """What a manager's daemon does when it sees the tables."""

        async def save(keys: bytes) -> None:
            self.disks[index] = keys

        await keep_sealing_keys(
            self.stores[index], self.sealers[index], SystemClock(), NodeId(f"node-m{index}"), save=save
        )
        await self.level()

    async def lead(self) -> int:
        """All steps that can be taken; how many rounds."""
        count = 0
        while await self.round():
            count += 1
        await self.level()
        return count

    async def round(self) -> bool:
        wrote = False
        async for steps in next_sealing_steps(self.store, NOW):
            wrote = True
            for result in await self.store.commit_all(steps):
                assert not isinstance(result, errors.FleetError)
        return wrote

    async def raw_opens_with(self, key: bytes) -> set[str]:
        sealer = AesSealer(key)
        entries = (await self.engine.list("/")).entries
        return {e.key for e in entries if sealer.is_sealed_with("", e.value) and sealer.unseal(e.key, e.value)}


def run(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        sealers = [AesSealer(OLD), AesSealer(OLD)]
        stores = [await Store.open(engine, sealer=sealer) for sealer in sealers]
        cluster = Cluster(id=ClusterId("c" * 25), created_at=NOW, updated_at=NOW)
        await stores[0].commit(Transaction().create(cluster).create(manager("m0")).create(manager("m1")))
        revision = await stores[0].commit(Transaction().create(secret("a")).create(secret("b")))
        world = World(engine, sealers, stores)
        await world.level(revision)
        try:
            await body(world)
        finally:
            for store in stores:
                await store.close()
            await engine.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_new_key_is_used_when_all_keep_it_and_the_old_opens_nothing_afterwards() -> None:
    async def body(world: World) -> None:
        await world.begin()
        sealing = world.authority.sealing if world.authority else None
        assert sealing is not None
        assert waits_for(sealing, world.store.nodes.all()) == ("m0", "m1")
        assert await world.lead() == 0
        await world.keep(0)
        assert await world.lead() == 0, "the other manager could open nothing any more"
        assert not await world.raw_opens_with(NEW)
        await world.keep(1)
        assert await world.lead() == 3, "used from now on; written again; done"
        assert not await world.raw_opens_with(OLD)
        assert len(await world.raw_opens_with(NEW)) == 6, "two secrets, two nodes, the cluster, the keys' own place"
        await world.keep(0)
        await world.keep(1)
        assert [sealer.keys for sealer in world.sealers] == [NEW, NEW]
        cluster = next(iter(world.stores[1].clusters.all()))
        assert cluster.sealing_key_digest == key_digest(NEW)
        assert not cluster.sealing_key_rotation_in_progress
        assert NEW.hex() not in repr(world.authority)
        fresh = await Store.open(world.engine, sealer=AesSealer(NEW))
        assert sorted(s.spec.data for s in fresh.secrets.all()) == [b"a", b"b"]
        await fresh.close()
        await world.begin(THIRD)
        await world.keep(0)
        await world.keep(1)
        assert await world.lead() == 3
        assert not await world.raw_opens_with(NEW)

    run(body)


def test_the_end_of_a_rotation_and_the_begin_of_the_next_may_be_seen_together() -> None:
    async def body(world: World) -> None:
        await world.begin()
        await world.keep(0)
        await world.keep(1)
        assert await world.lead() == 3
        await world.begin(THIRD)
        await world.keep(0)
        await world.keep(1)
        assert world.disks == {0: NEW + THIRD, 1: NEW + THIRD}
        assert await world.lead() == 3
        await world.keep(0)
        await world.keep(1)
        assert world.disks == {0: THIRD, 1: THIRD}

    run(body)


def test_a_write_that_was_sealed_before_and_comes_late_is_sealed_again() -> None:
    async def body(world: World) -> None:
        other = world.stores[1]
        late = compile_transaction(Transaction().create(secret("late")), other)
        await world.begin()
        await world.keep(0)
        await world.keep(1)
        waiting = compile_transaction(Transaction().create(secret("waiting")), other)
        assert await world.lead() == 3
        await world.keep(0)
        await world.keep(1)
        for compiled in (late, waiting):  # as the network delivers it, when nobody has the old key any more
            with pytest.raises(errors.FleetError):
                await world.engine.commit(compiled.txn)
        await other.commit(Transaction().create(secret("retried")))
        assert not await world.raw_opens_with(OLD)

    run(body)


def test_a_manager_that_lags_is_not_refused_but_seals_again() -> None:
    async def body(world: World) -> None:
        await world.begin()
        await world.keep(0)
        await world.keep(1)
        (steps,) = [steps async for steps in next_sealing_steps(world.store, NOW)]
        behind = world.stores[1]
        real = world.engine.commit
        stale: list[Any] = []

        async def turn_first(txn: Any) -> int:
            """The leader's step lands between this manager's sealing and the arrival of what it sealed."""
            world.engine.commit = real  # type: ignore[method-assign]
            stale.append(txn)
            await world.store.commit_all(steps)
            return await real(txn)

        world.engine.commit = turn_first  # type: ignore[method-assign]
        await behind.commit(Transaction().create(secret("lagging")))
        assert stale
        assert "/fleet/secret/id-lagging" in await world.raw_opens_with(NEW)

    run(body)


def test_a_removed_or_demoted_manager_is_not_waited_for_and_a_second_rotation_is_refused() -> None:
    async def body(world: World) -> None:
        await world.begin()
        with pytest.raises(errors.ConflictError, match="being rotated already"):
            await world.begin(THIRD)
        await world.keep(0)
        world.sealers[1].change(OLD + NEW)  # it still follows the state, but has not said so
        node = world.store.nodes.get("node-m1")
        assert node is not None
        demoted = msgspec.structs.replace(node.spec, role=NodeRole.WORKER)
        await world.store.commit(
            Transaction().replace(msgspec.structs.replace(node, spec=demoted, manager_status=None))
        )
        assert await world.lead() == 3
        assert not is_rotating(world.authority)

    run(body)
