"""Published ports that show the client's own address, through each node, and who may pretend to be one."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from network_hosts import Greeter, Host, ask_tcp, ask_udp, hosts, in_netns, run, socket_in
from network_states import LOCAL, attachment, ingress, ingress_state, overlay

from fleet.network.ipam import mac_for
from fleet.network.kernel import routing
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.return_routes import MARK_BASE, MARK_MASK
from fleet.network.topology import (
    AttachmentSpec,
    ClientSource,
    NetworkState,
    PublishedPort,
    SandboxSpec,
)

pytestmark = pytest.mark.kernel

CLIENT, CLIENT6 = "10.99.0.254", "2001:db8:99::254"
BACK = overlay("back", 8)
OTHER = (9,)
"""Tasks of a service that does not ask for its clients' addresses."""


def ports(source: ClientSource) -> tuple[PublishedPort, ...]:
    return (
        PublishedPort(protocol="tcp", published_port=8080, target_port=80, service_id="svc-web", source=source),
        PublishedPort(protocol="udp", published_port=8080, target_port=80, service_id="svc-web", source=source),
        PublishedPort(protocol="tcp", published_port=8090, target_port=80, service_id="svc-other"),
    )


async def bring_up(
    made: list[Host], tasks: dict[int, Host], *, source: ClientSource = "client", ipv6: bool = False
) -> dict[int, Path]:
    """Each task is on a bridge and on an overlay too, which come first and lead to the outside as well."""
    for host in made:
        await host.network.open()
        await host.network.ensure_network(LOCAL)
        await host.network.apply_state(NetworkState(network=BACK))
        await host.network.apply_state(ingress_state(host, made, tasks, ipv6=ipv6, other=OTHER))
        await host.network.apply_published(ports(source))
    for number, host in tasks.items():
        cards = (
            AttachmentSpec(network_id=LOCAL.id),
            attachment(BACK, number),
            attachment(ingress(host, made, ipv6=ipv6), number),
        )
        await host.network.create_sandbox(SandboxSpec(id=f"task{number}", attachments=cards))
    return {number: host.sandbox_path(f"task{number}") for number, host in tasks.items()}


def told(where: Path, host: str, *, port: int = 8080, tries: int = 4) -> tuple[set[str], set[str]]:
    """(tasks, client addresses) by TCP and UDP alike."""
    answers = [ask(where, host, port).split() for ask in (ask_tcp, ask_udp) for _ in range(tries)]
    return {name for name, _ in answers}, {address for _, address in answers}


def greet(stack: ExitStack, paths: dict[int, Path], address: str = "0.0.0.0") -> None:
    for number, path in paths.items():
        stack.enter_context(Greeter(path, f"task{number}", address=address))


def rules_in(path: Path) -> set[tuple[int, int]]:
    def look() -> set[tuple[int, int]]:
        with Netlink() as netlink:
            return netlink.marked_rules(MARK_BASE, MARK_MASK)

    return in_netns(path, look)


def test_a_service_sees_its_clients_through_each_node(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two, three = made
        outside = tmp_path / "switch.netns"
        paths = await bring_up(made, {1: one, 2: two, 9: two})

        def check() -> None:
            with ExitStack() as stack:
                greet(stack, paths)
                for host in made:
                    assert told(outside, host.address) == ({"task1", "task2"}, {CLIENT}), host.name
                    # the host itself: by its address, and by loopback, which nobody else could answer to
                    assert told(host.netns, host.address) == ({"task1", "task2"}, {host.address})
                    _, seen = told(host.netns, "127.0.0.1")
                    assert seen <= {"10.255.0.2", "10.255.0.3", "10.255.0.4"}
                # another node as the client
                assert told(three.netns, one.address) == ({"task1", "task2"}, {three.address})
                # a container, through its own node and through another: never under its own address there
                tasks, seen = told(paths[1], one.address)
                assert tasks == {"task1", "task2"} and seen == {"10.255.0.2"}
                assert told(paths[1], three.address)[0] == {"task1", "task2"}
                # who does not ask for it sees the node, as ever
                answers = {ask_tcp(outside, host.address, 8090) for host in made}
                assert answers == {"task9 10.255.0.2", "task9 10.255.0.3", "task9 10.255.0.4"}

        await asyncio.to_thread(check)
        assert rules_in(paths[9]) == set()
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 3) as made:
        run(scenario(made), made)


