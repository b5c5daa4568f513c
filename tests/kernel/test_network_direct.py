"""Networks without a bridge: containers with cards on the host's own network (macvlan), and what is refused in which words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from network_hosts import Greeter, Host, ask_tcp, hosts, in_netns, ping, resolve, run

from fleet.errors import ConflictError, FleetError, RuntimeFault, UnsupportedError, UserError
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.netlink import NetlinkError
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.topology import AttachmentSpec, HostPort, NetworkSpec, SandboxSpec

pytestmark = pytest.mark.kernel

OUTSIDE = "10.99.0.254"


def lan(
    name: str = "lan", *, mode: str = "", parent: str = "eth0", driver: str = "macvlan", subnet: str = "10.99.0.0/24"
) -> NetworkSpec:
    """The hosts' own network, as containers are to be on it; 10.99.0.128/25 is theirs."""
    return NetworkSpec(
        id=name, name=name, driver=driver, subnet=subnet, gateway=subnet.replace("0/24", "254"), parent=parent, mode=mode,  # type: ignore[arg-type]
        ip_range=subnet.replace("0/24", "128/25"),
    )  # fmt: skip


def lacks(kind: str) -> bool:
    """Whether this kernel has no such devices. Asked in a namespace of the test's."""
    make = {
        "macvlan": lambda parent: rtnetlink.add_macvlan("try", parent=parent, mode="bridge"),
        "ipvlan": lambda parent: rtnetlink.add_ipvlan("try", parent=parent),
        "vlan": lambda parent: rtnetlink.add_vlan("try", parent=parent, vlan=5, group=0),
    }[kind]
    with Netlink() as netlink:
        parent = netlink.link("eth0")
        assert parent is not None
        try:
            netlink.send(make(parent.index))
        except NetlinkError:
            return True
        netlink.send(rtnetlink.delete_link("try"))
        return False


@pytest.fixture
def made(tmp_path: Path) -> Iterator[list[Host]]:
    with hosts(tmp_path, 2) as found:
        yield found


def need(host: Host, kind: str) -> None:
    if in_netns(host.netns, lambda: lacks(kind)):
        pytest.skip(f"not run: this kernel has no {kind}")


def links_of(host: Host) -> set[str]:
    def look() -> set[str]:
        with Netlink() as netlink:
            return {link.name for link in netlink.links()}

    return in_netns(host.netns, look)


async def start(host: Host, *names: str, network: str = "lan") -> dict[str, Path]:
    for name in names:
        await host.network.create_sandbox(
            SandboxSpec(id=name, names=(name,), attachments=(AttachmentSpec(network_id=network),))
        )
    return {name: host.sandbox_path(name) for name in names}


def test_containers_are_on_the_hosts_network_by_themselves(made: list[Host], tmp_path: Path) -> None:
    one, two = made
    need(one, "macvlan")

    async def scenario() -> None:
        before = links_of(one)
        for host in made:
            await host.network.open()
            await host.network.ensure_network(lan())
        paths = await start(one, "a", "b")
        wish = AttachmentSpec(network_id="lan", address="10.99.0.200")
        await two.network.create_sandbox(SandboxSpec(id="c", names=("c",), attachments=(wish,)))
        far = two.sandbox_path("c")
        assert links_of(one) == before, "nothing of a container stays on the host"

        def check() -> None:
            with ExitStack() as stack:
                stack.enter_context(Greeter(paths["a"], "a"))
                own = resolve(paths["b"], "a").addresses
                assert own == ["10.99.0.128"]
                # one another, from another host and from outside; nobody's address is changed on the way
                assert ask_tcp(paths["b"], own[0]) == "a 10.99.0.129"
                assert ask_tcp(far, own[0]) == "a 10.99.0.200"
                assert ask_tcp(tmp_path / "switch.netns", own[0]) == f"a {OUTSIDE}"
                assert ping(paths["a"], OUTSIDE) and not ping(paths["a"], one.address), "its own host it does not reach"

        await asyncio.to_thread(check)
        assert (await one.network.sandbox("a")).interfaces[0].gateway == OUTSIDE
        for host in made:
            await host.network.destroy()
        assert links_of(one) == before

    run(scenario(), made)


@pytest.mark.parametrize(("mode", "reach"), [("bridge", True), ("private", False), ("vepa", False)])
def test_modes_say_what_neighbours_may_do(made: list[Host], mode: str, reach: bool) -> None:
    one, _ = made
    need(one, "macvlan")

    async def scenario() -> None:
        await one.network.open()
        await one.network.ensure_network(lan(mode=mode))
        paths = await start(one, "a", "b")
        assert await asyncio.to_thread(ping, paths["a"], "10.99.0.129", timeout_s=1.0) is reach
        assert await asyncio.to_thread(ping, paths["a"], OUTSIDE)
        await one.network.destroy()

    run(scenario(), made)


def test_passthru_is_for_one_container(made: list[Host]) -> None:
    one, _ = made
    need(one, "macvlan")

    async def scenario() -> None:
        await one.network.open()
        await one.network.ensure_network(lan(mode="passthru"))
        paths = await start(one, "a")
        with pytest.raises(RuntimeFault, match="eth0 serves one container in mode passthru"):
            await start(one, "b")
        assert await asyncio.to_thread(ping, paths["a"], OUTSIDE)
        await one.network.close()
        assert await one.new_network().open() == []
        await one.network.remove_sandbox("a")
        await one.network.destroy()

    run(scenario(), made)


