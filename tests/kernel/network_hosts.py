"""Several hosts on one kernel for network tests: namespaces joined by a switch, sockets inside any of them, no processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fleet.network.dns import wire
from fleet.network.host import HostNetwork
from fleet.network.kernel import routing, rtnetlink, syscalls
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.namespaces import close_namespace

T = TypeVar("T")


def in_netns(path: Path | str, function: Callable[[], T]) -> T:
    """Run ``function`` on a thread of its own inside the namespace at ``path``."""
    result: list[Any] = []

    def run() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            syscalls.setns_net(descriptor)
            result.append((True, function()))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            result.append((False, error))
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    good, value = result[0]
    if not good:
        raise value
    return value


def new_netns(path: Path) -> None:
    """Make an empty namespace with loopback up, held at ``path``."""

    def run() -> None:
        syscalls.unshare_net()
        syscalls.mount_bind(syscalls.thread_netns_path(), path)
        with Netlink() as netlink:
            netlink.send(rtnetlink.link_up(1))

    path.touch()
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


class Host:
    """One host: its namespace, its address on the underlay, and the ``HostNetwork`` running there."""

    def __init__(self, *, name: str, directory: Path, address: str, tag: str) -> None:
        self.name = name
        self.address = address
        self.underlay = address
        self.netns = directory / f"{name}.netns"
        self.run_dir = directory / f"{name}.run"
        self.state_dir = directory / f"{name}.state"
        self.resolv_conf = directory / f"{name}.resolv"
        self.resolv_conf.write_text("")
        self.owner = f"{tag}-{name}"
        self.network = self.new_network()

    def new_network(self, *, open_namespace: Callable[[int, int], Awaitable[int]] | None = None) -> HostNetwork:
        """A fresh ``HostNetwork`` on the same directories, as a restarted daemon would make it."""
        self.network = HostNetwork(
            run_dir=self.run_dir,
            state_dir=self.state_dir,
            owner=self.owner,
            underlay_address=lambda: self.underlay,
            local_node_id=self.name,
            host_netns=self.netns,
            resolv_conf=self.resolv_conf,
            open_namespace=open_namespace,
        )
        return self.network

    def sandbox_path(self, sandbox_id: str) -> Path:
        return self.run_dir / "netns" / sandbox_id


@contextlib.contextmanager
def hosts(directory: Path, count: int) -> Iterator[list[Host]]:
    """``count`` hosts at 10.99.0.1.. on one switch, in namespaces of their own; everything is gone afterwards."""
    tag = secrets.token_hex(4)
    switch = directory / "switch.netns"
    made = [Host(name=f"n{i + 1}", directory=directory, address=f"10.99.0.{i + 1}", tag=tag) for i in range(count)]
    try:
        for path in (switch, *(host.netns for host in made)):
            new_netns(path)
        in_netns(switch, lambda: _wire_up(made))
        yield made
    finally:
        for host in made:
            if host.run_dir.is_dir():
                for path in (host.run_dir / "netns").glob("*"):
                    close_namespace(path)
                kill_dns(host)
                kill_dns(host, "tunnel.pid")
            close_namespace(host.netns)
        close_namespace(switch)


def kill_dns(host: Host, name: str = "dns.pid") -> None:
    record = host.run_dir / name
    if record.exists():
        pid = int(record.read_text().split()[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _wire_up(made: list[Host]) -> None:
    with Netlink() as netlink:
        netlink.send(rtnetlink.add_bridge("switch", mac="02:00:00:00:00:01", mtu=1500, group=0))
        link = netlink.link("switch")
        assert link is not None
        # an address "outside" every host, to reach published ports from and to be reached by containers
        netlink.send(routing.add_address(link.index, "10.99.0.254", 24))
        for number, host in enumerate(made):
            descriptor = os.open(host.netns, os.O_RDONLY)
            try:
                netlink.send(
                    rtnetlink.add_veth(
                        f"port{number}",
                        mtu=1500,
                        group=0,
                        master=link.index,
                        peer="eth0",
                        peer_mac=f"02:00:00:00:01:{number:02x}",
                        peer_netns=descriptor,
                    )
                )
            finally:
                os.close(descriptor)
            in_netns(host.netns, lambda host=host: _configure(host))


def _configure(host: Host) -> None:
    with Netlink() as netlink:
        link = netlink.link("eth0")
        assert link is not None
        netlink.send(
            routing.add_address(link.index, host.address, 24),
            rtnetlink.link_up(link.index),
            routing.add_default_route(link.index, "10.99.0.254"),
        )


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def socket_in(
    path: Path | str, kind: int = socket.SOCK_STREAM, protocol: int = 0, *, family: int = socket.AF_INET
) -> socket.socket:
    """A socket that belongs to the namespace at ``path``; usable from any thread."""
    sock = in_netns(path, lambda: socket.socket(family, kind, protocol))
    sock.settimeout(3.0)
    return sock


class Greeter:
    """A TCP server (and UDP, on the same port) inside a namespace that says its name and who asked."""

    def __init__(self, path: Path | str, name: str, port: int = 80, address: str = "0.0.0.0") -> None:
        self.name = name
        self._tcp = socket_in(path, family=family_of(address))
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, port))
        self._tcp.listen(128)
        self._udp = socket_in(path, socket.SOCK_DGRAM, family=family_of(address))
        self._udp.bind((address, port))
        self._threads = [threading.Thread(target=self._serve_tcp), threading.Thread(target=self._serve_udp)]
        for thread in self._threads:
            thread.start()

    def _serve_tcp(self) -> None:
        while True:
            try:
                self._tcp.settimeout(None)
                connection, peer = self._tcp.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(f"{self.name} {peer[0]}".encode())

    def _serve_udp(self) -> None:
        self._udp.settimeout(None)
        while True:
            try:
                data, peer = self._udp.recvfrom(2048)
            except OSError:
                return
            if not data:
                return
            with contextlib.suppress(OSError):
                self._udp.sendto(f"{self.name} {peer[0]}".encode(), peer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        self._udp.close()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Greeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask_tcp(path: Path | str, address: str, port: int = 80) -> str:
    """Connect from inside ``path`` and return the greeting: "name client-address"."""
    with socket_in(path, family=family_of(address)) as sock:
        sock.connect((address, port))
        return sock.recv(200).decode()


def ask_udp(path: Path | str, address: str, port: int = 80) -> str:
    """The same over UDP."""
    with socket_in(path, socket.SOCK_DGRAM, family=family_of(address)) as sock:
        sock.connect((address, port))
        sock.send(b"?")
        return sock.recv(200).decode()


def _echoed(sock: socket.socket, identity: int, *, header: int, kind: int, timeout_s: float) -> bool:
    """Whether an echo reply of this type and identity comes, after so many bytes of IP header."""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data, _ = sock.recvfrom(2048)
        except OSError:
            return False
        if data[header] == kind and struct.unpack_from("!H", data, header + 4)[0] == identity:
            return True
    return False


def ping(path: Path | str, address: str, *, timeout_s: float = 2.0) -> bool:
    """Send one ICMP echo request from inside ``path``; whether it was answered."""
    with socket_in(path, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        identity = secrets.randbelow(65536)
        body = struct.pack("!BBHHH", 8, 0, 0, identity, 1)
        total = sum(struct.unpack("!4H", body))
        total = (total & 0xFFFF) + (total >> 16)
        body = struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, identity, 1)
        try:
            sock.sendto(body, (address, 0))
        except OSError:
            return False
        return _echoed(sock, identity, header=20, kind=0, timeout_s=timeout_s)


def ping6(path: Path | str, address: str, *, timeout_s: float = 2.0) -> bool:
    """The same over IPv6, where the kernel adds the checksum (RFC 3542 section 3.1)."""
    with socket_in(path, socket.SOCK_RAW, socket.IPPROTO_ICMPV6, family=socket.AF_INET6) as sock:
        identity = secrets.randbelow(65536)
        try:
            sock.sendto(struct.pack("!BBHHH", 128, 0, 0, identity, 1), (address, 0))
        except OSError:
            return False
        return _echoed(sock, identity, header=0, kind=129, timeout_s=timeout_s)


class DnsReply:
    """A parsed answer: response code, addresses (or names, for PTR), flags."""

    def __init__(self, data: bytes) -> None:
        _, flags, _, answers, _, _ = struct.unpack_from("!HHHHHH", data)
        self.code = flags & 0xF
        self.truncated = bool(flags & 0x0200)
        self.addresses: list[str] = []
        self.names: list[str] = []
        self.ttl_s = -1
        offset = 12 + len(wire.question_of(data))
        for _ in range(answers):
            _, kind, _, self.ttl_s, length = struct.unpack_from("!HHHIH", data, offset)
            body = data[offset + 12 : offset + 12 + length]
            offset += 12 + length
            if kind == wire.A:
                self.addresses.append(socket.inet_ntoa(body))
            elif kind == wire.AAAA:
                self.addresses.append(socket.inet_ntop(socket.AF_INET6, body))
            elif kind == wire.PTR:
                self.names.append(wire._parse_question_name(body, 0)[0])


def resolve(path: Path | str, name: str, kind: int = wire.A, *, tcp: bool = False, timeout_s: float = 5.0) -> DnsReply:
    """Ask 127.0.0.11:53 from inside ``path``."""
    query = wire.build_query(name, kind, identity=secrets.randbelow(65536))
    with socket_in(path, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(("127.0.0.11", 53))
        if not tcp:
            sock.send(query)
            return DnsReply(sock.recv(65535))
        sock.sendall(struct.pack("!H", len(query)) + query)
        data = b""
        while len(data) < 2 or len(data) < 2 + struct.unpack_from("!H", data)[0]:
            part = sock.recv(65535)
            if not part:
                raise ConnectionResetError("closed")
            data += part
        return DnsReply(data[2:])


def run(coroutine: Any, made: list[Host]) -> Any:
    """Run a test's coroutine with a bound on its time; networks it left open (it failed) are closed."""

    async def bounded() -> Any:
        try:
            async with asyncio.timeout(60):
                return await coroutine
        finally:
            for host in made:
                await host.network.close()

    return asyncio.run(bounded())
