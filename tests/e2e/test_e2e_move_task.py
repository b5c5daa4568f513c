"""A task of a service goes to another node with its data; whatever is killed on the way, one task runs, and has it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lab import REPOSITORY, TestLab

from fleet import errors

pytestmark = pytest.mark.e2e

BEAT = "trap 'exit 0' TERM; while :; do echo beat >>/data/log; sleep 0.05; done"
HOSTS = ("m1", "w1", "w2")


@pytest.fixture(scope="module")
def hosts(make_lab: Callable[..., TestLab]) -> TestLab:
    lab = make_lab(managers=1, workers=2)
    lab.load_hello("m1")
    return lab


@pytest.fixture
def lab(hosts: TestLab) -> Iterator[TestLab]:
    hosts.wait_until(
        lambda: [node["Status"]["State"] for node in hosts.get("/nodes")] == ["ready"] * 3,
        60,
        what="all nodes are ready",
    )
    yield hosts
    for host in HOSTS:
        hosts.start_daemon(host)
    hosts.wait_until(lambda: hosts.fleet("service", "ls", check=False).returncode == 0, 60, what="the manager answers")
    hosts.fleet("service", "rm", "web", check=False)
    hosts.wait_until(lambda: not any(containers(hosts, host) for host in HOSTS), 60, what="its containers are gone")
    hosts.wait_until(lambda: not any(left(hosts, host) for host in HOSTS), 90, what="its volumes are gone")


def containers(lab: TestLab, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.get("/containers/json", host=host, all=True)
    return found


def volumes(lab: TestLab, host: str) -> list[str]:
    return [volume["Name"] for volume in lab.get("/volumes", host=host)["Volumes"] or ()]


def left(lab: TestLab, host: str) -> list[str]:
    """The host's volumes, each of which was asked to go: what was on its way there may still come in."""
    for name in volumes(lab, host):
        lab.fleet("volume", "rm", name, host=host, check=False)
    return volumes(lab, host)


def notes(lab: TestLab, host: str) -> list[str]:
    folder = f"/proc/{lab.pid(host)}/root{lab.layout.data(host)}/task-moves"
    return sorted(entry.name for entry in Path(folder).iterdir())


def running(lab: TestLab) -> list[str]:
    """The hosts that a container of the service runs on."""
    return [host for host in HOSTS for c in containers(lab, host) if c["State"] == "running"]


def inside(lab: TestLab, host: str, script: str) -> str:
    (name,) = [c["Names"][0][1:] for c in containers(lab, host) if c["State"] == "running"]
    return str(lab.fleet("container", "exec", name, "sh", "-c", script, host=host).stdout)


def make_web(lab: TestLab, *flags: str, host: str = "w1") -> None:
    mounts = ("--mount", "type=volume,src=data,dst=/data", "--mount", "type=volume,dst=/anon")
    lab.fleet("service", "create", "--name", "web", *mounts, *flags, "fleet/hello:1", "sh", "-c", BEAT)
    lab.wait_until(lambda: len(running(lab)) == 1, 60, what="it runs")
    if running(lab) != [host]:
        lab.fleet("task", "move", "web.1", host)
    lab.wait_until(lambda: running(lab) == [host], 60, what=f"it runs on {host}")


def fill(lab: TestLab, host: str = "w1", mebibytes: int = 3) -> None:
    inside(
        lab,
        host,
        f"dd if=/dev/urandom of=/data/big bs=1M count={mebibytes} 2>/dev/null; sha256sum /data/big >/data/sum; "
        "echo anon >/anon/x; echo layer >/root/x; rm /bin/ls; ln -s x /root/s",
    )


def check_data(lab: TestLab, host: str) -> None:
    assert inside(
        lab, host, "sha256sum -c /data/sum; cat /anon/x /root/x; readlink /root/s; test -e /bin/ls || echo gone"
    ) == ("/data/big: OK\nanon\nlayer\nx\ngone\n")


def settled(lab: TestLab) -> bool:
    try:
        tasks = [t for t in lab.get("/tasks") if t["DesiredState"] == "running"]
        is_one = [t["Status"]["State"] for t in tasks] == ["running"] and len(running(lab)) == 1
        return is_one and not any(notes(lab, host) for host in HOSTS)
    except (errors.FleetError, OSError):
        return False


def test_a_task_goes_with_its_volumes_and_what_it_wrote_and_comes_back(lab: TestLab) -> None:
    make_web(lab)
    fill(lab)
    beats = len(inside(lab, "w1", "cat /data/log").split())
    said = lab.fleet("task", "move", "web.1", "w2")
    assert "web.1 is on w2 with its data" in said.stdout
    assert running(lab) == ["w2"]
    check_data(lab, "w2")
    assert len(inside(lab, "w2", "cat /data/log").split()) > beats
    lab.wait_until(lambda: settled(lab), 60, what="nothing is left over")
    assert volumes(lab, "w1") == []
    assert containers(lab, "w1") == []
    name = next(c["Names"][0][1:] for c in containers(lab, "w2"))
    assert "web.1 is on w1" in lab.fleet("container", "move", name, "w1").stdout
    check_data(lab, "w1")
    container = next(c["Id"] for c in containers(lab, "w1") if c["State"] == "running")
    lab.wait_until(lambda: settled(lab), 60, what="nothing is left over")
    assert "web.1 is on w2" in lab.fleet("container", "move", container[:12], "w2").stdout
    check_data(lab, "w2")


