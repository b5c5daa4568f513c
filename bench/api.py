"""The engine API and the command line: answers with 100 and 10,000 tasks, events to a thousand, a stack of 100; beside dockerd.

A lab of one manager and one worker, and where ``dockerd`` is installed a second, alike one with Docker's engine as its daemon;
both idle while the other works, runs interleaved. The tasks wait for a node that there is not (a constraint), so that no
container is in the figures. Requests go over the unix socket on kept connections, by a client that parses nothing. *CPU* is the
daemon's own processor time for one answer: while the machine has other work to do it is the figure to go by.

An event counts as told when the last of its watchers has it. A stack has converged when ``GET /tasks`` says so, and was
deployed again without touching anything if the tasks are the same ones afterwards.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import resource
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench import swarm_peer
from bench.api_load import Load, Watchers, load
from bench.footprint import host_processes, program, ticks
from bench.services import COMMAND, IMAGE, Cluster, busy_percent, clusters, show

SIZES: Final = (100, 10_000)
CONNECTIONS: Final = (1, 16)
ROUNDS: Final = 3
SECONDS: Final = 0.7
"""Of each round of each request."""
WATCHERS: Final = 1_000
EVENTS: Final = 10
COMMANDS: Final = 10
STACK: Final = 100
STACK_RUNS: Final = 1
NOWHERE: Final = "node.labels.bench==nowhere"
_DAEMONS: Final = frozenset({"fleetd", "dockerd"})
_SETTLE_S: Final = 5.0
"""dockerd begins to listen for a watcher after it has answered it."""
_LOST_S: Final = 15.0
"""After which an event is not waited for."""
_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")
Rows = dict[str, dict[str, list[float]]]
Answers = dict[str, dict[str, Load]]


def busy_of(cluster: Cluster) -> Callable[[], float]:
    """What says how many seconds of processor time the manager's daemon has used (in steps of 10 ms)."""
    pids = [pid for pid in host_processes(cluster.lab.pid("m1")) if program(pid) in _DAEMONS]
    return lambda: ticks(pids) * _TICK_S


def pending_tasks(cluster: Cluster, count: int) -> None:
    """A service of so many tasks that no node may have, or the one there is made larger."""
    there = cluster.client().get("/services", filters={"name": ["waiting"]})
    if not there:
        cluster.create("waiting", count, "--constraint", NOWHERE)
    else:
        found = there[0]
        spec = found["Spec"]
        spec["Mode"]["Replicated"]["Replicas"] = count
        cluster.client().post(f"/services/{found['ID']}/update", spec, version=found["Version"]["Index"])

    def all_wait() -> bool:
        states = [task["Status"]["State"] for task in cluster.tasks("waiting")]
        return len(states) == count and set(states) == {"pending"}

    cluster.wait(all_wait, what=f"{count} tasks pending", poll_s=0.5)


def targets(cluster: Cluster) -> dict[str, str]:
    """Row -> what to ask for; objects by their id."""
    client = cluster.client()
    task, node = cluster.tasks("waiting")[0], client.get("/nodes")[0]
    service = client.get("/services/waiting")
    return {
        **{path: path for path in ("/_ping", "/version", "/info", "/nodes", "/services", "/tasks")},
        "/nodes/ID": f"/nodes/{node['ID']}",
        "/services/ID": f"/services/{service['ID']}",
        "/tasks/ID": f"/tasks/{task['ID']}",
    }


def measure_answers(made: Sequence[Cluster], size: int, *, rounds: int, seconds: float) -> Answers:
    """Row -> cluster -> what it took; nothing for one that did not answer with 200, which is told."""
    rows: Answers = {}
    asked = {cluster.name: targets(cluster) for cluster in made}
    busy = {cluster.name: busy_of(cluster) for cluster in made}
    for path in next(iter(asked.values())):
        for connections in CONNECTIONS:
            row = f"{size:,} tasks, {connections:2} conn.: {path}"
            found = rows.setdefault(row, {cluster.name: Load() for cluster in made})
            for _ in range(rounds):
                for cluster in made:
                    name = cluster.name
                    socket = cluster.lab.socket("m1")
                    ask = functools.partial(load, socket, asked[name][path], connections=connections, busy=busy[name])
                    try:
                        found[name].add(ask(seconds=seconds))
                    except RuntimeError as cause:
                        print(f"  {name}: {cause}", file=sys.stderr, flush=True)
            told = ", ".join(f"{name} {one.quantile(0.5) * 1000:.2f} ms" for name, one in found.items() if one.seconds)
            print(f"  {row}: {told}", file=sys.stderr, flush=True)
    return rows


