"""Three managers: how soon after the leader is killed writes are taken and tasks run again, and how many writes a second.

Labs of three managers and two workers, fleet's and, where ``dockerd`` is installed, Docker Swarm's; both idle while the other
works, runs interleaved. A kill is SIGKILL for the leader's daemon (fleet: its etcd goes on, as it would on a real host; swarm:
dockerd has its Raft member in itself). From then on another manager is asked, every 20 ms, to scale a service by one; the
clock stops when it says yes, and a second time when the new task runs. The dead daemon is started again before the next kill.

Writes are ``POST /configs/create`` of 100 bytes over kept connections, to one manager, for a few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import swarm_peer
from bench.services import Cluster, clusters, show
from bench.store import make_task
from fleet import errors
from fleet.api.client import EngineClient
from fleet.clock import SystemClock
from fleet.daemon.own_state import OwnState
from fleet.engines.sqlite import SqliteEngine
from fleet.lab import Lab
from fleet.model.ids import ClusterId, NodeId, ServiceId
from fleet.model.service import Service, ServiceSpec
from fleet.store import Store, Transaction

KILLS: Final = 20
REPLICAS: Final = 20
UPDATES: Final = 3
SECONDS: Final = 4.0
IN_FLIGHT: Final = (1, 64)
MANAGERS: Final = ("m1", "m2", "m3")
TIMEOUT_S: Final = 90.0
_POLL_S: Final = 0.02
Rows = dict[str, dict[str, list[float]]]


def leader(cluster: Cluster, *, at: str) -> str:
    """Host name of the leader; empty while there is none."""
    with contextlib.suppress(errors.FleetError, OSError):
        for node in cluster.client(at).get("/nodes"):
            if (node.get("ManagerStatus") or {}).get("Leader"):
                return str(node["Description"]["Hostname"])
    return ""


def settled(cluster: Cluster) -> str:
    """Wait until all three managers agree on a leader and are reachable; returns it."""
    end = time.perf_counter() + TIMEOUT_S
    while time.perf_counter() < end:
        names = {leader(cluster, at=host) for host in MANAGERS}
        if len(names) == 1 and "" not in names:
            nodes = cluster.client(next(iter(names))).get("/nodes")
            standing = [n["ManagerStatus"]["Reachability"] for n in nodes if n.get("ManagerStatus")]
            if standing == ["reachable"] * 3 and all(n["Status"]["State"] == "ready" for n in nodes):
                return names.pop()
        time.sleep(0.2)
    raise TimeoutError(f"{cluster.name}: the managers have not agreed within {TIMEOUT_S:g} s")


def kill_leader(cluster: Cluster, service: str) -> dict[str, float]:
    """Seconds from the kill to the first accepted write, and to that write's task running."""
    victim = settled(cluster)
    witness = next(host for host in MANAGERS if host != victim)
    client = cluster.client(witness)
    found = client.get(f"/services/{service}")
    wanted = found["Spec"]["Mode"]["Replicated"]["Replicas"] + 1
    time.sleep(1.0)
    if victim in cluster.clients:
        cluster.clients.pop(victim).close()
    start = time.perf_counter()
    cluster.lab.signal_daemon(victim, signal.SIGKILL)
    end = start + TIMEOUT_S
    while True:
        try:
            found = client.get(f"/services/{service}")
            spec = found["Spec"]
            spec["Mode"]["Replicated"]["Replicas"] = wanted
            client.post(f"/services/{service}/update", spec, version=found["Version"]["Index"])
            break
        except (errors.FleetError, OSError):
            if time.perf_counter() > end:
                raise
            time.sleep(_POLL_S)
    accepted = time.perf_counter() - start
    running: list[Any] = []
    while len(running) < wanted and time.perf_counter() < end:
        time.sleep(_POLL_S)
        with contextlib.suppress(errors.FleetError, OSError):
            tasks = client.get("/tasks", filters={"service": [service]})
            running = [t for t in tasks if t["DesiredState"] == t["Status"]["State"] == "running"]
    spent = time.perf_counter() - start
    cluster.lab.start_daemon(victim)
    return {"leader killed to write accepted": accepted, "leader killed to new task running": spent}


