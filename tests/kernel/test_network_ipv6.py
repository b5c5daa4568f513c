"""Networks with IPv6 between real hosts (namespaces): reachability, balancing, names, ports, spoofing, egress, mending."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import network_states
import pytest
from network_hosts import Greeter, Host, ask_tcp, ask_udp, hosts, in_netns, ping, ping6, resolve, run, socket_in
from network_states import ingress, ingress_state, open_all, overlay, web_state

from fleet.errors import ConflictError, UnsupportedError, UserError
from fleet.network.cardrules import link_local
from fleet.network.dns import wire
from fleet.network.ipam import mac_for
from fleet.network.kernel import routing, rtnetlink
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.namespaces import read_sysctl, write_sysctl
from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    HostPort,
    NetworkSpec,
    NetworkState,
    PublishedPort,
    SandboxSpec,
)

pytestmark = pytest.mark.kernel

DUAL = overlay("dual", 9, ipv6=True)
VIP, VIP6 = "10.0.9.2", "fd00:9::2"
endpoint = partial(network_states.endpoint, network=DUAL)


def state_of(*endpoints: Endpoint, network: NetworkSpec = DUAL, vip: str | None = VIP) -> NetworkState:
    return web_state(network, *endpoints, vip=vip, vip6=VIP6 if vip else None)


async def start(host: Host, number: int, *, host_ports: tuple[HostPort, ...] = (), network: NetworkSpec = DUAL) -> Path:
    return await network_states.start(host, number, network, host_ports=host_ports)


def test_containers_on_different_hosts_reach_each_other_over_ipv6(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(two, 2), endpoint(one, 3)))
        first, second, third = await start(one, 1), await start(two, 2), await start(one, 3)
        assert await asyncio.to_thread(ping6, first, "fd00:9::12")
        assert await asyncio.to_thread(ping6, second, "fd00:9::11")
        assert await asyncio.to_thread(ping6, first, "fd00:9::13")  # on the same bridge
        assert await asyncio.to_thread(ping6, first, "fd00:9::1")  # its host
        assert await asyncio.to_thread(ping, first, "10.0.9.12")
        with Greeter(second, "two", address="::"):
            assert await asyncio.to_thread(ask_tcp, first, "fd00:9::12") == "two fd00:9::11"
            assert await asyncio.to_thread(ask_udp, first, "fd00:9::12") == "two fd00:9::11"
            with Greeter(third, "three", address="::"):
                assert await asyncio.to_thread(ask_tcp, first, "fd00:9::13") == "three fd00:9::11"
        assert in_netns(first, lambda: read_sysctl("net/ipv6/conf/eth0/accept_ra")) == "0"
        for host in made:
            await host.network.destroy()
            assert in_netns(host.netns, lambda: read_sysctl("net/ipv6/conf/all/forwarding")) == "0"

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_virtual_address_and_names_are_of_both_families(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(two, 2), endpoint(two, 3, ready=False)))
        paths = [await start(one, 1), await start(two, 2), await start(two, 3)]
        first = paths[0]
        with ExitStack() as stack:
            for number, path in enumerate(paths, 1):
                stack.enter_context(Greeter(path, f"task{number}", address="::"))
            answers = await asyncio.to_thread(lambda: Counter(ask_tcp(first, VIP6).split()[0] for _ in range(60)))
            assert set(answers) == {"task1", "task2"} and min(answers.values()) >= 20
            assert (await asyncio.to_thread(ask_udp, paths[2], VIP6)).split()[0] in answers
            assert (await asyncio.to_thread(ask_tcp, first, VIP)).split()[0] in answers
            await one.network.apply_state(state_of(endpoint(one, 1), endpoint(two, 2, ready=False)))
            answers = await asyncio.to_thread(lambda: Counter(ask_tcp(first, VIP6).split()[0] for _ in range(10)))
            assert set(answers) == {"task1"}

        def names() -> None:
            assert resolve(first, "web", wire.AAAA).addresses == [VIP6]
            assert resolve(first, "www.dual", wire.AAAA).addresses == [VIP6]
            assert resolve(first, "web").addresses == [VIP]
            assert resolve(first, "tasks.web", wire.AAAA).addresses == ["fd00:9::11"]
            assert resolve(first, "web.2", wire.AAAA).addresses == ["fd00:9::12"]
            reverse = ".".join(reversed("fd000009000000000000000000000012")) + ".ip6.arpa"
            assert resolve(first, reverse, wire.PTR).names == ["web.2.task2.dual"]
            missing = ".".join(reversed("fd0000090000000000000000000000ff")) + ".ip6.arpa"
            assert resolve(first, missing, wire.PTR).code == wire.NXDOMAIN
            elsewhere = ".".join(reversed("fd0000080000000000000000000000ff")) + ".ip6.arpa"
            assert resolve(first, elsewhere, wire.PTR).code == wire.SERVFAIL  # asked outside, where nobody is

        await asyncio.to_thread(names)
        await one.network.apply_state(state_of())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(ask_tcp, first, VIP6)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def raw_frame(path: Path, *, source: str, destination: str, payload: bytes, header: int, to_mac: bytes) -> None:
    """Send an IPv6 packet as an Ethernet frame, as a program with the right to raw sockets can, under any source."""
    packet = struct.pack("!IHBB", 0x60000000, len(payload), header, 255)
    packet += socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + payload

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            own = sock.getsockname()[4]
            sock.send(to_mac + own + struct.pack("!H", 0x86DD) + packet)

    in_netns(path, send)


def checksummed(kind: int, body: bytes, source: str, destination: str) -> bytes:
    """An ICMPv6 message with its checksum (RFC 4443 section 2.3)."""
    message = struct.pack("!BBH", kind, 0, 0) + body
    pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    data = pseudo + struct.pack("!II", len(message), 58) + message
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", kind, 0, ~total & 0xFFFF) + body


def heard(path: Path, send: object) -> list[bytes]:
    """IPv6 packets that arrive at ``path`` while ``send`` runs and shortly after, without the Ethernet header."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
        sock.bind(("eth0", 0x86DD))
        return sock

    found: list[bytes] = []
    with in_netns(path, listen) as sock:
        sock.settimeout(0.5)
        send()  # type: ignore[operator]
        try:
            while True:
                found.append(sock.recv(2048)[14:])
        except TimeoutError:
            return found


