"""The story: nodes connect, services are made (of three managers the leader dies), a rolling update, a tenth of nodes is lost.

Every step has a row: how long, how many a second, what the processes spent meanwhile, what the API's answers took. A step ends
when the nodes have been told that their reports are durable (``running``), not when a table looks so; the API is asked once at
the end of the filling whether it says the same.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.scale import flame
from bench.scale.nodes import Nodes
from bench.scale.sample import Prober, busy_s, cpu_s, pids_of, rss_mib
from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.lab import Lab
from fleet.lab.swarm import SWARM_PORT

__all__ = ["Options", "Row", "StoryError", "tell"]

_POLL_S: Final = 0.1
_TRIES: Final = 20
_IMAGE: Final = "registry.example.com/shop/web:1.2.3@sha256:" + "0" * 64
_PROFILED: Final = Path(__file__).with_name("profiled.py")


class StoryError(errors.FleetError):
    """A step did not come to its end in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    agents: int
    tasks: int
    managers: int
    replicas: int
    """Of one service."""
    update_replicas: int
    processes: int
    heartbeat_s: float
    """The cluster's least heartbeat period; 0: as it is by default."""
    idle_s: float
    timeout_s: float
    """Of one step."""
    profile: Path | None


@dataclass(slots=True, kw_only=True)
class Row:
    """One step. ``cores``: processor seconds a second by kind of process; ``others``: what else the machine did, in cores."""

    step: str
    seconds: float
    count: int = 0
    note: str = ""
    cores: dict[str, float] = field(default_factory=dict)
    others: float = 0.0
    memory_mib: dict[str, float] = field(default_factory=dict)
    api: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0


