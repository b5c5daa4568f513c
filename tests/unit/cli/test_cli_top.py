"""``fleet top``: what it makes of a cluster, that it fits, and that the terminal is as before when it is gone."""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet.cli.top_screen import SORTS, VIEWS, Screen, draw, plain
from fleet.cli.top_state import Snapshot, Use, gather
from fleet.cli.widths import width_of
from tests.support.fake_engine import FakeEngine, Reply, Request
from tests.support.terminal import Terminal

GIB = 1024**3


def node(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "ID": f"id-{name}",
        "Spec": {"Role": "worker", "Availability": "active"},
        "Status": {"State": "ready"},
        "Description": {"Hostname": name, "Resources": {"NanoCPUs": 4_000_000_000, "MemoryBytes": 8 * GIB}},
        **changes,
    }


def task(number: int, *, state: str = "running", at: str = "m1", service: str = "web", **status: Any) -> dict[str, Any]:
    when = (datetime.now(UTC) - timedelta(seconds=30 + number)).isoformat()
    return {
        "ID": f"{service}-t{number}",
        "ServiceID": f"id-{service}",
        "Slot": number,
        "NodeID": f"id-{at}" if at else "",
        "CreatedAt": when,
        "Spec": {"Resources": {"Reservations": {"NanoCPUs": 500_000_000, "MemoryBytes": GIB // 2}}},
        "Status": {"State": state, "Timestamp": when, **status},
        "DesiredState": "running",
    }


def service(name: str, running: int, desired: int) -> dict[str, Any]:
    return {
        "ID": f"id-{name}",
        "Spec": {"Name": name, "Mode": {"Replicated": {"Replicas": desired}}, "TaskTemplate": {}},
        "ServiceStatus": {"RunningTasks": running, "DesiredTasks": desired},
    }


NODES = [
    node("m1", ManagerStatus={"Leader": True}),
    node("w1"),
    node("worker-with-a-very-long-name.example.internal", Status={"State": "down"}, ID="id-w2"),
]
SERVICES = [service("web", 2, 3), service("db", 1, 1)]


def make_tasks() -> list[dict[str, Any]]:
    """As of now: what failed long ago is no trouble any more."""
    return [
        task(1),
        task(2, at="w1"),
        task(3, state="pending", at="", Err="no suitable node (insufficient memory on 3 nodes)"),
        task(1, service="db", at="w1"),
        {**task(3, state="failed", Err="boom\x1b[2J"), "ID": "old-1"},
        {**task(3, state="failed", Err="boom\x1b[2J"), "ID": "old-2"},
    ]


USAGE = {
    "PeriodSeconds": 10.0,
    "Nodes": [
        {"NodeID": "id-m1", "Now": {"NanoCPUs": 1_250_000_000, "MemoryBytes": 104_857_600}},
        {"NodeID": "id-w1", "Now": None},
    ],
    "Tasks": [
        {"ID": "web-t1", "NanoCPUs": 500_000_000, "MemoryBytes": 104_857_600},
        {"ID": "web-t2", "NanoCPUs": None, "MemoryBytes": 7},
    ],
}


@pytest.fixture
def cluster(engine: FakeEngine) -> FakeEngine:
    event = {"Type": "service", "Action": "create", "Actor": {"ID": "id-web", "Attributes": {"name": "web"}}, "time": 1}
    engine.on("GET", "/nodes", NODES)
    engine.on("GET", "/services", SERVICES)
    engine.on("GET", "/tasks", make_tasks())
    engine.on("GET", "/info", {"Name": "m1", "Swarm": {"NodeID": "id-m1"}})
    engine.on("GET", "/fleet/v1/usage", USAGE)
    engine.on("GET", "/events", Reply(raw=json.dumps(event).encode()))
    return engine


@pytest.fixture
def snapshot(cluster: FakeEngine) -> Snapshot:
    from fleet.api.client import EngineClient

    with EngineClient(cluster.url) as client:
        return gather(client)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_nodes_and_services_sum_what_tasks_reserve_and_use(snapshot: Snapshot) -> None:
    m1, w1, w2 = snapshot.nodes
    assert (m1.role, m1.tasks, m1.cpus_reserved, m1.memory_reserved, m1.cpus) == ("leader", 1, 0.5, GIB // 2, 4.0)
    assert m1.use == Use(cpus=1.25, memory_bytes=104_857_600)
    assert (w1.use, w1.tasks, w2.state) == (None, 2, "down")
    web, db = snapshot.services
    assert (web.running, web.desired, web.cpus_reserved, web.whole) == (2, 3, 1.5, False)
    assert web.use == Use(cpus=0.5, memory_bytes=104_857_600)
    assert (db.use, db.memory_reserved) == (None, GIB // 2)
    assert not snapshot.is_measured


def test_one_snapshot_waits_for_figures_that_the_first_look_asked_for(cluster: FakeEngine, fleet: Any) -> None:
    looks = iter(({**USAGE, "Nodes": [], "Tasks": []}, USAGE))
    now = {"NanoCPUs": 10**9, "MemoryBytes": 1}
    whole = {
        "Nodes": [{"NodeID": f"id-{name}", "Now": now} for name in ("m1", "w1")],
        "Tasks": [{"ID": each["ID"], "NanoCPUs": 10**8, "MemoryBytes": 1} for each in make_tasks()],
    }

    def usage(request: Request) -> Reply:
        return Reply(body=next(looks, whole))

    cluster.on("GET", "/fleet/v1/usage", usage)
    out = fleet("top", "--once").out
    assert re.search(r"^w1 .* 1\.00 ", out, re.MULTILINE)
    assert "use: " not in out


def test_tasks_in_trouble_are_told_once_each_with_their_reason(snapshot: Snapshot) -> None:
    found = {task.state: task for task in snapshot.trouble}
    assert [(found[state].name, found[state].count) for state in ("pending", "failed")] == [("web.3", 1), ("web.3", 2)]
    assert "insufficient memory" in found["pending"].reason


def test_daemon_without_figures_is_said(cluster: FakeEngine, fleet: Any) -> None:
    cluster.on("GET", "/fleet/v1/usage", Reply(404, {"message": "page not found"}))
    ran = fleet("top", "--once")
    assert (ran.code, ran.err) == (0, "")
    assert "use: this daemon tells no figures" in ran.out


def test_one_snapshot_is_plain_and_whole(cluster: FakeEngine, fleet: Any) -> None:
    ran = fleet("top")
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert ran.out.splitlines()[0] == "m1: 2/3 nodes, 2 services, 3 tasks, 2 in trouble"
    assert "worker-with-a-very-long-name.example.internal" in ran.out
    assert "no suitable node (insufficient memory on 3 nodes)" in ran.out
    assert re.search(r"^m1 +leader +ready +active +1 +0\.5/4 +1\.25 +512M/8\.0G +100M$", ran.out, re.MULTILINE)
    assert re.search(r"^web +replicated +2/3 +1\.5 +≥0\.50 +1\.5G +≥100M$", ran.out, re.MULTILINE)
    assert "service create id-web (name=web)" in ran.out
    assert ran.out.rstrip().endswith("use: not known yet of w1")


def test_worker_is_one_line(engine: FakeEngine, fleet: Any) -> None:
    engine.on("GET", "/nodes", Reply(503, {"message": "This node is not a swarm manager."}))
    assert fleet("top").err == "Error: This node is not a swarm manager.\n"


# --- drawing ----------------------------------------------------------------------------------------------------------

COLOURS = re.compile(r"\x1b\[\d+m")


@pytest.mark.parametrize("width", [1, 10, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 10, 24])
@pytest.mark.parametrize("view", VIEWS.values())
def test_drawing_fits_any_terminal(snapshot: Snapshot, width: int, height: int, view: str) -> None:
    for sort in SORTS:
        for problem in ("", "cannot reach the daemon"):
            events = [("12:00:00", f"service create {i} 名前 \x1b[2J") for i in range(50)]
            screen = Screen(
                snapshot=snapshot, events=events, view=view, sort=sort, problem=problem, time="12:00:00", colour=True
            )
            lines = [COLOURS.sub("", line) for line in draw(screen, width=width, height=height)]
            assert len(lines) == height
            assert max(width_of(line) for line in lines) <= width
            assert not any("\x1b" in line for line in lines)


def test_narrow_terminal_keeps_what_matters(snapshot: Snapshot) -> None:
    text = "\n".join(draw(Screen(snapshot=snapshot), width=40, height=24))
    for word in ("NODE", "STATE", "TASKS", "m1", "down", "web", "2/3", "REASON", "no suitable node", "boom"):
        assert word in text, word
    assert "AVAIL" not in text
    wide = "\n".join(draw(Screen(snapshot=snapshot), width=80, height=24))
    for word in ("CPU RES", "MEM RES", "CPU USE", "0.5/4", "512M/8.0G"):
        assert word in wide, word


def test_sorting_by_use_and_tasks(snapshot: Snapshot) -> None:
    def names(sort: str) -> list[str]:
        lines = plain(Screen(snapshot=snapshot, view="nodes", sort=sort))
        return [line.split()[0] for line in lines[4:7]]

    assert names("name")[:2] == ["m1", "w1"]
    assert names("tasks")[0] == "w1"
    assert names("memory")[0] == "w1"


def test_what_does_not_fit_is_counted(snapshot: Snapshot) -> None:
    events = [("12:00:00", f"service create number{i}") for i in range(50)]
    lines = draw(Screen(snapshot=snapshot, events=events, view="events"), width=80, height=12)
    assert "number49" in lines[2]  # newest first
    assert lines[-2].startswith("... 42 more")


# --- the terminal -----------------------------------------------------------------------------------------------------


def live(cluster: FakeEngine, *arguments: str, columns: int = 80, **environment: str) -> Terminal:
    variables = {"FLEET_HOST": cluster.url, **environment}
    return Terminal("top", "--interval", "1", *arguments, environment=variables, columns=columns)


def test_keys_switch_views_and_q_ends(cluster: FakeEngine) -> None:
    with live(cluster) as term:
        first = term.wait("q quit")
        assert "\x1b[?1049h" in first
        assert "fleet top" in first
        term.type("t")
        assert "AGE" in term.wait("REASON")
        term.type("v")
        term.wait("RUN")
        term.type("e")
        term.wait("service create id-web")
        term.type("s")
        term.wait("sort: cpu")
        assert term.settings_now() != term.settings
        term.type("q")
        assert term.end() == 0
        assert term.output.endswith(b"\x1b[?25h\x1b[?1049l")
        assert term.settings_now() == term.settings


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=str
)
def test_signals_give_the_terminal_back(cluster: FakeEngine, number: signal.Signals, code: int) -> None:
    with live(cluster) as term:
        term.wait("q quit")
        assert term.end(number) == code
        assert b"\x1b[?25h\x1b[?1049l" in term.output
        assert term.settings_now() == term.settings
        assert b"Traceback" not in term.output


def test_typed_interrupt_gives_the_terminal_back(cluster: FakeEngine) -> None:
    with live(cluster) as term:
        term.wait("q quit")
        term.type("\x03")
        assert term.end() == 130
        assert term.settings_now() == term.settings


def test_stop_gives_the_terminal_back_until_it_goes_on(cluster: FakeEngine) -> None:
    with live(cluster) as term:
        term.wait("q quit")
        term.type("\x1a")
        term.wait("\x1b[?1049l")
        assert term.settings_now() == term.settings
        term.wait_stopped()  # going on before it has stopped would be lost
        term.process.send_signal(signal.SIGCONT)
        term.wait("\x1b[?1049h")
        term.wait("q quit")
        term.type("q")
        assert term.end() == 0
        assert term.settings_now() == term.settings


def test_error_in_the_middle_gives_the_terminal_back(cluster: FakeEngine) -> None:
    program = (
        "import sys\nfrom fleet.cli import top\nfrom fleet.cli.main import main\n"
        "def draw(*a, **k): raise RuntimeError('planted')\n"
        "top.draw = draw\nmain()"
    )
    with Terminal("top", environment={"FLEET_HOST": cluster.url}, program=program) as term:
        assert term.end() == 70
        assert term.output.index(b"\x1b[?1049l") < term.output.index(b"planted")
        assert term.settings_now() == term.settings


def test_terminal_that_changes_its_size_is_drawn_anew(cluster: FakeEngine) -> None:
    with live(cluster) as term:
        term.wait("CPU RES")
        term.resize(40, 24)
        term.process.send_signal(signal.SIGWINCH)
        for _ in range(5):  # the frame of the old size may still be on its way
            term.wait("\x1b[H")
            frame = re.sub("\x1b\\[\\d*[mK]", "", term.wait("q quit"))
            widest = max(width_of(line) for line in re.split("\r\n|\x1b\\[H", frame))
            if widest <= 40:
                break
        assert widest <= 40
        term.type("q")
        assert term.end() == 0


def test_colour_is_left_out_when_asked(cluster: FakeEngine) -> None:
    with live(cluster, NO_COLOR="1") as term:
        term.wait("q quit")
        term.type("q")
        term.end()
        assert not COLOURS.search(term.output.decode())
    with live(cluster) as term:
        term.wait("q quit")
        term.type("q")
        term.end()
        assert COLOURS.search(term.output.decode())


def test_daemon_that_goes_away_is_told_and_waited_for(cluster: FakeEngine) -> None:
    with live(cluster) as term:
        term.wait("q quit")
        cluster.on("GET", "/nodes", Reply(503, {"message": "there is no leader"}))
        term.wait("there is no leader (shown: ")
        cluster.on("GET", "/nodes", [node("phoenix", ID="id-m1")])
        term.wait("phoenix")
        term.type("q")
        assert term.end() == 0


def test_simple_terminal_gets_one_snapshot(cluster: FakeEngine) -> None:
    with live(cluster, TERM="dumb") as term:
        assert term.end() == 0
        assert b"\x1b" not in term.output
