"""Network of a host: attaching containers, changing virtual addresses, names, throughput over the overlay.

Everything is real and local: hosts are namespaces joined by a switch. Both ends of a transfer and both hosts share the machine's
cores, so throughput is a comparison (overlay against plain cable in the same run), not a promise.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "kernel"))

from network_hosts import Host, hosts, socket_in

from fleet.network.dns import wire
from fleet.network.topology import (
    AttachmentSpec,
    ClientSource,
    Endpoint,
    NetworkSpec,
    NetworkState,
    NodeRecord,
    PublishedPort,
    SandboxSpec,
    ServiceRecord,
)

NET = NetworkSpec(id="net", name="net", driver="overlay", subnet="10.0.0.0/16", gateway="10.0.0.1", vni=4097)
SEALED = NetworkSpec(
    id="sealed", name="sealed", driver="overlay", subnet="10.1.0.0/16", gateway="10.1.0.1", vni=4098, encrypted=True
)
BRIDGE = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/16", gateway="172.30.0.1")
TRANSFER_S = 2.0


def address_of(number: int) -> str:
    return f"10.0.{1 + number // 200}.{2 + number % 200}"


def vip_of(service: int) -> str:
    return f"10.0.{240 + service // 200}.{1 + service % 200}"


def state_of(made: list[Host], *, services: int, tasks: int, ready: int | None = None) -> NetworkState:
    """``services`` with ``tasks`` each, spread over the hosts; the last ``ready`` cut off in the first service."""
    endpoints = []
    for service in range(services):
        for task in range(tasks):
            number = service * tasks + task
            host = made[number % len(made)]
            endpoints.append(
                Endpoint(
                    id=f"t{number}",
                    service_id=f"s{service}",
                    names=(f"web{service}.{task}",),
                    address=address_of(number),
                    node_id=host.name,
                    underlay=host.address,
                    ready=ready is None or service > 0 or task < ready,
                )
            )
    records = tuple(ServiceRecord(id=f"s{s}", name=f"web{s}", vip=vip_of(s)) for s in range(services))
    return NetworkState(network=NET, endpoints=tuple(endpoints), services=records)


async def timed(count: int, action: Callable[[int], Awaitable[object]], *, pause_s: float = 0.002) -> list[float]:
    """Milliseconds of each call, with a pause between them."""
    spent = []
    for number in range(count):
        start = time.perf_counter()
        await action(number)
        spent.append((time.perf_counter() - start) * 1e3)
        await asyncio.sleep(pause_s)
    return spent


async def attach(
    host: Host, *, network_id: str, count: int, first: int, pause_s: float = 0.002
) -> tuple[list[float], list[float]]:
    async def create(number: int) -> None:
        address = f"10.0.200.{first + number}" if network_id == "net" else None
        wish = (AttachmentSpec(network_id=network_id, address=address),)
        await host.network.create_sandbox(SandboxSpec(id=f"{network_id}{number}", attachments=wish))

    async def remove(number: int) -> None:
        await host.network.remove_sandbox(f"{network_id}{number}")

    return await timed(count, create, pause_s=pause_s), await timed(count, remove)


def ask_names(path: Path, count: int) -> list[float]:
    """Milliseconds per question over one UDP socket."""
    spent = []
    with socket_in(path, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.11", 53))
        for _ in range(count):
            query = wire.build_query("web0", wire.A, identity=secrets.randbelow(65536))
            start = time.perf_counter()
            sock.send(query)
            sock.recv(512)
            spent.append((time.perf_counter() - start) * 1e3)
    return spent


def questions_a_second(paths: list[Path]) -> float:
    """Answers of one host's DNS process to containers that ask at once, one question after the other each."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(paths)) as pool:
        counts = [len(spent) for spent in pool.map(lambda path: ask_names(path, 1500), paths)]
    return sum(counts) / (time.perf_counter() - start)


def transfers(source: Path, target: Path, address: str, *, streams: int) -> float:
    """Gigabits a second of TCP streams at once."""
    with ThreadPoolExecutor(streams) as pool:
        ports = range(5001, 5001 + streams)
        return sum(pool.map(lambda port: transfer(source, target, address, port=port), ports))


def round_trips(source: Path, target: Path, address: str, *, connect_to: str = "", count: int = 2000) -> list[float]:
    """Milliseconds from a request of 64 bytes to its answer, on one TCP connection."""
    with socket_in(target) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 5003))
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := connection.recv(64):
                    connection.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        spent = []
        with socket_in(source) as sock:
            sock.connect((connect_to or address, 5003))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                start = time.perf_counter()
                sock.sendall(b"?" * 64)
                sock.recv(64, socket.MSG_WAITALL)
                spent.append((time.perf_counter() - start) * 1e3)
        thread.join()
    return spent