def test_spoofed_sources_and_rogue_advertisements_stop_at_the_bridge(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(one, 2), endpoint(two, 3)))
        rogue, neighbour, far = await start(one, 1), await start(one, 2), await start(two, 3)
        mac = bytes.fromhex(mac_for("10.0.9.12").replace(":", ""))
        far_mac = bytes.fromhex(mac_for("10.0.9.13").replace(":", ""))
        own, other = "fd00:9::11", "fd00:9::12"
        udp = struct.pack("!HHHH", 9, 9, 16, 0) + b"from who"

        def sources() -> set[str]:
            def send() -> None:
                for source in (
                    own,
                    link_local(mac_for("10.0.9.11")),
                    "fd00:9::13",
                    "fd00:9::1",
                    "2001:db8::1",
                    "fe80::1",
                ):
                    raw_frame(rogue, source=source, destination=other, payload=udp, header=17, to_mac=mac)

            return {
                socket.inet_ntop(socket.AF_INET6, p[8:24]) for p in heard(neighbour, send) if p[48:56] == b"from who"
            }

        assert await asyncio.to_thread(sources) == {own, link_local(mac_for("10.0.9.11"))}

        def far_sources() -> set[str]:
            def send() -> None:
                for source in (own, "fd00:9::12", "2001:db8::1"):
                    raw_frame(rogue, source=source, destination="fd00:9::13", payload=udp, header=17, to_mac=far_mac)

            return {socket.inet_ntop(socket.AF_INET6, p[8:24]) for p in heard(far, send) if p[48:56] == b"from who"}

        assert await asyncio.to_thread(far_sources) == {own}

        def control() -> set[int]:
            all_nodes = bytes.fromhex("333300000001")
            source = link_local(mac_for("10.0.9.11"))
            prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + socket.inet_pton(
                socket.AF_INET6, "2001:db8:bad::"
            )
            advertisement = checksummed(134, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix, source, "ff02::1")
            claims = [
                checksummed(
                    136, struct.pack("!I", 0x20000000) + socket.inet_pton(socket.AF_INET6, target), source, "ff02::1"
                )
                for target in ("fd00:9::1", "fd00:9::13")
            ]

            def send() -> None:
                for message in (advertisement, *claims):
                    raw_frame(rogue, source=source, destination="ff02::1", payload=message, header=58, to_mac=all_nodes)

            return {p[40] for p in heard(neighbour, send) if p[6] == 58 and p[40] in (134, 136)}

        assert await asyncio.to_thread(control) == set()
        # what is legitimate goes on: neighbours are found, both ways
        assert await asyncio.to_thread(ping6, rogue, other)
        assert await asyncio.to_thread(ping6, neighbour, own)
        addresses = in_netns(neighbour, lambda: _addresses6("eth0"))
        assert addresses == {("fd00:9::12", 64)}
        for host in made:
            await host.network.destroy()
            assert "table bridge" not in in_netns(host.netns, lambda: _listing("list tables"))

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _addresses6(card: str) -> set[tuple[str, int]]:
    with Netlink() as netlink:
        link = netlink.link(card)
        assert link is not None
        return netlink.addresses(link.index, family=socket.AF_INET6)


