"""Encrypted overlay: processor time of a packet in each direction, one TCP stream against the plain overlay and the cable.

Where the kernel has WireGuard there is no process of ours and the processor time is not shown. As in ``network``, both hosts
are namespaces of this machine and the stream's ends run on it too, so throughput is a comparison within one run; the
processor time of the two tunnel processes is what another machine would spend, too.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "kernel"))

from network_hosts import Host, hosts

from bench.network import NET, SEALED, round_trips, transfer
from fleet.network.topology import AttachmentSpec, Endpoint, NetworkSpec, NetworkState, SandboxSpec

ROUNDS = 5
MESSAGE_BYTES = 1472
"""Of a full packet, sealed, where the underlay's are 1500."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Of a host's tunnel process, so far."""

    processor_us: float
    sent_bytes: int
    received_bytes: int


async def spent(host: Host) -> Spent | None:
    """``None`` where the kernel carries the packets."""
    pid = host.network.tunnel_pid()
    if not pid:
        return None
    (contact,) = await host.network.look(lambda view: view.tunnel.contacts())
    return Spent(processor_us(pid), contact.sent_bytes, contact.received_bytes)


def processor_us(pid: int) -> float:
    """Of a process with one thread, to the nanosecond (proc(5)); the kernel's work for its system calls is in it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e3


async def join(made: list[Host], network: NetworkSpec, prefix: str) -> tuple[Path, Path]:
    """A container of each host on ``network``."""
    addresses = [f"{prefix}.0.{10 + number}" for number in range(len(made))]
    state = NetworkState(
        network=network,
        endpoints=tuple(
            Endpoint(
                id=f"{network.id}{address}",
                address=address,
                node_id=host.name,
                underlay=host.address,
                tunnel_key=host.network.tunnel_key if network.encrypted else "",
            )
            for host, address in zip(made, addresses, strict=True)
        ),
    )
    for host, address in zip(made, addresses, strict=True):
        await host.network.apply_state(state)
        wish = (AttachmentSpec(network_id=network.id, address=address),)
        await host.network.create_sandbox(SandboxSpec(id=f"{network.id}{address}", attachments=wish))
    first, second = (host.sandbox_path(f"{network.id}{a}") for host, a in zip(made, addresses, strict=True))
    return first, second


async def measure(made: list[Host]) -> dict[str, tuple[str, list[float]]]:
    """Unit and values of each row. The three ways take turns, so that they have the same neighbours."""
    one, two = made
    for host in made:
        await host.network.open()
    ways = {
        "host to host": (one.netns, two.netns, two.address),
        "overlay": (*await join(made, NET, "10.0"), "10.0.0.11"),
        "encrypted overlay": (*await join(made, SEALED, "10.1"), "10.1.0.11"),
    }
    rows: dict[str, tuple[str, list[float]]] = {}

    def add(name: str, unit: str, *values: float) -> None:
        rows.setdefault(name, (unit, []))[1].extend(values)

    for _ in range(ROUNDS):
        for what, (first, second, address) in ways.items():
            waits = await asyncio.to_thread(round_trips, first, second, address, count=400)
            add(f"request and response, {what}", "ms", *waits)
            before = [await spent(host) for host in made]
            add(f"TCP stream, {what}", "Gbit/s", await asyncio.to_thread(transfer, first, second, address))
            after = [await spent(host) for host in made]
            (sender, sent), (receiver, received) = zip(before, after, strict=True)
            if what != "encrypted overlay" or not sender or not sent or not receiver or not received:
                continue
            packets = (sent.sent_bytes - sender.sent_bytes) / MESSAGE_BYTES
            add("processor, full packet sent", "us", (sent.processor_us - sender.processor_us) / packets)
            packets = (received.received_bytes - receiver.received_bytes) / MESSAGE_BYTES
            add("processor, full packet received", "us", (received.processor_us - receiver.processor_us) / packets)
    for host in made:
        await host.network.destroy()
    return rows


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too."""
    with tempfile.TemporaryDirectory() as folder, hosts(Path(folder), 2) as made:
        rows = asyncio.run(measure(made))
    print(f"{'':40} {'p50':>9} {'min':>9} {'max':>9}")
    numbers = {}
    for name, (unit, values) in rows.items():
        middle = statistics.median(values)
        numbers[name] = {"unit": unit, "p50": middle, "min": min(values), "max": max(values), "n": len(values)}
        print(f"{name:40} {middle:9.3f} {min(values):9.3f} {max(values):9.3f} {unit}")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