def fan_out(cluster: Cluster, *, watchers: int, events: int) -> dict[str, list[float]]:
    """Seconds until the last watcher has an event, and (their mean) of the daemon's processor for it."""
    spent = []
    busy, client = busy_of(cluster), cluster.client()
    query = "/events?filters=%7B%22type%22%3A%5B%22config%22%5D%7D"
    with Watchers(cluster.lab.socket("m1"), watchers, target=query) as listening:
        time.sleep(_SETTLE_S)
        before = busy()
        for _ in range(events):
            name = f"e{secrets.token_hex(6)}"
            body = {"Name": name, "Data": "eA==", "Labels": {}}
            tell = functools.partial(client.post, "/configs/create", body)
            try:
                spent.append(listening.hear(name.encode(), tell, patience_s=_LOST_S))
            except TimeoutError as cause:  # lost for these; the others are told of the next
                print(f"  {cluster.name}: event lost: {cause}", file=sys.stderr, flush=True)
        used = (busy() - before) / events
    row = f"event heard by the last of {watchers:,}"
    return {row: spent or [math.inf], f"{row}: daemon's CPU": [used]}


def command_line(cluster: Cluster, *, times: int) -> dict[str, list[float]]:
    """Seconds and processor seconds of the command's start, and of ``service ls``."""
    beside = Path(sys.executable).with_name("fleet")
    command = [str(beside)] if cluster.name == "fleet" and beside.exists() else list(cluster.command)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLEET_", "DOCKER_"))}
    rows: dict[str, list[float]] = {}
    for words in (("--version",), ("service", "ls")):
        for _ in range(times):
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.perf_counter()
            subprocess.run(
                [*command, *words], env={**kept, **cluster.lab.env("m1")}, stdout=subprocess.DEVNULL, check=True
            )
            spent = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            row = f"CLI {' '.join(words)}"
            rows.setdefault(row, []).append(spent)
            busy = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
            rows.setdefault(f"{row}: its CPU", []).append(busy)
    return rows


def stack_text(services: int, *, endpoint_mode: str) -> str:
    """A Compose file (JSON is YAML too)."""
    service = {
        "image": IMAGE,
        "command": [word.replace("$", "$$") for word in COMMAND],
        "deploy": {"replicas": 1, "endpoint_mode": endpoint_mode},
    }
    return json.dumps({"version": "3.8", "services": {f"s{number:03}": service for number in range(services)}})


def deploy_stack(cluster: Cluster, *, services: int) -> tuple[dict[str, list[float]], int]:
    """Seconds from the command to every task running, and of deploying the same file again; and how many services the latter
    wrote nevertheless. Raises ``RuntimeError`` if it touched any task."""
    name = f"b{secrets.token_hex(3)}"
    text = stack_text(services, endpoint_mode="dnsrr" if "dnsrr" in cluster.create_options else "vip")
    extra = ("--resolve-image", "never")

    def deploy() -> None:
        cluster.run("stack", "deploy", "--detach", *extra, "-c", "-", name, data=text.encode())

    def running() -> dict[str, Any]:
        tasks = cluster.client().get("/tasks", filters={"label": [f"com.docker.stack.namespace={name}"]})
        return {t["ID"]: t for t in tasks if t["DesiredState"] == t["Status"]["State"] == "running"}

    others = cluster.containers()
    start = time.perf_counter()
    deploy()
    commanded = time.perf_counter() - start
    spent = cluster.wait(lambda: len(running()) == services, what="the stack converged", poll_s=0.2) - start
    before, versions = set(running()), stack_versions(cluster, name)
    start = time.perf_counter()
    deploy()
    again = time.perf_counter() - start
    time.sleep(3)
    if set(running()) != before:
        raise RuntimeError(f"{cluster.name}: deploying an unchanged stack replaced tasks")
    written = sum(stack_versions(cluster, name)[id_] != version for id_, version in versions.items())
    cluster.run("stack", "rm", name)
    connect_anew([cluster])
    cluster.wait(lambda: cluster.containers() <= others, what="the stack's containers gone", poll_s=0.2)
    row = f"stack of {services}"
    return {
        f"{row}: command": [commanded],
        f"{row}: deployed to converged": [spent],
        f"{row}: deployed again": [again],
    }, written


def connect_anew(made: Sequence[Cluster]) -> None:
    """Daemons close connections that idled while the other cluster was measured."""
    for cluster in made:
        for client in cluster.clients.values():
            client.close()
        cluster.clients.clear()


