"""Services from the command line: what is asked for is what runs, and the output says what happened."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

IDLE = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def remove(lab: TestLab) -> Any:
    names: list[str] = []
    yield names.append
    for name in names:
        lab.fleet("service", "rm", name, check=False)
    lab.wait_until(
        lambda: not any(lab.get("/containers/json", host=h, all=True) for h in lab.hosts()), 30, what="all are gone"
    )


def host_of(lab: TestLab, task: dict[str, Any]) -> str:
    return next(n["Description"]["Hostname"] for n in lab.get("/nodes") if n["ID"] == task["NodeID"])


def inside(lab: TestLab, service: str, script: str) -> str:
    """Output of a shell inside the service's first running task."""
    task = lab.tasks(service)[0]
    pid = str(task["Status"]["ContainerStatus"]["PID"])
    command = ["nsenter", "-t", pid, "-m", "-u", "-n", "-p", "/bin/sh", "-c", f"PATH=/bin; {script}"]
    return str(lab.exec(host_of(lab, task), command).stdout)


def test_a_service_runs_as_its_flags_say(lab: TestLab, remove: Any, tmp_path: Any) -> None:
    remove("flags")
    remove_host_folder = f"/tmp/{lab.layout.name}-bind"
    lab.exec("w1", ["sh", "-c", f"mkdir -p {remove_host_folder} && echo bound > {remove_host_folder}/f"])
    try:
        out = lab.fleet(
            "service", "create", "--name", "flags", "--constraint", "node.hostname==w1",
            "--env", "GREETING=hello {{.Task.Slot}}", "--hostname", "box", "--label", "a=b", "--container-label", "c=d",
            "--mount", f"type=bind,src={remove_host_folder},dst=/bound,readonly",
            "--mount", "type=volume,src=data,dst=/data", "--mount", "type=tmpfs,dst=/scratch,tmpfs-size=1m",
            "--limit-cpu", "0.5", "--limit-memory", "64m", "--limit-pids", "50", "--user", "nobody", "--workdir", "/tmp",
            "--cap-drop", "NET_RAW", "--read-only", "--stop-grace-period", "1s", "fleet/hello:1", *IDLE,
        ).stdout  # fmt: skip
        assert "1 of 1" in out or re.search(r"^[a-z0-9]{25}$", out, re.MULTILINE)
        facts = inside(
            lab,
            "flags",
            "hostname; cat /bound/f; touch /bound/x 2>&1; df -k /scratch | tail -1 | awk '{print $2}'; "
            "tr '\\0' '\\n' < /proc/1/environ | grep GREETING; grep -E 'Uid|NoNewPrivs|Seccomp:' /proc/1/status; "
            "readlink /proc/1/cwd; touch /nope 2>&1; touch /data/kept 2>&1; echo end",
        )
        for wanted in (
            "box",
            "bound",
            "Read-only",
            "1024",
            "GREETING=hello 1",
            "65534",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "/tmp",
        ):
            assert wanted in facts, facts
    finally:
        lab.exec("w1", ["rm", "-rf", remove_host_folder], check=False)


def test_limits_hold_and_running_out_of_memory_is_said(lab: TestLab, remove: Any) -> None:
    remove("hungry")
    eat = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 100"
    lab.fleet(
        "service", "create", "--detach", "--name", "hungry", "--limit-memory", "16m", "--restart-condition", "none",
        "fleet/hello:1", "sh", "-c", eat,
    )  # fmt: skip
    lab.wait_until(lambda: lab.tasks("hungry", state="failed"), 30, what="it fails")
    status = lab.tasks("hungry", state="failed")[0]["Status"]
    assert "memory" in status["Err"], status


def test_reservations_are_counted_and_the_pending_reason_says_so(lab: TestLab, remove: Any) -> None:
    remove("big")
    lab.fleet("service", "create", "--detach", "--name", "big", "--reserve-cpu", "1000", "fleet/hello:1", *IDLE)
    lab.wait_until(
        lambda: "insufficient resources on 3 nodes" in lab.fleet("service", "ps", "--no-trunc", "big").stdout, 15
    )


def test_global_runs_once_on_every_node_and_follows_labels(lab: TestLab, remove: Any) -> None:
    remove("each")
    lab.fleet(
        "service", "create", "--name", "each", "--mode", "global", "--constraint", "node.labels.skip!=yes",
        "fleet/hello:1", *IDLE,
    )  # fmt: skip
    assert sorted(host_of(lab, t) for t in lab.tasks("each")) == ["m1", "w1", "w2"]
    lab.fleet("node", "update", "--label-add", "skip=yes", "w2")
    lab.wait_until(
        lambda: sorted(host_of(lab, t) for t in lab.tasks("each") if t["DesiredState"] == "running") == ["m1", "w1"],
        20,
        what="w2 is left",
    )
    lab.fleet("node", "update", "--label-rm", "skip", "w2")
    lab.wait_until(
        lambda: len([t for t in lab.tasks("each") if t["DesiredState"] == "running"]) == 3, 20, what="w2 is back"
    )


