"""Encrypted overlays between real hosts (namespaces): what passes, what is seen on the wire, what is refused, what is mended."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from network_hosts import Greeter, Host, ask_tcp, hosts, in_netns, ping, ping6, run
from network_states import endpoint, overlay, start

from fleet.network.doctor.frames import Mark, datagram
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.netlink import NetlinkError
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.rtnetlink import Link, Netlink
from fleet.network.naming import Owner
from fleet.network.topology import NetworkSpec, NetworkState
from fleet.network.tunnel.keeper import TunnelKeeper

pytestmark = pytest.mark.kernel

SEALED, PLAIN = overlay("sealed", 3, ipv6=True, encrypted=True), overlay("plain", 4)
MARKER = b"marker-that-nobody-may-read"
DEADLINE_S = 30.0


def _has_wireguard() -> bool:
    with Netlink() as netlink:
        try:
            netlink.send(rtnetlink.add_wireguard("fttry", mtu=1280, group=0))
        except NetlinkError:
            return False
        netlink.send(rtnetlink.delete_link("fttry"))
        return True


@pytest.fixture(params=["process", "kernel", "both"] if _has_wireguard() else ["process"], autouse=True)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who carries the packets: our process, the kernel's WireGuard, or one of each (the first host has the process)."""
    real = TunnelKeeper._ensure_kernel

    def ensure_kernel(keeper: TunnelKeeper, device: Link | None) -> list[str] | None:
        first = keeper._owner.name.endswith("n1")
        return None if request.param == "process" or (request.param == "both" and first) else real(keeper, device)

    monkeypatch.setattr(TunnelKeeper, "_ensure_kernel", ensure_kernel)
    return str(request.param)


@pytest.mark.skipif(not _has_wireguard(), reason="this kernel has no WireGuard, so ours was not tried against it")
def test_the_kernels_wireguard_is_tried_too(carrier: str) -> None:
    assert carrier in ("process", "kernel", "both")


def _state(network: NetworkSpec, made: list[Host], *, without: Host | None = None) -> NetworkState:
    """A task on each host, numbered as the hosts are; ``without`` has not said its key yet."""

    def key_of(host: Host) -> str:
        return "" if host is without or not network.encrypted else host.network.tunnel_key

    return NetworkState(
        network=network,
        endpoints=tuple(
            endpoint(host, number, network=network, service="svc", tunnel_key=key_of(host))
            for number, host in enumerate(made, 1)
        ),
    )


async def _open(made: list[Host], *networks: NetworkSpec) -> list[Path]:
    for host in made:
        await host.network.open()
    for host in made:
        for network in networks:
            await host.network.apply_state(_state(network, made))
    return [await start(host, number, *networks) for number, host in enumerate(made, 1)]


async def _until(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await asyncio.to_thread(probe):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@contextmanager
def _wire(directory: Path) -> Iterator[list[bytes]]:
    """Everything that passes the switch while the block runs, frame by frame; complete when it ends."""

    def sniffer() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))  # ETH_P_ALL
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        return sock

    frames: list[bytes] = []
    with in_netns(directory / "switch.netns", sniffer) as sock:
        yield frames
        with suppress(BlockingIOError):
            while True:
                frames.append(sock.recv(65535))


def _send_as_real_cards_do() -> None:
    """Packets of the host leave its card as they would be on a wire: a veth device hands several on uncut, as one that claims to
    compute checksums (ioctl SIOCETHTOOL with ETHTOOL_STXCSUM: linux/ethtool.h)."""
    value = ctypes.create_string_buffer(struct.pack("=II", 0x17, 0))
    request = struct.pack("@16sP16x", b"eth0", ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8946, request)


