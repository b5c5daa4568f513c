"""Whatever the sequence of changes: the kernel, changed step by step, is as if made anew, and names agree with a model."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from network_hosts import Host, hosts, in_netns, ping, resolve, run

from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    HostPort,
    NetworkSpec,
    NetworkState,
    NodeRecord,
    PublishedPort,
    SandboxSpec,
    ServiceRecord,
)

pytestmark = pytest.mark.kernel

STEPS = 60
LOCAL = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/24", gateway="172.30.0.1")
OVERLAYS = tuple(
    NetworkSpec(
        id=f"net{n}", name=f"net{n}", driver="overlay", subnet=f"10.0.{n}.0/24", gateway=f"10.0.{n}.1", vni=4096 + n
    )
    for n in (1, 2)
)
INGRESS = NetworkSpec(
    id="ingress",
    name="ingress",
    driver="overlay",
    subnet="10.0.9.0/24",
    gateway="10.0.9.1",
    vni=4105,
    ingress=True,
    node_address="10.0.9.2",
)


class World:
    """A model of what was ordered, and the host it was ordered from."""

    def __init__(self, host: Host, seed: int) -> None:
        self.host = host
        self.random = random.Random(seed)
        self.states: dict[str, NetworkState] = {}
        self.sandboxes: dict[str, set[str]] = {}
        self.log: list[str] = []

    async def step(self) -> None:
        action = self.random.choice(
            [
                self.state,
                self.state,
                self.create,
                self.create,
                self.remove,
                self.connect,
                self.disconnect,
                self.publish,
                self.restart,
            ]
        )
        self.log.append(action.__name__)
        await action()

    async def state(self) -> None:
        spec = self.random.choice((*OVERLAYS, INGRESS))
        prefix = spec.subnet.rpartition(".")[0]
        endpoints = tuple(
            Endpoint(
                id=f"t{number}",
                service_id=f"s{number % 3}",
                names=(f"web.{number}",),
                address=f"{prefix}.{100 + number}",
                node_id=f"n{1 + number % 3}",
                underlay=f"10.99.0.{1 + number % 3}",
                ready=self.random.random() < 0.7,
            )
            for number in self.random.sample(range(20), self.random.randrange(12))
        )
        services = tuple(
            ServiceRecord(
                id=f"s{n}",
                name=f"svc{n}",
                aliases=("both",),
                vip=f"{prefix}.{50 + n}" if self.random.random() < 0.8 else None,
            )
            for n in self.random.sample(range(3), self.random.randrange(4))
        )
        nodes = tuple(
            NodeRecord(node_id=f"n{n}", underlay=f"10.99.0.{n}", address=f"{prefix}.{1 + n}")
            for n in (1, 2, 3)
            if spec.ingress and self.random.random() < 0.8
        )
        state = NetworkState(network=spec, endpoints=endpoints, services=services, nodes=nodes)
        self.states[spec.id] = state
        await self.host.network.apply_state(state)

    async def create(self) -> None:
        sandbox_id = f"box{self.random.randrange(6)}"
        wanted = [
            spec.id for spec in (LOCAL, *OVERLAYS) if spec.id in (*self.states, "bridge") and self.random.random() < 0.5
        ]
        number = int(sandbox_id[3:])
        await self.host.network.create_sandbox(
            SandboxSpec(
                id=sandbox_id,
                attachments=tuple(self.attachment(network_id, number) for network_id in wanted),
                host_ports=(HostPort(protocol="udp", host_port=9000 + number, target_port=80),) if number % 2 else (),
                names=(sandbox_id,),
            )
        )
        self.sandboxes.setdefault(sandbox_id, set()).update(wanted)

    def attachment(self, network_id: str, number: int) -> AttachmentSpec:
        address = None if network_id == "bridge" else f"10.0.{network_id[3:]}.{200 + number}"
        return AttachmentSpec(network_id=network_id, address=address)

    async def remove(self) -> None:
        if self.sandboxes:
            sandbox_id = self.random.choice(sorted(self.sandboxes))
            await self.host.network.remove_sandbox(sandbox_id)
            del self.sandboxes[sandbox_id]

    async def connect(self) -> None:
        free = [
            (s, n) for s, on in sorted(self.sandboxes.items()) for n in (*sorted(self.states), "bridge") if n not in on
        ]
        free = [(s, n) for s, n in free if n != "ingress"]
        if free:
            sandbox_id, network_id = self.random.choice(free)
            await self.host.network.connect(sandbox_id, self.attachment(network_id, int(sandbox_id[3:])))
            self.sandboxes[sandbox_id].add(network_id)

    async def disconnect(self) -> None:
        attached = [(s, n) for s, on in sorted(self.sandboxes.items()) for n in sorted(on)]
        if attached:
            sandbox_id, network_id = self.random.choice(attached)
            await self.host.network.disconnect(sandbox_id, network_id)
            self.sandboxes[sandbox_id].discard(network_id)

    async def publish(self) -> None:
        await self.host.network.apply_published(
            [
                PublishedPort(protocol=protocol, published_port=8000 + n, target_port=80, service_id=f"s{n}")
                for n in range(3)
                for protocol in ("tcp", "udp", "sctp")
                if self.random.random() < 0.4
            ]
        )

    async def restart(self) -> None:
        """The daemon ends and another takes over."""
        await self.host.network.close()
        self.host.new_network()
        assert await self.host.network.open() == []

    async def settle(self) -> None:
        """The kernel takes closed namespaces apart in its own time; wait until their cables are gone."""
        expected = 1 + sum(len(networks) for networks in self.sandboxes.values())

        def cables() -> int:
            with Netlink() as netlink:
                return sum(link.kind == "veth" for link in netlink.links())

        while in_netns(self.host.netns, cables) > expected:
            await asyncio.sleep(0.02)

    async def check(self) -> None:
        await self.settle()
        done = await self.host.network.reconcile(
            keep_sandboxes=list(self.sandboxes), keep_networks=[*self.states, LOCAL.id]
        )
        assert done == [], self.log
        assert await self.host.network.sandboxes() == sorted(self.sandboxes)
        for sandbox_id, networks in self.sandboxes.items():
            interfaces = (await self.host.network.sandbox(sandbox_id)).interfaces
            assert {interface.network_id for interface in interfaces} == networks
            path = self.host.sandbox_path(sandbox_id)
            gateways = [interface.gateway for interface in interfaces if interface.gateway]
            assert len(gateways) == bool(networks)
            if gateways:
                assert await asyncio.to_thread(ping, path, gateways[0]), self.log
                assert await asyncio.to_thread(ping, path, "10.99.0.254"), self.log
            for network_id in networks - {"bridge"}:
                state = self.states[network_id]
                for service in state.services:
                    ready = {e.address for e in state.endpoints if e.ready and e.service_id == service.id}
                    name = f"{service.name}.{network_id}"
                    assert set((await asyncio.to_thread(resolve, path, f"tasks.{name}")).addresses) == ready, self.log
                    expected = {service.vip} if service.vip else ready
                    assert set((await asyncio.to_thread(resolve, path, name)).addresses) == expected, self.log


@pytest.mark.parametrize("seed", [1, 2])
def test_any_sequence_of_changes_leads_to_what_was_ordered(tmp_path: Path, seed: int) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        await one.network.ensure_network(LOCAL)
        world = World(one, seed)
        for number in range(STEPS):
            await world.step()
            if number % 5 == 4:
                await world.check()
        await one.network.destroy()
        assert list(one.run_dir.iterdir()) == []

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)
