"""Break a cluster for some minutes, then see that nothing it acknowledged is lost and that it is what it should be.

Managers m1-m3 with fleet's own etcd, workers w1-w3. Two services run. Clients write through random managers. Meanwhile, one after
the other: SIGKILL for a fleetd, an etcd, a supervisor, a container's process; SIGSTOP for some seconds; a partition between
random hosts, one-way at times; a loss of power; a disk filled to the last block (each host has its own). Prints what it did, what
it found, and the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from support.lab import TestLab

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from soak.history import History, Outcome, Write

MANAGERS: Final = ("m1", "m2", "m3")
WORKERS: Final = ("w1", "w2", "w3")
HOSTS: Final = (*MANAGERS, *WORKERS)
OBJECTS: Final = 5
CLIENTS: Final = 4
REPLICAS: Final = 6
SLEEP: Final = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")
CONVERGE_S: Final = 180.0
DISK_BYTES: Final = 800 << 20


class Clients:
    """Threads that write until they are stopped."""

    def __init__(self, lab: TestLab, history: History, seed: int) -> None:
        self._lab = lab
        self._history = history
        self._seed = seed
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(CLIENTS)]
        self.outcomes: Counter[str] = Counter()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        count = 0
        while not self._stop.is_set():
            count += 1
            url = f"unix://{self._lab.layout.socket(chance.choice(MANAGERS))}"
            client = EngineClient(url, timeout_s=10.0)
            try:
                if chance.random() < 0.3:
                    self._create(client, f"c{number}-{count}")
                else:
                    self._swap(client, f"object{chance.randrange(OBJECTS)}", f"{number}-{count}")
            finally:
                client.close()
            self._stop.wait(chance.random() * 0.05)

    def _create(self, client: EngineClient, name: str) -> None:
        outcome = self._tried(lambda: client.post("/configs/create", {"Name": name, "Data": "eA=="}))
        self._history.note_creation(name, outcome)

    def _swap(self, client: EngineClient, name: str, value: str) -> None:
        began = time.monotonic()
        try:
            found = client.get(f"/configs/{name}")
        except (errors.FleetError, OSError):
            self.outcomes["not read"] += 1
            return
        version = found["Version"]["Index"]
        spec = {**found["Spec"], "Labels": {"value": value}}
        outcome = self._tried(lambda: client.post(f"/configs/{found['ID']}/update", spec, version=version))
        self._history.add(
            Write(key=name, version=version, value=value, began=began, ended=time.monotonic(), outcome=outcome)
        )

    def _tried(self, call: Callable[[], object]) -> Outcome:
        outcome: Outcome
        try:
            call()
            outcome = "acknowledged"
        except EngineError as cause:
            # What says that nothing was written is believed; anything else may have happened.
            told = "out of sequence" in str(cause) or "othing was" in str(cause) or "already exists" in str(cause)
            outcome = "refused" if told else "unknown"
        except (errors.FleetError, OSError):
            outcome = "unknown"
        self.outcomes[outcome] += 1
        return outcome


class Nemesis:
    """One misfortune after the other, each ended before the next begins."""

    def __init__(self, lab: TestLab, chance: random.Random, *, only: tuple[str, ...] = ()) -> None:
        self._lab = lab
        self._chance = chance
        self.done: Counter[str] = Counter()
        kinds: tuple[tuple[Callable[[], str], int], ...] = (
            (self._kill_daemon, 4),
            (self._kill_etcd, 3),
            (self._kill_supervisor, 2),
            (self._kill_container, 2),
            (self._pause, 3),
            (self._partition, 4),
            (self._lose_power, 2),
            (self._fill_disk, 3),
        )
        self._kinds = tuple((kind, weight) for kind, weight in kinds if not only or _spoken(kind) in only)
        if not self._kinds or len(self._kinds) < len(only):
            raise SystemExit(f"--only: there is {', '.join(_spoken(kind) for kind, _ in kinds)}")

    def strike(self) -> str:
        kinds, weights = zip(*self._kinds, strict=True)
        kind = self._chance.choices(kinds, weights)[0]
        self.done[_spoken(kind)] += 1
        return str(kind())

    def _kill_daemon(self) -> str:
        host = self._chance.choice(HOSTS)
        self._lab.signal_daemon(host, signal.SIGKILL)
        time.sleep(self._chance.uniform(0, 4))
        self._lab.start_daemon(host)
        return f"fleetd of {host} killed and started"

    def _kill_etcd(self) -> str:
        return self._kill_process(self._chance.choice(MANAGERS), b"--data-dir=", "etcd")

    def _kill_supervisor(self) -> str:
        return self._kill_process(self._chance.choice(HOSTS), b"supervisor", "supervisor")

    def _kill_process(self, host: str, word: bytes, what: str) -> str:
        pid = self._find(host, word)
        if not pid:
            return f"no {what} at {host} to kill"
        _signal(pid, signal.SIGKILL)
        return f"{what} of {host} killed"

    def _kill_container(self) -> str:
        host = self._chance.choice(HOSTS)
        with contextlib.suppress(errors.FleetError, OSError):
            found = self._lab.get("/containers/json", host=host)
            if found:
                name = self._chance.choice(found)["Id"]
                with self._lab.client(host) as client:
                    client.post(f"/containers/{name}/kill")
                return f"a container at {host} killed"
        return f"no container at {host} to kill"

    def _pause(self) -> str:
        host, seconds = self._chance.choice(HOSTS), self._chance.uniform(0.5, 8)
        what = self._chance.choice((b"--data-dir=", b"fleet.daemon", b"fleetd"))
        pid = self._find(host, what)
        if not pid:
            return f"nothing at {host} to pause"
        _signal(pid, signal.SIGSTOP)
        time.sleep(seconds)
        _signal(pid, signal.SIGCONT)
        return f"{what.decode()} of {host} paused for {seconds:.1f} s"

    def _partition(self) -> str:
        hosts = list(HOSTS)
        self._chance.shuffle(hosts)
        cut = self._chance.randint(1, 3)
        one_way = self._chance.random() < 0.3
        self._lab.partition(hosts[:cut], hosts[cut:], one_way=one_way)
        seconds = self._chance.uniform(2, 12)
        time.sleep(seconds)
        self._lab.heal()
        return f"{', '.join(hosts[:cut])} cut off{' one way' if one_way else ''} for {seconds:.1f} s"

    def _lose_power(self) -> str:
        host = self._chance.choice(HOSTS)
        self._lab.kill(host)
        time.sleep(self._chance.uniform(0, 8))
        self._lab.start(host)
        return f"{host} lost power and came back"

    def _fill_disk(self) -> str:
        host, seconds = self._chance.choice(HOSTS), self._chance.uniform(1, 15)
        data = self._lab.layout.data(host)
        fill = (
            f"fallocate -l $(df -B1 --output=avail {data} | tail -n 1) {data}/filler; "
            f"dd if=/dev/zero of={data}/filler-rest bs=4096 conv=notrunc oflag=append; df -B1 --output=avail {data} | tail -n 1"
        )
        left = self._lab.exec(host, ["sh", "-c", fill], check=False).stdout.strip()
        time.sleep(seconds)
        self._lab.exec(host, ["rm", "-f", f"{data}/filler", f"{data}/filler-rest"])
        return f"disk of {host} full ({left} bytes left) for {seconds:.1f} s"

    def _find(self, host: str, word: bytes) -> int:
        """A process of the host with the word in its command line that names the host's folders; 0 if there is none."""
        place = str(self._lab.layout.host_folder(host)).encode()
        run = str(self._lab.layout.exec_root(host)).encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if word in line and (place + b"/" in line or run in line):
                    return int(entry.name)
        return 0


