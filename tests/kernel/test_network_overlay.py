"""Overlay and bridge networks between real hosts (namespaces): reachability, virtual addresses, names, isolation."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import network_states
import pytest
from network_hosts import Greeter, Host, ask_tcp, ask_udp, hosts, in_netns, ping, resolve, run
from network_states import open_all, overlay, web_state

from fleet.errors import ConflictError
from fleet.network.dns import wire
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.topology import AttachmentSpec, Endpoint, NetworkSpec, NetworkState, SandboxSpec

pytestmark = pytest.mark.kernel

BACK, FRONT = overlay("back", 1), overlay("front", 2)
VIP = "10.0.1.2"
endpoint = partial(network_states.endpoint, network=BACK)


def state_of(*endpoints: Endpoint, vip: str | None = VIP, network: NetworkSpec = BACK) -> NetworkState:
    return web_state(network, *endpoints, vip=vip)


async def start(host: Host, number: int, network: NetworkSpec = BACK) -> Path:
    return await network_states.start(host, number, network)


def test_containers_on_different_hosts_reach_each_other(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        state = state_of(endpoint(one, 1), endpoint(two, 2))
        await open_all(made, state)
        first, second = await start(one, 1), await start(two, 2)
        assert await asyncio.to_thread(ping, first, "10.0.1.12")
        assert await asyncio.to_thread(ping, second, "10.0.1.11")
        with Greeter(second, "two"):
            assert await asyncio.to_thread(ask_tcp, first, "10.0.1.12") == "two 10.0.1.11"
            assert await asyncio.to_thread(ask_udp, first, "10.0.1.12") == "two 10.0.1.11"
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_virtual_address_balances_over_ready_tasks_of_all_hosts(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two, three = made
        state = state_of(endpoint(one, 1), endpoint(two, 2), endpoint(three, 3), endpoint(three, 4, ready=False))
        await open_all(made, state)
        paths = [await start(one, 1), await start(two, 2), await start(three, 3), await start(three, 4)]
        with ExitStack() as stack:
            for number, path in enumerate(paths, 1):
                stack.enter_context(Greeter(path, f"task{number}"))
            answers = await asyncio.to_thread(lambda: Counter(ask_tcp(paths[0], VIP).split()[0] for _ in range(300)))
            assert set(answers) == {"task1", "task2", "task3"}
            assert all(90 <= count <= 110 for count in answers.values())
            assert await asyncio.to_thread(ping, paths[3], VIP)
            assert (await asyncio.to_thread(ask_udp, paths[3], VIP)).split()[0] in answers
            # the second task becomes unready: gone from the address at once, without touching the others
            changed = state_of(endpoint(one, 1), endpoint(two, 2, ready=False), endpoint(three, 3))
            await one.network.apply_state(changed)
            answers = await asyncio.to_thread(lambda: Counter(ask_tcp(paths[0], VIP).split()[0] for _ in range(30)))
            assert set(answers) == {"task1", "task3"}
        await one.network.apply_state(state_of())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(ask_tcp, paths[0], VIP)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 3) as made:
        run(scenario(made), made)


def test_names_lead_to_exactly_the_ready_tasks(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(one, 2), endpoint(one, 3, ready=False)))
        path = await start(one, 1)

        def check() -> None:
            assert resolve(path, "web").addresses == [VIP]
            assert resolve(path, "WEB").addresses == [VIP]
            assert resolve(path, "www").addresses == [VIP]
            assert resolve(path, "web.back").addresses == [VIP]
            assert sorted(resolve(path, "tasks.web").addresses) == ["10.0.1.11", "10.0.1.12"]
            assert resolve(path, "web.3.task3").addresses == ["10.0.1.13"]
            assert resolve(path, "web.1").addresses == ["10.0.1.11"]
            assert resolve(path, "11.1.0.10.in-addr.arpa", wire.PTR).names == ["web.1.task1.back"]
            missing = resolve(path, "99.1.0.10.in-addr.arpa", wire.PTR)
            assert (missing.code, missing.names) == (wire.NXDOMAIN, [])
            six = resolve(path, "web", wire.AAAA)
            assert (six.code, six.addresses) == (wire.NOERROR, [])
            assert sorted(resolve(path, "tasks.web", tcp=True).addresses) == ["10.0.1.11", "10.0.1.12"]
            # no upstream server is configured on this host: that is a failure, not a statement that the name does not exist
            assert resolve(path, "example.org").code == wire.SERVFAIL

        await asyncio.to_thread(check)
        await one.network.apply_state(state_of(endpoint(one, 1), endpoint(one, 3), vip=None))

        def check_dnsrr() -> None:
            assert sorted(resolve(path, "web").addresses) == ["10.0.1.11", "10.0.1.13"]
            assert sorted(resolve(path, "tasks.web").addresses) == ["10.0.1.11", "10.0.1.13"]

        await asyncio.to_thread(check_dnsrr)
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_networks_are_isolated_from_each_other(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(two, 2)))
        for host in made:
            await host.network.apply_state(
                state_of(
                    endpoint(two, 3, network=FRONT), endpoint(one, 4, network=FRONT), vip="10.0.2.2", network=FRONT
                )
            )
        first = await start(one, 1)
        await start(two, 2)
        other = await start(two, 3, FRONT)
        neighbour = await start(one, 4, FRONT)
        with Greeter(other, "other"), Greeter(neighbour, "neighbour"):
            assert (await asyncio.to_thread(ask_tcp, neighbour, "10.0.2.13")).split()[0] == "other"
            for target in ("10.0.2.13", "10.0.2.14"):
                assert not await asyncio.to_thread(ping, first, target, timeout_s=0.5)
            with pytest.raises(OSError):
                await asyncio.to_thread(ask_tcp, first, "10.0.2.14")
            assert (await asyncio.to_thread(resolve, first, "web.front")).code != wire.NOERROR
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_container_on_two_networks_is_on_both_and_leaves_by_the_first(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await open_all(made, state_of())
        await one.network.ensure_network(FRONT)
        await start(one, 1)
        path = one.sandbox_path("task1")
        await start(one, 4, FRONT)
        assert not await asyncio.to_thread(ping, path, "10.0.2.14", timeout_s=0.5)
        interface = await one.network.connect("task1", AttachmentSpec(network_id=FRONT.id, address="10.0.2.30"))
        assert (interface.name, interface.gateway) == ("eth1", "")
        assert await asyncio.to_thread(ping, path, "10.0.2.14")
        with pytest.raises(ConflictError):
            await one.network.connect("task1", AttachmentSpec(network_id=FRONT.id, address="10.0.2.31"))
        await one.network.disconnect("task1", BACK.id)
        assert [i.gateway for i in (await one.network.sandbox("task1")).interfaces] == ["10.0.2.1"]
        assert await asyncio.to_thread(ping, path, "10.99.0.254")
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_outbound_traffic_leaves_with_the_hosts_address_and_internal_networks_stay_inside(tmp_path: Path) -> None:
    inside = NetworkSpec(
        id="net-in", name="in", driver="overlay", subnet="10.0.3.0/24", gateway="10.0.3.1", vni=4099, internal=True
    )

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await open_all(made, state_of())
        await one.network.ensure_network(inside)
        open_path, closed_path = await start(one, 1), await start(one, 2, inside)
        friend = await start(one, 3, inside)
        with Greeter(tmp_path / "switch.netns", "outside", 8080):
            assert await asyncio.to_thread(ask_tcp, open_path, "10.99.0.254", 8080) == "outside 10.99.0.1"
            with pytest.raises(OSError):
                await asyncio.to_thread(ask_tcp, closed_path, "10.99.0.254", 8080)
        assert await asyncio.to_thread(ping, closed_path, "10.0.3.13")
        assert friend.exists()
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_bridge_driver_allocates_addresses_and_resolves_container_names(tmp_path: Path) -> None:
    local = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/29", gateway="172.30.0.1")

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        await one.network.ensure_network(local)
        wish = (AttachmentSpec(network_id="bridge", aliases=("db",)),)
        given = []
        for number in range(5):
            sandbox = await one.network.create_sandbox(
                SandboxSpec(id=f"c{number}", names=(f"box{number}",), attachments=wish)
            )
            given.append(sandbox.interfaces[0].address)
        assert given == [f"172.30.0.{number}" for number in range(2, 7)]
        with pytest.raises(ConflictError, match="network bridge: all 5 addresses"):
            await one.network.create_sandbox(SandboxSpec(id="c5", attachments=wish))
        path = one.sandbox_path("c0")
        assert (await asyncio.to_thread(resolve, path, "box3")).addresses == ["172.30.0.5"]
        assert len((await asyncio.to_thread(resolve, path, "db")).addresses) == 5
        assert await asyncio.to_thread(ping, path, "172.30.0.5")
        await one.network.remove_sandbox("c1")
        await one.network.remove_sandbox("c3")
        assert (await asyncio.to_thread(resolve, path, "box3")).code != wire.NOERROR
        sandbox = await one.network.create_sandbox(SandboxSpec(id="c6", attachments=wish))
        assert sandbox.interfaces[0].address == "172.30.0.3"  # rotation wrapped
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_destroy_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        # A new namespace inherits the machine's setting, and the machine may be a router.
        in_netns(one.netns, lambda: forwarding.write_text("0"))
        await open_all(made, state_of(endpoint(one, 1)))
        await start(one, 1)
        assert in_netns(one.netns, lambda: forwarding.read_text().strip()) == "1"
        pid = one.network.dns_pid()
        await one.network.destroy()
        assert not Path(f"/proc/{pid}").exists()
        assert list(one.run_dir.iterdir()) == []

        def links() -> list[str]:
            with Netlink() as netlink:
                return [link.name for link in netlink.links()]

        assert sorted(in_netns(one.netns, links)) == ["eth0", "lo"]
        assert in_netns(one.netns, lambda: forwarding.read_text().strip()) == "0"

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)
