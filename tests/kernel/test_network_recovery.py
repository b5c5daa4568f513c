"""Whatever dies or drifts: names, addresses and ports keep working or come back, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from network_hosts import Greeter, Host, ask_tcp, hosts, in_netns, new_netns, ping, resolve, run, socket_in

from fleet.errors import ConflictError, NotFoundError, RuntimeFault, UnsupportedError, UserError
from fleet.network.dns import wire
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.namespaces import close_namespace
from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    HostPort,
    NetworkSpec,
    NetworkState,
    SandboxSpec,
    ServiceRecord,
)

pytestmark = pytest.mark.kernel

NET = NetworkSpec(id="net", name="net", driver="overlay", subnet="10.0.1.0/24", gateway="10.0.1.1", vni=4097)
VIP = "10.0.1.2"


def state_of(made: list[Host]) -> NetworkState:
    """One task on each host: task1 on the first at 10.0.1.11, and so on."""
    return NetworkState(
        network=NET,
        endpoints=tuple(
            Endpoint(
                id=f"task{number}",
                service_id="svc",
                names=(f"web.{number}",),
                address=f"10.0.1.{10 + number}",
                node_id=host.name,
                underlay=host.address,
            )
            for number, host in enumerate(made, 1)
        ),
        services=(ServiceRecord(id="svc", name="web", vip=VIP),),
    )


def task(number: int) -> SandboxSpec:
    return SandboxSpec(
        id=f"task{number}",
        attachments=(AttachmentSpec(network_id="net", address=f"10.0.1.{10 + number}"),),
        host_ports=(HostPort(protocol="tcp", host_port=9000 + number, target_port=80),),
    )


async def bring_up(made: list[Host]) -> list[Path]:
    for number, host in enumerate(made, 1):
        await host.network.open()
        await host.network.apply_state(state_of(made))
        await host.network.create_sandbox(task(number))
    return [host.sandbox_path(f"task{number}") for number, host in enumerate(made, 1)]


def nft(host: Path, text: str) -> str:
    def call() -> str:
        closer = NftCloser()
        try:
            with NftContext(closer) as context:
                return context.run(text)
        finally:
            closer.stop()

    return in_netns(host, call)


def test_killed_dns_process_is_replaced_and_no_question_is_lost(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        (path,) = await bring_up(made)
        for _ in range(3):
            before = one.network.dns_pid()
            os.kill(before, signal.SIGKILL)
            # asked while nobody is there: the question waits in the socket, which the daemon holds too
            assert (await asyncio.to_thread(resolve, path, "web")).addresses == [VIP]
            assert one.network.dns_pid() not in (0, before)
        assert (await asyncio.to_thread(resolve, path, "tasks.web", tcp=True)).addresses == ["10.0.1.11"]

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_stopped_dns_process_is_replaced(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        (path,) = await bring_up(made)
        stuck = one.network.dns_pid()
        os.kill(stuck, signal.SIGSTOP)
        done = await one.network.reconcile(keep_sandboxes=["task1"], keep_networks=["net"])
        assert done == ["DNS process: did not answer, replaced"]
        assert (await asyncio.to_thread(resolve, path, "web")).addresses == [VIP]
        assert not Path(f"/proc/{stuck}").exists()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


CRASHING_DAEMON = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from network_hosts import Host
import test_network_recovery as recovery

async def main():
    host = Host(name="n1", directory=Path(sys.argv[2]), address="10.99.0.1", tag=sys.argv[3])
    await recovery.bring_up([host])
    if sys.argv[4] == "half":
        await host.network._thread.run(lambda: host.network._plane._store.put_sandbox.__self__.drop_sandbox("task1"))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def crash(directory: Path, host: Host, how: str) -> None:
    """Run a daemon in a process of its own that sets everything up and is then killed."""
    here = str(Path(__file__).parent)
    tag = host.owner.removesuffix("-n1")
    done = subprocess.run(
        [sys.executable, "-c", CRASHING_DAEMON, here, str(directory), tag, how], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_killed_daemon_leaves_everything_working_and_its_successor_adopts_it(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        path = one.sandbox_path("task1")
        await asyncio.to_thread(crash, tmp_path, one, "whole")
        dns = int((one.run_dir / "dns.pid").read_text().split()[0])
        with Greeter(path, "task1"):
            # nobody is there, all works
            assert (await asyncio.to_thread(resolve, path, "web")).addresses == [VIP]
            assert (await asyncio.to_thread(ask_tcp, path, VIP)).startswith("task1")
            assert (await asyncio.to_thread(ask_tcp, tmp_path / "switch.netns", one.address, 9001)).startswith("task1")
            assert await one.network.open() == []
            assert one.network.dns_pid() == dns  # the same process goes on
            assert await one.network.sandboxes() == ["task1"]
            assert await one.network.reconcile(keep_sandboxes=["task1"], keep_networks=["net"]) == []
            # the adopted sockets are held here too: the process may die now
            os.kill(dns, signal.SIGKILL)
            assert (await asyncio.to_thread(resolve, path, "web")).addresses == [VIP]
            assert (await asyncio.to_thread(ask_tcp, path, VIP)).startswith("task1")
            # and creating it again finds it
            assert (await one.network.create_sandbox(task(1))).interfaces[0].address == "10.0.1.11"
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_daemon_and_dns_process_dying_together_are_recovered(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        path = one.sandbox_path("task1")
        await asyncio.to_thread(crash, tmp_path, one, "whole")
        dns = int((one.run_dir / "dns.pid").read_text().split()[0])
        os.kill(dns, signal.SIGKILL)
        await one.network.open()
        assert one.network.dns_pid() != dns
        assert (await asyncio.to_thread(resolve, path, "web")).addresses == [VIP]  # nobody had to tell the names again
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_sandbox_that_was_never_finished_is_removed(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await asyncio.to_thread(crash, tmp_path, one, "half")
        assert await one.network.open() == ["sandbox task1: was never finished, removed"]
        assert await one.network.sandboxes() == []
        assert not one.sandbox_path("task1").exists()
        await one.network.create_sandbox(task(1))
        assert (await asyncio.to_thread(resolve, one.sandbox_path("task1"), "web")).addresses == [VIP]
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_joining_and_leaving_that_was_cut_short_can_be_done_again(tmp_path: Path) -> None:
    second = NetworkSpec(id="second", name="second", driver="bridge", subnet="10.0.9.0/24", gateway="10.0.9.1")
    join = AttachmentSpec(network_id="second")

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made)
        await one.network.ensure_network(second)
        (record,) = one.run_dir.glob("sandboxes/task1.json")
        without = record.read_bytes()
        await one.network.connect("task1", join)
        on_both = record.read_bytes()

        async def reopen_with(text: bytes) -> list[str]:
            """The daemon died before it wrote the record."""
            await one.network.close()
            record.write_bytes(text)
            one.new_network()
            return await one.network.open()

        (said,) = await reopen_with(without)
        assert "veth:task1:second): belongs to nothing, removed" in said
        card = await one.network.connect("task1", join)
        assert await asyncio.to_thread(ping, one.sandbox_path("task1"), "10.0.9.1")
        assert card.name == "eth1"
        await one.network.disconnect("task1", "second")
        assert await reopen_with(on_both) == []
        await one.network.disconnect("task1", "second")
        assert [i.network_id for i in (await one.network.sandbox("task1")).interfaces] == ["net"]
        await one.network.connect("task1", join)
        assert await asyncio.to_thread(ping, one.sandbox_path("task1"), "10.0.9.1")
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_drift_is_mended_and_named(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        paths = await bring_up(made)
        keep = {"keep_sandboxes": ["task1"], "keep_networks": ["net"]}
        assert await one.network.reconcile(**keep) == []

        def break_forwarding() -> None:
            with Netlink() as netlink:
                for link in netlink.links():
                    if link.kind == "vxlan":
                        for bridge in (True, False):
                            netlink.send(rtnetlink.delete_fdb(link.index, "02:42:0a:00:01:0c", bridge=bridge))
                        netlink.send(rtnetlink.delete_neighbour(link.index, "10.0.1.12"))

        in_netns(one.netns, break_forwarding)
        assert await one.network.reconcile(**keep) == ["network net: mended 2 forwarding and ARP entries"]
        assert await asyncio.to_thread(ping, paths[0], "10.0.1.12")

        nft(one.netns, "flush ruleset\n")
        assert await one.network.reconcile(**keep) == ["host rules: differed from what was ordered, replaced"]
        nft(paths[0], "flush chain ip fleet vip_10_0_1_2\n")
        assert await one.network.reconcile(**keep) == ["sandbox task1: rules differed from what was ordered, replaced"]
        with Greeter(paths[0], "task1"), Greeter(paths[1], "task2"):
            answers = await asyncio.to_thread(lambda: {ask_tcp(paths[0], VIP).split()[0] for _ in range(4)})
            assert answers == {"task1", "task2"}
            assert (await asyncio.to_thread(ask_tcp, tmp_path / "switch.netns", one.address, 9001)).startswith("task1")

        def delete_devices() -> None:
            with Netlink() as netlink:
                netlink.send_all(
                    [rtnetlink.delete_link(link.name) for link in netlink.links() if link.kind in ("bridge", "vxlan")]
                )

        in_netns(one.netns, delete_devices)
        done = await one.network.reconcile(**keep)
        assert [sentence for sentence in done if "made bridge" in sentence or "made VXLAN" in sentence]
        assert await asyncio.to_thread(ping, paths[0], "10.0.1.12")
        assert await asyncio.to_thread(ping, paths[0], "10.99.0.254")
        assert await one.network.reconcile(**keep) == []

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_reconcile_removes_what_nothing_uses_and_leaves_foreign_things_alone(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made)

        def foreign() -> None:
            with Netlink() as netlink:
                netlink.send(rtnetlink.add_bridge("fb-foreign", mac="02:00:00:00:00:09", mtu=1500, group=7))

        in_netns(one.netns, foreign)
        nft(one.netns, "add table ip fleet_other\nadd chain ip fleet_other c\n")
        done = await one.network.reconcile(keep_sandboxes=[], keep_networks=[])
        assert done[:2] == ["sandbox task1: nothing uses it, removed", "network net: nothing uses it, removed"]
        await one.network.destroy()
        assert "fleet_other" in nft(one.netns, "list tables\n")

        def names() -> list[str]:
            with Netlink() as netlink:
                return [link.name for link in netlink.links()]

        assert sorted(in_netns(one.netns, names)) == ["eth0", "fb-foreign", "lo"]

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_failed_sandbox_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made)
        with pytest.raises(NotFoundError, match="network elsewhere"):
            await one.network.create_sandbox(SandboxSpec(id="t", attachments=(AttachmentSpec(network_id="elsewhere"),)))
        with pytest.raises(UserError, match="needs the address"):
            await one.network.create_sandbox(SandboxSpec(id="t", attachments=(AttachmentSpec(network_id="net"),)))
        with pytest.raises(ConflictError, match="still used by 1"):
            await one.network.remove_network("net")
        # the kernel refuses in the middle: the bridge vanished behind our back

        def delete_bridge() -> None:
            with Netlink() as netlink:
                netlink.send_all(
                    [rtnetlink.delete_link(link.name) for link in netlink.links() if link.kind == "bridge"]
                )

        in_netns(one.netns, delete_bridge)
        with pytest.raises(RuntimeFault, match="create cable"):
            await one.network.create_sandbox(
                SandboxSpec(id="t", attachments=(AttachmentSpec(network_id="net", address="10.0.1.77"),))
            )
        assert await one.network.sandboxes() == ["task1"]
        assert not one.sandbox_path("t").exists()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_namespaces_of_other_users_come_from_whoever_can_make_them(tmp_path: Path) -> None:
    """And are the host's under a supervisor from before an upgrade, which cannot."""
    asked: list[tuple[int, int]] = []

    async def make(first: int, count: int) -> int:
        asked.append((first, count))
        if len(asked) > 2:
            raise UnsupportedError("older")
        path = tmp_path / f"made{len(asked)}"
        new_netns(path)
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        close_namespace(path)
        return netns

    async def scenario(made: list[Host]) -> None:
        network = made[0].new_network(open_namespace=make)
        await network.open()
        try:
            for name in ("first", "second", "third"):
                sandbox = await network.create_sandbox(SandboxSpec(id=name, ids=(300_000, 65536)))
                assert sandbox.interfaces == ()
                os.close(network.open_netns(name))
            assert set(asked) == {(300_000, 65536)}
        finally:
            await network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_namespace_ends_with_its_sandbox(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made)

        def cables() -> int:
            with Netlink() as netlink:
                return sum(link.kind == "veth" and link.name != "eth0" for link in netlink.links())

        assert in_netns(one.netns, cables) == 1
        await one.network.remove_sandbox("task1")
        deadline = time.monotonic() + 5
        while in_netns(one.netns, cables) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert in_netns(one.netns, cables) == 0  # nobody holds the namespace: not the DNS process, not the daemon

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