def moving(lab: TestLab) -> subprocess.Popen[str]:
    """The command under way, from w1 to w2."""
    argv = [sys.executable, "-m", "fleet.cli.main", "task", "move", "web.1", "w2"]
    environment = lab.command_environment("m1")
    return subprocess.Popen(
        argv, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def until_task(lab: TestLab, process: subprocess.Popen[str], stage: str) -> None:
    """Until a task of the service is at the stage; a move that was faster is at its end."""

    def is_there() -> bool:
        found = lab.get("/tasks")
        if stage == "stopping":
            return any(t["DesiredState"] == "shutdown" and t["Status"]["State"] == "running" for t in found) or ended()
        if stage == "starting":
            return any(t["Status"]["State"] in ("ready", "starting") for t in found) or ended()
        return any(t["DesiredState"] == "ready" and t["Status"]["Message"].startswith(stage) for t in found) or ended()

    def ended() -> bool:
        return process.poll() is not None

    lab.wait_until(is_there, 60, what=f"the move is at {stage!r}")


def test_refusals_say_why_and_it_runs_on(lab: TestLab) -> None:
    make_web(lab, "--constraint", "node.role==worker", "--stop-grace-period", "2s")

    def refused(*args: str) -> str:
        done = lab.fleet(*args, check=False)
        assert done.returncode != 0
        assert running(lab) == ["w1"]
        return done.stderr

    assert "node nope not found" in refused("task", "move", "web.1", "nope")
    assert "node.role==worker does not hold" in refused("task", "move", "web.1", "m1")
    assert "is on w1 already" in refused("task", "move", "web.1", "w1")
    assert "no CRIU" in refused("container", "move", "--checkpoint", "web.1", "w2")
    assert "are for other containers" in refused("container", "move", "--keep", "web.1", "w2")
    lab.fleet("node", "update", "--availability", "drain", "w2")
    assert "availability is drain" in refused("task", "move", "web.1", "w2")
    lab.fleet("node", "update", "--availability", "active", "w2")
    lab.wait_until(lambda: volumes(lab, "w2") == [], 60, what="what was there before is gone")
    lab.fleet("volume", "create", "data", host="w2")
    before = [t["ID"] for t in lab.tasks("web")]
    text = refused("task", "move", "web.1", "w2")
    assert "a volume data is on this host already" in text
    assert "was not moved and runs where it was" in text
    assert [t["ID"] for t in lab.tasks("web")] == before
    assert volumes(lab, "w2") == ["data"]


def test_what_cannot_start_there_goes_on_with_its_data_where_it_was(lab: TestLab, tmp_path: Path) -> None:
    """A port is taken by a program of the host, which only the start can see."""
    make_web(lab, "--publish", "mode=host,published=8083,target=80")
    fill(lab)
    taker = subprocess.Popen(
        lab.command(
            "w2",
            [
                sys.executable,
                "-c",
                "import socket,sys; s=socket.create_server(('',8083)); print(1, flush=True); sys.stdin.read()",
            ],
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"1\n"
        done = lab.fleet("task", "move", "web.1", "w2", check=False, timeout_s=120)
    finally:
        taker.communicate(timeout=30)
    assert done.returncode != 0, done.stdout
    assert "runs where it was, with its data" in done.stderr
    lab.wait_until(lambda: settled(lab), 60, what="one runs and nothing is left over")
    assert running(lab) == ["w1"]
    check_data(lab, "w1")
    assert volumes(lab, "w2") == []
    assert "web.1 is on w2" in lab.fleet("task", "move", "web.1", "w2").stdout
    check_data(lab, "w2")


@pytest.mark.parametrize("stage", ["copying data", "stopping", "copying what changed", "starting"])
@pytest.mark.parametrize("victim", ["w1", "w2", "m1"])
def test_kill_9_of_a_daemon_at_any_stage_leaves_one_running_with_its_data(
    lab: TestLab, victim: str, stage: str
) -> None:
    make_web(lab)
    fill(lab, mebibytes=40)
    with moving(lab) as process:
        until_task(lab, process, stage)
        lab.restart_daemon(victim, signum=signal.SIGKILL)
        said, told = process.communicate(timeout=240)
    lab.wait_until(lambda: settled(lab), 90, what=f"one runs, and nothing is left over ({said}{told})")
    (where,) = running(lab)
    check_data(lab, where)
    other = "w2" if where == "w1" else "w1"
    assert volumes(lab, other) == []
    if victim != "w2":
        assert where == "w2", told
