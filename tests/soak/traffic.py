"""Clients that open 200 connections a second see no error while a service is updated, scaled and moved about.

A manager and two workers run ``web`` (virtual address, published port) and ``rr`` (names only), ten replicas each with a health
check; their program ends ``--drain`` seconds after it is told to, at once without. Three clients ask all the time, each request a
connection of its own: a container by web's virtual address, a container by rr's names, and a host by the published port of every
node in turn. Meanwhile: updates (stop-first and start-first), scaling up and down, a node drained and active again, daemons
killed. Every request that fails is told with its time and what was done then. At rest before, ten thousand connections are
counted by task. Prints a table; exit code 1 when a request failed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from support.lab import TestLab

IMAGE: Final = "fleet/hello:1"
PORT: Final = 8080
PUBLISHED: Final = 8088
REPLICAS: Final = 10
RATE: Final = 200
BALANCED: Final = 10_000
ANSWER_S: Final = 10.0
"""After which a request has failed. Generous: a connection that hangs does so for minutes."""
PROBE: Final = Path(__file__).with_name("traffic_probe.py").read_text()
_SERVE: Final = f"mkdir -p /www; hostname > /www/index.html; httpd -f -h /www -p {PORT} & "
_UNTIL_TOLD: Final = "while :; do sleep 1 & wait $!; done"


@dataclass
class Client:
    """Asks until ``stop``; ``said`` is what it answered then."""

    name: str
    process: subprocess.Popen[str]
    said: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> None:
        out, errors = self.process.communicate(timeout=60)
        if self.process.returncode:
            raise RuntimeError(f"the client {self.name} ended with {self.process.returncode}: {errors}")
        self.said = json.loads(out)


@dataclass
class Traffic:
    """What the clients saw, and what was done when (seconds since the epoch)."""

    clients: list[Client]
    done: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """A sentence for each request that failed."""
        return [
            f"{client.name}: {target}: {why}, {self._meanwhile(at)}"
            for client in self.clients
            for at, target, why in client.said["failures"]
        ]

    def _meanwhile(self, at: float) -> str:
        for began, ended, what in self.done:
            if began <= at <= ended + 1:
                return f"{at - began:.1f} s into '{what}' ({ended - began:.1f} s long)"
        return "while nothing was done"

    def table(self) -> str:
        rows = [f"{'client':<28}{'asked':>8}{'failed':>8}{'fell back':>11}{'p99 ms':>8}{'slowest ms':>12}"]
        for client in self.clients:
            said = client.said
            p99, slowest = (f"{(said[key] or 0) * 1e3:.1f}" for key in ("p99_s", "slowest_s"))
            rows.append(
                f"{client.name:<28}{said['asked']:>8}{len(said['failures']):>8}{said['late']:>11}{p99:>8}{slowest:>12}"
            )
        return "\n".join(rows)


class World:
    """A lab with both services and a guest container on their network."""

    def __init__(self, lab: TestLab, *, replicas: int = REPLICAS, drain_s: float = 0) -> None:
        """``drain_s``: how long the program goes on answering after it was told to stop."""
        self.lab = lab
        self.replicas = replicas
        self.drain_s = drain_s
        self.guest = ""

    def prepare(self) -> None:
        self.lab.fleet("network", "create", "-d", "overlay", "--attachable", "traffic")
        health = ("--health-cmd", f"wget -q -O- http://127.0.0.1:{PORT}/", "--health-interval", "1s")
        common = ("--replicas", str(self.replicas), "--network", "traffic", "--update-parallelism", "2", *health)
        for name, flags in {
            "web": ("--publish", f"{PUBLISHED}:{PORT}"),
            "rr": ("--endpoint-mode", "dnsrr"),
        }.items():
            script = f"{_SERVE}trap 'sleep {self.drain_s:g}; exit 0' TERM; {_UNTIL_TOLD}"
            create = ("service", "create", "--detach", "--name", name, *common, *flags, IMAGE, "sh", "-c", script)
            self.lab.fleet(*create)
        self.settle()
        name = f"guest-{secrets.token_hex(2)}"
        self.lab.fleet("run", "-d", "--name", name, "--network", "traffic", IMAGE, "sleep", "86400", host="w1")
        pid = self.lab.get(f"/containers/{name}/json", host="w1")["State"]["Pid"]
        self.guest = f"/proc/{pid}/ns/net"

    def settle(self) -> None:
        self.lab.wait_until(lambda: all(map(self._is_at_rest, ("web", "rr"))), 180, what="both services are at rest")

    def _is_at_rest(self, name: str) -> bool:
        service = self.lab.get(f"/services/{name}")
        wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"]
        moving = [t for t in self.lab.get("/tasks", filters={"service": [name]}) if t["DesiredState"] == "running"]
        update = service.get("UpdateStatus", {}).get("State", "completed")
        return update == "completed" and [t["Status"]["State"] for t in moving] == ["running"] * wanted

    def client(self, name: str, host: str, targets: list[tuple[str, int]], *, netns: str = "", rate: int) -> Client:
        inside = ["nsenter", f"--net={netns}", "--"] if netns else []
        command = self.lab.command(host, [*inside, sys.executable, "-I", "-S", "-c", PROBE])
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stdin is not None
        order = {"targets": targets, "rate": rate, "timeout_s": ANSWER_S}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return Client(name, process)

    @contextmanager
    def asked(self, *, rate: int = RATE) -> Iterator[Traffic]:
        """All three clients ask until the end; then their answers are there."""
        doors = [(self.lab.address(host), PUBLISHED) for host in self.lab.hosts()]
        traffic = Traffic(
            [
                self.client("virtual address", "w1", [("web", PORT)], netns=self.guest, rate=rate),
                self.client("names, dnsrr", "w1", [("rr", PORT)], netns=self.guest, rate=rate),
                self.client("published port, every node", "w2", doors, rate=rate),
            ]
        )
        try:
            yield traffic
        finally:
            for client in traffic.clients:
                client.stop()

    def balance(self, connections: int) -> dict[str, int]:
        """Connections by task, made at rest by the virtual address."""
        client = self.client("balance", "w1", [("web", PORT)], netns=self.guest, rate=RATE * 3)
        time.sleep(connections / (RATE * 3))
        client.stop()
        if client.said["failures"]:
            raise RuntimeError(f"balance: {client.said['failures'][:3]}")
        return dict(client.said["answers"])

    # -- what is done meanwhile

    def update(self, order: str) -> None:
        for name in ("web", "rr"):
            self.lab.fleet("service", "update", "--detach", "--force", "--update-order", order, name)

    def scale(self, replicas: int) -> None:
        self.lab.fleet("service", "scale", "--detach", f"web={replicas}", f"rr={replicas}")

    def drain(self, host: str) -> None:
        self.lab.fleet("node", "update", "--availability", "drain", host)

    def activate(self, host: str) -> None:
        self.lab.fleet("node", "update", "--availability", "active", host)

    def kill_daemon(self, host: str) -> None:
        self.lab.restart_daemon(host, signum=signal.SIGKILL)

    def steps(self, updates: int) -> Iterator[tuple[str, Callable[[], None]]]:
        """What to do one after the other, each followed by rest."""
        more, fewer = self.replicas * 2, max(self.replicas // 3, 1)
        for number in range(updates):
            order = ("stop-first", "start-first")[number % 2]
            yield f"update {number + 1}, {order}", partial(self.update, order)
        yield f"scale to {more}", partial(self.scale, more)
        yield f"scale to {fewer}", partial(self.scale, fewer)
        yield f"scale to {self.replicas}", partial(self.scale, self.replicas)
        yield "drain w2", partial(self.drain, "w2")
        yield "w2 is active again", partial(self.activate, "w2")
        yield f"scale to {more}", partial(self.scale, more)
        for host in ("w2", "m1"):
            yield f"kill the daemon of {host}", partial(self.kill_daemon, host)
        yield f"scale to {self.replicas}", partial(self.scale, self.replicas)


def live_through(world: World, traffic: Traffic, *, updates: int, say: Callable[[str], None] = print) -> None:
    for what, act in world.steps(updates):
        began = time.time()
        act()
        world.settle()
        traffic.done.append((began, time.time(), what))
        say(f"  {what}: {time.time() - began:.1f} s")
        time.sleep(0.5)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/traffic", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rate", type=int, default=RATE, help="connections a second of each client")
    parser.add_argument("--balance", type=int, default=BALANCED, metavar="N", help="connections to count by task")
    parser.add_argument(
        "--drain", type=float, default=0, metavar="S", help="how long the program answers after SIGTERM"
    )
    told = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        lab = TestLab(f"traffic{secrets.token_hex(2)}", root=Path(folder))
        try:
            lab.up(managers=1, workers=2)
            for host in lab.hosts():
                lab.load_hello(host)
            world = World(lab, drain_s=told.drain)
            world.prepare()
            counts = world.balance(told.balance)
            even = sum(counts.values()) / REPLICAS
            worst = max(abs(count - even) / even for count in counts.values())
            print(
                f"{sum(counts.values())} connections to {len(counts)} tasks, at most {worst:.1%} from even", flush=True
            )
            with world.asked(rate=told.rate) as traffic:
                live_through(world, traffic, updates=told.updates, say=lambda line: print(line, flush=True))
        finally:
            lab.down()
    print(traffic.table())
    for failure in traffic.failures[:40]:
        print(f"FAILED: {failure}")
    return 1 if traffic.failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
