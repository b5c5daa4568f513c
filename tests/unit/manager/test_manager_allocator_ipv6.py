"""Addresses of both families: everybody on a network with IPv6 gets one of each, nobody gets somebody else's."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_network, make_node, make_service, make_task

from fleet.clock import SystemClock
from fleet.manager.allocator import Allocator, plan_allocation
from fleet.manager.assignments import Assembler
from fleet.model.cluster import Cluster
from fleet.model.guest import Guest
from fleet.model.ids import ClusterId, NetworkId, NodeId
from fleet.model.network import Ipam, IpamConfig, Network
from fleet.model.node import NodeState, NodeStatus
from fleet.model.service import ContainerSpec, EndpointSpec, NetworkTarget, PortConfig, ServiceSpec, TaskSpec
from fleet.model.task import Task, TaskState
from fleet.store import Store, Transaction

CLUSTER = Cluster(id=ClusterId("c"), created_at=NOW, updated_at=NOW)


def dual(name: str, *configs: IpamConfig, ingress: bool = False) -> Network:
    made = make_network(name, ingress=ingress)
    ipam = Ipam(config=configs) if configs else None
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, enable_ipv6=True, ipam=ipam))


def spec(name: str, *networks: str, ports: tuple[PortConfig, ...] = ()) -> ServiceSpec:
    return ServiceSpec(
        name=name,
        task_template=TaskSpec(
            container_spec=ContainerSpec(image="i"), networks=tuple(NetworkTarget(target=n) for n in networks)
        ),
        endpoint_spec=EndpointSpec(ports=ports),
    )


def with_store(*networks: Network, body: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        transaction = Transaction().create(CLUSTER)
        for network in networks:
            transaction = transaction.create(network)
        await store.commit(transaction)
        try:
            async with asyncio.timeout(60):
                await body(store)
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())


async def allocate(store: Store) -> None:
    await Allocator(store, SystemClock())._allocate()
    assert list(plan_allocation(store, now=NOW)) == [], "planning a settled state changes nothing"


def addresses(store: Store, network_id: str) -> list[str]:
    """Of everybody, in no particular order."""
    found = [
        a for t in store.tasks.all() for x in t.network_attachments if x.network_id == network_id for a in x.addresses
    ]
    found += [a for n in store.nodes.all() for x in n.attachments if x.network_id == network_id for a in x.addresses]
    found += [v.addr for s in store.services.all() for v in s.endpoint.virtual_ips if v.network_id == network_id]
    found += [a for g in store.guests.all() if g.network_id == network_id for a in (g.address, g.address6) if a]
    return found


def test_a_network_gets_a_subnet_of_each_family_and_the_wishes_in_one_form() -> None:
    asked = dual(
        "asked", IpamConfig(subnet="fd00:9:0:0::/64", gateway="fd00:9:0::fffe"), IpamConfig(subnet="10.9.0.0/24")
    )

    async def body(store: Store) -> None:
        await allocate(store)
        by_name = {network.spec.name: network for network in store.networks.all()}
        assert by_name["asked"].ipam.config == (
            IpamConfig(subnet="10.9.0.0/24", gateway="10.9.0.1"),
            IpamConfig(subnet="fd00:9::/64", gateway="fd00:9::fffe"),
        )
        one, two = (ipaddress.IPv6Network(by_name[name].ipv6.subnet) for name in ("one", "two"))
        assert one != two and one.supernet(new_prefix=48) == two.supernet(new_prefix=48)
        assert by_name["one"].ipv6.gateway == str(one.network_address + 1)
        assert by_name["four"].ipv6 == IpamConfig() and len(by_name["four"].ipam.config) == 1

    with_store(asked, dual("one"), dual("two"), make_network("four"), body=body)


def test_tasks_services_nodes_and_guests_get_one_of_each() -> None:
    async def body(store: Store) -> None:
        await allocate(store)
        port = PortConfig(target_port=80, published_port=8080)
        service = make_service(spec=spec("web", "network-front", ports=(port,)))
        tasks = [
            make_task(f"t{n}", service_id=service.id, slot=n, spec=service.spec.task_template) for n in range(1, 4)
        ]
        guest = Guest(
            id="g", created_at=NOW, updated_at=NOW, node_id=NodeId("n1"), network_id=NetworkId("network-front"),
            container_id="cc", wanted_address6="fd00:9::77",
        )  # fmt: skip
        transaction = Transaction().create(service).create(make_node("n1")).create(guest)
        for task in tasks:
            transaction = transaction.create(task)
        await store.commit(transaction)
        await allocate(store)
        for network in ("network-front", "network-ingress"):
            given = addresses(store, network)
            assert len(given) == len(set(given)) and sum(":" in a for a in given) * 2 == len(given)
        assert store.guests.get("g").address6 == "fd00:9::77/64"  # type: ignore[union-attr]
        vips = [v.addr for v in store.services.get(service.id).endpoint.virtual_ips]  # type: ignore[union-attr]
        assert [":" in vip for vip in vips] == [False, True]
        task = store.tasks.get(tasks[0].id)
        assert task is not None
        front = next(a for a in task.network_attachments if a.network_id == "network-front")
        assert (front.address, front.address6) == tuple(a.partition("/")[0] for a in front.addresses)

    with_store(dual("front", IpamConfig(subnet="fd00:9::/64")), dual("ingress", ingress=True), body=body)


def test_an_address_that_is_taken_or_of_another_family_says_so() -> None:
    async def body(store: Store) -> None:
        await allocate(store)

        def guest(name: str, network: str, six: str) -> Guest:
            return Guest(
                id=name, created_at=NOW, updated_at=NOW, node_id=NodeId("n1"), network_id=NetworkId(network),
                container_id=name, wanted_address6=six,
            )  # fmt: skip

        wishes = [
            guest("a", "network-front", "fd00:9::77"),
            guest("b", "network-front", "fd00:9::77"),
            guest("c", "network-four", "fd00:9::78"),
        ]
        transaction = Transaction()
        for wish in wishes:
            transaction = transaction.create(wish)
        await store.commit(transaction)
        await allocate(store)
        told = {g.id: g.err for g in store.guests.all()}
        assert sum("fd00:9::77 is in use" in text for text in (told["a"], told["b"])) == 1
        assert "has no IPv6" in told["c"]
        # the one that got nothing keeps no address of the other family either
        assert len(addresses(store, "network-front")) == 2

    with_store(dual("front", IpamConfig(subnet="fd00:9::/64")), make_network("four"), body=body)


def test_hosts_are_told_both_addresses() -> None:
    async def body(store: Store) -> None:
        await allocate(store)
        service = make_service(spec=spec("web", "network-front"))
        node = msgspec.structs.replace(make_node("n1"), status=NodeStatus(state=NodeState.READY, addr="192.168.0.1"))
        await store.commit(
            Transaction()
            .create(service)
            .create(node)
            .create(make_task("t1", service_id=service.id, slot=1, spec=service.spec.task_template))
        )
        await allocate(store)
        (task,) = store.tasks.all()
        status = msgspec.structs.replace(task.status, state=TaskState.RUNNING)
        placed: Task = msgspec.structs.replace(task, node_id=node.id, status=status)
        await store.commit(Transaction().replace(placed))
        items = Assembler(store, vxlan_port=4789).items_for(node.id).values()
        endpoint = next(i for i in items if type(i).__name__ == "EndpointItem")
        vip = next(i for i in items if type(i).__name__ == "ServiceItem")
        given = {a.partition("/")[0] for a in addresses(store, "network-front")}
        assert {endpoint.address, endpoint.address6, vip.vip, vip.vip6} == given  # type: ignore[union-attr]

    with_store(dual("front"), body=body)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_no_address_is_ever_given_twice(data: st.DataObject) -> None:
    """Whatever comes and goes, on a subnet that is nearly too small."""

    async def body(store: Store) -> None:
        await allocate(store)
        service = make_service(spec=spec("web", "network-front"))
        await store.commit(Transaction().create(service))
        for number in range(data.draw(st.integers(1, 12))):
            alive = [t for t in store.tasks.all() if not t.status.state.is_terminal]
            if alive and data.draw(st.booleans()):
                ended = data.draw(st.sampled_from(sorted(alive, key=lambda t: t.id)))
                status = msgspec.structs.replace(ended.status, state=TaskState.SHUTDOWN)
                await store.commit(Transaction().replace(msgspec.structs.replace(ended, status=status)))
            await store.commit(
                Transaction().create(
                    make_task(f"t{number}", service_id=service.id, slot=number + 1, spec=service.spec.task_template)
                )
            )
            await allocate(store)
            held = [
                a
                for t in store.tasks.all()
                if not t.status.state.is_terminal
                for x in t.network_attachments
                for a in x.addresses
            ]
            held += [v.addr for s in store.services.all() for v in s.endpoint.virtual_ips]
            assert len(held) == len(set(held))
            assert sum(":" in a for a in held) * 2 == len(held)
            assert not {"fd00:9::1/125", "fd00:9::/125"} & set(held)

    with_store(dual("front", IpamConfig(subnet="fd00:9::/125"), IpamConfig(subnet="10.9.0.0/24")), body=body)


@pytest.mark.parametrize("text", ["fd00:9::/64", "fd00:9:0:0:0::/64"])
def test_pools_avoid_what_somebody_asked_for(text: str) -> None:
    async def body(store: Store) -> None:
        await allocate(store)
        subnets = [ipaddress.IPv6Network(n.ipv6.subnet) for n in store.networks.all()]
        assert len(set(subnets)) == 2

    with_store(dual("a"), dual("b", IpamConfig(subnet=text)), body=body)