def rolling_update(cluster: Cluster, *, parallelism: int) -> dict[str, float]:
    """Seconds from the command to all tasks of a healthy service running with another environment, the update told complete."""
    others = cluster.containers()
    service = cluster.create(f"r{secrets.token_hex(4)}", REPLICAS, "--update-monitor", "0s", "--update-delay", "0s")
    cluster.wait_running(service, REPLICAS)
    mark = f"MARK={secrets.token_hex(4)}"
    start = time.perf_counter()
    cluster.run("service", "update", "--detach", "--update-parallelism", str(parallelism), "--env-add", mark, service)

    def updated() -> bool:
        running = cluster.running(service)
        return len(running) == REPLICAS and all(
            mark in task["Spec"]["ContainerSpec"].get("Env", ()) for task in running
        )

    spent = cluster.wait(updated, what="the service updated") - start
    cluster.run("service", "rm", service)
    cluster.wait(lambda: cluster.containers() <= others, what="the service's containers gone", poll_s=0.1)
    return {f"rolling update of {REPLICAS}, {parallelism} at a time": spent}


def seen_elsewhere(cluster: Cluster, *, times: int = 50) -> dict[str, float]:
    """Median seconds from a request to one manager to the event of it from another."""
    arrived: dict[str, float] = {}
    ready = threading.Event()
    name = secrets.token_hex(4)

    def listen() -> None:
        with EngineClient(cluster.client("m2").url, timeout_s=TIMEOUT_S) as client:
            ready.set()
            rest = b""
            with client.stream("GET", "/events", query={"filters": '{"type": ["config"]}'}) as chunks:
                for chunk in chunks:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        found = json.loads(line)["Actor"]["Attributes"]["name"]
                        arrived[found] = time.perf_counter()
                    if f"{name}-{times - 1}" in arrived:
                        return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    ready.wait(TIMEOUT_S)
    time.sleep(0.5)
    sent = {}
    for number in range(times):
        sent[f"{name}-{number}"] = time.perf_counter()
        cluster.client("m1").post("/configs/create", {"Name": f"{name}-{number}", "Data": "eA=="})
        time.sleep(0.02)
    listener.join(10.0)
    delays = [arrived[key] - began for key, began in sent.items() if key in arrived]
    return {"write at one manager to its event at another": statistics.median(delays)} if delays else {}


def writes(cluster: Cluster, *, in_flight: int, seconds: float = SECONDS) -> float:
    """Committed writes a second through one manager."""
    url = cluster.client("m1").url
    done = [0] * in_flight
    stop = time.perf_counter() + seconds
    data = "eHh4" * 33

    def work(index: int) -> None:
        client = EngineClient(url)
        try:
            while time.perf_counter() < stop:
                client.post("/configs/create", {"Name": secrets.token_hex(8), "Data": data})
                done[index] += 1
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(in_flight)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


async def move(folder: Path, *, tasks: int = 20_000, services: int = 1_000) -> dict[str, float]:
    """Seconds for a state of that size to move from SQLite to an etcd of fleet's own: the copy while others write, and the pause
    from the last write on the one to the opened store on the other."""
    clock, node_id, cluster_id = SystemClock(), NodeId("n" * 25), ClusterId("c" * 25)
    (folder / "store").mkdir(parents=True)
    engine = SqliteEngine(folder / "store", cluster_id=cluster_id, clock=clock)
    await engine.start()
    store = await Store.open(engine)
    made = [make_task(number) for number in range(tasks)]
    await store.commit_all(Transaction().create(task) for task in made)
    now = clock.now()
    for number in range(services):
        spec = ServiceSpec(name=f"service-{number}", task_template=made[0].spec)
        service = Service(id=ServiceId(f"s{number:024}"), created_at=now, updated_at=now, spec=spec)
        await store.commit(Transaction().create(service))
    own = OwnState(folder, clock, run_folder=folder / "run")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        peer = f"127.0.0.1:{probe.getsockname()[1]}"
    await own.begin_move(store, node_id=node_id, cluster_id=cluster_id, peer=peer)
    try:
        async with contextlib.aclosing(own.copy(engine, cluster_id)) as copy:
            start = time.perf_counter()
            await copy.first()
            copied = time.perf_counter() - start
            await store.commit_all(Transaction().create(make_task(tasks + number)) for number in range(200))
            start = time.perf_counter()
            await store.close()
            await copy.rest()
            await copy.finish(cluster_id)
            own.set_mark()
        await engine.close()
        etcd = await own.open(cluster_id=cluster_id, node_id=node_id)
        await etcd.start()
        moved = await Store.open(etcd)
        paused = time.perf_counter() - start
        if len(moved.tasks.all()) != tasks + 200:
            raise RuntimeError(f"{len(moved.tasks.all())} tasks arrived of {tasks + 200}")
        await moved.close()
        await etcd.close()
    finally:
        await own.erase()
    what = f"{services:,} services and {tasks:,} tasks"
    return {f"{what} copied to etcd": copied, f"{what}: writers paused": paused}


