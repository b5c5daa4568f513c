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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "kernel"))

from network_hosts import Host, hosts, socket_in

from fleet.network.dns import wire
from fleet.network.topology import AttachmentSpec, Endpoint, NetworkSpec, NetworkState, SandboxSpec, ServiceRecord

NET = NetworkSpec(id="net", name="net", driver="overlay", subnet="10.0.0.0/16", gateway="10.0.0.1", vni=4097)
BRIDGE = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/16", gateway="172.30.0.1")
TRANSFER_S = 2.0


def address_of(number: int) -> str:
    return f"10.0.{1 + number // 200}.{2 + number % 200}"


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
    records = tuple(ServiceRecord(id=f"s{s}", name=f"web{s}", vip=f"10.0.250.{s + 1}") for s in range(services))
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


def transfer(source: Path, target: Path, address: str, *, connect_to: str = "") -> float:
    """Gigabits a second of one TCP stream."""
    with socket_in(target) as listener:
        listener.bind((address, 5001))
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
            sock.connect((connect_to or address, 5001))
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
    rows["TCP stream, host to host"] = [
        await asyncio.to_thread(transfer, one.netns, two.netns, two.address) for _ in range(3)
    ]
    rows["TCP stream, overlay"] = [await asyncio.to_thread(transfer, first, second, address_of(1)) for _ in range(3)]
    for host in made:
        await host.network.destroy()
    return rows


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too."""
    with tempfile.TemporaryDirectory() as folder, hosts(Path(folder), 2) as made:
        rows = asyncio.run(measure(made))
    print(f"{'':48} {'p50':>9} {'p99':>9} {'min':>9}")
    numbers = {}
    for name, values in rows.items():
        unit = "Gbit/s" if name.startswith("TCP") else "ms"
        ordered = sorted(values)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        numbers[name] = {
            "unit": unit,
            "p50": statistics.median(ordered),
            "p99": p99,
            "min": ordered[0],
            "n": len(ordered),
        }
        print(f"{name:48} {statistics.median(ordered):9.3f} {p99:9.3f} {ordered[0]:9.3f} {unit}")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