def _spoken(kind: Callable[[], str]) -> str:
    return kind.__name__.removeprefix("_").replace("_", " ")


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def prepare(lab: TestLab) -> None:
    lab.up(managers=3, workers=3)
    lab.load_hello()
    lab.fleet(
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        str(REPLICAS),
        "--restart-delay",
        "0s",
        "fleet/hello:1",
        *SLEEP,
    )
    lab.fleet(
        "service", "create", "--name", "all", "--mode", "global", "--restart-delay", "0s", "fleet/hello:1", *SLEEP
    )
    for number in range(OBJECTS):
        lab.fleet("config", "create", f"object{number}", "-", stdin="x")


def converged(lab: TestLab) -> str:
    """Empty when the cluster is exactly what it should be; else what is not."""
    nodes = lab.get("/nodes")
    states = {n["Description"]["Hostname"]: n["Status"]["State"] for n in nodes}
    if states != dict.fromkeys(HOSTS, "ready"):
        return f"nodes: {states}"
    statuses = [n["ManagerStatus"] for n in nodes if n.get("ManagerStatus")]
    standing = sorted("leader" if status.get("Leader") else status["Reachability"] for status in statuses)
    if standing != ["leader", "reachable", "reachable"]:
        return f"managers: {standing}"
    for host in MANAGERS:
        if not lab.get("/info", host=host)["Swarm"]["ControlAvailable"]:
            return f"{host} has no control"
    names = {s["ID"]: s["Spec"]["Name"] for s in lab.get("/services")}
    wanted = [t for t in lab.get("/tasks") if t["DesiredState"] == "running"]
    running = Counter(names[t["ServiceID"]] for t in wanted if t["Status"]["State"] == "running")
    if running != {"web": REPLICAS, "all": len(HOSTS)} or len(wanted) != REPLICAS + len(HOSTS):
        return f"tasks running: {dict(running)}, wanted in all {len(wanted)}"
    should = {t["Status"]["ContainerStatus"]["ContainerID"] for t in wanted}
    there = {c["Id"] for host in HOSTS for c in lab.get("/containers/json", host=host)}
    if there != should:
        return f"containers: {len(there - should)} too many, {len(should - there)} missing"
    # Each manager answers from its own copy: one whose disk was full a moment ago may be behind, and look whole.
    views = [contents(lab, host) for host in MANAGERS]
    if any(view != views[0] for view in views):
        return f"the managers disagree: {[len(names) for _, names in views]} configs are shown"
    return ""