def test_clients_of_ipv6_are_seen_too(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        outside = tmp_path / "switch.netns"
        six = {host.name: f"2001:db8:99::{number}" for number, host in enumerate(made, 1)}
        for host in made:
            in_netns(host.netns, lambda host=host: _add6("eth0", six[host.name]))
        in_netns(outside, lambda: _add6("switch", CLIENT6))
        paths = await bring_up(made, {1: one}, ipv6=True)
        with ExitStack() as stack:
            greet(stack, paths, "::")
            for host in made:
                assert await asyncio.to_thread(told, outside, six[host.name]) == ({"task1"}, {CLIENT6})
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _add6(link: str, address: str) -> None:
    Path(f"/proc/sys/net/ipv6/conf/{link}/accept_dad").write_text("0")
    Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("0")
    with Netlink() as netlink:
        found = netlink.link(link)
        assert found is not None
        netlink.send(routing.add_address(found.index, address, 64))


def test_a_running_service_is_shown_its_clients_and_not_any_more(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        outside = tmp_path / "switch.netns"
        paths = await bring_up(made, {1: one}, source="node")
        nodes = {"10.255.0.2", "10.255.0.3"}

        def seen() -> set[str]:
            return {address for host in made for address in told(outside, host.address)[1]}

        async def turn(source: ClientSource, among: Iterable[Host]) -> None:
            for host in among:
                await host.network.apply_published(ports(source))

        with ExitStack() as stack:
            greet(stack, paths)
            assert await asyncio.to_thread(seen) == nodes
            await turn("client", made)
            assert await asyncio.to_thread(seen) == {CLIENT}
            # a node comes: replies to it are led there as soon as its fellows know it
            fewer = [one]
            await one.network.apply_state(ingress_state(one, fewer, {1: one}))
            assert len(rules_in(paths[1])) == 1
            await one.network.apply_state(ingress_state(one, made, {1: one}))
            assert len(rules_in(paths[1])) == 2
            assert await asyncio.to_thread(seen) == {CLIENT}
            await turn("node", made)
            assert await asyncio.to_thread(seen) == nodes
            assert rules_in(paths[1]) == set()
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_it_outlives_the_daemon_and_is_mended(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        outside = tmp_path / "switch.netns"
        paths = await bring_up(made, {1: one})

        def seen() -> set[str]:
            return {address for host in made for address in told(outside, host.address)[1]}

        with ExitStack() as stack:
            greet(stack, paths)
            before = rules_in(paths[1])
            for host in made:
                await host.network.close()
            assert await asyncio.to_thread(seen) == {CLIENT}, "with no daemon at all"
            for host in made:
                await host.new_network().open()
            assert await asyncio.to_thread(seen) == {CLIENT} and rules_in(paths[1]) == before

            def spoil() -> None:
                with Netlink() as netlink:
                    netlink.send(routing.delete_mark_rule(*min(before)))
                    netlink.send(routing.add_mark_rule(socket.AF_INET, MARK_BASE | 77))

            in_netns(paths[1], spoil)
            said = await one.network.reconcile(
                keep_sandboxes=["task1"], keep_networks=["bridge", "net-back", "ingress"]
            )
            assert said == ["sandbox task1: rules differed from what was ordered, replaced"]
            assert rules_in(paths[1]) == before
            assert await asyncio.to_thread(seen) == {CLIENT}
            said = await one.network.reconcile(
                keep_sandboxes=["task1"], keep_networks=["bridge", "net-back", "ingress"]
            )
            assert said == []
            # the card goes and comes again, and its tables with it
            await one.network.disconnect("task1", "ingress")
            assert rules_in(paths[1]) == set()
            await one.network.connect("task1", AttachmentSpec(network_id="ingress", address="10.255.0.11"))
            assert await asyncio.to_thread(seen) == {CLIENT} and rules_in(paths[1]) == before
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_no_container_can_pretend_to_be_a_client(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        paths = await bring_up(made, {1: one, 2: one, 9: two})
        with socket_in(paths[1], socket.SOCK_DGRAM) as heard:
            heard.bind(("0.0.0.0", 80))
            heard.settimeout(0.5)

            def arrives(seat: int, mac: str, source: str) -> bool:
                """A packet to task 1 from another container, by the ingress network, as its card would not send it."""
                frame = _frame(mac, mac_for("10.255.0.11"), source, "10.255.0.11")
                in_netns(paths[seat], lambda: _send(frame, "eth2"))
                try:
                    return bool(heard.recv(100))
                except TimeoutError:
                    return False

            for seat in (2, 9):
                own_mac, own = mac_for(f"10.255.0.{10 + seat}"), f"10.255.0.{10 + seat}"
                assert await asyncio.to_thread(arrives, seat, own_mac, own)
                assert not await asyncio.to_thread(arrives, seat, own_mac, CLIENT)
                assert not await asyncio.to_thread(arrives, seat, mac_for("10.255.0.3"), own), "not as a node either"
                assert not await asyncio.to_thread(arrives, seat, mac_for("10.255.0.3"), CLIENT)

            def knocks(source: str) -> bool:
                """The same through the published port of its host, from a network that is not watched."""
                frame = _frame(mac_for("10.0.8.19"), mac_for("10.0.8.1"), source, two.address, port=8080)
                in_netns(paths[9], lambda: _send(frame, "eth1"))
                try:
                    return bool(heard.recv(100))
                except TimeoutError:
                    return False

            # task 2 is the other backend: of four packets two would come
            assert [await asyncio.to_thread(knocks, "10.0.8.19") for _ in range(4)].count(True) >= 1
            assert not any([await asyncio.to_thread(knocks, CLIENT) for _ in range(4)])
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _send(frame: bytes, card: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((card, 0))
        sock.send(frame)


_SOURCE_PORT = iter(range(20000, 30000))


def _frame(mac: str, to_mac: str, source: str, target: str, *, port: int = 80) -> bytes:
    """An Ethernet frame with a UDP packet (RFC 768, no checksum)."""
    udp = struct.pack("!HHHH", next(_SOURCE_PORT), port, 9, 0) + b"?"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    macs = bytes.fromhex(to_mac.replace(":", "")) + bytes.fromhex(mac.replace(":", ""))
    return macs + b"\x08\x00" + head + udp


def test_ports_that_show_no_clients_watch_no_cards(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made, {1: one}, source="node")
        assert await one.network.look(lambda view: view.cards()) == frozenset()
        await one.network.apply_published(ports("client"))
        (card,) = await one.network.look(lambda view: view.cards())
        assert (card.address4, card.address) == ("10.255.0.11", "")
        assert replace(card, veth="") == replace(card, veth="", mac=mac_for("10.255.0.11"))
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)
