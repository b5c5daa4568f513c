"""Assignments on their way to the host's network."""

from __future__ import annotations

import asyncio

import msgspec
from support.objects import make_network

from fleet import errors
from fleet.agent.network_sync import NetworkSync
from fleet.api import dispatch
from fleet.clock import SystemClock
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.network import Ipam, IpamConfig
from fleet.network.topology import NetworkSpec, NetworkState, PublishedPort


class Host:
    """A host network that remembers, and does what the test wants to interfere with."""

    def __init__(self) -> None:
        self.networks: dict[str, NetworkState | None] = {}
        self.published: tuple[PublishedPort, ...] = ()
        self.applied = 0
        self.removing = asyncio.Event()
        self.may_remove = asyncio.Event()
        self.may_remove.set()
        self.faults: list[errors.FleetError] = []

    async def ensure_network(self, network: NetworkSpec) -> None:
        self.networks.setdefault(network.id, None)

    async def remove_network(self, network_id: str) -> None:
        self.removing.set()
        await self.may_remove.wait()
        self.networks.pop(network_id, None)

    async def apply_state(self, state: NetworkState) -> None:
        if self.faults:
            raise self.faults.pop()
        self.applied += 1
        self.networks[state.network.id] = state

    async def apply_published(self, ports: tuple[PublishedPort, ...]) -> None:
        self.published = ports


def network_item() -> dispatch.NetworkItem:
    network = make_network("front")
    ipam = Ipam(config=(IpamConfig(subnet="10.0.1.0/24", gateway="10.0.1.1"),))
    return dispatch.NetworkItem(network=msgspec.structs.replace(network, ipam=ipam, vni=4097), vxlan_port=4789)


def endpoint(task_id: str, *, ready: bool = True) -> dispatch.EndpointItem:
    return dispatch.EndpointItem(
        network_id=network_item().network.id,
        task_id=TaskId(task_id),
        service_id=ServiceId("s"),
        names=(f"web.1.{task_id}", "web.1"),
        aliases=(),
        address="10.0.1.5",
        node_id=NodeId("n"),
        underlay="10.9.0.1",
        ready=ready,
    )


def picture(*items: dispatch.Item) -> dict[str, dispatch.Item]:
    return {dispatch.key_of(item): item for item in items}


async def settle(sync: NetworkSync) -> None:
    await asyncio.sleep(0.02)


def run(body: object) -> None:
    async def main() -> None:
        host = Host()
        sync = NetworkSync(host, SystemClock())
        running = asyncio.create_task(sync.run())
        assert callable(body)
        async with asyncio.timeout(10):
            await body(host, sync)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_only_what_changed_is_applied() -> None:
    async def body(host: Host, sync: NetworkSync) -> None:
        sync.update(picture(network_item(), endpoint("a")))
        await settle(sync)
        state = host.networks["network-front"]
        assert state is not None
        assert [(e.id, e.ready) for e in state.endpoints] == [("a", True)]
        sync.update(picture(network_item(), endpoint("a")))
        await settle(sync)
        assert host.applied == 1
        sync.update(picture(network_item(), endpoint("a", ready=False)))
        await settle(sync)
        assert host.applied == 2

    run(body)


def test_a_network_nobody_needs_is_removed() -> None:
    async def body(host: Host, sync: NetworkSync) -> None:
        sync.update(picture(network_item()))
        await settle(sync)
        sync.update({})
        await settle(sync)
        assert host.networks == {}

    run(body)


def test_a_network_that_is_being_removed_and_wanted_again_is_there_for_its_task() -> None:
    async def body(host: Host, sync: NetworkSync) -> None:
        sync.update(picture(network_item()))
        await settle(sync)
        host.may_remove.clear()
        sync.update({})
        await host.removing.wait()
        sync.update(picture(network_item()))
        ensured = asyncio.create_task(sync.ensure("network-front"))
        await settle(sync)
        assert not ensured.done(), "the removal is not over"
        host.may_remove.set()
        await ensured
        assert "network-front" in host.networks

    run(body)


def test_a_fault_is_tried_again() -> None:
    async def body(host: Host, sync: NetworkSync) -> None:
        host.faults = [errors.RuntimeFault("the kernel said no")]
        sync.update(picture(network_item()))
        await settle(sync)
        assert host.networks["network-front"] is None
        await asyncio.sleep(1.1)
        assert host.networks["network-front"] is not None

    run(body)


def test_a_network_that_is_not_assigned_can_not_be_ensured_yet() -> None:
    async def body(_host: Host, sync: NetworkSync) -> None:
        try:
            await sync.ensure("network-front")
        except errors.UnavailableError as cause:
            assert cause.transient
        else:
            raise AssertionError

    run(body)


def test_what_is_applied_is_said_when_the_kernel_has_it_and_not_before() -> None:
    async def body(host: Host, sync: NetworkSync) -> None:
        sync.update(picture(network_item(), endpoint("a")))
        await sync.applied()
        assert host.applied == 1
        host.faults = [errors.RuntimeFault("no")]
        sync.update(picture(network_item(), endpoint("a", ready=False)))
        waiting = asyncio.create_task(sync.applied())
        await settle(sync)
        assert not waiting.done()
        await waiting
        state = host.networks["network-front"]
        assert state is not None
        assert [e.ready for e in state.endpoints] == [False]

    run(body)