def test_restarts_obey_condition_attempts_and_delay(lab: TestLab, remove: Any) -> None:
    remove("crash")
    remove("once")
    lab.fleet(
        "service", "create", "--detach", "--name", "crash", "--restart-condition", "on-failure", "--restart-delay", "1s",
        "--restart-max-attempts", "2", "fleet/hello:1", "sh", "-c", "exit 3",
    )  # fmt: skip
    lab.fleet(
        "service", "create", "--detach", "--name", "once", "--restart-condition", "on-failure", "fleet/hello:1", "true"
    )
    lab.wait_until(lambda: len(lab.tasks("crash", state="failed")) == 3, 20, what="one try and two restarts")
    lab.wait_until(lambda: lab.tasks("once", state="complete"), 20, what="exit 0 is complete")
    time.sleep(2.5)
    assert len(lab.get("/tasks", filters={"service": ["crash"]})) == 3, "no third restart"
    assert len(lab.get("/tasks", filters={"service": ["once"]})) == 1
    made = sorted(t["CreatedAt"] for t in lab.get("/tasks", filters={"service": ["crash"]}))
    starts = sorted(t["Status"]["Timestamp"] for t in lab.tasks("crash", state="failed"))
    assert made < starts
    listed = lab.fleet("service", "ls", "--format", "{{.Name}} {{.Replicas}}").stdout
    assert "crash 0/1" in listed


def test_an_update_rolls_and_a_bad_one_pauses(lab: TestLab, remove: Any) -> None:
    remove("rolled")
    lab.fleet(
        "service", "create", "--name", "rolled", "--replicas", "3", "--update-parallelism", "1", "--update-monitor", "500ms",
        "--env", "V=1", "fleet/hello:1", *IDLE,
    )  # fmt: skip
    lab.fleet("service", "update", "--env-add", "V=2", "rolled")
    live = [t for t in lab.tasks("rolled") if t["DesiredState"] == "running"]
    assert len(live) == 3
    assert all("V=2" in t["Spec"]["ContainerSpec"]["Env"] for t in live)
    bad = lab.fleet("service", "update", "--args", "/no/such", "rolled", check=False, timeout_s=90)
    assert bad.returncode == 1
    assert lab.get("/services/rolled")["UpdateStatus"]["State"] == "paused"
    assert len([t for t in lab.tasks("rolled") if t["DesiredState"] == "running"]) == 2, "the others keep running"
    lab.fleet("service", "rollback", "rolled", timeout_s=90)
    lab.wait_until(
        lambda: len([t for t in lab.tasks("rolled") if t["DesiredState"] == "running"]) == 3, 30, what="three run again"
    )


def test_logs_of_all_tasks_on_all_hosts_come_in_order_of_time_and_follow(lab: TestLab, remove: Any) -> None:
    remove("chatty")
    count = "i=0; while [ $i -lt 5 ]; do i=$((i+1)); echo line $i; sleep 0.2; done; sleep 1000"
    lab.fleet(
        "service", "create", "--name", "chatty", "--replicas", "3", "--stop-grace-period", "1s", "fleet/hello:1",
        "sh", "-c", count,
    )  # fmt: skip
    lab.wait_until(lambda: lab.fleet("service", "logs", "--raw", "chatty").stdout.count("line 5") == 3, 20)
    lines = lab.fleet("service", "logs", "--timestamps", "chatty").stdout.splitlines()
    stamps = [m[0] for line in lines if (m := re.search(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line))]
    assert len(stamps) == 15
    assert stamps == sorted(stamps)
    assert {line.split("@")[1].split()[0] for line in lines if "@" in line} == {"m1", "w1", "w2"}
    tail = lab.fleet("service", "logs", "--raw", "--tail", "1", "chatty").stdout.splitlines()
    assert tail == ["line 5"] * 3


def test_scaling_down_removes_from_the_fullest_and_rm_leaves_nothing(lab: TestLab, remove: Any) -> None:
    remove("scaled")
    lab.fleet("service", "create", "--name", "scaled", "--replicas", "6", "fleet/hello:1", *IDLE)
    lab.fleet("service", "scale", "scaled=3")
    lab.wait_until(lambda: len(lab.get("/tasks", filters={"service": ["scaled"]})) == 3, 20, what="three are left")
    assert sorted(host_of(lab, t) for t in lab.tasks("scaled")) == ["m1", "w1", "w2"]


def test_formats_and_quiet_are_stable(lab: TestLab, remove: Any) -> None:
    remove("shown")
    lab.fleet("service", "create", "--name", "shown", "fleet/hello:1", *IDLE)
    row = json.loads(lab.fleet("service", "ls", "--format", "json").stdout.splitlines()[0])
    assert (row["Name"], row["Replicas"], row["Mode"]) == ("shown", "1/1", "replicated")
    assert row["ID"].startswith(lab.fleet("service", "ls", "-q").stdout.strip())
    header = lab.fleet("service", "ls").stdout.splitlines()[0].split()
    assert header == ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]
    assert lab.fleet("service", "inspect", "--format", "{{.Spec.Name}}", "shown").stdout.strip() == "shown"
    assert lab.fleet("service", "inspect", "nope", check=False).returncode == 1


def test_host_mode_ports_lead_to_the_task_of_that_host_only(lab: TestLab, remove: Any) -> None:
    import urllib.request

    remove("hosted")
    serve = 'mkdir -p /www; echo "from $HOST" > /www/index.html; exec httpd -f -p 80 -h /www'
    lab.fleet(
        "service", "create", "--name", "hosted", "--mode", "global", "--env", "HOST={{.Node.Hostname}}",
        "--stop-grace-period", "1s", "--publish", "published=8099,target=80,mode=host", "fleet/hello:1", "sh", "-c", serve,
    )  # fmt: skip
    for host in lab.hosts():
        with urllib.request.urlopen(f"http://{lab.address(host)}:8099/", timeout=5) as answer:
            assert answer.read().decode().strip() == f"from {host}"