def test_it_outlives_the_daemon_and_a_card_can_come_and_go(made: list[Host], tmp_path: Path) -> None:
    one, _ = made
    need(one, "macvlan")
    local = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/24", gateway="172.30.0.1")

    async def scenario() -> None:
        await one.network.open()
        await one.network.ensure_network(local)
        await one.network.ensure_network(lan())
        paths = await start(one, "a")
        await start(one, "b", network="bridge")
        with pytest.raises(ConflictError, match="still used by 1 containers"):
            await one.network.remove_network("lan")
        await one.network.close()
        assert await asyncio.to_thread(ping, paths["a"], OUTSIDE), "with no daemon at all"
        assert await one.new_network().open() == []
        keep = {"keep_sandboxes": ["a", "b"], "keep_networks": ["lan", "bridge"]}
        assert await one.network.reconcile(**keep) == []
        card = await one.network.connect("b", AttachmentSpec(network_id="lan", address="10.99.0.150"))
        assert (card.name, card.address) == ("eth1", "10.99.0.150")
        assert await asyncio.to_thread(ping, tmp_path / "switch.netns", "10.99.0.150")
        await one.network.disconnect("b", "lan")
        assert not await asyncio.to_thread(ping, tmp_path / "switch.netns", "10.99.0.150", timeout_s=1.0)
        # the parent goes, as when a card is pulled out, and comes again
        await one.network.remove_sandbox("a")
        in_netns(one.netns, lambda: _rename("eth0", "eth7"))
        said = await one.network.reconcile(**keep)
        assert any("has no link eth0 to be the parent" in sentence for sentence in said)
        in_netns(one.netns, lambda: _rename("eth7", "eth0"))
        await start(one, "a2")
        await one.network.destroy()

    run(scenario(), made)


def _rename(old: str, new: str) -> None:
    import subprocess

    for command in (["down"], ["name", new]):
        subprocess.run(["ip", "link", "set", old, *command], check=True, timeout=10)
    subprocess.run(["ip", "link", "set", new, "up"], check=True, timeout=10)


def test_what_cannot_be_says_why(made: list[Host]) -> None:
    one, _ = made

    async def scenario() -> None:
        await one.network.open()

        async def says(words: str, spec: NetworkSpec, error: type[FleetError] = UserError) -> None:
            with pytest.raises(error, match=words):
                await one.network.ensure_network(spec)

        await says("this host has no link eth9 to be the parent", lan(parent="eth9"))
        await says("this host has no link eth9 to be the parent", lan(parent="eth9.7"))
        await says("VLAN 4095 is not between 1 and 4094", lan(parent="eth0.4095"))
        await says("link lo cannot be a parent", lan(parent="lo"))
        for kind, spec in (
            ("macvlan", lan()),
            ("ipvlan", lan(driver="ipvlan")),
            ("vlan", lan(parent="eth0.7")),
        ):
            if in_netns(one.netns, lambda kind=kind: lacks(kind)):
                await says("this host's kernel has no", spec, UnsupportedError)
        if not in_netns(one.netns, lambda: lacks("macvlan")):
            await one.network.ensure_network(lan())
            await says("eth0 is already the parent of network lan", lan("other", subnet="10.98.0.0/24"), ConflictError)
            wish = AttachmentSpec(network_id="lan")
            ports = (HostPort(protocol="tcp", host_port=8080, target_port=80),)
            with pytest.raises(UserError, match="ports cannot be published on network lan"):
                await one.network.create_sandbox(SandboxSpec(id="p", attachments=(wish,), host_ports=ports))
        await one.network.destroy()

    for words, wrong in (
        ("needs a link of this host to be its parent", {"parent": ""}),
        ("needs a link of this host", {"parent": "eth0 up"}),
        ("mode 'loud' of macvlan is not one of bridge, private, vepa, passthru", {"mode": "loud"}),
        ("mode 'l3' of ipvlan is not one of l2", {"mode": "l3", "driver": "ipvlan"}),
    ):
        with pytest.raises(UserError, match=words):
            lan(**wrong)  # type: ignore[arg-type]
    run(scenario(), made)


def test_vlan_devices_are_made_and_removed(made: list[Host]) -> None:
    one, two = made
    need(one, "vlan")
    need(one, "macvlan")
    spec = lan(parent="eth0.10", subnet="10.97.0.0/24")

    async def scenario() -> None:
        for host, address in ((one, "10.97.0.150"), (two, "10.97.0.151")):
            await host.network.open()
            await host.network.ensure_network(spec)
            assert "eth0.10" in links_of(host)
            wish = AttachmentSpec(network_id="lan", address=address)
            await host.network.create_sandbox(SandboxSpec(id="a", attachments=(wish,)))
        assert await asyncio.to_thread(ping, one.sandbox_path("a"), "10.97.0.151")
        await one.network.close()
        assert await one.new_network().open() == []
        await one.network.remove_sandbox("a")
        await one.network.remove_network("lan")
        assert "eth0.10" not in links_of(one)
        await two.network.destroy()
        assert "eth0.10" not in links_of(two)
        await one.network.destroy()

    run(scenario(), made)


def test_ipvlan_cards_share_their_parents_mac(made: list[Host], tmp_path: Path) -> None:
    one, _ = made
    need(one, "ipvlan")

    async def scenario() -> None:
        await one.network.open()
        await one.network.ensure_network(lan(driver="ipvlan"))
        paths = await start(one, "a", "b")
        assert await asyncio.to_thread(ping, paths["a"], "10.99.0.129")
        assert await asyncio.to_thread(ping, paths["a"], OUTSIDE)
        await one.network.destroy()

    run(scenario(), made)
