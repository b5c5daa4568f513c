"""Containers that no service made come to attachable networks: addresses, names, and when they are free again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_node

from fleet import errors
from fleet.api import dispatch
from fleet.clock import SystemClock
from fleet.manager.allocator import Allocator
from fleet.manager.assignments import Assembler
from fleet.manager.control import ControlApi
from fleet.manager.guests import GuestRequest, Guests
from fleet.model.cluster import Cluster
from fleet.model.ids import ClusterId, NodeId
from fleet.model.network import Ipam, IpamConfig, NetworkSpec
from fleet.model.node import NodeState
from fleet.store import Store, Transaction

N1, N2 = NodeId("node-n1"), NodeId("node-n2")


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.control = ControlApi(store, SystemClock(), os.urandom)
        self.guests = Guests(store, SystemClock(), os.urandom)

    async def network(self, name: str, *, attachable: bool = True, subnet: str = "10.5.0.0/29") -> str:
        ipam = Ipam(config=(IpamConfig(subnet=subnet),))
        return (
            await self.control.networks.create(
                NetworkSpec(name=name, driver="overlay", attachable=attachable, ipam=ipam)
            )
        ).id

    async def join(self, node: NodeId, number: int, *, network: str = "net", address: str = "", name: str = "") -> str:
        request = GuestRequest(
            network=network,
            container_id=f"{number:064x}",
            names=(name or f"c{number}",),
            aliases=("db",),
            address=address,
        )
        return (await self.guests.join(node, request)).address

    def endpoints_at(self, node: NodeId) -> dict[str, dispatch.EndpointItem]:
        items = Assembler(self.store, vxlan_port=4789).items_for(node).values()
        return {item.names[0]: item for item in items if isinstance(item, dispatch.EndpointItem) and item.names}


def run(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        await store.commit(
            Transaction()
            .create(Cluster(id=ClusterId("c" * 25), created_at=NOW, updated_at=NOW))
            .create(make_node("n1"))
            .create(make_node("n2"))
        )
        allocating = asyncio.create_task(Allocator(store, SystemClock()).run())
        try:
            await body(World(store))
        finally:
            allocating.cancel()
            await asyncio.gather(allocating, return_exceptions=True)
            await store.close()
            await engine.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_each_gets_an_address_of_its_own_and_is_known_on_every_node_of_the_network() -> None:
    async def body(world: World) -> None:
        await world.network("net")
        first, second = await world.join(N1, 1), await world.join(N2, 2)
        assert {first, second} == {"10.5.0.2/29", "10.5.0.3/29"}
        assert await world.join(N1, 1) == first, "asked again, the same"
        for node in (N1, N2):
            seen = world.endpoints_at(node)
            assert {name: (e.address, e.node_id, e.service_id) for name, e in seen.items()} == {
                "c1": (first.partition("/")[0], N1, ""),
                "c2": (second.partition("/")[0], N2, ""),
            }
            assert seen["c1"].aliases == ("db",)
        await world.guests.leave(N2, f"{1:064x}", world.store.guests.all()[0].network_id)
        assert len(world.store.guests.all()) == 2, "it is not that node's to give back"
        for guest in world.store.guests.all():
            await world.guests.leave(guest.node_id, guest.container_id, guest.network_id)
            await world.guests.leave(guest.node_id, guest.container_id, guest.network_id)
        assert not world.endpoints_at(N1)

    run(body)


def test_an_address_is_given_once_until_it_is_free_again() -> None:
    async def body(world: World) -> None:
        network = await world.network("net")
        assert await world.join(N1, 1, address="10.5.0.4") == "10.5.0.4/29"
        with pytest.raises(errors.ConflictError, match=r"10\.5\.0\.4 is in use"):
            await world.join(N2, 2, address="10.5.0.4")
        with pytest.raises(errors.ConflictError, match="is the gateway"):
            await world.join(N2, 2, address="10.5.0.1")
        with pytest.raises(errors.ConflictError, match="is not between"):
            await world.join(N2, 2, address="10.6.0.1")
        assert len(world.store.guests.all()) == 1, "who got nothing holds nothing"
        await asyncio.gather(*(world.join(N2, number) for number in range(2, 6)))
        addresses = [guest.address for guest in world.store.guests.all()]
        assert len(set(addresses)) == 5
        with pytest.raises(errors.ConflictError, match="are in use"):
            await world.join(N1, 9)
        await world.guests.leave(N1, f"{1:064x}", network)
        assert await world.join(N1, 9) == "10.5.0.4/29"

    run(body)


def test_who_may_not_is_told_why() -> None:
    async def body(world: World) -> None:
        await world.network("closed", attachable=False, subnet="10.7.0.0/24")
        await world.network("net")
        with pytest.raises(errors.ForbiddenError, match="closed: it is not attachable"):
            await world.join(N1, 1, network="closed")
        with pytest.raises(errors.NotFoundError):
            await world.join(N1, 1, network="nowhere")
        for name in ("-x", "a b", "x" * 300):
            with pytest.raises(errors.UserError, match="is not a name"):
                await world.join(N1, 1, name=name)
        with pytest.raises(errors.UserError, match="malformed"):
            await world.guests.join(N1, GuestRequest(network="net", container_id="../x"))

    run(body)


def test_a_network_stays_while_containers_are_on_it_and_a_removed_nodes_are_not() -> None:
    async def body(world: World) -> None:
        await world.network("net")
        await world.join(N1, 1)
        with pytest.raises(errors.UserError, match="in use by container c1"):
            await world.control.networks.remove("net")
        node = world.store.nodes.get(N1)
        assert node is not None
        down = msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, state=NodeState.DOWN))
        await world.store.commit(Transaction().replace(down))
        await world.join(N2, 2)
        assert "c1" not in world.endpoints_at(N2), "nobody is led to a container of a node that is down, by no name"
        await world.control.nodes.remove(N1)
        assert [guest.names for guest in world.store.guests.all()] == [("c2",)]
        await world.guests.leave(N2, f"{2:064x}", world.store.guests.all()[0].network_id)
        await world.control.networks.remove("net")

    run(body)
