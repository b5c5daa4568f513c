"""Networks that people make on a host: what is chosen, what is refused, what is on disk when."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.clock import SystemClock
from fleet.containers.events import EventHub
from fleet.containers.networks import POOLS, HostNetworks, NetworkWish
from fleet.errors import ConflictError, ForbiddenError, NotFoundError, RuntimeFault, UserError
from fleet.network.ipam import SubnetPool
from fleet.network.topology import NetworkSpec

ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0100000A	0003	0	0	0	00000000	0	0	0
eth0	000010AC	00000000	0001	0	0	0	0000F0FF	0	0	0
eth1	0001A8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
"""
"""172.16.0.0/12 and 192.168.1.0/24, in the bytes of this machine (little-endian)."""


class Kernel:
    """What ``fleet.network`` does with networks."""

    def __init__(self) -> None:
        self.made: dict[str, NetworkSpec] = {}
        self.fails = False

    async def ensure_network(self, spec: NetworkSpec) -> None:
        if self.fails:
            raise RuntimeFault("no bridge today")
        self.made[spec.id] = spec

    async def remove_network(self, network_id: str) -> None:
        if self.fails:
            raise ConflictError("a sandbox is on it")
        self.made.pop(network_id, None)


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = Kernel()
        self.users: set[str] = set()
        self.hub = EventHub()
        self.routes = root / "routes"
        self.routes.write_text(ROUTES.splitlines()[0] + "\n")
        self.networks = self.opened()

    def opened(self) -> HostNetworks:
        kernel: Any = self.kernel
        made = HostNetworks(
            self.root / "networks", network=kernel, clock=SystemClock(), hub=self.hub, predefined=("bridge", "host"),
            users=lambda _: self.users, routes=self.routes,
        )  # fmt: skip
        self.problems = made.open()
        return made

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.root / "networks").iterdir())