def contents(lab: TestLab, host: str) -> tuple[dict[str, str], set[str]]:
    configs = lab.get("/configs", host=host)
    values = {c["Spec"]["Name"]: (c["Spec"].get("Labels") or {}).get("value", "") for c in configs}
    return {name: value for name, value in values.items() if name.startswith("object")}, set(values)


def judged(lab: TestLab, history: History) -> list[str]:
    """What is wrong with what the managers show, by the first of them that shows anything."""
    found: list[str] = []
    views: dict[str, Any] = {}
    for host in MANAGERS:
        try:
            views[host] = contents(lab, host)
        except (errors.FleetError, OSError) as cause:
            found.append(f"{host} shows nothing: {cause}")
    if not views:
        return found
    first = next(iter(views))
    values, names = views[first]
    found += [f"{host} shows something else than {first}" for host in views if views[host] != views[first]]
    return found + history.problems(final_values=values, names=names)


@contextlib.contextmanager
def lab_of(folder: Path) -> Iterator[TestLab]:
    lab = TestLab(f"chaos{secrets.token_hex(2)}", root=folder, disk_bytes=DISK_BYTES)
    try:
        prepare(lab)
        yield lab
    finally:
        lab.down()


def run(*, minutes: float, seed: int, keep: Path | None, only: tuple[str, ...] = ()) -> int:
    """Exit code: 1 when something is wrong."""
    print(f"chaos: seed {seed}, {minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory() as folder, lab_of(Path(folder)) as lab:
        history = History()
        clients = Clients(lab, history, seed)
        nemesis = Nemesis(lab, random.Random(seed), only=only)
        clients.start()
        end = time.monotonic() + minutes * 60
        began = time.monotonic()
        try:
            while time.monotonic() < end:
                time.sleep(nemesis._chance.uniform(0.5, 6))
                print(f"  {time.monotonic() - began:6.1f} s  {nemesis.strike()}", flush=True)
        finally:
            clients.stop()
        lab.heal()
        began = time.monotonic()
        why = "not looked at"
        while time.monotonic() - began < CONVERGE_S:
            try:
                why = converged(lab)
            except (errors.FleetError, OSError, KeyError) as cause:
                why = f"{type(cause).__name__}: {cause}"
            if not why:
                break
            time.sleep(0.5)
        found = [f"not converged after {CONVERGE_S:g} s: {why}"] if why else []
        print(f"converged after {time.monotonic() - began:.1f} s" if not why else found[0])
        found += judged(lab, history)
        print(f"struck: {dict(nemesis.done)}")
        print(f"clients: {dict(clients.outcomes)}; {len(history.created)} creations, {len(history.writes)} swaps")
        if keep is not None and found:
            for host in HOSTS:
                (keep / f"{host}.log").write_bytes(lab.layout.log(host).read_bytes())
        for problem in found:
            print(f"WRONG: {problem}")
        print("chaos: nothing wrong" if not found else f"chaos: {len(found)} wrong; again with --seed {seed}")
        return 1 if found else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy the daemons' logs there when something is wrong")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="only this kind of misfortune; repeatable"
    )
    options = parser.parse_args(arguments)
    return run(minutes=options.minutes, seed=options.seed, keep=options.keep, only=tuple(options.only))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