def _listing(command: str) -> str:
    closer = NftCloser()
    try:
        with NftContext(closer) as nft:
            return nft.run(command + "\n")
    finally:
        closer.stop()


def give_underlay_ipv6(host: Host, number: int) -> None:
    """An IPv6 address on the host's own network, which leads to the other hosts."""

    def configure() -> None:
        write_sysctl("net/ipv6/conf/eth0/accept_dad", "0")
        with Netlink() as netlink:
            link = netlink.link("eth0")
            assert link is not None
            netlink.send(routing.add_address(link.index, f"2001:db8::{number}", 64))

    in_netns(host.netns, configure)


def test_outbound_ipv6_leaves_with_the_hosts_address_or_is_refused_at_once(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1)))
        first = await start(one, 1)
        with pytest.raises(OSError, match="unreachable"):  # the host has no IPv6: said at once, not after a timeout
            await asyncio.to_thread(ask_tcp, first, "2001:db8::2", 8000)
        for number, host in enumerate(made, 1):
            give_underlay_ipv6(host, number)
        with Greeter(two.netns, "outside", address="::", port=8000):
            assert await asyncio.to_thread(ask_tcp, first, "2001:db8::2", 8000) == "outside 2001:db8::1"
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_published_ports_answer_at_the_hosts_ipv6_addresses(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two, client = made
        for number, host in enumerate(made, 1):
            give_underlay_ipv6(host, number)
        for host in (one, two):
            await host.network.open()
            await host.network.apply_state(ingress_state(host, [one, two], {1: two}, ipv6=True))
            await host.network.apply_published(
                [PublishedPort(protocol="tcp", published_port=8080, target_port=80, service_id="svc-web")]
            )
        host_ports = (HostPort(protocol="tcp", host_port=9090, target_port=80),)
        task = await start(two, 1, host_ports=host_ports, network=ingress(two, [one, two], ipv6=True))
        in_netns(one.netns, lambda: write_sysctl("net/bridge/bridge-nf-call-ip6tables", "0"))
        with Greeter(task, "task", address="::"):
            assert (await asyncio.to_thread(ask_tcp, one.netns, "::1", 8080)).startswith("task ")
            assert (await asyncio.to_thread(ask_tcp, client.netns, "2001:db8::1", 8080)).startswith("task ")
            assert (await asyncio.to_thread(ask_tcp, client.netns, "2001:db8::2", 8080)).startswith("task ")
            assert (await asyncio.to_thread(ask_tcp, client.netns, "10.99.0.1", 8080)).startswith("task ")
            assert (await asyncio.to_thread(ask_tcp, one.netns, "2001:db8::1", 8080)).startswith("task ")
            # mode host: on its own host only
            assert (await asyncio.to_thread(ask_tcp, client.netns, "2001:db8::2", 9090)).startswith("task ")
            with pytest.raises(OSError, match="refused"):
                await asyncio.to_thread(ask_tcp, client.netns, "2001:db8::1", 9090)
            with pytest.raises((OSError, TimeoutError)):  # not published: no way in
                await asyncio.to_thread(ask_tcp_by, client, "fd00:255::11", via="2001:db8::2")
        for host in (one, two):
            await host.network.destroy()

    with hosts(tmp_path, 3) as made:
        run(scenario(made), made)


def test_host_ports_answer_at_ipv6_addresses_of_their_own_or_at_all(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, client = made
        for number, host in enumerate(made, 1):
            give_underlay_ipv6(host, number)
        await open_all([one], state_of(endpoint(one, 1)))
        ports = tuple(
            HostPort(protocol="tcp", host_port=port, target_port=80, host_address=address)
            for port, address in ((9090, ""), (9091, "::"), (9092, "0.0.0.0"), (9093, "2001:db8::1"))
        )
        path = await start(one, 1, host_ports=ports)

        async def at(address: str, port: int) -> str:
            try:
                return await asyncio.to_thread(ask_tcp, client.netns, address, port)
            except ConnectionRefusedError:
                return "refused"

        in_netns(one.netns, lambda: write_sysctl("net/bridge/bridge-nf-call-ip6tables", "0"))
        with Greeter(path, "task", address="::"):
            assert (await asyncio.to_thread(ask_tcp, one.netns, "::1", 9090)) == "task fd00:9::1"
            assert (await asyncio.to_thread(ask_tcp, one.netns, "127.0.0.1", 9090)) == "task ::ffff:10.0.9.1"
            six, four = "task 2001:db8::2", "task ::ffff:10.99.0.2"  # mode host keeps the client's address
            assert [await at("2001:db8::1", port) for port in range(9090, 9094)] == [six, six, "refused", six]
            assert [await at("10.99.0.1", port) for port in range(9090, 9094)] == [four, "refused", four, "refused"]
        with pytest.raises(ConflictError, match="9090"):
            await start(
                one, 2, host_ports=(HostPort(protocol="tcp", host_port=9090, target_port=1, host_address="::"),)
            )
        await one.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def ask_tcp_by(client: Host, address: str, *, via: str) -> str:
    """Ask a container directly, by a route that somebody outside made."""

    def route() -> None:
        with Netlink() as netlink:
            link = netlink.link("eth0")
            assert link is not None
            netlink.send(routing.add_default_route(link.index, via))

    in_netns(client.netns, route)
    with socket_in(client.netns, family=socket.AF_INET6) as sock:
        sock.settimeout(1.0)
        sock.connect((address, 80))
        return sock.recv(200).decode()


def test_bridge_network_gives_ipv6_addresses_and_never_one_twice(tmp_path: Path) -> None:
    local = NetworkSpec(
        id="net-local",
        name="local",
        driver="bridge",
        subnet="172.30.0.0/24",
        gateway="172.30.0.1",
        subnet6="fd00:30::/64",
        gateway6="fd00:30::1",
        reserved=("fd00:30::3",),
    )

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        await one.network.ensure_network(local)
        attachment = AttachmentSpec(network_id="net-local", aliases=("db",))
        boxes = [
            await one.network.create_sandbox(SandboxSpec(id=f"c{n}", names=(f"c{n}",), attachments=(attachment,)))
            for n in range(2)
        ]
        assert [box.interfaces[0].address6 for box in boxes] == ["fd00:30::2", "fd00:30::4"]
        assert boxes[0].interfaces[0].gateway6 == "fd00:30::1"
        first = one.sandbox_path("c0")
        assert await asyncio.to_thread(ping6, first, "fd00:30::4")
        answer = await asyncio.to_thread(resolve, first, "db", wire.AAAA)
        assert sorted(answer.addresses) == ["fd00:30::2", "fd00:30::4"]
        with pytest.raises(ConflictError, match="fd00:30::2 is in use"):
            await one.network.create_sandbox(
                SandboxSpec(id="c2", attachments=(AttachmentSpec(network_id="net-local", address6="fd00:30::2"),))
            )
        await one.network.remove_sandbox("c0")
        again = await one.network.create_sandbox(SandboxSpec(id="c3", attachments=(attachment,)))
        assert again.interfaces[0].address6 == "fd00:30::5"
        plain = NetworkSpec(id="net-four", name="four", driver="bridge", subnet="172.31.0.0/24", gateway="172.31.0.1")
        await one.network.ensure_network(plain)
        with pytest.raises(UserError, match="has no IPv6"):
            await one.network.connect("c3", AttachmentSpec(network_id="net-four", address6="fd00:31::2"))
        added = await one.network.connect("c3", AttachmentSpec(network_id="net-four"))
        assert added.address6 == ""
        inside = one.sandbox_path("c3")
        assert in_netns(inside, lambda: read_sysctl("net/ipv6/conf/eth1/disable_ipv6")) == "1"
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_a_bridge_may_have_ipv6_alone(tmp_path: Path) -> None:
    alone = NetworkSpec(
        id="net-six", name="six", driver="bridge", subnet="", gateway="", subnet6="fd00:66::/64", gateway6="fd00:66::1"
    )

    async def scenario(made: list[Host]) -> None:
        one, client = made
        for number, host in enumerate(made, 1):
            give_underlay_ipv6(host, number)
        await one.network.open()
        await one.network.ensure_network(alone)
        attachment = AttachmentSpec(network_id="net-six")
        port = HostPort(protocol="tcp", host_port=9090, target_port=80)
        first = await one.network.create_sandbox(
            SandboxSpec(id="c1", names=("c1",), attachments=(attachment,), host_ports=(port,))
        )
        await one.network.create_sandbox(SandboxSpec(id="c2", names=("c2",), attachments=(attachment,)))
        card = first.interfaces[0]
        assert (card.address, card.gateway, card.address6, card.gateway6) == ("", "", "fd00:66::2", "fd00:66::1")
        assert card.mac == "02:46:00:00:00:02"
        inside = one.sandbox_path("c2")
        assert await asyncio.to_thread(ping6, inside, "fd00:66::2")
        assert (await asyncio.to_thread(resolve, inside, "c1", wire.AAAA)).addresses == ["fd00:66::2"]
        four = await asyncio.to_thread(resolve, inside, "c1")
        assert (four.code, four.addresses) == (wire.NOERROR, [])
        with Greeter(one.sandbox_path("c1"), "c1", address="::"):
            assert await asyncio.to_thread(ask_tcp, client.netns, "2001:db8::1", 9090) == "c1 2001:db8::2"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(ask_tcp, client.netns, "10.99.0.1", 9090)
        with Greeter(client.netns, "outside", address="::", port=8000):
            assert await asyncio.to_thread(ask_tcp, inside, "2001:db8::2", 8000) == "outside 2001:db8::1"
        assert await one.network.reconcile(keep_sandboxes={"c1", "c2"}, keep_networks={"net-six"}) == []
        with pytest.raises(UserError, match="has no IPv4"):
            await one.network.create_sandbox(
                SandboxSpec(id="c3", attachments=(AttachmentSpec(network_id="net-six", address="10.0.0.9"),))
            )
        await one.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_a_running_container_joins_and_leaves_a_network_with_ipv6(tmp_path: Path) -> None:
    plain = NetworkSpec(id="net-four", name="four", driver="bridge", subnet="172.31.0.0/24", gateway="172.31.0.1")

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(one, 2)))
        await one.network.ensure_network(plain)
        await start(one, 2)
        await one.network.create_sandbox(SandboxSpec(id="task1", attachments=(AttachmentSpec(network_id="net-four"),)))
        path = one.sandbox_path("task1")
        await one.network.connect(
            "task1", AttachmentSpec(network_id="net-dual", address="10.0.9.11", address6="fd00:9::11")
        )
        assert await asyncio.to_thread(ping6, path, "fd00:9::12")
        assert "ip6 fleet" in in_netns(path, lambda: _listing("list tables"))
        await one.network.disconnect("task1", "net-dual")
        assert "ip6 fleet" not in in_netns(path, lambda: _listing("list tables"))
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_drift_of_ipv6_is_mended_and_named_and_a_killed_daemon_leaves_it_working(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(two, 2)))
        first = await start(one, 1)
        await start(two, 2)
        await one.network.close()  # as a killed daemon: nothing is taken away
        assert await asyncio.to_thread(ping6, first, "fd00:9::12")
        network = one.new_network()
        assert await network.open() == []
        keep = {"keep_sandboxes": {"task1"}, "keep_networks": {"net-dual"}}
        assert await network.reconcile(**keep) == []
        bridge, vxlan = in_netns(one.netns, _devices)

        def damage() -> None:
            write_sysctl(f"net/ipv6/conf/{bridge}/disable_ipv6", "1")
            write_sysctl(f"net/ipv6/conf/{vxlan}/accept_ra", "1")
            with Netlink() as netlink:
                link = netlink.link(vxlan)
                assert link is not None
                netlink.send(rtnetlink.delete_neighbour(link.index, "fd00:9::12"))
            tables = [line.split()[1:3] for line in _listing("list tables").splitlines()]
            for family, table in tables:
                if family in ("ip6", "bridge"):
                    _listing(f"flush table {family} {table}")

        in_netns(one.netns, damage)
        in_netns(first, lambda: _listing("flush table ip6 fleet"))
        done = await network.reconcile(**keep)
        text = "\n".join(done)
        for part in (
            f"set the IPv6 switches of {bridge}",
            f"set the IPv6 switches of {vxlan}",
            "gave the bridge its addresses",
            "mended 1 forwarding and ARP entries",
            "bridge rules of IPv6",
            "host rules of IPv6",
            "sandbox task1: rules",
        ):
            assert part in text
        assert await network.reconcile(**keep) == []
        assert await asyncio.to_thread(ping6, first, "fd00:9::12")
        assert await asyncio.to_thread(ping6, first, "fd00:9::1")
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _devices() -> tuple[str, str]:
    with Netlink() as netlink:
        names = [link.name for link in netlink.links()]
    return next(n for n in names if n.startswith("fb")), next(n for n in names if n.startswith("fx"))