def run(tmp_path: Path, body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        await body(World(tmp_path))

    asyncio.run(main())


def test_what_was_made_is_there_again_and_what_was_removed_is_not(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await world.networks.create(NetworkWish(name="one", labels={"a": "b"}))
        two = await world.networks.create(
            NetworkWish(name="two", subnet="10.9.0.0/24", gateway="10.9.0.9", internal=True)
        )
        assert world.kernel.made[two.id].gateway == "10.9.0.9"
        await world.networks.remove("one")
        again = world.opened()
        assert again.all() == [two] and not world.problems
        world.kernel.made.clear()  # a boot
        assert await again.ensure() == []
        assert list(world.kernel.made) == [two.id]
        assert again.find("two") == again.find(two.id) == again.find(two.id[:12]) == two
        with pytest.raises(NotFoundError, match="network one not found"):
            again.find("one")
        assert again.name_of(one.id) is None
        (world.root / "networks" / "junk.json").write_text("{")
        assert world.opened().all() == [two]
        assert len(world.problems) == 1 and "junk.json" in world.problems[0]

    run(tmp_path, body)


def test_subnets_are_chosen_beside_what_the_host_has_routes_to(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        first = await world.networks.create(NetworkWish(name="first"))
        second = await world.networks.create(NetworkWish(name="second"))
        assert (first.subnet, first.gateway) == ("172.16.0.0/22", "172.16.0.1")
        assert second.subnet == "172.16.4.0/22"
        world.routes.write_text(ROUTES)
        third = await world.networks.create(NetworkWish(name="third"))
        assert third.subnet == "192.168.0.0/24"
        fourth = await world.networks.create(NetworkWish(name="fourth"))
        assert fourth.subnet == "192.168.2.0/24", "192.168.1.0/24 is the host's"
        with pytest.raises(ForbiddenError, match="overlaps with"):
            await world.networks.create(NetworkWish(name="x", subnet="192.168.1.128/25"))

    run(tmp_path, body)


def test_a_network_with_ipv6_has_a_subnet_of_each_family(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        first = await world.networks.create(NetworkWish(name="first", enable_ipv6=True))
        second = await world.networks.create(NetworkWish(name="second", enable_ipv6=True))
        one, two = (ipaddress.IPv6Network(network.subnet6) for network in (first, second))
        assert one != two and one.supernet(new_prefix=48) == two.supernet(new_prefix=48)
        assert one.subnet_of(ipaddress.IPv6Network("fd00::/8")) and first.gateway6 == str(one.network_address + 1)
        assert (first.subnet, world.kernel.made[first.id].subnet6) == ("172.16.0.0/22", first.subnet6)
        named = await world.networks.create(
            NetworkWish(
                name="named",
                enable_ipv6=True,
                subnet6="fd00:9:0::/64",
                gateway6="fd00:9:0::9",
                ip_range6="fd00:9::ff00/120",
                aux_addresses={"r": "fd00:9:0::7"},
            )
        )
        assert (named.subnet6, named.gateway6) == ("fd00:9::/64", "fd00:9::9")
        assert world.kernel.made[named.id].reserved == ("fd00:9::7",)
        with pytest.raises(ForbiddenError, match="overlaps with"):
            await world.networks.create(NetworkWish(name="x", enable_ipv6=True, subnet6="fd00:9::/80"))
        alone = await world.networks.create(NetworkWish(name="alone", enable_ipv4=False, enable_ipv6=True))
        assert (alone.subnet, alone.gateway, world.kernel.made[alone.id].subnet) == ("", "", "")
        again = world.opened()  # the next daemon goes on with the same prefix
        third = await again.create(NetworkWish(name="third", enable_ipv6=True))
        assert ipaddress.IPv6Network(third.subnet6).subnet_of(one.supernet(new_prefix=48))
        assert third.subnet6 not in (first.subnet6, second.subnet6) and not world.problems

    run(tmp_path, body)


def test_the_pools_hold_more_than_dockers() -> None:
    total = sum(2 ** (length - ipaddress.IPv4Network(cidr).prefixlen) for cidr, length in POOLS)
    assert total > 1000
    assert SubnetPool(POOLS).next_subnet() == "172.16.0.0/22"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (NetworkWish(name=""), "invalid network name"),
        (NetworkWish(name="a/../b"), "invalid network name"),
        (NetworkWish(name="x" * 300), "invalid network name"),
        (NetworkWish(name="x", gateway="10.0.0.1"), "need a subnet"),
        (NetworkWish(name="x", subnet="10.0.0.0/31"), "prefix length"),
        (NetworkWish(name="x", subnet="10.0.0.1/24"), "host bits"),
        (NetworkWish(name="x", subnet="fd00::/64"), "subnet"),
        (NetworkWish(name="x", subnet="10.0.0.0/24", gateway="10.0.1.1"), "outside the subnet"),
        (NetworkWish(name="x", subnet="10.0.0.0/24", ip_range="10.0.1.0/25"), "is not inside"),
        (NetworkWish(name="x", enable_ipv6=True, gateway6="fd00::1"), "need a subnet"),
        (NetworkWish(name="x", enable_ipv4=False), "IPv4 or IPv6 must be enabled"),
        (NetworkWish(name="x", enable_ipv4=False, enable_ipv6=True, subnet="10.0.0.0/24"), "IPv4 is not enabled"),
        (NetworkWish(name="x", enable_ipv6=True, subnet6="fd00::/64", gateway6="fd01::1"), "outside the subnet"),
        (NetworkWish(name="x", enable_ipv6=True, subnet6="fd00::/64", ip_range6="fd01::/80"), "is not inside"),
        (
            NetworkWish(name="x", enable_ipv6=True, subnet6="fd00::/64", aux_addresses={"a": "fd01::9"}),
            "a=fd01::9 is not in",
        ),
        (NetworkWish(name="x", enable_ipv6=True, subnet6="ff02::/64"), "multicast"),
        (NetworkWish(name="x", subnet="10.0.0.0/24", aux_addresses={"a": "10.0.1.9"}), "a=10.0.1.9 is not in"),
        (NetworkWish(name="x", subnet="10.0.0.0/24", aux_addresses={"a": "no"}), "a=no is not in"),
        (NetworkWish(name="x", subnet="10.0.0.0/24", aux_addresses={"a": "10.0.0.1"}), "gateway and an auxiliary"),
        (NetworkWish(name="x", options={"com.docker.network.driver.mtu": "big"}), "number of bytes"),
        (NetworkWish(name="x", options={"com.docker.network.driver.mtu": "20"}), "MTU 20"),
        (NetworkWish(name="x", options={"com.docker.network.bridge.enable_icc": "false"}), "is not supported"),
        (NetworkWish(name="x", options={"y": "z"}), "not known"),
        (NetworkWish(name="x", options={"parent": "eth1"}), "not known to the bridge driver"),
        (NetworkWish(name="x", driver="macvlan", options={"parent": "eth1"}), "macvlan needs --subnet"),
        (NetworkWish(name="x", driver="macvlan", subnet="10.0.0.0/24"), "-o parent=eth1"),
        (
            NetworkWish(
                name="x", driver="macvlan", subnet="10.0.0.0/24", options={"parent": "e", "macvlan_mode": "loud"}
            ),
            "mode 'loud'",
        ),
        (
            NetworkWish(name="x", driver="macvlan", subnet="10.0.0.0/24", options={"parent": "e", "ipvlan_mode": "l2"}),
            "not known to the macvlan driver",
        ),
        (NetworkWish(name="x", config_only=True, subnet="10.0.0.1/24"), "host bits"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, wish: NetworkWish, words: str) -> None:
    async def body(world: World) -> None:
        with pytest.raises(UserError, match=words):
            await world.networks.create(wish)
        assert world.files() == [] and not world.kernel.made and not world.networks.all()

    run(tmp_path, body)


def test_names_are_unique_and_some_are_taken_for_ever(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.networks.create(NetworkWish(name="one"))
        with pytest.raises(ConflictError, match="already exists"):
            await world.networks.create(NetworkWish(name="one"))
        with pytest.raises(ForbiddenError, match="predefined"):
            await world.networks.create(NetworkWish(name="host"))
        racing = await asyncio.gather(
            *(world.networks.create(NetworkWish(name="two")) for _ in range(4)), return_exceptions=True
        )
        assert sum(isinstance(each, ConflictError) for each in racing) == 3

    run(tmp_path, body)


def test_what_the_kernel_refuses_is_not_there_and_what_is_used_stays(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.kernel.fails = True
        with pytest.raises(RuntimeFault, match="no bridge today"):
            await world.networks.create(NetworkWish(name="one"))
        assert world.files() == [] and not world.networks.all()
        world.kernel.fails = False
        one = await world.networks.create(NetworkWish(name="one"))
        world.users = {"web", "db"}
        with pytest.raises(ForbiddenError, match="has active endpoints: db, web"):
            await world.networks.remove("one")
        world.users, world.kernel.fails = set(), True  # a container that starts just now
        with pytest.raises(ConflictError):
            await world.networks.remove("one")
        assert world.files() == [f"{one.id}.json"] and world.networks.all() == [one]

    run(tmp_path, body)


def test_a_network_without_a_bridge_is_where_the_host_has_a_route_to(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.routes.write_text(ROUTES)
        options = {"parent": "eth1.10", "macvlan_mode": "private"}
        lan = NetworkWish(
            name="lan", driver="macvlan", subnet="192.168.1.0/24", gateway="192.168.1.254", options=options
        )
        made = await world.networks.create(lan)
        spec = world.kernel.made[made.id]
        assert (spec.driver, spec.parent, spec.mode, spec.gateway) == ("macvlan", "eth1.10", "private", "192.168.1.254")
        with pytest.raises(ForbiddenError, match="overlaps"):
            await world.networks.create(NetworkWish(name="other", subnet="192.168.1.0/25"))
        again = world.opened()
        assert world.problems == [] and again.all() == [made]

    run(tmp_path, body)


def test_networks_are_made_from_a_configuration_which_stays_while_they_do(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        options = {"parent": "eth1", "macvlan_mode": "vepa"}
        config = await world.networks.create(
            NetworkWish(name="conf", config_only=True, subnet="10.0.0.0/24", ip_range="10.0.0.128/25", options=options)
        )
        assert not world.kernel.made, "a configuration is no network"
        wish = NetworkWish(name="lan", driver="macvlan", config_from="conf", labels={"a": "b"})
        made = await world.networks.create(wish)
        spec = world.kernel.made[made.id]
        assert (spec.subnet, spec.ip_range, spec.parent, spec.mode) == ("10.0.0.0/24", "10.0.0.128/25", "eth1", "vepa")
        assert made.labels == {"a": "b"} and made.config_from == "conf"
        with pytest.raises(NotFoundError, match="no configuration network lan"):
            await world.networks.create(NetworkWish(name="x", config_from="lan"))
        with pytest.raises(ForbiddenError, match="user specified configurations"):
            await world.networks.create(NetworkWish(name="x", config_from="conf", subnet="10.1.0.0/24"))
        with pytest.raises(ForbiddenError, match="in use by network lan"):
            await world.networks.remove("conf")
        world.networks = world.opened()
        assert world.problems == [] and [n.name for n in world.networks.all()] == ["conf", "lan"]
        await world.networks.ensure()
        assert list(world.kernel.made) == [made.id]
        await world.networks.remove("lan")
        assert (await world.networks.remove("conf")) == config and world.files() == []

    run(tmp_path, body)