class Upstream:
    """A name server that answers every question with one address; ``silent`` ignores UDP, TCP gets two addresses."""

    def __init__(self, path: Path, address: str, *, answer: str = "192.0.2.1", truncate: bool = False) -> None:
        self._answer = answer
        self._truncate = truncate
        self._udp = socket_in(path, socket.SOCK_DGRAM)
        self._udp.bind((address, 53))
        self._tcp = socket_in(path)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, 53))
        self._tcp.listen()
        self.asked: list[str] = []
        self._threads = [threading.Thread(target=self._serve_udp), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _reply(self, data: bytes, *, tcp: bool) -> bytes:
        query = wire.parse_query(data)
        self.asked.append(query.name)
        if query.name == "missing.example":
            return wire.build_response(query, code=wire.NXDOMAIN, answers=[], authoritative=False, size_max=65535)
        count = 100 if self._truncate else 1
        records = [(wire.A, 60, wire.encode_a(self._answer))] * count
        return wire.build_response(query, code=0, answers=records, authoritative=False, size_max=65535 if tcp else 512)

    def _serve_udp(self) -> None:
        self._udp.settimeout(None)
        while True:
            data, peer = self._udp.recvfrom(4096)
            if data == b"stop":
                return
            self._udp.sendto(self._reply(data, tcp=False), peer)

    def _serve_tcp(self) -> None:
        self._tcp.settimeout(None)
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                data = connection.recv(4096)
                answer = self._reply(data[2:], tcp=True)
                connection.sendall(struct.pack("!H", len(answer)) + answer)

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._udp.sendto(b"stop", self._udp.getsockname())
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()


def test_other_names_are_asked_of_the_hosts_servers(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        one.resolv_conf.write_text("nameserver 127.0.0.99\nnameserver 10.99.0.254\nsearch corp.example\n")
        (path,) = await bring_up(made)
        sandbox = await one.network.sandbox("task1")
        assert sandbox.resolv_conf == "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0\n"
        with Upstream(tmp_path / "switch.netns", "10.99.0.254", truncate=False) as upstream:
            # the first server is not there (ICMP says so at once): the second answers
            assert (await asyncio.to_thread(resolve, path, "example.org")).addresses == ["192.0.2.1"]
            assert (await asyncio.to_thread(resolve, path, "missing.example")).code == wire.NXDOMAIN
            assert (await asyncio.to_thread(resolve, path, "example.org", tcp=True)).addresses == ["192.0.2.1"]
            assert (await asyncio.to_thread(resolve, path, "web")).addresses == [VIP]
            assert "web" not in upstream.asked
        with Upstream(tmp_path / "switch.netns", "10.99.0.254", truncate=True):
            assert (await asyncio.to_thread(resolve, path, "big.example")).truncated
            assert len((await asyncio.to_thread(resolve, path, "big.example", tcp=True)).addresses) == 100

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_a_containers_own_servers_are_asked_from_inside_it_and_internal_networks_ask_nobody(tmp_path: Path) -> None:
    inside = NetworkSpec(
        id="inside", name="inside", driver="overlay", subnet="10.0.3.0/24", gateway="10.0.3.1", vni=4099, internal=True
    )

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        one.resolv_conf.write_text("nameserver 10.99.0.254\n")
        await bring_up(made)
        await one.network.ensure_network(inside)
        server = SandboxSpec(id="server", attachments=(AttachmentSpec(network_id="net", address="10.0.1.53"),))
        await one.network.create_sandbox(server)
        client = SandboxSpec(
            id="client",
            attachments=(AttachmentSpec(network_id="net", address="10.0.1.60"),),
            dns_servers=("10.0.1.53",),
        )
        await one.network.create_sandbox(client)
        await one.network.create_sandbox(
            SandboxSpec(id="closed", attachments=(AttachmentSpec(network_id="inside", address="10.0.3.9"),))
        )
        with (
            Upstream(tmp_path / "switch.netns", "10.99.0.254") as outer,
            # a container that is a name server itself may use port 53 on all its addresses
            Upstream(one.sandbox_path("server"), "0.0.0.0", answer="192.0.2.77"),
        ):
            assert (await asyncio.to_thread(resolve, one.sandbox_path("client"), "example.org")).addresses == [
                "192.0.2.77"
            ]
            assert (await asyncio.to_thread(resolve, one.sandbox_path("closed"), "example.org")).code == wire.SERVFAIL
            assert outer.asked == []

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_sandbox_without_networks_has_loopback_only(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        sandbox = await one.network.create_sandbox(SandboxSpec(id="none"))
        assert sandbox.interfaces == ()

        def names() -> list[tuple[str, bool]]:
            with Netlink() as netlink:
                return [(link.name, link.up) for link in netlink.links()]

        assert ("lo", True) in in_netns(one.sandbox_path("none"), names)
        assert not [name for name, _ in in_netns(one.sandbox_path("none"), names) if name.startswith("eth")]

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_two_daemons_in_one_namespace_do_not_mix(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made)
        other = Host(name="other", directory=tmp_path, address="10.99.0.1", tag="second")
        other.netns = one.netns
        network = other.new_network()
        try:
            await network.open()
            spec = NetworkSpec(
                id="net", name="net", driver="overlay", subnet="10.0.9.0/24", gateway="10.0.9.1", vni=5000
            )
            await network.ensure_network(spec)
            await network.create_sandbox(
                SandboxSpec(id="task1", attachments=(AttachmentSpec(network_id="net", address="10.0.9.11"),))
            )
            await network.destroy()
        finally:
            await network.close()
        assert await one.network.reconcile(keep_sandboxes=["task1"], keep_networks=["net"]) == []
        assert await asyncio.to_thread(ping, one.sandbox_path("task1"), "10.99.0.254")

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_new_netns_helper_is_isolated(tmp_path: Path) -> None:
    """The tests' own ground: a namespace made here has no link to the machine's."""
    path = tmp_path / "x.netns"
    new_netns(path)
    try:
        assert not ping(path, "10.99.0.1", timeout_s=0.2)
    finally:
        from fleet.network.namespaces import close_namespace

        close_namespace(path)


def test_daemon_that_does_not_know_its_underlay_yet_keeps_the_one_in_use(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, _ = made
        paths = await bring_up(made)
        assert await asyncio.to_thread(ping, paths[0], "10.0.1.12")
        await one.network.close()
        one.underlay = "127.0.0.1"  # a restarted daemon, before it took up its membership
        one.new_network()
        assert await one.network.open() == []
        assert await asyncio.to_thread(ping, paths[0], "10.0.1.12")
        assert await asyncio.to_thread(ping, paths[1], "10.0.1.11")
        one.underlay = one.address
        await one.network.apply_state(state_of(made))
        assert await one.network.reconcile(keep_sandboxes=["task1"], keep_networks=["net"]) == []
        assert await asyncio.to_thread(ping, paths[0], "10.0.1.12")

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_host_that_gets_another_address_takes_its_networks_along(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        one.underlay = "127.0.0.1"  # in no cluster yet
        paths = await bring_up(made)
        assert not await asyncio.to_thread(ping, paths[0], "10.0.1.12", timeout_s=0.3)
        one.underlay = one.address
        await one.network.apply_state(state_of(made))
        assert await asyncio.to_thread(ping, paths[0], "10.0.1.12")
        assert await asyncio.to_thread(ping, paths[1], "10.0.1.11")
        assert two.underlay == two.address

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_firewall_of_others_that_drops_forwarded_packets_is_named(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        nft(
            one.netns,
            "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n"
            "add table ip kind\nadd chain ip kind FORWARD { type filter hook forward priority 0; policy accept; }\n",
        )
        said = await one.network.open()
        assert len(said) == 1
        assert "chain FORWARD of table filter is not ours and drops" in said[0]

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_network_that_cannot_be_made_is_said_and_does_not_stop_the_others(tmp_path: Path) -> None:
    other = NetworkSpec(id="other", name="other", driver="overlay", subnet="10.0.5.0/24", gateway="10.0.5.1", vni=5001)

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await bring_up(made)
        await one.network.ensure_network(other)
        await one.network.close()

        def steal() -> None:
            """Somebody else's VXLAN device now has the number."""
            with Netlink() as netlink:
                name = next(link.name for link in netlink.links() if link.vxlan_id == 5001)
                netlink.send(rtnetlink.delete_link(name))
                netlink.send(rtnetlink.add_bridge("theirs", mac="02:00:00:00:00:09", mtu=1500, group=0))
                bridge = netlink.link("theirs")
                assert bridge is not None
                netlink.send(
                    rtnetlink.add_vxlan(
                        "thief", vni=5001, local="10.99.0.1", port=4789, mtu=1400, group=0, master=bridge.index
                    )
                )

        in_netns(one.netns, steal)
        one.new_network()
        said = await one.network.open()
        assert len(said) == 1
        assert "network other: create VXLAN device" in said[0]
        assert (await asyncio.to_thread(resolve, one.sandbox_path("task1"), "web")).addresses == [VIP]
        with pytest.raises(RuntimeFault, match="VNI 5001"):
            await one.network.ensure_network(other)

        def give_back() -> None:
            with Netlink() as netlink:
                netlink.send(rtnetlink.delete_link("thief"), rtnetlink.delete_link("theirs"))

        in_netns(one.netns, give_back)
        await one.network.ensure_network(other)
        assert await one.network.reconcile(keep_sandboxes=["task1"], keep_networks=["net", "other"]) == []

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def vxlan_frame(vni: int, payload: bytes) -> bytes:
    """RFC 7348 section 5, with an Ethernet frame that carries an ARP-less broadcast of ours."""
    ethernet = bytes.fromhex("ffffffffffff020000000099") + struct.pack("!H", 0x88B5) + payload
    return struct.pack("!II", 0x08000000, vni << 8) + ethernet


def test_only_hosts_of_the_cluster_may_send_into_an_overlay(tmp_path: Path) -> None:
    """Frames injected by a stranger on the underlay do not arrive in a container; the same frame from a peer does."""

    async def scenario(made: list[Host]) -> None:
        one, two = made
        paths = await bring_up(made)

        def sniff() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            sock.bind(("eth0", 0x88B5))
            sock.settimeout(0.5)
            return sock

        def inject(path: Path, text: bytes) -> bytes:
            with socket_in(path, socket.SOCK_DGRAM) as sender, in_netns(paths[0], sniff) as ear:
                sender.sendto(vxlan_frame(4097, text), (one.address, 4789))
                try:
                    return ear.recv(200)
                except TimeoutError:
                    return b""

        assert b"friend" in await asyncio.to_thread(inject, two.netns, b"friend" * 10)
        assert await asyncio.to_thread(inject, tmp_path / "switch.netns", b"enemy" * 10) == b""
        # nor may a container, whatever it sends to its host or through it
        assert await asyncio.to_thread(inject, paths[1], b"inside" * 10) == b""

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_hostile_questions_do_not_take_the_names_away(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        (path,) = await bring_up(made)
        before = one.network.dns_pid()

        def attack() -> None:
            noise = random.Random(7)
            good = wire.build_query("tasks.web", wire.A, identity=1, edns_size=1232)
            with socket_in(path, socket.SOCK_DGRAM) as sock:
                sock.connect(("127.0.0.11", 53))
                for _ in range(3000):
                    data = bytearray(good)
                    for _ in range(noise.randrange(1, 6)):
                        data[noise.randrange(len(data))] = noise.randrange(256)
                    sock.send(bytes(data[: noise.randrange(1, len(data) + 1)]))
            streams = []
            for _ in range(100):  # more than one sandbox may have
                with contextlib.suppress(OSError):
                    stream = socket_in(path)
                    streams.append(stream)
                    stream.connect(("127.0.0.11", 53))
                    stream.send(b"\xff\xff" + noise.randbytes(100))
            assert patient(tcp=False) == [VIP]
            for stream in streams:
                stream.close()
            assert patient(tcp=True) == [VIP]

        def patient(*, tcp: bool) -> list[str]:
            """Ask again like any resolver: what a container sends too fast for its own socket's buffer is lost."""
            for attempt in range(5):
                try:
                    return resolve(path, "web", tcp=tcp, timeout_s=2.0).addresses
                except OSError:
                    if attempt == 4:
                        raise
            raise AssertionError("the loop returns or raises")

        await asyncio.to_thread(attack)
        assert one.network.dns_pid() == before
        assert (one.run_dir / "dns.log").read_text() == ""
        status = Path(f"/proc/{before}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)
