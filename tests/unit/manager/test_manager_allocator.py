"""Addresses, ports and subnets: everybody gets one, nobody gets somebody else's."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable

import msgspec
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_network, make_node, make_service, make_task

from fleet.clock import SystemClock
from fleet.manager.allocator import Allocator, plan_allocation
from fleet.manager.assignments import Assembler, difference
from fleet.manager.tunnel_keys import with_own_key
from fleet.model.cluster import Cluster
from fleet.model.ids import ClusterId, NodeId
from fleet.model.network import Ipam, IpamConfig
from fleet.model.node import NodeDescription, NodeState, NodeStatus
from fleet.model.service import (
    ContainerSpec,
    EndpointMode,
    EndpointSpec,
    NetworkTarget,
    PortConfig,
    ServiceSpec,
    TaskSpec,
)
from fleet.model.task import TaskState
from fleet.store import Store, Transaction

CLUSTER = Cluster(id=ClusterId("c"), created_at=NOW, updated_at=NOW)

KEYS = {number: base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)}


def spec(
    name: str,
    *,
    networks: tuple[str, ...] = (),
    ports: tuple[PortConfig, ...] = (),
    mode: EndpointMode = EndpointMode.VIP,
) -> ServiceSpec:
    targets = tuple(NetworkTarget(target=n) for n in networks)
    return ServiceSpec(
        name=name,
        task_template=TaskSpec(container_spec=ContainerSpec(image="i"), networks=targets),
        endpoint_spec=EndpointSpec(mode=mode, ports=ports),
    )


def with_store(body: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        ingress = make_network("ingress", ingress=True)
        front = make_network("front")
        await store.commit(Transaction().create(CLUSTER).create(ingress).create(front))
        try:
            async with asyncio.timeout(20):
                await body(store)
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())


async def allocate(store: Store) -> None:
    await Allocator(store, SystemClock())._allocate()
    assert list(plan_allocation(store, now=NOW)) == [], "planning a settled state changes nothing"


def test_networks_get_subnets_that_do_not_overlap_and_numbers_of_their_own() -> None:
    async def body(store: Store) -> None:
        asked = make_network("asked")
        own = Ipam(config=(IpamConfig(subnet="10.0.16.0/24"),))
        asked = msgspec.structs.replace(asked, spec=msgspec.structs.replace(asked.spec, ipam=own))
        await store.commit(Transaction().create(asked))
        await allocate(store)
        by_name = {n.spec.name: n for n in store.networks.all()}
        assert by_name["asked"].ipam.config[0].subnet == "10.0.16.0/24"
        assert len({n.vni for n in by_name.values()}) == 3
        assert by_name["ingress"].ipam.config[0].subnet == "10.255.0.0/16"
        assert by_name["front"].ipam.config[0].subnet not in ("10.255.0.0/16", "10.0.16.0/24")
        assert by_name["front"].ipam.config[0].gateway.endswith(".1")

    with_store(body)


def test_the_ingress_network_leaves_most_of_a_small_pool_to_others() -> None:
    async def body(store: Store) -> None:
        cluster = next(iter(store.clusters.all()))
        small = msgspec.structs.replace(cluster, default_addr_pool=("10.20.0.0/16",))
        await store.commit(Transaction().replace(small))
        await allocate(store)
        by_name = {n.spec.name: n for n in store.networks.all()}
        assert by_name["ingress"].ipam.config[0].subnet == "10.20.240.0/20"

    with_store(body)


def test_services_tasks_and_nodes_get_addresses_that_are_all_different() -> None:
    async def body(store: Store) -> None:
        port = PortConfig(target_port=80)
        service = make_service(spec=spec("web", networks=("network-front",), ports=(port,)))
        transaction = Transaction().create(service).create(make_node("w1")).create(make_node("w2"))
        for number in range(50):
            transaction.create(
                make_task(f"t{number}", service_id=service.id, slot=number + 1, spec=service.spec.task_template)
            )
        await store.commit(transaction)
        await allocate(store)
        allocated = store.services.get(service.id)
        assert allocated is not None
        assert allocated.endpoint.ports[0].published_port == 30000
        addresses = [v.addr for v in allocated.endpoint.virtual_ips]
        for task in store.tasks.all():
            assert task.status.state is TaskState.PENDING
            assert {a.network_id for a in task.network_attachments} == {"network-front", "network-ingress"}
            addresses += [x for a in task.network_attachments for x in a.addresses]
        addresses += [x for n in store.nodes.all() for a in n.attachments for x in a.addresses]
        assert len(addresses) == 1 + 100 + 2
        assert len(set(addresses)) == len(addresses)

    with_store(body)


def test_a_full_network_says_so_on_the_task_and_goes_on_when_an_address_is_free() -> None:
    async def body(store: Store) -> None:
        small = make_network("small")
        tiny = Ipam(config=(IpamConfig(subnet="10.9.0.0/29"),))
        small = msgspec.structs.replace(small, spec=msgspec.structs.replace(small.spec, ipam=tiny))
        service = make_service(spec=spec("web", networks=("network-small",), mode=EndpointMode.DNSRR))
        transaction = Transaction().create(small).create(service)
        for number in range(6):
            transaction.create(
                make_task(f"t{number}", service_id=service.id, slot=number + 1, spec=service.spec.task_template)
            )
        await store.commit(transaction)
        await allocate(store)
        waiting = [t for t in store.tasks.all() if t.status.state is TaskState.NEW]
        assert len(waiting) == 1
        assert "10.9.0.0/29" in waiting[0].status.err
        ended = next(t for t in store.tasks.all() if t.status.state is TaskState.PENDING)
        status = msgspec.structs.replace(ended.status, state=TaskState.FAILED)
        await store.commit(Transaction().replace(msgspec.structs.replace(ended, status=status)))
        await allocate(store)
        assert all(t.status.state is not TaskState.NEW for t in store.tasks.all())

    with_store(body)


def test_a_task_that_is_no_longer_wanted_gets_nothing() -> None:
    async def body(store: Store) -> None:
        service = make_service(spec=spec("web", networks=("network-front",)))
        task = make_task("t", service_id=service.id, spec=service.spec.task_template, desired_state=TaskState.REMOVE)
        await store.commit(Transaction().create(service).create(task))
        await allocate(store)
        assert store.tasks.get("t") is not None
        assert store.tasks.get("t").network_attachments == ()  # type: ignore[union-attr]

    with_store(body)


async def scene(store: Store) -> None:
    port = PortConfig(target_port=80, published_port=8080)
    service = make_service(spec=spec("web", networks=("network-front",), ports=(port,)))
    transaction = Transaction().create(service)
    for name, address in (("w1", "10.1.0.1"), ("w2", "10.1.0.2"), ("w3", "10.1.0.3")):
        node = make_node(name)
        transaction.create(msgspec.structs.replace(node, status=NodeStatus(state=NodeState.READY, addr=address)))
    for slot in (1, 2):
        transaction.create(make_task(f"t{slot}", service_id=service.id, slot=slot, spec=service.spec.task_template))
    await store.commit(transaction)
    await allocate(store)
    for slot in (1, 2):
        task = store.tasks.get(f"t{slot}")
        assert task is not None
        running = msgspec.structs.replace(task.status, state=TaskState.RUNNING)
        placed = msgspec.structs.replace(task, status=running, node_id=NodeId(f"node-w{slot}"))
        await store.commit(Transaction().replace(placed))


def test_a_node_learns_of_its_tasks_their_networks_and_every_published_port_and_no_more() -> None:
    async def body(store: Store) -> None:
        await scene(store)
        first = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))
        third = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w3"))
        assert "task/t1" in first
        assert "task/t2" not in first
        assert {k for k in first if k.startswith("endpoint/network-front/")} == {
            "endpoint/network-front/t1",
            "endpoint/network-front/t2",
        }
        assert "published/tcp/8080" in first
        assert not any("network-front" in key for key in third), "a node without tasks there needs no such network"
        assert "published/tcp/8080" in third
        assert "endpoint/network-ingress/t2" in third

    with_store(body)


def test_an_endpoint_gets_traffic_only_while_running_wanted_and_answering() -> None:
    async def body(store: Store) -> None:
        await scene(store)

        def ready(task_id: str) -> bool:
            item = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))[f"endpoint/network-front/{task_id}"]
            return bool(getattr(item, "ready", None))

        assert ready("t1")
        assert ready("t2")
        task = store.tasks.get("t1")
        assert task is not None
        await store.commit(Transaction().replace(msgspec.structs.replace(task, desired_state=TaskState.SHUTDOWN)))
        assert not ready("t1")
        node = store.nodes.get("node-w2")
        assert node is not None
        lost = msgspec.structs.replace(node.status, state=NodeState.DISCONNECTED)
        await store.commit(Transaction().replace(msgspec.structs.replace(node, status=lost)))
        assert not ready("t2")

    with_store(body)


def test_a_task_of_a_node_that_is_down_has_no_name_any_more() -> None:
    """It is replaced: ``web.2`` is its successor alone, and who asks for it must not wait for a host that is not there."""

    async def body(store: Store) -> None:
        await scene(store)

        def names() -> tuple[str, ...]:
            item = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))["endpoint/network-front/t2"]
            return tuple(getattr(item, "names", ()))

        node = store.nodes.get("node-w2")
        assert node is not None
        for state, named in ((NodeState.READY, True), (NodeState.DISCONNECTED, True), (NodeState.DOWN, False)):
            status = msgspec.structs.replace(node.status, state=state)
            await store.commit(Transaction().replace(msgspec.structs.replace(node, status=status)))
            node = store.nodes.get("node-w2")
            assert node is not None
            assert bool(names()) is named, state

    with_store(body)


def test_keys_of_the_tunnel_are_told_on_encrypted_networks_only() -> None:
    async def body(store: Store) -> None:
        await scene(store)
        for number in (1, 2):
            node = store.nodes.get(f"node-w{number}")
            assert node is not None
            said = NodeDescription(hostname=f"w{number}", tunnel_key=KEYS[number])
            await store.commit(Transaction().replace(msgspec.structs.replace(node, description=said)))

        def keys() -> list[str]:
            items = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))
            return [getattr(items[f"endpoint/network-front/t{slot}"], "tunnel_key", "?") for slot in (1, 2)]

        assert keys() == ["", ""]
        network = store.networks.get("network-front")
        assert network is not None
        spec = msgspec.structs.replace(network.spec, options={"encrypted": ""})
        await store.commit(Transaction().replace(msgspec.structs.replace(network, spec=spec)))
        assert keys() == [KEYS[1], KEYS[2]]

    with_store(body)


def test_a_node_cannot_say_anothers_key_nor_nonsense() -> None:
    async def body(store: Store) -> None:
        await scene(store)
        node = store.nodes.get("node-w1")
        assert node is not None
        said = NodeDescription(hostname="w1", tunnel_key=KEYS[1])
        await store.commit(Transaction().replace(msgspec.structs.replace(node, description=said)))
        assert with_own_key(store, NodeId("node-w1"), said) == said
        assert with_own_key(store, NodeId("node-w2"), said).tunnel_key == ""
        node = store.nodes.get("node-w1")
        assert node is not None
        down = msgspec.structs.replace(node.status, state=NodeState.DOWN)
        await store.commit(Transaction().replace(msgspec.structs.replace(node, status=down)))
        assert with_own_key(store, NodeId("node-w2"), said) == said, "a host that joined again is another node"
        for nonsense in ("x", "}" * 44, KEYS[1] + "\n", KEYS[1][:-2] + "B="):
            said = NodeDescription(hostname="w2", tunnel_key=nonsense)
            assert with_own_key(store, NodeId("node-w2"), said).tunnel_key == ""

    with_store(body)


def test_increments_lead_from_one_set_to_the_other() -> None:
    async def body(store: Store) -> None:
        await scene(store)
        before = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))
        task = store.tasks.get("t1")
        assert task is not None
        status = msgspec.structs.replace(task.status, message="said again")
        await store.commit(Transaction().replace(msgspec.structs.replace(task, status=status)))
        same = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))
        assert difference(before, same, applies_to=1) is None, "an agent's own report is no news to it"
        await store.commit(Transaction().delete(store.tasks.get("t2")))  # type: ignore[arg-type]
        after = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1"))
        step = difference(before, after, applies_to=1)
        assert step is not None
        assert set(step.removed) == {"endpoint/network-front/t2", "endpoint/network-ingress/t2"}

    with_store(body)


def test_a_running_allocator_serves_what_comes_and_who_waited_for_an_address_when_one_is_free() -> None:
    async def body(store: Store) -> None:
        small = make_network("small")
        ipam = Ipam(config=(IpamConfig(subnet="10.9.0.0/30"),))  # the gateway, and one task
        small = msgspec.structs.replace(small, spec=msgspec.structs.replace(small.spec, ipam=ipam))
        service = make_service("web", spec=spec("web", networks=("network-small",), mode=EndpointMode.DNSRR))
        await store.commit(Transaction().create(small).create(service))
        allocator = asyncio.create_task(Allocator(store, SystemClock()).run())
        try:
            for number in (1, 2):
                template = service.spec.task_template
                await store.commit(Transaction().create(make_task(f"t{number}", slot=number, spec=template)))
            await until(lambda: sorted(task.status.state for task in store.tasks.all()) == ["new", "pending"])
            has, waits = sorted(store.tasks.all(), key=lambda task: task.status.state is TaskState.NEW)
            await until(lambda: store.tasks.get(waits.id).status.err)  # type: ignore[union-attr]
            has = store.tasks.get(has.id)  # type: ignore[assignment]
            ended = msgspec.structs.replace(has.status, state=TaskState.FAILED)
            await store.commit(Transaction().replace(msgspec.structs.replace(has, status=ended)))
            await until(lambda: store.tasks.get(waits.id).status.state is TaskState.PENDING)  # type: ignore[union-attr]
        finally:
            allocator.cancel()
            await asyncio.gather(allocator, return_exceptions=True)

    with_store(body)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