def test_a_host_without_ipv6_takes_part_in_the_other_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.network.ipv6._CONF", tmp_path / "a kernel that has none")

    async def scenario(made: list[Host]) -> None:
        one, two = made
        await open_all(made, state_of(endpoint(one, 1), endpoint(two, 2)))
        first = await start(one, 1)
        await start(two, 2)
        assert (await one.network.sandbox("task1")).interfaces[0].address6 == ""
        assert await asyncio.to_thread(ping, first, "10.0.9.12")
        answer = await asyncio.to_thread(resolve, first, "web", wire.AAAA)
        assert (answer.code, answer.addresses) == (wire.NOERROR, [])
        assert "ip6" not in in_netns(one.netns, lambda: _listing("list tables"))
        local = NetworkSpec(
            id="net-local",
            name="local",
            driver="bridge",
            subnet="172.30.0.0/24",
            gateway="172.30.0.1",
            subnet6="fd00:30::/64",
            gateway6="fd00:30::1",
        )
        with pytest.raises(UnsupportedError, match=r"network local: this host's kernel has no IPv6"):
            await one.network.ensure_network(local)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_forwarding_keeps_the_routes_a_host_learned_and_is_taken_back(tmp_path: Path) -> None:
    def switches() -> tuple[str, str]:
        return read_sysctl("net/ipv6/conf/all/forwarding"), read_sysctl("net/ipv6/conf/eth0/accept_ra")

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        assert in_netns(one.netns, switches) == ("0", "1")
        await one.network.open()
        plain = NetworkSpec(id="net-four", name="four", driver="bridge", subnet="172.31.0.0/24", gateway="172.31.0.1")
        await one.network.ensure_network(plain)
        assert in_netns(one.netns, switches) == ("0", "1")  # nobody needs it
        await one.network.apply_state(state_of())
        assert in_netns(one.netns, switches) == ("1", "2")
        await one.network.close()
        await one.new_network().open()
        await one.network.destroy()
        assert in_netns(one.netns, switches) == ("0", "1")

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)
