"""Commands in tasks from any manager, wherever the task runs; and services that are stopped and started."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

IDLE = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
"""Ends at once when it is told to."""


@pytest.fixture(scope="module", autouse=True)
def web(lab: TestLab) -> None:
    lab.load_hello()
    lab.fleet(
        "service", "create", "--quiet", "--name", "web", "--replicas", "3", "--hostname", "{{.Node.Hostname}}",
        "fleet/hello:1", *IDLE,
    )  # fmt: skip


def where(lab: TestLab) -> dict[int, str]:
    names = {node["ID"]: node["Description"]["Hostname"] for node in lab.get("/nodes")}
    return {task["Slot"]: names[task["NodeID"]] for task in lab.tasks("web")}


def test_a_command_runs_in_the_task_wherever_it_is(lab: TestLab) -> None:
    assert set(where(lab).values()) == {"m1", "w1", "w2"}
    for slot, host in where(lab).items():
        assert lab.fleet("service", "exec", f"web.{slot}", "hostname").stdout.strip() == host
    done = lab.fleet("service", "exec", "web", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    done = lab.fleet("service", "exec", "web.2", "no-such-program", check=False)
    assert (done.returncode, "not found" in done.stdout + done.stderr) == (127, True)


def test_input_goes_there_to_its_end_and_much_of_it(lab: TestLab) -> None:
    text = "x" * 99 + "\n"
    for slot in where(lab):
        counted = lab.fleet("service", "exec", "-i", f"web.{slot}", "wc", "-c", stdin=text * 20_000)
        assert counted.stdout.split() == ["2000000"]
        copied = lab.fleet("service", "exec", "-i", f"web.{slot}", "cat", stdin=text * 5_000)
        assert copied.stdout == text * 5_000


def test_dockers_own_client_reaches_tasks_of_other_nodes_too(lab: TestLab) -> None:
    for task in lab.tasks("web"):
        container = task["Status"]["ContainerStatus"]["ContainerID"]
        done = lab.docker(
            "exec", "-i", "-e", "A=b", "-w", "/tmp", container[:12], "sh", "-c", "pwd; echo $A; cat", stdin="in"
        )
        assert done.stdout == "/tmp\nb\nin"
        assert lab.get(f"/containers/{container}/json")["Config"]["Labels"]["com.docker.swarm.task.id"] == task["ID"]


def test_a_terminal_with_its_size(lab: TestLab) -> None:
    slot = next(slot for slot, host in where(lab).items() if host == "w2")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "fleet.cli.main", "service", "exec", "-it", f"web.{slot}", "sh"]
    environment = lab.command_environment("m1")
    with subprocess.Popen(
        command, env=environment, stdin=child, stdout=child, stderr=child, start_new_session=True
    ) as ran:
        os.close(child)
        os.write(parent, b"stty cols 77 rows 33; stty size; exit 5\n")
        said = b""
        end = time.monotonic() + 30
        while b"33 77" not in said and time.monotonic() < end:
            try:
                said += os.read(parent, 4096)
            except OSError:
                break
        assert b"33 77" in said
        assert ran.wait(30) == 5
    os.close(parent)


def test_what_is_no_task_and_who_is_no_manager(lab: TestLab) -> None:
    assert "no task of a service is called web.9" in lab.fleet("service", "exec", "web.9", "ls", check=False).stderr
    done = lab.fleet("exec", "nothing-like-it", "ls", check=False)
    assert (done.returncode != 0, "nothing-like-it" in done.stderr) == (True, True)
    own = lab.fleet("run", "-d", "fleet/hello:1", "sleep", "100", host="w1").stdout.strip()
    try:
        assert lab.fleet("exec", own, "true", check=False).returncode != 0, "a plain container is its own host's"
        assert lab.fleet("exec", own, "true", host="w1").returncode == 0
    finally:
        lab.fleet("rm", "-f", own, host="w1")
    remote = next(t for t in lab.tasks("web") if where(lab)[t["Slot"]] == "w2")["Status"]["ContainerStatus"][
        "ContainerID"
    ]
    assert lab.fleet("exec", remote, "true", host="w1", check=False).returncode != 0, "a worker passes nothing on"


def test_stopped_and_started_with_as_many_tasks(lab: TestLab) -> None:
    lab.fleet("service", "stop", "web")
    assert lab.tasks("web") == []
    assert "0/0" in lab.fleet("service", "ls").stdout
    lab.fleet("service", "start", "web")
    assert len(lab.tasks("web")) == 3
    lab.fleet("service", "create", "--quiet", "--mode", "global", "--name", "all", "fleet/hello:1", *IDLE)
    lab.fleet("service", "stop", "all")
    assert lab.tasks("all") == []
    lab.fleet("service", "start", "all")
    assert len(lab.tasks("all")) == 3
    before = {task["ID"] for task in lab.tasks("all")}
    lab.fleet("service", "restart", "all")
    assert not before & {task["ID"] for task in lab.tasks("all")}
    assert lab.fleet("service", "wait", "web", "all").returncode == 0
    lab.fleet("service", "update", "-d", "--constraint-add", "node.labels.no == such", "--replicas", "4", "web")
    assert lab.fleet("service", "wait", "--timeout", "1s", "web", check=False).returncode == 1
    lab.fleet("service", "rm", "all")
    lab.fleet("service", "update", "--quiet", "--constraint-rm", "node.labels.no == such", "--replicas", "3", "web")
