"""Memory and processor time of what a host keeps running, idle and with 50 tasks; beside Docker Swarm.

Everything in the process namespace of a lab's host counts, except the lab's own process 1 and what is in the containers: fleetd,
the supervisor and the DNS process; dockerd, containerd and their shims and proxies. Both clusters idle in the same run.

PSS counts a page that n processes share as 1/n of a page in each. The hosts of a lab share the text of their programs, so on a
machine of its own a host has more than the PSS and less than the RSS shown (RSS counts such pages again in each process).
Processor time is of one processor, over some seconds in which nobody asked anything.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import swarm_peer
from bench.services import Cluster, clusters

TASKS: Final = 50
SETTLE_S: Final = 15.0
WINDOW_S: Final = 10.0
MIB: Final = 1024 * 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Kept:
    """What one host keeps, in bytes; ``parts`` is PSS by program."""

    pss: int = 0
    rss: int = 0
    processor_percent: float = 0.0
    parts: dict[str, int] = field(default_factory=dict)


def program(pid: int) -> str:
    """A short name for what the process runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    text = " ".join(words)
    for mark, name in (
        ("fleet.daemon.main", "fleetd"),
        ("supervisor", "supervisor"),
        ("dns", "dns"),
        ("containerd-shim", "shims"),
        ("docker-proxy", "proxies"),
    ):
        if mark in text:
            return name
    return Path(words[0]).name


def host_processes(init: int) -> list[int]:
    """The processes of the namespace that ``init`` is process 1 of, without it and without those in namespaces below."""
    wanted = Path(f"/proc/{init}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != init:
            try:
                inside = (entry / "ns/pid").readlink() == wanted
            except OSError:
                continue  # ended meanwhile
            if inside:
                found.append(int(entry.name))
    return found


def ticks(pids: list[int]) -> int:
    """User and system time the processes have used (proc(5), stat fields 14 and 15)."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used


def rollup(pid: int) -> dict[str, int]:
    """Bytes by name, from smaps_rollup (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def look(cluster: Cluster) -> dict[str, Kept]:
    """Host -> what it keeps now; takes ``WINDOW_S``."""
    pids = {host: host_processes(cluster.lab.pid(host)) for host in cluster.lab.hosts()}
    before = {host: ticks(found) for host, found in pids.items()}
    start = time.perf_counter()
    time.sleep(WINDOW_S)
    spent_s = time.perf_counter() - start
    result = {}
    for host, found in pids.items():
        kept = Kept(processor_percent=100 * (ticks(found) - before[host]) / _TICKS / spent_s)
        for pid in found:
            sizes = rollup(pid)
            kept.pss += sizes["Pss"]
            kept.rss += sizes["Rss"]
            name = program(pid)
            kept.parts[name] = kept.parts.get(name, 0) + sizes["Pss"]
        result[host] = kept
    return result


def measure(made: list[Cluster]) -> dict[str, dict[str, dict[str, Kept]]]:
    """State -> cluster -> host -> what it keeps."""
    time.sleep(SETTLE_S)
    states = {"idle": {cluster.name: look(cluster) for cluster in made}}
    for cluster in made:
        service = cluster.create(f"f{secrets.token_hex(4)}", TASKS * len(cluster.lab.hosts()))
        cluster.wait_running(service, TASKS * len(cluster.lab.hosts()))
    time.sleep(SETTLE_S)
    states[f"{TASKS} tasks"] = {cluster.name: look(cluster) for cluster in made}
    return states


def run(json_path: str | None = None, *, peer: bool | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too. ``peer`` as in ``bench.services.run``."""
    beside = not swarm_peer.missing() if peer is None else peer
    with clusters(peer=beside, workers=1) as made:
        states = measure(made)
    print(f"{'MiB':28}{'PSS':>8}{'RSS':>8}{'CPU %':>8}  parts of the PSS")
    numbers = {}
    for state, by_cluster in states.items():
        for name, by_host in by_cluster.items():
            for host, kept in by_host.items():
                row = f"{name}, {'manager' if host.startswith('m') else 'worker'}, {state}"
                parts = ", ".join(f"{part} {size / MIB:.1f}" for part, size in sorted(kept.parts.items()))
                print(f"{row:28}{kept.pss / MIB:8.1f}{kept.rss / MIB:8.1f}{kept.processor_percent:8.2f}  {parts}")
                numbers[row] = {
                    "pss_bytes": kept.pss,
                    "rss_bytes": kept.rss,
                    "processor_percent": kept.processor_percent,
                    "parts": kept.parts,
                }
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(peer={"--peer": True, "--no-peer": False}.get(" ".join(sys.argv[1:])))
