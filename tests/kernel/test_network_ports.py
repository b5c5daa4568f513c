"""Published ports: the routing mesh on every host, ports of one host, and who may reach what through them."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from network_hosts import Greeter, Host, ask_tcp, ask_udp, hosts, in_netns, resolve, run, socket_in
from network_states import INGRESS_VIP, LOCAL, ingress, ingress_state, start

from fleet.errors import ConflictError, UserError
from fleet.network.topology import (
    AttachmentSpec,
    HostPort,
    NetworkSpec,
    NetworkState,
    PublishedPort,
    SandboxSpec,
    ServiceRecord,
)

pytestmark = pytest.mark.kernel

WEB = (
    PublishedPort(protocol="tcp", published_port=8080, target_port=80, service_id="svc-web"),
    PublishedPort(protocol="udp", published_port=8080, target_port=80, service_id="svc-web"),
)


async def bring_up(made: list[Host], tasks: dict[int, Host]) -> dict[int, Path]:
    for host in made:
        await host.network.open()
        await host.network.apply_state(ingress_state(host, made, tasks))
        await host.network.apply_published(WEB)
    for number, host in tasks.items():
        await start(host, number, ingress(host, made))
    return {number: host.sandbox_path(f"task{number}") for number, host in tasks.items()}


def test_published_port_answers_on_every_host_even_without_a_task_there(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two, three = made
        outside = tmp_path / "switch.netns"
        paths = await bring_up(made, {1: one, 2: two})

        def check() -> None:
            with ExitStack() as stack:
                for number, path in paths.items():
                    stack.enter_context(Greeter(path, f"task{number}"))
                for host in made:
                    answers = Counter(ask_tcp(outside, host.address, 8080).split()[0] for _ in range(20))
                    assert answers == {"task1": 10, "task2": 10}, host.name
                    assert Counter(ask_udp(outside, host.address, 8080).split()[0] for _ in range(4)) == {
                        "task1": 2,
                        "task2": 2,
                    }
                    # from the host itself: by its address and by loopback
                    assert ask_tcp(host.netns, host.address, 8080).startswith("task")
                    for _ in range(2):
                        assert ask_tcp(host.netns, "127.0.0.1", 8080).startswith("task")
                    assert ask_udp(host.netns, "127.0.0.1", 8080).startswith("task")
                # from a container, through its host and through another one
                assert ask_tcp(paths[1], one.address, 8080).startswith("task")
                assert ask_tcp(paths[1], three.address, 8080).startswith("task")

        await asyncio.to_thread(check)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 3) as made:
        run(scenario(made), made)


def test_published_port_leads_to_ready_tasks_only_and_closes_with_its_service(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        outside = tmp_path / "switch.netns"
        tasks = {1: one, 2: two}
        paths = await bring_up(made, tasks)
        with Greeter(paths[1], "task1"), Greeter(paths[2], "task2"):
            for host in made:
                await host.network.apply_state(ingress_state(host, made, tasks, unready=(2,)))
                answers = await asyncio.to_thread(
                    lambda h=host: {ask_tcp(outside, h.address, 8080).split()[0] for _ in range(6)}
                )
                assert answers == {"task1"}
            await one.network.apply_state(ingress_state(one, made, tasks, unready=(1, 2)))
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(ask_tcp, outside, one.address, 8080)
            await two.network.apply_published(())
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(ask_tcp, outside, two.address, 8080)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_one_port_for_two_services_is_refused(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        await made[0].network.open()
        other = PublishedPort(protocol="tcp", published_port=8080, target_port=81, service_id="svc-other")
        with pytest.raises(UserError, match="8080/tcp"):
            await made[0].network.apply_published((*WEB, other))
        await made[0].network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_host_port_leads_to_its_container_and_keeps_the_clients_address(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one = made[0]
        outside = tmp_path / "switch.netns"
        await one.network.open()
        await one.network.ensure_network(LOCAL)
        ports = (
            HostPort(protocol="tcp", host_port=9000, target_port=80),
            HostPort(protocol="udp", host_port=9000, target_port=80),
            HostPort(protocol="tcp", host_port=9001, target_port=80, host_address="127.0.0.1"),
        )
        wish = (AttachmentSpec(network_id="bridge"),)
        await one.network.create_sandbox(SandboxSpec(id="box", attachments=wish, host_ports=ports))
        await one.network.create_sandbox(SandboxSpec(id="other", attachments=wish))
        with pytest.raises(ConflictError, match="9000/tcp"):
            await one.network.create_sandbox(SandboxSpec(id="third", attachments=wish, host_ports=ports[:1]))
        box, other = one.sandbox_path("box"), one.sandbox_path("other")

        def check() -> None:
            with Greeter(box, "box"):
                assert ask_tcp(outside, one.address, 9000) == "box 10.99.0.254"
                assert ask_udp(outside, one.address, 9000) == "box 10.99.0.254"
                assert ask_tcp(one.netns, "127.0.0.1", 9000).startswith("box")
                assert ask_tcp(one.netns, one.address, 9000).startswith("box")
                assert ask_tcp(one.netns, "127.0.0.1", 9001).startswith("box")
                with pytest.raises(ConnectionRefusedError):
                    ask_tcp(outside, one.address, 9001)
                # from a neighbour on the same network, and from the container to itself, through the host
                assert ask_tcp(other, one.address, 9000).startswith("box")
                assert ask_tcp(box, one.address, 9000).startswith("box")

        await asyncio.to_thread(check)
        await one.network.remove_sandbox("box")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(ask_tcp, outside, one.address, 9000)
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_outside_reaches_no_container_directly_and_containers_no_loopback_service_of_the_host(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one = made[0]
        outside = tmp_path / "switch.netns"
        await one.network.open()
        await one.network.ensure_network(LOCAL)
        ports = (HostPort(protocol="tcp", host_port=9000, target_port=80),)
        sandbox = await one.network.create_sandbox(
            SandboxSpec(id="box", attachments=(AttachmentSpec(network_id="bridge"),), host_ports=ports)
        )
        box, address = one.sandbox_path("box"), sandbox.interfaces[0].address

        def check() -> None:
            subprocess.run(
                ["nsenter", f"--net={outside}", "ip", "route", "add", "172.30.0.0/24", "via", one.address],
                check=True,
                capture_output=True,
            )
            with Greeter(box, "box"), Greeter(one.netns, "host", 7000, "127.0.0.1"):
                with pytest.raises(OSError), socket_in(outside) as sock:
                    sock.settimeout(0.5)
                    sock.connect((address, 80))
                # a container that routes 127.0.0.0/8 to the host must find nobody there (CVE-2020-8558)
                in_netns(box, lambda: Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1"))
                subprocess.run(
                    [
                        "nsenter",
                        f"--net={box}",
                        "ip",
                        "route",
                        "add",
                        "127.0.0.2/32",
                        "via",
                        "172.30.0.1",
                        "dev",
                        "eth0",
                    ],
                    check=True,
                    capture_output=True,
                )
                subprocess.run(
                    ["nsenter", f"--net={box}", "ip", "rule", "add", "pref", "0", "to", "127.0.0.2", "lookup", "main"],
                    check=True,
                    capture_output=True,
                )
                with Greeter(one.netns, "loopback", 7001, "127.0.0.2"), socket_in(box) as sock:
                    sock.settimeout(0.5)
                    with pytest.raises(OSError):
                        sock.connect(("127.0.0.2", 7001))

        await asyncio.to_thread(check)
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_other_ports_of_the_host_are_left_alone(tmp_path: Path) -> None:
    """Port 8080 is published; a process of the host on port 8081 is reached as before."""

    async def scenario(made: list[Host]) -> None:
        one = made[0]
        await bring_up(made, {1: one})
        with Greeter(one.netns, "process", 8081):
            assert (
                await asyncio.to_thread(ask_tcp, tmp_path / "switch.netns", one.address, 8081)
            ) == "process 10.99.0.254"
        await one.network.destroy()
        with socket_in(one.netns, socket.SOCK_STREAM) as sock, pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(sock.connect, (one.address, 8080))

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def udp_client(path: Path, address: str, port: int) -> socket.socket:
    """A client that keeps its port, as resolvers and metrics senders do."""
    sock = socket_in(path, socket.SOCK_DGRAM)
    sock.settimeout(1.0)
    sock.connect((address, port))
    return sock


def knock(sock: socket.socket) -> str:
    try:
        sock.send(b"?")
        return sock.recv(200).decode().split()[0]
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "nothing"  # UDP: the answer to a flow that was swept meanwhile finds no way back, the next one does


def until(sock: socket.socket, answer: str) -> None:
    """Knock until the answer begins with ``answer``: old flows are swept in the background."""
    deadline = time.monotonic() + 10
    while not (said := knock(sock)).startswith(answer):
        assert time.monotonic() < deadline, f"still {said}, not {answer}"
        time.sleep(0.02)


def test_udp_client_that_keeps_its_port_follows_the_ready_tasks(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        tasks = {1: one, 2: one}
        paths = await bring_up(made, tasks)
        outside = tmp_path / "switch.netns"
        with (
            Greeter(paths[1], "task1"),
            Greeter(paths[2], "task2"),
            udp_client(outside, one.address, 8080) as outer,
            udp_client(paths[1], INGRESS_VIP, 80) as inner,
        ):
            for alone in (1, 2, 1):
                other = 3 - alone
                await one.network.apply_state(ingress_state(one, made, tasks, unready=(other,)))
                for client in (outer, inner):
                    await asyncio.to_thread(until, client, f"task{alone}")
            await one.network.apply_state(ingress_state(one, made, tasks, unready=(1, 2)))
            await asyncio.to_thread(until, outer, "refused")
            await one.network.apply_state(ingress_state(one, made, tasks))
            # the refusals above are tracked as flows to the host itself; they must not stick
            await asyncio.to_thread(until, outer, "task")
        await one.network.destroy()

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_tcp_connection_to_a_task_that_is_gone_is_reset_instead_of_hanging(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        one, two = made
        tasks = {1: one, 2: two}
        paths = await bring_up(made, tasks)
        with socket_in(paths[2]) as listener, socket_in(paths[1]) as client, Greeter(paths[1], "task1"):
            listener.bind(("0.0.0.0", 80))
            listener.listen()
            await one.network.apply_state(ingress_state(one, made, tasks, unready=(1,)))
            client.connect((INGRESS_VIP, 80))
            served, _ = listener.accept()
            with served:
                # unready: no new connections, this one goes on
                await one.network.apply_state(ingress_state(one, made, tasks, unready=(2,)))
                client.send(b"still there?")
                assert await asyncio.to_thread(served.recv, 100) == b"still there?"
                # gone: reset at the next packet
                await one.network.apply_state(ingress_state(one, made, {1: one}))
                with pytest.raises((ConnectionResetError, BrokenPipeError)):
                    for _ in range(100):
                        client.send(b"and now?")
                        await asyncio.sleep(0.05)
        for host in made:
            await host.network.destroy()

    with hosts(tmp_path, 2) as made:
        run(scenario(made), made)


def test_host_port_that_a_program_uses_is_refused(tmp_path: Path) -> None:
    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        await one.network.ensure_network(LOCAL)
        wish = (AttachmentSpec(network_id="bridge"),)
        with Greeter(one.netns, "program", 9000):
            for protocol in ("tcp", "udp"):
                port = HostPort(protocol=protocol, host_port=9000, target_port=80)  # type: ignore[arg-type]
                with pytest.raises(ConflictError, match=f"host port 9000/{protocol}: port is already allocated"):
                    await one.network.create_sandbox(SandboxSpec(id="box", attachments=wish, host_ports=(port,)))
        elsewhere = HostPort(protocol="tcp", host_port=9000, target_port=80, host_address="192.0.2.1")
        with pytest.raises(UserError, match=r"192\.0\.2\.1 is not an address of this host"):
            await one.network.create_sandbox(SandboxSpec(id="box", attachments=wish, host_ports=(elsewhere,)))
        port = HostPort(protocol="tcp", host_port=9000, target_port=80)
        await one.network.create_sandbox(SandboxSpec(id="box", attachments=wish, host_ports=(port,)))

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def test_container_on_ingress_and_its_own_network_sees_the_names_of_its_own(tmp_path: Path) -> None:
    own = NetworkSpec(id="own", name="own", driver="overlay", subnet="10.0.7.0/24", gateway="10.0.7.1", vni=4200)

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        await one.network.apply_state(ingress_state(one, made, {1: one}))
        service = ServiceRecord(id="svc-web", name="web", vip="10.0.7.50")
        await one.network.apply_state(NetworkState(network=own, services=(service,)))
        both = (
            AttachmentSpec(network_id="ingress", address="10.255.0.11"),
            AttachmentSpec(network_id="own", address="10.0.7.9"),
        )
        sandbox = await one.network.create_sandbox(SandboxSpec(id="task1", attachments=both))
        assert [interface.gateway for interface in sandbox.interfaces] == ["", "10.0.7.1"]
        path = one.sandbox_path("task1")
        assert (await asyncio.to_thread(resolve, path, "web")).addresses == ["10.0.7.50"]
        for name in ("web.ingress", "web.1", "tasks.web.ingress"):
            assert (await asyncio.to_thread(resolve, path, name)).addresses == [], "the ingress network has no names"

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)


def sctp_init(source_port: int, port: int) -> bytes:
    """An INIT, the first packet of an SCTP association (RFC 9260 sections 3.1 and 3.3.2), with its CRC32c."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 1)
    header = struct.pack("!HHI", source_port, port, 0)
    crc = 0xFFFFFFFF
    for byte in header + bytes(4) + chunk:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return header + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk


def test_sctp_is_published_like_the_others(tmp_path: Path) -> None:
    """By hand-made packets, because few kernels have SCTP sockets."""

    async def scenario(made: list[Host]) -> None:
        (one,) = made
        await one.network.open()
        await one.network.apply_state(ingress_state(one, made, {1: one}))
        port = PublishedPort(protocol="sctp", published_port=8080, target_port=80, service_id="svc-web")
        await one.network.apply_published([port])
        wish = AttachmentSpec(network_id="ingress", address="10.255.0.11")
        await one.network.create_sandbox(SandboxSpec(id="task1", attachments=(wish,)))

        def try_it() -> bytes:
            with (
                socket_in(one.sandbox_path("task1"), socket.SOCK_RAW, socket.IPPROTO_SCTP) as ear,
                socket_in(tmp_path / "switch.netns", socket.SOCK_RAW, socket.IPPROTO_SCTP) as client,
            ):
                client.sendto(sctp_init(7777, 8080), (one.address, 0))
                return ear.recv(200)[20:]

        arrived = await asyncio.to_thread(try_it)
        assert struct.unpack_from("!HH", arrived) == (7777, 80)
        assert arrived[12:] == sctp_init(7777, 8080)[12:]

    with hosts(tmp_path, 1) as made:
        run(scenario(made), made)