class _Story:
    def __init__(self, lab: Lab, nodes: Nodes, options: Options, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._nodes = nodes
        self._options = options
        self._say = say
        self._hosts = [f"m{number}" for number in range(1, options.managers + 1)]
        self._leader = self._hosts[0]
        self._killed = ""
        self._services: list[tuple[str, int]] = []
        self.rows: list[Row] = []
        self._prober = Prober(lambda: self._url(self._leader), self._some_service)

    def tell(self) -> None:
        """All steps. Raises ``StoryError``."""
        self._drain_managers()
        if self._options.heartbeat_s:
            self._set_heartbeat()
        with self._prober:
            self._join()
            self._connect()
            self._idle("idle, all nodes connected")
            self._fill()
            self._idle("idle, all tasks running")
            self._update()
            self._lose()

    # -- steps

    def _join(self) -> None:
        token = self._client().get("/swarm")["JoinTokens"]["Worker"]
        with self._step("nodes join") as row:
            self._nodes.ask("join", remote=f"{self._lab.address(self._leader)}:{SWARM_PORT}", token=token)
            row.count = self._nodes.count

    def _connect(self) -> None:
        managers = [f"{self._lab.address(host)}:{SWARM_PORT}" for host in self._hosts]
        with self._step("sessions opened") as row:
            self._nodes.ask("connect", managers=managers)
            row.count = self._nodes.count
            self._until("connected", self._nodes.count)

    def _idle(self, name: str) -> None:
        time.sleep(min(2.0, self._options.idle_s))
        with self._step(name):
            time.sleep(self._options.idle_s)

    def _fill(self) -> None:
        options = self._options
        left, number, kill_at = options.tasks, 0, options.tasks // 2 if len(self._hosts) > 2 else None
        with self._step("services created, tasks running") as row, self._maker() as client:
            row.count = options.tasks
            began = time.perf_counter()
            while left > 0:
                count = min(options.replicas, left)
                name = f"service-{number:05}"
                made = client.post("/services/create", self._spec(name, count, update=0))
                self._services.append((str(made["ID"]), count))
                left, number = left - count, number + 1
            row.figures["commands_s"] = time.perf_counter() - began
            assigned_s = 0.0
            while (total := self._nodes.total())["running"] < options.tasks:
                now = time.perf_counter() - began
                if not assigned_s and total["assigned"] >= options.tasks:
                    assigned_s = now
                if kill_at is not None and total["running"] >= kill_at:
                    self._kill_leader(row)
                    kill_at = None
                self._check_deadline(began, f"{total['running']} of {options.tasks} tasks run")
                time.sleep(_POLL_S)
            row.figures["all_assigned_s"] = assigned_s or time.perf_counter() - began
        self._check_api()
        if self._killed:
            self._lab.start_daemon(self._killed, timeout_s=self._options.timeout_s)

    def _kill_leader(self, row: Row) -> None:
        """SIGKILL for the leader's daemon in the middle; it is started again after the step."""
        victim = self._leader = self._find_leader(self._leader) or self._leader
        before = self._nodes.total()["running"]
        began = time.perf_counter()
        self._lab.signal_daemon(victim, signal.SIGKILL)
        self._leader = next(host for host in self._hosts if host != victim)
        self._say(f"killed the leader, {victim}")
        while True:
            with contextlib.suppress(errors.FleetError, OSError):
                found = self._find_leader(self._leader)
                if found and found != victim:
                    break
            self._check_deadline(began, "no manager leads after the leader was killed")
            time.sleep(_POLL_S)
        self._leader = found
        row.figures["leader_killed_to_new_leader_s"] = time.perf_counter() - began
        while self._nodes.total()["running"] <= before:
            self._check_deadline(began, "no task came to run after the leader was killed")
            time.sleep(_POLL_S)
        row.figures["leader_killed_to_next_task_running_s"] = time.perf_counter() - began
        while self._nodes.total()["connected"] < self._nodes.count:
            self._check_deadline(began, f"nodes stay away: {self._nodes.total()['connected']} of {self._nodes.count}")
            time.sleep(_POLL_S)
        row.figures["leader_killed_to_all_sessions_s"] = time.perf_counter() - began
        self._killed = victim

    def _update(self) -> None:
        chosen, replicas = [], 0
        for service_id, count in self._services:
            if replicas >= self._options.update_replicas:
                break
            chosen.append(service_id)
            replicas += count
        with self._step("rolling update, 10 % of a service at once") as row:
            row.count = replicas
            client = self._client()
            for service_id in chosen:
                found = client.get(f"/services/{service_id}")
                spec = found["Spec"]
                spec["TaskTemplate"]["ForceUpdate"] = 1
                client.post(f"/services/{service_id}/update", spec, version=found["Version"]["Index"])
            self._until("updated", replicas)
            self._until("running", self._options.tasks)

    def _lose(self) -> None:
        lost = self._nodes.groups[-1]
        with self._step(f"{lost.count} nodes lost, tasks run elsewhere") as row:
            there = lost.ask("stats")["running"]
            row.count = there
            lost.lose()
            self._until("running", self._options.tasks)

    # -- what steps use

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Row]:
        self._say(name)
        self._prober.take()
        self._profile("")
        before = self._spent()
        row = Row(step=name, seconds=0.0)
        began = time.perf_counter()
        try:
            yield row
        finally:
            row.seconds = time.perf_counter() - began
            after = self._spent()
            known = {what: after[what] - before.get(what, 0.0) for what in after if what != "machine"}
            row.cores = {what: max(spent, 0.0) / row.seconds for what, spent in known.items()}
            row.others = (after["machine"] - before["machine"]) / row.seconds - sum(row.cores.values())
            row.memory_mib = self._memory()
            row.api = self._prober.take()
            row.parts = self._profile(name)
            self.rows.append(row)

    def _spent(self) -> dict[str, float]:
        spent = {"machine": busy_s(), "nodes": sum(cpu_s(pid) for pid in self._nodes.pids())}
        for host in self._hosts:
            for what, pid in pids_of(self._lab, host).items():
                spent[f"{what} {host}"] = cpu_s(pid)
        return spent

    def _memory(self) -> dict[str, float]:
        return {
            f"{what} {host}": round(rss_mib(pid), 1)
            for host in self._hosts
            for what, pid in pids_of(self._lab, host).items()
        }

    def _profile(self, name: str) -> dict[str, float]:
        """Have the managers write what they sampled since the last time; with a name, table and picture of the leader's."""
        folder = self._options.profile
        if folder is None:
            return {}
        target = folder / f"{self._leader}.folded"
        target.unlink(missing_ok=True)
        for host in self._hosts:
            with contextlib.suppress(errors.FleetError, OSError):
                self._lab.signal_daemon(host, signal.SIGUSR2)
        end = time.monotonic() + 5.0
        while not target.exists() and time.monotonic() < end:
            time.sleep(0.05)
        if not name or not target.exists():
            return {}
        stacks = flame.read(target.read_text(encoding="utf-8"))
        stem = f"{len(self.rows) + 1:02}-{''.join(c if c.isalnum() else '-' for c in name)}"
        (folder / f"{stem}.txt").write_text(flame.table(stacks, title=name), encoding="utf-8")
        (folder / f"{stem}.svg").write_text(flame.picture(stacks, title=name), encoding="utf-8")
        return flame.parts_of(stacks)

    def _until(self, what: str, count: int) -> None:
        began = time.perf_counter()
        while (total := self._nodes.total())[what] < count:
            self._check_deadline(began, f"{what}: {total[what]} of {count}")
            time.sleep(_POLL_S)

    def _check_deadline(self, began: float, where: str) -> None:
        if time.perf_counter() - began > self._options.timeout_s:
            raise StoryError(f"after {self._options.timeout_s:g} s: {where}")

    def _check_api(self) -> None:
        """The managers' own count. It may be a moment behind at one that does not lead."""
        began = time.perf_counter()
        while True:
            found = self._client().get("/services", status="true")
            running = sum(service["ServiceStatus"]["RunningTasks"] for service in found)
            if running == self._options.tasks:
                return
            if time.perf_counter() - began > 30.0:
                raise StoryError(f"the API says that {running} of {self._options.tasks} tasks run")
            time.sleep(0.5)

    def _spec(self, name: str, replicas: int, *, update: int) -> dict[str, Any]:
        return {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": _IMAGE, "Env": [f"SETTING_{i}=value number {i}" for i in range(4)]},
                "ForceUpdate": update,
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
            "UpdateConfig": {"Parallelism": max(replicas // 10, 1), "Monitor": 0, "Delay": 0},
        }

    def _drain_managers(self) -> None:
        """Their nodes are real, and what runs here is not."""
        client = self._client()
        for node_id in [node["ID"] for node in client.get("/nodes")]:
            for tried in range(_TRIES):
                node = client.get(f"/nodes/{node_id}")
                spec = {**node["Spec"], "Availability": "drain"}
                try:
                    client.post(f"/nodes/{node_id}/update", spec, version=node["Version"]["Index"])
                    break
                except EngineError:  # it has just registered, and changed since it was read
                    if tried == _TRIES - 1:
                        raise
                    time.sleep(_POLL_S)
        self._leader = self._find_leader(self._leader) or self._leader

    def _set_heartbeat(self) -> None:
        client = self._client()
        swarm = client.get("/swarm")
        spec = swarm["Spec"]
        spec["Dispatcher"] = {"HeartbeatPeriod": round(self._options.heartbeat_s * 1e9)}
        client.post("/swarm/update", spec, version=swarm["Version"]["Index"])

    def _find_leader(self, at: str) -> str:
        with contextlib.closing(self._lab.client(at)) as client:
            for node in client.get("/nodes", filters={"role": ["manager"]}):
                if (node.get("ManagerStatus") or {}).get("Leader"):
                    return str(node["Description"]["Hostname"])
        return ""

    def _some_service(self) -> str:
        return self._services[len(self._services) // 2][0] if self._services else ""

    def _url(self, host: str) -> str:
        return f"unix://{self._lab.layout.socket(host)}"

    def _client(self) -> EngineClient:
        return EngineClient(self._url(self._leader), timeout_s=120.0)

    @contextlib.contextmanager
    def _maker(self) -> Iterator[EngineClient]:
        """A client of a manager that will not be killed."""
        host = next((host for host in self._hosts if host != self._leader), self._leader)
        with contextlib.closing(EngineClient(self._url(host), timeout_s=120.0)) as client:
            yield client


def tell(options: Options, say: Callable[[str], None]) -> tuple[list[Row], str]:
    """The rows, and why the story ended early ("" if it did not). Leaves nothing behind, whatever ends it."""
    daemon: dict[str, Any] = {}
    if options.profile is not None:
        options.profile.mkdir(parents=True, exist_ok=True)
        daemon["daemon"] = (sys.executable, str(_PROFILED), str(options.profile.absolute()))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-scale-")))
        lab = stack.enter_context(Lab(f"scale-{folder.name[-8:].replace('_', 'x').lower()}", root=folder, **daemon))
        lab.up(managers=options.managers, workers=0, timeout_s=120.0)
        lost = max(options.agents // 10, 1)
        nodes = stack.enter_context(Nodes(options.agents, groups=options.processes, lost=lost))
        story = _Story(lab, nodes, options, say)
        try:
            story.tell()
        except (errors.FleetError, OSError) as cause:
            if options.profile is not None:
                for host in lab.hosts():
                    (options.profile / f"{host}.log").write_bytes(lab.log_path(host).read_bytes())
            return story.rows, str(cause)
        return story.rows, ""