def run(
    json_path: str | None = None, *, peer: bool | None = None, kills: int = KILLS, seconds: float = SECONDS
) -> None:
    """Print the tables; with ``json_path`` write the numbers there too. ``peer``: Docker Swarm as well; None: if it is there."""
    beside = not swarm_peer.missing() if peer is None else peer
    rows: Rows = {}
    rates: Rows = {}
    with clusters(peer=beside, managers=len(MANAGERS)) as made:
        names = [cluster.name for cluster in made]
        for cluster in made:
            cluster.create("failover", 2, "--restart-delay", "0s")
            cluster.wait_running("failover", 2)
        for number in range(kills):
            for cluster in made:
                for row, value in kill_leader(cluster, "failover").items():
                    rows.setdefault(row, {}).setdefault(cluster.name, []).append(value)
                    print(f"  {number + 1:2} {cluster.name:6} {row}: {value:.3f} s", file=sys.stderr, flush=True)
        for number in range(UPDATES):
            for cluster in made:
                settled(cluster)
                found = seen_elsewhere(cluster) if number == 0 else {}
                for parallelism in (2, REPLICAS):
                    found |= rolling_update(cluster, parallelism=parallelism)
                for row, value in found.items():
                    rows.setdefault(row, {}).setdefault(cluster.name, []).append(value)
                    print(f"  {number + 1:2} {cluster.name:6} {row}: {value:.3f} s", file=sys.stderr, flush=True)
        for in_flight in IN_FLIGHT:
            for cluster in made:
                settled(cluster)
                value = writes(cluster, in_flight=in_flight, seconds=seconds)
                rates.setdefault(f"3 managers, {in_flight} in flight", {}).setdefault(cluster.name, []).append(value)
    with Lab(f"bench-{secrets.token_hex(3)}-one") as lab:
        one = Cluster("fleet", lab, [sys.executable, "-m", "fleet.cli.main"])
        lab.up(managers=1, workers=0)
        for in_flight in IN_FLIGHT:
            value = writes(one, in_flight=in_flight, seconds=seconds)
            rates.setdefault(f"1 manager (SQLite), {in_flight} in flight", {}).setdefault("fleet", []).append(value)
    with tempfile.TemporaryDirectory() as scratch:
        moved = asyncio.run(move(Path(scratch)))
    if rows:
        show(rows, names)
    for row, spent in moved.items():
        print(f"{row:60}{spent:8.3f}")
    print(f"\n{'committed writes a second':44}" + "".join(f"{name:>24}" for name in names))
    for row, found in rates.items():
        cells = (f"{statistics.median(found[name]):.0f}" if name in found else "-" for name in names)
        print(f"{row:44}" + "".join(f"{cell:>24}" for cell in cells))
    if not beside:
        print("Docker Swarm not measured; python -m bench.managers --peer does, and installs it if need be")
    if json_path is not None:
        numbers = {
            "seconds": rows,
            "move": moved,
            "writes_per_second": rates,
            "peer": swarm_peer.version() if beside else None,
        }
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.managers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, help="Docker Swarm too, installed if need be")
    options = parser.parse_args(arguments)
    if options.peer and swarm_peer.missing():
        swarm_peer.install()
    run(options.json, peer=options.peer, kills=options.kills, seconds=options.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