def _say(path: Path, source: str, target: str, text: bytes) -> bytes:
    """Send ``text`` over TCP from one container to another, and get it back."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    server = in_netns(source, lambda: socket.create_server((target, 8080), family=family))
    with server, in_netns(path, lambda: socket.create_connection((target, 8080), timeout=10)) as client:
        other, _ = server.accept()
        with other:
            client.sendall(text)
            got = other.recv(4096)
            other.sendall(got)
        return client.recv(4096)


def test_nothing_can_be_read_on_the_wire_between_hosts(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        first, second = await _open(made, SEALED, PLAIN)
        await _until(lambda: ping(first, "10.0.3.12"))
        for target in ("10.0.3.12", "fd00:3::12"):
            with _wire(tmp_path) as frames:
                assert await asyncio.to_thread(_say, first, second, target, MARKER) == MARKER
            assert any(b"\x04\0\0\0" in frame for frame in frames)  # data of the tunnel
            assert not any(MARKER in frame for frame in frames)
            assert not any(frame[36:38] == b"\x12\xb5" for frame in frames if frame[23:24] == b"\x11")  # UDP port 4789
        with _wire(tmp_path) as frames:  # the same on a plain network, so that this test can fail
            assert await asyncio.to_thread(_say, first, second, "10.0.4.12", MARKER) == MARKER
        assert any(MARKER in frame for frame in frames)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_full_packets_pass_unfragmented_and_large_ones_arrive(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        first, second = await _open(made, SEALED)
        await _until(lambda: ping(first, "10.0.3.12") and ping6(first, "fd00:3::12"))

        def card_mtu() -> int:
            with Netlink() as netlink:
                link = netlink.link("eth0")
                assert link is not None
                return link.mtu

        assert in_netns(first, card_mtu) == 1500 - 60 - 50
        text = os.urandom(100_000)
        assert await asyncio.to_thread(_bulk, first, second, text) == text
        for host in made:
            in_netns(host.netns, _send_as_real_cards_do)
        with _wire(tmp_path) as frames:
            assert await asyncio.to_thread(_full, first, second)
        assert max(map(len, frames)) == 1514  # an Ethernet frame that is full, and not more than one
        assert not any(frame[20] & 0x20 for frame in frames if frame[12:14] == b"\x08\0")  # no IP fragments
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_many_packets_are_given_to_the_kernel_as_few_and_arrive_whole(tmp_path: Path, carrier: str) -> None:
    if carrier != "process":
        pytest.skip("the kernel's WireGuard does not count writes")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 2):
        pytest.skip("the kernel cuts UDP packets written to a TUN device from Linux 6.2 on")

    def passed(host: Host, column: int) -> int:
        lines = in_netns(host.netns, lambda: Path("/proc/thread-self/net/dev").read_text()).splitlines()
        (line,) = (line for line in lines if line.strip().startswith(_tunnel(host)))
        return int(line.partition(":")[2].split()[column])

    async def scenario(made: list[Host]) -> None:
        first, second = await _open(made, SEALED)
        await _until(lambda: ping(first, "10.0.3.12"))
        text = os.urandom(2_000_000)
        sent, received = passed(made[0], 9), passed(made[1], 1)
        assert await asyncio.to_thread(_bulk, first, second, text) == text
        assert passed(made[0], 9) - sent >= 1400
        assert passed(made[1], 1) - received < 1400 * 0.8
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_a_device_that_an_older_version_left_is_taken_over(tmp_path: Path, carrier: str) -> None:
    """It is persistent, and was opened without the headers that precede packets now."""
    if carrier != "process":
        pytest.skip("it was the process' device")

    def leave(host: Host) -> None:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", _tunnel(host).encode(), 0x1001))  # TUNSETIFF
        fcntl.ioctl(descriptor, 0x400454CB, 1)  # TUNSETPERSIST
        os.close(descriptor)

    async def scenario(made: list[Host]) -> None:
        in_netns(made[0].netns, lambda: leave(made[0]))
        first, second = await _open(made, SEALED)
        await _until(lambda: ping(first, "10.0.3.12") and ping(second, "10.0.3.11"))
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _full(path: Path, source: Path) -> bool:
    """One UDP packet as large as the network allows."""
    ear = in_netns(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    mouth = in_netns(path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with ear, mouth:
        ear.bind(("10.0.3.12", 8082))
        ear.settimeout(10)
        mouth.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: do not fragment
        mouth.sendto(b"x" * (1390 - 28), ("10.0.3.12", 8082))
        return len(ear.recv(2000)) == 1390 - 28


def _bulk(path: Path, source: Path, text: bytes) -> bytes:
    server = in_netns(source, lambda: socket.create_server(("10.0.3.12", 8081)))
    got = bytearray()
    with server, in_netns(path, lambda: socket.create_connection(("10.0.3.12", 8081), timeout=20)) as client:
        other, _ = server.accept()
        other.settimeout(20)
        with other:
            client.setblocking(False)
            sent = 0
            while len(got) < len(text):
                if sent < len(text):
                    with suppress(BlockingIOError):
                        sent += client.send(text[sent : sent + 50_000])
                got += other.recv(65536)
    return bytes(got)


def test_a_host_without_a_key_gets_nothing_and_nothing_goes_out_plain(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        for host in made:
            await host.network.open()
        await one.network.apply_state(_state(SEALED, made, without=two))
        await two.network.apply_state(_state(SEALED, made))
        first, second = await start(one, 1, SEALED), await start(two, 2, SEALED)
        with _wire(tmp_path) as frames:
            assert not await asyncio.to_thread(lambda: ping(first, "10.0.3.12", timeout_s=1.0))
        assert not any(frame[36:38] == b"\x12\xb5" for frame in frames if frame[23:24] == b"\x11")
        await one.network.apply_state(_state(SEALED, made))
        await _until(lambda: ping(first, "10.0.3.12") and ping(second, "10.0.3.11"))
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_plain_packets_with_the_number_of_an_encrypted_network_are_refused(tmp_path: Path) -> None:
    """A VXLAN device would take them: their sender is a host of the cluster, as any of its users can pretend."""

    async def scenario(made: list[Host]) -> None:
        one, two = made
        await _open(made, SEALED, PLAIN)
        table = Owner(two.owner).table
        packet = datagram(Mark(b"r" * 16, 1, 100), vni=SEALED.vni, mac="ff:ff:ff:ff:ff:ff")
        with in_netns(two.netns, lambda: _plain_sender("10.99.0.2")) as sender, pytest.raises(PermissionError):
            sender.sendto(packet, ("10.99.0.1", 4789))  # not even the other host's own programs get it out
        in_netns(two.netns, lambda: _drop_table(table))

        def ear(network: NetworkSpec) -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            sock.settimeout(1.0)
            sock.bind((_bridge(one, network), 0))
            return sock

        for network, arrives in ((PLAIN, True), (SEALED, False)):
            listening = in_netns(one.netns, lambda network=network: ear(network))
            packet = datagram(Mark(b"r" * 16, 1, 100), vni=network.vni, mac="ff:ff:ff:ff:ff:ff")
            sender = in_netns(two.netns, lambda: _plain_sender("10.99.0.2"))
            with listening, sender:
                sender.sendto(packet, ("10.99.0.1", 4789))
                if arrives:
                    assert listening.recv(2000)
                else:
                    with pytest.raises(TimeoutError):
                        listening.recv(2000)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _drop_table(table: str) -> None:
    closer = NftCloser()
    with NftContext(closer) as nft:
        nft.run(f"delete table ip {table}\n")
    closer.stop()


def _plain_sender(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    return sock


def _bridge(host: Host, network: NetworkSpec) -> str:
    return Owner(host.owner).bridge(network.id)


def _tunnel(host: Host) -> str:
    return Owner(host.owner).tunnel


def test_a_killed_process_and_a_deleted_device_come_back_by_themselves(tmp_path: Path, carrier: str) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        first, _ = await _open(made, SEALED)
        await _until(lambda: ping(first, "10.0.3.12"))
        pid = one.network.tunnel_pid()
        assert bool(pid) is (carrier != "kernel")
        if pid:
            os.kill(pid, signal.SIGKILL)
            await _until(lambda: one.network.tunnel_pid() not in (0, pid))
            await _until(lambda: ping(first, "10.0.3.12"))

        def delete() -> None:
            with Netlink() as netlink:
                netlink.send(rtnetlink.delete_link(_tunnel(one)))

        in_netns(one.netns, delete)
        with _wire(tmp_path) as frames:
            await _until(lambda: ping(first, "10.0.3.12"))
        assert not any(frame[36:38] == b"\x12\xb5" for frame in frames if frame[23:24] == b"\x11")
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_the_tunnel_needs_no_daemon_and_the_next_one_adopts_it(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        first, _ = await _open(made, SEALED)
        await _until(lambda: ping(first, "10.0.3.12"))
        pid = one.network.tunnel_pid()
        (before,) = await one.network.look(lambda view: view.tunnel.contacts())
        await one.network.close()
        assert await asyncio.to_thread(ping, first, "10.0.3.12")
        one.new_network()
        assert await one.network.open() == []
        assert one.network.tunnel_pid() == pid
        (after,) = await one.network.look(lambda view: view.tunnel.contacts())
        assert after.handshake_s > before.handshake_s, "the session that was there goes on"
        assert await asyncio.to_thread(ping, first, "10.0.3.12")
        assert await one.network.reconcile(keep_sandboxes=["task1"], keep_networks=[SEALED.id]) == []
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_the_tunnel_goes_with_the_last_encrypted_network(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        await _open(made, SEALED, PLAIN)
        pid = one.network.tunnel_pid()
        await one.network.remove_sandbox("task1")
        await one.network.remove_network(SEALED.id)
        assert one.network.tunnel_pid() == 0
        if pid:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

        def names() -> set[str]:
            with Netlink() as netlink:
                return {link.name for link in netlink.links()}

        assert _tunnel(one) not in in_netns(one.netns, names)
        for host in made:
            await host.network.destroy()
        assert in_netns(one.netns, names) <= {"lo", "eth0"}
        assert not list(one.state_dir.glob("tunnel*"))

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_the_private_key_is_roots_alone_and_stays_over_a_restart(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        key = one.network.tunnel_key
        assert (one.state_dir / "tunnel.key").stat().st_mode & 0o777 == 0o600
        await one.network.close()
        one.new_network()
        await one.network.open()
        assert one.network.tunnel_key == key
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_containers_do_not_reach_the_tunnel_nor_another_network_through_it(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        first, second = await _open(made, SEALED, PLAIN)
        await _until(lambda: ping(first, "10.0.3.12"))
        other = replace(SEALED, id="net-other", name="other", subnet="10.0.5.0/24", gateway="10.0.5.1", vni=4101)
        other = replace(other, subnet6="", gateway6="")
        for host in made:
            await host.network.apply_state(_state(other, made))
        with Greeter(second, "two"):
            assert (await asyncio.to_thread(ask_tcp, first, "10.0.3.12")).startswith("two")
        # VXLAN packets of a container's own making, to the other host's and its own host's data path ports
        packet = datagram(Mark(b"r" * 16, 1, 100), vni=SEALED.vni, mac="ff:ff:ff:ff:ff:ff")
        ear = in_netns(tmp_path / "n2.netns", lambda: _ear_on(_bridge(made[1], SEALED)))
        with ear, in_netns(first, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            for target in ("10.99.0.2", "10.99.0.1", "10.0.3.1"):
                for port in (4789, 4790):
                    with suppress(OSError):
                        sock.sendto(packet, (target, port))
            with pytest.raises(TimeoutError):
                ear.recv(2000)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def _ear_on(link: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    sock.settimeout(1.0)
    sock.bind((link, 0))
    return sock
