"""Change and break a cluster's networks at random; at each quiet moment names lead to exactly what runs.

Managers m1-m3, workers w1 and w2. Each round does a few random things at once - networks, services and containers come, change
and go; fleetd is killed, a host loses power or is cut off, the leader is lost, a node is drained - then waits until the cluster
has come to rest (hosts that are away stay away until a later round) and looks, from inside every container on every host: each
name, slot name, alias and ``tasks.`` name resolves to exactly the running tasks or the virtual address, reverse names match,
virtual addresses reach each backend and nothing else, whoever shares a network can connect and others cannot, names that are gone
stay gone, and published ports answer at each host for exactly the tasks behind. Prints what it did, how long it took to be right,
and the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from support.lab import TestLab

from fleet import errors
from soak import name_picture
from soak.name_picture import PORT, Picture

IMAGE: Final = "fleet/hello:1"
_SERVE: Final = f"mkdir -p /www; hostname > /www/index.html; httpd -f -h /www -p {PORT} & "
SERVER: Final = ("sh", "-c", _SERVE + "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")
SETTLE_S: Final = 120.0
"""Generous: a host that is away is down only after some heartbeats, and all of it shares few processors."""
AGREE_S: Final = 30.0
"""From rest to what every host answers: what the managers know has to get there."""
NETWORKS, SERVICES, GUESTS, REPLICAS = 4, 5, 4, 4
PROBE: Final = Path(__file__).with_name("name_probe.py").read_text()


class World:
    """The lab, what may be done to it, and which hosts are away."""

    def __init__(self, lab: TestLab, chance: random.Random, *, calm: bool = False) -> None:
        """``calm``: people change things, and nothing breaks but daemons."""
        self.lab = lab
        self.chance = chance
        self._looking = random.Random(chance.random())
        """Of its own, so that how often it looked does not change what is done next."""
        self.away: dict[str, Callable[[], None]] = {}
        """Hosts that are off or cut off, and what brings each back."""
        self.done: Counter[str] = Counter()
        self.names: set[str] = set()
        """Every name there ever was."""
        self._count = 0
        self.kinds: tuple[tuple[Callable[[], str], int], ...] = (
            (self._create_network, 3),
            (self._remove_network, 2),
            (self._create_service, 5),
            (self._scale, 4),
            (self._update, 4),
            (self._remove_service, 2),
            (self._run_container, 3),
            (self._connect, 3),
            (self._disconnect, 2),
            (self._remove_container, 1),
            (self._kill_daemon, 1 if calm else 3),
            *(() if calm else self._misfortunes()),
        )

    def _misfortunes(self) -> tuple[tuple[Callable[[], str], int], ...]:
        return (
            (self._lose_power, 1),
            (self._cut_off, 1),
            (self._lose_leader, 1),
            (self._come_back, 4),
            (self._drain, 2),
        )

    @property
    def hosts(self) -> list[str]:
        return self.lab.hosts()

    @property
    def managers(self) -> list[str]:
        return [h for h in self.hosts if h.startswith("m")]

    @property
    def present(self) -> list[str]:
        return [h for h in self.hosts if h not in self.away]

    @property
    def via(self) -> str:
        return self._looking.choice([h for h in self.managers if h not in self.away])

    def act(self) -> str:
        kinds, weights = zip(*self.kinds, strict=True)
        kind = self.chance.choices(kinds, weights)[0]
        self.done[kind.__name__.removeprefix("_").replace("_", " ")] += 1
        try:
            return str(kind())
        except (errors.FleetError, OSError) as cause:  # refused, or nobody there to ask: what is, is read afterwards
            return f"{kind.__name__.removeprefix('_')}: {cause}"

    # -- what people do

    def _ask(self, method: str, path: str, body: object = None, *, host: str = "", **query: object) -> Any:
        with self.lab.client(host or self.via, timeout_s=20) as client:
            return client.request(method, path, json_body=body, query=query)

    def _some(self, path: str, *, host: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", path, host=host)
        return found

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def _networks(self) -> list[dict[str, Any]]:
        found = self._some("/networks")
        return [n for n in found if n["Driver"] == "overlay" and n["Scope"] == "swarm" and not n["Ingress"]]

    def _create_network(self) -> str:
        if len(self._networks()) >= NETWORKS:
            return "enough networks"
        name = self._name("net")
        internal = self.chance.random() < 0.2
        self._ask(
            "POST",
            "/networks/create",
            {"Name": name, "Driver": "overlay", "Attachable": True, "Internal": internal},
        )
        return f"network {name} made{' (internal)' if internal else ''}"

    def _remove_network(self) -> str:
        networks = self._networks()
        if not networks:
            return "no network to remove"
        network = self.chance.choice(networks)
        self._ask("DELETE", f"/networks/{network['Id']}")
        return f"network {network['Name']} removed"

    def _wishes(self) -> list[dict[str, Any]]:
        networks = self._networks()
        chosen = self.chance.sample(networks, min(len(networks), self.chance.choice((1, 1, 2))))
        return [
            {"Target": n["Id"], "Aliases": self.chance.choice(([], ["shared"], [self._name("alias")]))} for n in chosen
        ]

    def _create_service(self) -> str:
        if len(self._some("/services")) >= SERVICES:
            return "enough services"
        name = self._name("svc")
        mode: dict[str, Any] = {"Replicated": {"Replicas": self.chance.randint(0, REPLICAS)}}
        if self.chance.random() < 0.2:
            mode = {"Global": {}}
        endpoint: dict[str, Any] = {"Mode": "vip"}
        if self.chance.random() < 0.3:
            endpoint = {"Mode": "dnsrr"}
        elif self.chance.random() < 0.5:
            endpoint["Ports"] = [self._port()]
        spec = {
            "Name": name,
            "Mode": mode,
            "EndpointSpec": endpoint,
            "TaskTemplate": {
                "ContainerSpec": {"Image": IMAGE, "Command": list(SERVER), "StopGracePeriod": 2_000_000_000},
                "RestartPolicy": {"Condition": "any", "Delay": 0},
                "Networks": self._wishes(),
            },
            "Labels": {"fleet.publish.source": self.chance.choice(("client", "node"))},
            "UpdateConfig": {"Order": self.chance.choice(("start-first", "stop-first")), "Parallelism": 2},
        }
        self._ask("POST", "/services/create", spec)
        on = len(spec["TaskTemplate"]["Networks"])  # type: ignore[index]
        return f"service {name} made: {json.dumps(mode)}, {json.dumps(endpoint)}, on {on} networks"

    def _port(self) -> dict[str, Any]:
        return {
            "Protocol": "tcp",
            "TargetPort": PORT,
            "PublishedPort": self.chance.randint(9000, 9100),
            "PublishMode": "ingress",
        }

    def _service(self) -> dict[str, Any] | None:
        services = self._some("/services")
        return self.chance.choice(services) if services else None

    def _change(self, service: dict[str, Any], spec: dict[str, Any]) -> None:
        self._ask("POST", f"/services/{service['ID']}/update", spec, version=service["Version"]["Index"])

    def _scale(self) -> str:
        service = self._service()
        if service is None or "Replicated" not in service["Spec"]["Mode"]:
            return "no service to scale"
        replicas = self.chance.randint(0, REPLICAS)
        spec = {**service["Spec"], "Mode": {"Replicated": {"Replicas": replicas}}}
        self._change(service, spec)
        return f"service {spec['Name']} scaled to {replicas}"

    def _update(self) -> str:
        service = self._service()
        if service is None:
            return "no service to update"
        spec = service["Spec"]
        what = self.chance.choice(("force", "networks", "ports", "mode"))
        template, endpoint = dict(spec["TaskTemplate"]), dict(spec.get("EndpointSpec") or {"Mode": "vip"})
        if what == "force":
            template["ForceUpdate"] = template.get("ForceUpdate", 0) + 1
        elif what == "networks":
            template["Networks"] = self._wishes()
        elif what == "ports" and endpoint.get("Mode") == "vip":
            endpoint["Ports"] = [] if endpoint.get("Ports") else [self._port()]
        elif what == "mode":
            endpoint = {"Mode": "vip" if endpoint.get("Mode") == "dnsrr" else "dnsrr"}
        self._change(service, {**spec, "TaskTemplate": template, "EndpointSpec": endpoint})
        return f"service {spec['Name']} updated: {what} {json.dumps(endpoint)}"

    def _remove_service(self) -> str:
        service = self._service()
        if service is None:
            return "no service to remove"
        self._ask("DELETE", f"/services/{service['ID']}")
        return f"service {service['Spec']['Name']} removed"

    def _guests(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            (host, c)
            for host in self.present
            for c in self._some("/containers/json", host=host)
            if "com.docker.swarm.task.id" not in c["Labels"]
        ]

    def _run_container(self) -> str:
        networks = self._networks()
        if not networks or len(self._guests()) >= GUESTS:
            return "no room for a container"
        name, host, network = self._name("box"), self.chance.choice(self.present), self.chance.choice(networks)
        body = {
            "Image": IMAGE,
            "Entrypoint": list(SERVER),
            "HostConfig": {"NetworkMode": network["Name"], "RestartPolicy": {"Name": "always"}},
            "NetworkingConfig": {"EndpointsConfig": {network["Name"]: {"Aliases": [self._name("alias")]}}},
        }
        self._ask("POST", "/containers/create", body, host=host, name=name)
        self._ask("POST", f"/containers/{name}/start", host=host)
        return f"container {name} at {host} on {network['Name']}"

    def _connect(self) -> str:
        guests, networks = self._guests(), self._networks()
        if not guests or not networks:
            return "nothing to connect"
        (host, guest), network = self.chance.choice(guests), self.chance.choice(networks)
        body = {"Container": guest["Id"], "EndpointConfig": {"Aliases": ["shared-box"]}}
        self._ask("POST", f"/networks/{network['Name']}/connect", body, host=host)
        return f"container {guest['Names'][0]} at {host} connected to {network['Name']}"

    def _disconnect(self) -> str:
        guests = [(h, g) for h, g in self._guests() if g["NetworkSettings"]["Networks"]]
        if not guests:
            return "nothing to disconnect"
        host, guest = self.chance.choice(guests)
        network = self.chance.choice(sorted(guest["NetworkSettings"]["Networks"]))
        self._ask("POST", f"/networks/{network}/disconnect", {"Container": guest["Id"]}, host=host)
        return f"container {guest['Names'][0]} at {host} disconnected from {network}"

    def _remove_container(self) -> str:
        guests = self._guests()
        if not guests:
            return "no container to remove"
        host, guest = self.chance.choice(guests)
        self._ask("DELETE", f"/containers/{guest['Id']}", host=host, force=True)
        return f"container {guest['Names'][0]} at {host} removed"

    def _drain(self) -> str:
        nodes = [n for n in self._some("/nodes") if n["Description"]["Hostname"] in self.present]
        drained = [n for n in nodes if n["Spec"]["Availability"] == "drain"]
        node = self.chance.choice(drained) if drained else self.chance.choice(nodes)
        availability = "active" if drained else "drain"
        spec = {**node["Spec"], "Availability": availability}
        self._ask("POST", f"/nodes/{node['ID']}/update", spec, version=node["Version"]["Index"])
        return f"{node['Description']['Hostname']} is {availability}"

    # -- what happens to them

    def _kill_daemon(self) -> str:
        host = self.chance.choice(self.present)
        self.lab.signal_daemon(host, signal.SIGKILL)
        seconds = self.chance.uniform(0, 3)
        time.sleep(seconds)
        self.lab.start_daemon(host)
        return f"fleetd of {host} killed, away for {seconds:.1f} s"

    def _may_leave(self, host: str) -> bool:
        left = [m for m in self.managers if m not in self.away and m != host]
        return not self.away and len(left) > len(self.managers) // 2

    def _lose(self, host: str) -> str:
        if not self._may_leave(host):
            return f"{host} has to stay"
        self.lab.kill(host)
        self.away[host] = lambda: self.lab.start(host)
        return f"{host} lost power"

    def _lose_power(self) -> str:
        return self._lose(self.chance.choice(self.present))

    def _lose_leader(self) -> str:
        nodes = self._some("/nodes")
        leader = next(n for n in nodes if (n.get("ManagerStatus") or {}).get("Leader"))
        return f"leader: {self._lose(leader['Description']['Hostname'])}"

    def _cut_off(self) -> str:
        host = self.chance.choice(self.present)
        if not self._may_leave(host):
            return f"{host} has to stay"
        self.lab.partition([host], [h for h in self.hosts if h != host])
        self.away[host] = self.lab.heal
        return f"{host} cut off"

    def _come_back(self) -> str:
        if not self.away:
            return "nobody is away"
        host, back = self.away.popitem()
        back()
        return f"{host} is back"

    def clear(self) -> None:
        """Remove everything it may have made; all hosts must be there."""
        for service in self._some("/services"):
            self._ask("DELETE", f"/services/{service['ID']}")
        for host, guest in self._guests():
            self._ask("DELETE", f"/containers/{guest['Id']}", host=host, force=True)
        for network in self._networks():
            self._ask("DELETE", f"/networks/{network['Id']}")

    # -- looking

    def rest(self, deadline_s: float = SETTLE_S) -> tuple[Picture, str]:
        """Wait until the cluster is at rest; the picture, and why it never was."""
        end = time.monotonic() + deadline_s
        while True:
            picture, why = Picture(), ""
            try:
                picture = name_picture.look_at(self.lab, via=self.via, present=self.present)
                why = picture.unsettled
            except (errors.FleetError, OSError, KeyError) as cause:
                why = f"{type(cause).__name__}: {cause}"
            if not why:
                return picture, ""
            if time.monotonic() > end:
                return picture, why
            time.sleep(0.3)

    def check(self, deadline_s: float = AGREE_S) -> tuple[list[str], str]:
        """What is still wrong after ``deadline_s`` (seconds) at rest, and a sentence about how it went."""
        began = time.monotonic()
        picture, why = self.rest()
        if why:
            return [f"not at rest after {SETTLE_S:g} s: {why}"], ""
        rested, looks, last = time.monotonic(), 0, 0.0
        first = ""
        while True:
            looks += 1
            last = time.monotonic()
            found = self._looked(picture)
            if not found or last - rested > deadline_s:
                break
            first = first or f"; at first {found[0]}, and {len(found) - 1} more"
            time.sleep(0.5)
            picture, why = self.rest()  # nothing should move any more; if it did, it is the new state that counts
            if why:
                return [f"left its rest: {why}", *found], ""
        for network in picture.names.values():
            self.names |= network.keys()
        agreed = last - rested
        return (
            found,
            f"at rest after {rested - began:.1f} s, right {agreed:.1f} s later ({looks} looks): {picture.summary}{first}",
        )

    def _looked(self, picture: Picture) -> list[str]:
        addresses = {host: self.lab.address(host) for host in self.present}
        asked = name_picture.seats(picture, self._looking, gone=self.names, addresses=addresses)
        answers: dict[str, list[dict[str, Any]]] = {}

        def probe(host: str) -> None:
            done = self.lab.exec(
                host, [sys.executable, "-I", "-S", "-c", PROBE], stdin=json.dumps({"seats": asked[host]}), check=False
            )
            with contextlib.suppress(ValueError):
                answers[host] = json.loads(done.stdout)["seats"]
            if done.stderr:
                print(f"probe at {host}: {done.stderr}", file=sys.stderr)

        with ThreadPoolExecutor(len(asked)) as pool:
            list(pool.map(probe, asked))
        return name_picture.wrong(picture, asked, answers)


def prepare(lab: TestLab, *, managers: int, workers: int) -> None:
    lab.up(managers=managers, workers=workers)
    for host in lab.hosts():
        lab.load_hello(host)


def run(*, minutes: float, seed: int, keep: Path | None, rounds: int = 0) -> int:
    """Exit code: 1 when something is wrong."""
    print(f"names: seed {seed}, {minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = TestLab(f"names{secrets.token_hex(2)}", root=Path(folder))
        try:
            prepare(lab, managers=3, workers=2)
            world = World(lab, random.Random(seed))
            found = live_through(world, end=time.monotonic() + minutes * 60, rounds=rounds)
            if keep is not None and found:
                for host in lab.hosts():
                    (keep / f"{host}.log").write_bytes(lab.layout.log(host).read_bytes())
        finally:
            lab.down()
    print(f"done: {dict(world.done)}")
    print("names: nothing wrong" if not found else f"names: {len(found)} wrong; again with --seed {seed}")
    return 1 if found else 0


def live_through(world: World, *, end: float, rounds: int = 0) -> list[str]:
    """Ends at the first round that leaves something wrong: what comes after would be its consequence."""
    began, number = time.monotonic(), 0
    while time.monotonic() < end and (not rounds or number < rounds):
        number += 1
        for _ in range(world.chance.randint(1, 5)):
            print(f"  {time.monotonic() - began:6.1f} s  {world.act()}", flush=True)
            time.sleep(world.chance.choice((0, 0, 0.2, 1.0)))
        found, how = world.check()
        print(f"  {time.monotonic() - began:6.1f} s  = round {number}: {how or 'WRONG'}", flush=True)
        for problem in found:
            print(f"WRONG: {problem}", flush=True)
        if found:
            return found
    return []


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/names", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=0, help="end after so many (without: by time)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy the daemons' logs there when something is wrong")
    told = parser.parse_args(arguments)
    return run(minutes=told.minutes, seed=told.seed, keep=told.keep, rounds=told.rounds)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