def transfer(source: Path, target: Path, address: str, *, port: int = 5001) -> float:
    """Gigabits a second of one TCP stream."""
    with socket_in(target) as listener:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # the last ACK of the one before may be under way
        listener.bind((address, port))
        listener.listen(1)
        received = [0, 0.0]

        def receive() -> None:
            connection, _ = listener.accept()
            with connection:
                buffer = bytearray(1 << 20)
                start = time.perf_counter()
                while size := connection.recv_into(buffer):
                    received[0] += size
                received[1] = time.perf_counter() - start

        thread = threading.Thread(target=receive)
        thread.start()
        with socket_in(source) as sock:
            sock.connect((address, port))
            sock.settimeout(None)
            data = bytes(1 << 20)
            end = time.perf_counter() + TRANSFER_S
            while time.perf_counter() < end:
                sock.sendall(data)
        thread.join()
        return received[0] * 8 / received[1] / 1e9


def connects(source: Path, target: Path, address: str, *, connect_to: str, count: int = 300) -> list[float]:
    """Milliseconds from connect to established."""
    spent = []
    with socket_in(target) as listener:
        listener.bind((address, 5002))
        listener.listen(count)
        for _ in range(count):
            with socket_in(source) as sock:
                start = time.perf_counter()
                sock.connect((connect_to, 5002))
                spent.append((time.perf_counter() - start) * 1e3)
            listener.accept()[0].close()
    return spent


async def published_rows(made: list[Host]) -> dict[str, Any]:
    """Connecting to a published port of the first host, whose only task is on the second: with the node's and the client's
    address. The client is what joins the hosts."""
    one, two = made
    outside = one.netns.parent / "switch.netns"
    task, own = "10.255.0.100", {one.name: "10.255.0.2", two.name: "10.255.0.3"}
    end = Endpoint(id="p", service_id="p", address=task, node_id=two.name, underlay=two.address)
    nodes = tuple(NodeRecord(node_id=h.name, underlay=h.address, address=own[h.name]) for h in made)
    for host in made:
        spec = NetworkSpec(
            id="ingress", name="ingress", driver="overlay", subnet="10.255.0.0/24", gateway="10.255.0.1", vni=4096,
            ingress=True, node_address=own[host.name],
        )  # fmt: skip
        await host.network.apply_state(NetworkState(network=spec, endpoints=(end,), nodes=nodes))
    wish = AttachmentSpec(network_id="ingress", address=task)
    sandbox = await two.network.create_sandbox(SandboxSpec(id="p", attachments=(wish,)))
    rows: dict[str, Any] = {}
    sources: tuple[ClientSource, ...] = ("node", "client")
    for source in sources:
        port = PublishedPort(protocol="tcp", published_port=5002, target_port=5002, service_id="p", source=source)
        for host in made:
            await host.network.apply_published((port,))
        rows[f"connect to a published port, source={source}"] = await asyncio.to_thread(
            connects, outside, Path(sandbox.netns_path), task, connect_to=one.address
        )
    return rows


