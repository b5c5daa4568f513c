"""Whoever's assignment set a change makes another one is among those whom the change is said to concern."""

from __future__ import annotations

import asyncio
import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_network, make_node, make_secret, make_service, make_task

from fleet.manager.assignments import Assembler, difference
from fleet.manager.audience import Audience, audience_of
from fleet.model.guest import Guest
from fleet.model.ids import NodeId, ServiceId
from fleet.model.node import NodeDescription, NodeState, NodeStatus
from fleet.model.service import (
    ContainerSpec,
    Endpoint,
    NetworkTarget,
    PortConfig,
    SecretReference,
    ServiceSpec,
    TaskSpec,
)
from fleet.model.task import Attachment, Task, TaskState
from fleet.store import Store, Transaction
from fleet.store.kinds import Stored

NODES = [NodeId(f"node-w{number}") for number in range(4)]
NETWORKS = ["network-front", "network-back", "network-ingress"]
SEALED = {"back": {"encrypted": ""}}
SECRETS = ["secret-a", "secret-b"]
STATES = [TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING, TaskState.FAILED, TaskState.SHUTDOWN]


class World:
    """Changes something at random, keeping what the managers keep: secrets come before their users."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.count = 0

    def step(self) -> Transaction | None:
        kind = self.chance.choice((self.task, self.task, self.task, self.node, self.service, self.network, self.guest))
        return kind()

    def attachments(self) -> tuple[Attachment, ...]:
        chosen = [each for each in NETWORKS if self.chance.random() < 0.4]
        return tuple(Attachment(network_id=each, addresses=("10.0.0.9/24",)) for each in chosen)  # type: ignore[arg-type]

    def one(self, rows: tuple[Stored, ...]) -> Stored | None:
        return self.chance.choice(rows) if rows and self.chance.random() < 0.8 else None

    def task(self) -> Transaction:
        task = self.one(self.store.tasks.all())
        if not isinstance(task, Task):
            self.count += 1
            used = tuple(SecretReference(secret_id=each) for each in SECRETS if self.chance.random() < 0.3)
            spec = TaskSpec(container_spec=ContainerSpec(image="i", secrets=used))
            made = make_task(f"t{self.count}", spec=spec, node_id=self.chance.choice([*NODES, ""]))
            return Transaction().create(msgspec.structs.replace(made, network_attachments=self.attachments()))
        if self.chance.random() < 0.15:
            return Transaction().delete(task)
        fields = self.chance.choice(
            (
                {"status": msgspec.structs.replace(task.status, state=self.chance.choice(STATES))},
                {"desired_state": self.chance.choice((TaskState.RUNNING, TaskState.SHUTDOWN))},
                {"node_id": task.node_id or self.chance.choice(NODES)},
                {"network_attachments": task.network_attachments or self.attachments()},
            )
        )
        return Transaction().replace(msgspec.structs.replace(task, **fields))

    def node(self) -> Transaction:
        node = self.chance.choice(self.store.nodes.all())
        status = NodeStatus(
            state=self.chance.choice((NodeState.READY, NodeState.DISCONNECTED, NodeState.DOWN)),
            addr=self.chance.choice(("10.1.0.1", "10.1.0.2")),
        )
        fields = self.chance.choice(
            (
                {"status": status},
                {"removed": self.chance.random() < 0.5},
                {"attachments": self.attachments()},
                {"description": NodeDescription(tunnel_key=self.chance.choice(("", "A", "B")))},
            )
        )
        return Transaction().replace(msgspec.structs.replace(node, **fields))

    def service(self) -> Transaction:
        service = self.one(self.store.services.all())
        if service is None:
            self.count += 1
            targets = tuple(NetworkTarget(target=each) for each in NETWORKS[:2] if self.chance.random() < 0.5)
            template = TaskSpec(container_spec=ContainerSpec(image="i"), networks=targets)
            name = f"s{self.count}"
            return Transaction().create(make_service(name, spec=ServiceSpec(name=name, task_template=template)))
        if self.chance.random() < 0.2:
            return Transaction().delete(service)
        ports = (PortConfig(target_port=80, published_port=8000 + self.count),) if self.chance.random() < 0.5 else ()
        labels = {"fleet.publish.source": self.chance.choice(("client", "node"))}
        spec = msgspec.structs.replace(service.spec, labels=labels)
        fields = self.chance.choice(
            ({"endpoint": Endpoint(ports=ports)}, {"pending_delete": True}, {"updated_at": NOW}, {"spec": spec})
        )
        return Transaction().replace(msgspec.structs.replace(service, **fields))

    def network(self) -> Transaction | None:
        network = self.chance.choice(self.store.networks.all())
        return Transaction().replace(msgspec.structs.replace(network, vni=self.chance.randrange(4097, 4100)))

    def guest(self) -> Transaction:
        guest = self.one(self.store.guests.all())
        if isinstance(guest, Guest):
            if self.chance.random() < 0.4:
                return Transaction().delete(guest)
            return Transaction().replace(msgspec.structs.replace(guest, address="10.0.0.7/24"))
        self.count += 1
        return Transaction().create(
            Guest(
                id=f"g{self.count}",  # type: ignore[arg-type]
                container_id=f"c{self.count}",
                network_id=self.chance.choice(NETWORKS[:2]),  # type: ignore[arg-type]
                node_id=self.chance.choice(NODES),
                created_at=NOW,
                updated_at=NOW,
            )
        )


async def story(seed: int, *, steps: int = 40) -> None:
    chance = random.Random(seed)
    engine = MemoryEngine()
    await engine.start()
    store = await Store.open(engine)
    try:
        first = Transaction()
        for name in ("front", "back", "ingress"):
            first.create(make_network(name, ingress=name == "ingress", options=SEALED.get(name, {})))
        for number in range(len(NODES)):
            first.create(make_node(f"w{number}"))
        for each in SECRETS:
            first.create(make_secret(each.removeprefix("secret-")))
        await store.commit(first)
        world = World(store, chance)
        kept = Assembler(store, vxlan_port=4789)
        sets = {node: kept.items_for(node) for node in NODES}
        with store.subscribe() as subscription:
            for _ in range(steps):
                for _ in range(chance.randint(1, 3)):  # several changes of one object are folded into one
                    transaction = world.step()
                    if transaction is not None:
                        await store.commit(transaction)
                changes = subscription.take()
                audience = Audience()
                for change in changes:
                    audience_of(change, store, audience)
                for node in NODES:
                    now = Assembler(store, vxlan_port=4789).items_for(node)
                    assert kept.items_for(node) == now, "what an assembler keeps is as the tables are"
                    has = {key.partition("/")[2] for key in sets[node] if key.startswith("network/")}
                    woken = audience.everyone or node in audience.nodes or bool(has & audience.networks)
                    woken |= not audience.items.isdisjoint(sets[node])
                    step = difference(sets[node], now, applies_to=1)
                    assert woken or step is None, (list(changes), step)
                    if woken:
                        sets[node] = now
    finally:
        await store.close()
        await engine.close()


@settings(deadline=None, max_examples=60)
@given(st.integers(min_value=0, max_value=1 << 32))
def test_nobody_whose_set_changes_is_left_out(seed: int) -> None:
    asyncio.run(story(seed))


def test_a_tasks_progress_is_no_news_for_its_node_and_nobody_elses() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        task = make_task("t1", service_id=ServiceId("s"), node_id="node-w1", state=TaskState.ASSIGNED)
        await store.commit(Transaction().create(task))
        with store.subscribe() as subscription:
            found = store.tasks.get("t1")
            assert found is not None
            running = msgspec.structs.replace(found.status, state=TaskState.RUNNING)
            await store.commit(Transaction().replace(msgspec.structs.replace(found, status=running)))
            audience = Audience()
            for change in subscription.take():
                audience_of(change, store, audience)
        assert audience == Audience()
        await store.close()
        await engine.close()

    asyncio.run(main())
