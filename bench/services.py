"""Services from command to containers: create, remove, a killed container, a lost worker; beside Docker Swarm.

A lab of one manager and two workers, and where ``dockerd`` is installed a second, alike one with Docker's engine as its
daemon; both idle while the other works, runs interleaved, so all suffer the same neighbours. The clock starts before the
command line starts and stops when ``GET /tasks`` of the manager, polled, says so: in tasks wanted running that run, or
``GET /containers/json?all=1`` of every host in nothing left.

The image is on every host before. Its command ends at once on SIGTERM (else every removal would take the grace period). A
lost worker is a loss of power: cable first, then every process of the host. On a kernel without IPVS Swarm cannot give a
service a virtual address; its services then use ``--endpoint-mode dnsrr``, which is less work, and fleet's do not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import swarm_peer
from fleet.api.client import EngineClient
from fleet.lab import Lab

SIZES: Final = (1, 10, 50, 100)
RUNS: Final = 5
RUNS_OF_LARGE: Final = 3
"""For 50 replicas and more."""
LARGE: Final = 50
SPREAD: Final = 20
"""Tasks of the service whose worker is lost."""
IMAGE: Final = "fleet/hello:1"
COMMAND: Final = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
TIMEOUT_S: Final = 240.0
REPOSITORY: Final = Path(__file__).resolve().parents[1]
Task = dict[str, Any]


@dataclass
class Cluster:
    """A lab with the command line its users have, and a kept connection to each host."""

    name: str
    lab: Lab
    command: Sequence[str]
    create_options: Sequence[str] = ()
    clients: dict[str, EngineClient] = field(default_factory=dict)

    def client(self, host: str = "m1") -> EngineClient:
        if host not in self.clients:
            self.clients[host] = self.lab.client(host)
        return self.clients[host]

    def run(self, *arguments: str, host: str = "m1", data: bytes | None = None) -> str:
        """The command against a host; raises ``CalledProcessError`` after showing what it said."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLEET_", "DOCKER_"))}
        done = subprocess.run(
            [*self.command, *arguments],
            env={**kept, **self.lab.env(host)},
            input=data,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            print(f"{self.name}: {' '.join(arguments)}: {done.stderr.decode(errors='replace')}", file=sys.stderr)
            done.check_returncode()
        return done.stdout.decode().strip()

    def create(self, name: str, replicas: int, *options: str) -> str:
        """The new service's ID."""
        how = ("--detach", "--quiet", "--name", name, "--replicas", str(replicas))
        return self.run("service", "create", *how, *self.create_options, *options, IMAGE, *COMMAND)

    def tasks(self, service: str) -> list[Task]:
        found: list[Task] = self.client().get("/tasks", filters={"service": [service]})
        return found

    def running(self, service: str) -> list[Task]:
        return [t for t in self.tasks(service) if t["DesiredState"] == t["Status"]["State"] == "running"]

    def containers(self) -> int:
        return sum(len(self.client(host).get("/containers/json", all="1")) for host in self.lab.hosts())

    def node_names(self) -> dict[str, str]:
        return {node["ID"]: node["Description"]["Hostname"] for node in self.client().get("/nodes")}

    def ready(self) -> bool:
        return all(node["Status"]["State"] == "ready" for node in self.client().get("/nodes"))

    def wait(self, holds: Callable[[], bool], *, what: str, poll_s: float = 0.02) -> float:
        """Seconds since the epoch of ``time.perf_counter`` when it held. Raises ``TimeoutError`` saying what did not."""
        end = time.perf_counter() + TIMEOUT_S
        while not holds():
            if time.perf_counter() > end:
                raise TimeoutError(f"{self.name}: {what} not within {TIMEOUT_S:g} s")
            time.sleep(poll_s)
        return time.perf_counter()

    def wait_running(self, service: str, count: int) -> float:
        return self.wait(
            lambda: len(self.running(service)) == count,
            what=f"{count} tasks running",
            poll_s=0.02 if count < LARGE else 0.1,
        )

    def remove(self, service: str) -> float:
        """Seconds from the command to no container on any host."""
        start = time.perf_counter()
        self.run("service", "rm", service)
        return self.wait(lambda: self.containers() == 0, what="no container left", poll_s=0.05) - start


def create_and_remove(cluster: Cluster, *, replicas: int, overlay: bool) -> dict[str, float]:
    """Seconds of both, for a service on a new overlay network or on none."""
    name = f"s{secrets.token_hex(4)}"
    options: tuple[str, ...] = ()
    if overlay:
        cluster.run("network", "create", "--driver", "overlay", f"n{name}")
        options = ("--network", f"n{name}")
    start = time.perf_counter()
    service = cluster.create(name, replicas, *options)
    created = cluster.wait_running(service, replicas) - start
    removed = cluster.remove(service)
    if overlay:
        cluster.wait(lambda: network_removed(cluster, f"n{name}"), what=f"network n{name} removed", poll_s=0.2)
    where = "overlay" if overlay else "no network"
    return {f"create {replicas}, {where}": created, f"remove {replicas}, {where}": removed}


def network_removed(cluster: Cluster, name: str) -> bool:
    """Swarm refuses while it still clears up the network's tasks, which nothing announces."""
    client = cluster.client()
    if not any(network["Name"] == name for network in client.get("/networks")):
        return True
    with contextlib.suppress(Exception):  # refused: asked again, and given up by whoever waits
        client.delete(f"/networks/{name}")
    return False


def kill_container(cluster: Cluster) -> dict[str, float]:
    """Seconds from SIGKILL for a container's first process to its slot's next task running."""
    service = cluster.create(f"k{secrets.token_hex(4)}", 3, "--restart-delay", "0s")
    cluster.wait_running(service, 3)
    time.sleep(1)
    victim = cluster.running(service)[0]
    host = cluster.node_names()[victim["NodeID"]]
    container = victim["Status"]["ContainerStatus"]["ContainerID"]
    pid = cluster.client(host).get(f"/containers/{container}/json")["State"]["Pid"]
    start = time.perf_counter()
    cluster.lab.exec(host, ["kill", "-KILL", str(pid)])

    def replaced() -> bool:
        return any(t["Slot"] == victim["Slot"] and t["ID"] != victim["ID"] for t in cluster.running(service))

    spent = cluster.wait(replaced, what="the killed container replaced") - start
    cluster.remove(service)
    return {"container killed to replacement running": spent}


def lose_worker(cluster: Cluster) -> dict[str, float]:
    """Seconds from a worker's loss of power to all its tasks running elsewhere."""
    lost = "w2"
    service = cluster.create(f"w{secrets.token_hex(4)}", SPREAD)
    cluster.wait_running(service, SPREAD)
    time.sleep(3)  # a few beats of the heart
    node = next(id_ for id_, name in cluster.node_names().items() if name == lost)
    if not any(task["NodeID"] == node for task in cluster.running(service)):
        raise RuntimeError(f"{cluster.name}: no task was on {lost}")
    cluster.clients.pop(lost).close()
    start = time.perf_counter()
    cluster.lab.kill(lost)

    def moved() -> bool:
        return len([t for t in cluster.running(service) if t["NodeID"] != node]) == SPREAD

    spent = cluster.wait(moved, what=f"the tasks of {lost} elsewhere") - start
    cluster.lab.start(lost)
    cluster.wait(cluster.ready, what=f"{lost} back")
    cluster.remove(service)
    return {"worker lost to its tasks running elsewhere": spent}


def import_image(cluster: Cluster) -> None:
    """On every host, so that no measurement contains a transfer."""
    archive = subprocess.run(
        [REPOSITORY / "scripts/hello-image", "--tar"], stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout
    for host in cluster.lab.hosts():
        changes = ("--change", "ENV PATH=/bin", "--change", 'CMD ["sh"]')
        cluster.run("image", "import", *changes, "-", IMAGE, host=host, data=archive)


@contextlib.contextmanager
def clusters(*, peer: bool, managers: int = 1, workers: int = 2) -> Iterator[list[Cluster]]:
    """Fleet's and, if asked, Docker's, up with the image on every host; down at the end, whatever happened."""
    token = secrets.token_hex(3)
    made = [Cluster("fleet", Lab(f"bench-{token}"), [sys.executable, "-m", "fleet.cli.main"])]
    if peer:
        swarm = Lab(f"bench-{token}-swarm", daemon=swarm_peer.DOCKER_DAEMON)
        options = ["--no-resolve-image"]
        if not Path("/proc/net/ip_vs").exists():
            options += ["--endpoint-mode", "dnsrr"]
        made.append(Cluster("swarm", swarm, ["docker"], options))
    with contextlib.ExitStack() as stack:
        if peer:
            stack.enter_context(swarm_peer.covers())
        for cluster in made:
            stack.enter_context(cluster.lab)
            cluster.lab.up(managers=managers, workers=workers)
            import_image(cluster)
        yield made
        for cluster in made:
            for client in cluster.clients.values():
                client.close()


def busy_percent(seconds: float = 0.5) -> float:
    """How much of all processors was in use during the next moment (proc(5), /proc/stat)."""

    def read() -> tuple[int, int]:
        values = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    total, idle = read()
    time.sleep(seconds)
    total_after, idle_after = read()
    return 100.0 * (1 - (idle_after - idle) / max(1, total_after - total))


def measure(
    made: Sequence[Cluster], *, sizes: Sequence[int], runs: int, runs_of_large: int
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """Row -> cluster -> seconds of each run, and how busy the machine was before each measurement."""
    rows: dict[str, dict[str, list[float]]] = {}
    background: list[float] = []
    steps: list[tuple[int, Callable[[Cluster], dict[str, float]]]] = []
    for size in sizes:
        times = runs if size < LARGE else min(runs, runs_of_large)
        steps += [
            (times, functools.partial(create_and_remove, replicas=size, overlay=overlay)) for overlay in (False, True)
        ]
    steps += [(runs, kill_container), (min(runs, runs_of_large), lose_worker)]
    for times, step in steps:
        for _ in range(times):
            for cluster in made:
                background.append(busy_percent())
                for row, seconds in step(cluster).items():
                    rows.setdefault(row, {}).setdefault(cluster.name, []).append(seconds)
                    print(f"  {cluster.name:6} {row}: {seconds:.3f} s", file=sys.stderr, flush=True)
    return rows, background


def show(rows: dict[str, dict[str, list[float]]], names: Sequence[str]) -> None:
    """Medians and, in brackets, least and most; the ratio of medians is the peer's time over fleet's."""
    print(f"{'seconds':44}" + "".join(f"{name:>24}" for name in names) + ("   ratio" if len(names) > 1 else "") + "  n")
    for row, found in rows.items():
        middle = {name: statistics.median(found[name]) for name in names}
        cells = (f"{middle[name]:8.3f} ({min(found[name]):.3f}-{max(found[name]):.3f})" for name in names)
        ratio = f"{middle[names[1]] / middle[names[0]]:7.1f}x" if len(names) > 1 else ""
        print(f"{row:44}" + "".join(f"{cell:>24}" for cell in cells) + ratio + f"{len(found[names[0]]):3}")


def run(
    json_path: str | None = None,
    *,
    peer: bool | None = None,
    sizes: Sequence[int] = SIZES,
    runs: int = RUNS,
    runs_of_large: int = RUNS_OF_LARGE,
) -> None:
    """Print the table; with ``json_path`` write the numbers there too. ``peer`` is whether to measure Docker Swarm, ``None``: if
    it is installed."""
    beside = not swarm_peer.missing() if peer is None else peer
    if beside:
        print(f"beside {swarm_peer.version()}")
    with clusters(peer=beside) as made:
        rows, background = measure(made, sizes=sizes, runs=runs, runs_of_large=runs_of_large)
        names = [cluster.name for cluster in made]
    show(rows, names)
    print(f"other work on the machine before each measurement: median {statistics.median(background):.0f} % of it")
    if not beside:
        print("Docker Swarm not measured; python -m bench.services --peer does, and installs it if need be")
    if json_path is not None:
        numbers = {
            "seconds": rows,
            "background_cpu_percent": background,
            "peer": swarm_peer.version() if beside else None,
        }
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.services", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--runs-of-large", type=int, default=RUNS_OF_LARGE)
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=list(SIZES))
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, help="Docker Swarm too, installed if need be")
    options = parser.parse_args(arguments)
    if options.peer and swarm_peer.missing():
        swarm_peer.install()
    run(options.json, peer=options.peer, sizes=options.sizes, runs=options.runs, runs_of_large=options.runs_of_large)


if __name__ == "__main__":
    main(sys.argv[1:])