def stack_versions(cluster: Cluster, name: str) -> dict[str, int]:
    """Service -> version."""
    found = cluster.client().get("/services", filters={"label": [f"com.docker.stack.namespace={name}"]})
    return {service["ID"]: service["Version"]["Index"] for service in found}


def show_answers(rows: Answers, names: Sequence[str]) -> None:
    """Milliseconds, answers a second, and processor time of an answer; the ratios are the peer's over fleet's."""
    head = "".join(f"{f'{name}: p50':>13}{'p99':>9}{'/s':>8}{'CPU':>8}" for name in names)
    print(f"{'milliseconds':36}{head}" + ("   p50 ratio   CPU ratio" if len(names) > 1 else ""))
    for row, found in rows.items():
        cells = "".join(
            f"{1000 * one.quantile(0.5):13.2f}{1000 * one.quantile(0.99):9.2f}{one.per_second:8.0f}"
            f"{1000 * one.busy_each_s:8.2f}"
            if one.seconds
            else f"{'refused':>13}{'-':>9}{'-':>8}{'-':>8}"
            for one in (found[name] for name in names)
        )
        ratios = ""
        if len(names) > 1 and all(found[name].seconds for name in names):
            own, peer = found[names[0]], found[names[1]]
            ratios = f"{peer.quantile(0.5) / own.quantile(0.5):11.1f}x"
            ratios += f"{peer.busy_each_s / own.busy_each_s:11.1f}x" if own.busy_each_s else ""
        print(f"{row:36}{cells}{ratios}")


def run(
    json_path: str | None = None,
    *,
    peer: bool | None = None,
    sizes: Sequence[int] = SIZES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    stack: int = STACK,
) -> None:
    """Print the tables; with ``json_path`` write the numbers there too. ``peer`` as in ``bench.services.run``."""
    beside = not swarm_peer.missing() if peer is None else peer
    if beside:
        print(f"beside {swarm_peer.version()}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    answers: Answers = {}
    rows: Rows = {}
    written: dict[str, int] = {}

    def note(cluster: Cluster, found: dict[str, list[float]]) -> None:
        for row, values in found.items():
            rows.setdefault(row, {}).setdefault(cluster.name, []).extend(values)
            told = f"{statistics.median(values):.3f}"
            print(f"  {cluster.name:6} {row}: {told}", file=sys.stderr, flush=True)

    background = [busy_percent()]
    with clusters(peer=beside, workers=1) as made:
        names = [cluster.name for cluster in made]
        for _ in range(STACK_RUNS if stack else 0):
            for cluster in made:
                connect_anew(made)
                found, written[cluster.name] = deploy_stack(cluster, services=stack)
                note(cluster, found)
        for cluster in made:
            connect_anew(made)
            note(cluster, fan_out(cluster, watchers=WATCHERS, events=EVENTS))
        for size in sizes:
            for cluster in made:
                connect_anew(made)
                pending_tasks(cluster, size)
            connect_anew(made)
            background.append(busy_percent())
            answers |= measure_answers(made, size, rounds=rounds, seconds=seconds)
        for cluster in made:
            note(cluster, command_line(cluster, times=COMMANDS))
        background.append(busy_percent())
    show_answers(answers, names)
    print()
    show(rows, names)
    for name, count in written.items():
        print(f"{name}: deploying an unchanged stack replaced no task and wrote {count} of {stack} services")
    print(f"other work on the machine: median {statistics.median(background):.0f} % of it")
    if not beside:
        print("dockerd not measured; python -m bench.api --peer does, and installs it if need be")
    if json_path is not None:
        numbers = {
            "answers": {
                row: {
                    name: {
                        "p50_s": one.quantile(0.5),
                        "p99_s": one.quantile(0.99),
                        "per_second": one.per_second,
                        "cpu_s": one.busy_each_s,
                        "answer_bytes": one.answer_bytes,
                    }
                    for name, one in found.items()
                    if one.seconds
                }
                for row, found in answers.items()
            },
            "seconds": rows,
            "written_by_unchanged_stack": written,
            "background_cpu_percent": background,
            "peer": swarm_peer.version() if beside else None,
        }
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each round of each request")
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=list(SIZES))
    parser.add_argument("--stack", type=int, default=STACK, help="services of the stack; 0: none")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, help="dockerd too, installed if need be")
    options = parser.parse_args(arguments)
    if options.peer and swarm_peer.missing():
        swarm_peer.install()
    run(
        options.json,
        peer=options.peer,
        sizes=options.sizes,
        rounds=options.rounds,
        seconds=options.seconds,
        stack=options.stack,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