async def measure(made: list[Host]) -> dict[str, Any]:
    one, two = made
    rows: dict[str, Any] = {}
    for host in made:
        await host.network.open()
        await host.network.apply_state(state_of(made, services=10, tasks=4))
    await one.network.ensure_network(BRIDGE)
    await attach(one, network_id="net", count=5, first=2)  # warm
    paced, rows["remove"] = await attach(one, network_id="net", count=100, first=2, pause_s=0.06)
    rows["attach: overlay, 10 services of 4, now and then"] = paced
    rows["attach: the same, one after another"], _ = await attach(one, network_id="net", count=100, first=2)
    rows["attach: bridge, no services, now and then"], _ = await attach(
        one, network_id="bridge", count=50, first=2, pause_s=0.06
    )

    for host, number in ((one, 0), (two, 1)):
        wish = (AttachmentSpec(network_id="net", address=address_of(number)),)
        await host.network.create_sandbox(SandboxSpec(id=f"t{number}", attachments=wish))
    first, second = one.sandbox_path("t0"), two.sandbox_path("t1")
    changes = [state_of(made, services=10, tasks=4, ready=ready) for ready in (3, 4)]
    rows["change of a virtual address, 1 sandbox"] = await timed(50, lambda n: one.network.apply_state(changes[n % 2]))
    rows["DNS question"] = await asyncio.to_thread(ask_names, first, 3000)

    for number in range(4):
        wish = (AttachmentSpec(network_id="net", address=f"10.0.201.{2 + number}"),)
        await one.network.create_sandbox(SandboxSpec(id=f"n{number}", attachments=wish))
    asking = [one.sandbox_path(f"n{number}") for number in range(4)]
    rows["DNS questions of 4 containers at once, a second"] = [await asyncio.to_thread(questions_a_second, asking)]
    for number in range(4):
        await one.network.remove_sandbox(f"n{number}")

    big = [state_of(made, services=10, tasks=100, ready=ready) for ready in (99, 100)]
    rows["change to 10 services of 100"] = await timed(1, lambda _: one.network.apply_state(big[1]))
    rows["change of one of 100 backends, 1 sandbox"] = await timed(30, lambda n: one.network.apply_state(big[n % 2]))
    for number in range(49):
        wish = (AttachmentSpec(network_id="net", address=f"10.0.200.{2 + number}"),)
        await one.network.create_sandbox(SandboxSpec(id=f"more{number}", attachments=wish))
    rows["change of one of 100 backends, 50 sandboxes"] = await timed(10, lambda n: one.network.apply_state(big[n % 2]))
    keep = ["t0", *(f"more{n}" for n in range(49))]
    rows["reconcile, 50 sandboxes"] = await timed(
        3, lambda _: one.network.reconcile(keep_sandboxes=keep, keep_networks=["net", "bridge"])
    )

    many = [state_of(made, services=1000, tasks=1, ready=ready) for ready in (1, 0)]
    rows["1,000 services on one network: told, 50 sandboxes"] = await timed(
        1, lambda _: one.network.apply_state(many[0])
    )
    rows["1,000 services: one of them changes, 50 sandboxes"] = await timed(
        10, lambda n: one.network.apply_state(many[(n + 1) % 2])
    )
    rows["1,000 services: attach"], _ = await attach(one, network_id="net", count=20, first=100)
    await one.network.apply_state(state_of(made, services=10, tasks=4))

    rows["connect over the overlay"] = await asyncio.to_thread(
        connects, first, second, address_of(1), connect_to=address_of(1)
    )
    only = NetworkState(
        network=NET,
        endpoints=tuple(
            Endpoint(id=f"t{n}", service_id=f"s{n}", address=address_of(n), node_id=h.name, underlay=h.address)
            for n, h in enumerate(made)
        ),
        services=(ServiceRecord(id="s1", name="web", vip="10.0.250.1"),),
    )
    await one.network.apply_state(only)
    rows["connect over the overlay, by virtual address"] = await asyncio.to_thread(
        connects, first, second, address_of(1), connect_to="10.0.250.1"
    )
    rows["request and response, host to host"] = await asyncio.to_thread(round_trips, one.netns, two.netns, two.address)
    rows["request and response, overlay"] = await asyncio.to_thread(round_trips, first, second, address_of(1))
    rows["request and response, by virtual address"] = await asyncio.to_thread(
        round_trips, first, second, address_of(1), connect_to="10.0.250.1"
    )
    rows["TCP stream, host to host"] = [
        await asyncio.to_thread(transfer, one.netns, two.netns, two.address) for _ in range(3)
    ]
    rows["TCP stream, overlay"] = [await asyncio.to_thread(transfer, first, second, address_of(1)) for _ in range(3)]
    rows |= await measure_encrypted(made)
    for what, ends in (
        ("host to host", (one.netns, two.netns, two.address)),
        ("overlay", (first, second, address_of(1))),
    ):
        rows[f"TCP, 8 streams, {what}"] = [await asyncio.to_thread(transfers, *ends, streams=8) for _ in range(3)]
    rows |= await published_rows(made)
    for host in made:
        await host.network.destroy()
    return rows


async def measure_encrypted(made: list[Host]) -> dict[str, list[float]]:
    """The same stream and connects over an encrypted network."""
    state = NetworkState(
        network=SEALED,
        endpoints=tuple(
            Endpoint(
                id=f"e{n}",
                address=f"10.1.0.{10 + n}",
                node_id=host.name,
                underlay=host.address,
                tunnel_key=host.network.tunnel_key,
            )
            for n, host in enumerate(made)
        ),
    )
    for number, host in enumerate(made):
        await host.network.apply_state(state)
        wish = (AttachmentSpec(network_id="sealed", address=f"10.1.0.{10 + number}"),)
        await host.network.create_sandbox(SandboxSpec(id=f"e{number}", attachments=wish))
    first, second = made[0].sandbox_path("e0"), made[1].sandbox_path("e1")
    target = "10.1.0.11"
    rows = {
        "connect over the encrypted overlay": await asyncio.to_thread(
            connects, first, second, target, connect_to=target
        )
    }
    rows["TCP stream, encrypted overlay"] = [await asyncio.to_thread(transfer, first, second, target) for _ in range(3)]
    return rows


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too."""
    with tempfile.TemporaryDirectory() as folder, hosts(Path(folder), 2) as made:
        rows = asyncio.run(measure(made))
    print(f"{'':52} {'p50':>9} {'p99':>9} {'min':>9}")
    numbers = {}
    for name, values in rows.items():
        unit = "Gbit/s" if name.startswith("TCP") else "1/s" if name.endswith("a second") else "ms"
        ordered = sorted(values)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        numbers[name] = {
            "unit": unit,
            "p50": statistics.median(ordered),
            "p99": p99,
            "min": ordered[0],
            "n": len(ordered),
        }
        print(f"{name:52} {statistics.median(ordered):9.3f} {p99:9.3f} {ordered[0]:9.3f} {unit}")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
