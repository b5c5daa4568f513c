"""A container goes to another host with everything that is its own, and is never lost nor doubled on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.lab import REPOSITORY, TestLab

from fleet.identity.keys import load_identity
from fleet.identity.tls import client_context

pytestmark = pytest.mark.e2e

BEAT = "trap 'exit 0' TERM; while :; do echo beat >>/data/log; sleep 0.05; done"
FILL = "dd if=/dev/urandom of=/data/big bs=1M count={} 2>/dev/null"
STAGES = ("preparing", "copying while it runs", "stopping", "copying what changed", "starting there")


@pytest.fixture(scope="module")
def hosts(make_lab: Callable[..., TestLab]) -> TestLab:
    lab = make_lab(managers=1, workers=2)
    lab.load_hello("w1")
    return lab


@pytest.fixture
def lab(hosts: TestLab) -> Iterator[TestLab]:
    hosts.wait_until(
        lambda: [node["Status"]["State"] for node in hosts.get("/nodes")] == ["ready"] * 3,
        60,
        what="all nodes are ready",
    )
    yield hosts
    for host in ("m1", "w1", "w2"):
        hosts.start_daemon(host)
    for host in ("m1", "w1", "w2"):
        for item in containers(hosts, host):
            hosts.fleet("container", "rm", "-f", "-v", item["Id"], host=host, check=False)
        for name in volumes(hosts, host):
            hosts.fleet("volume", "rm", name, host=host, check=False)


def containers(lab: TestLab, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.get("/containers/json", host=host, all=True)
    return found


def volumes(lab: TestLab, host: str) -> list[str]:
    return [volume["Name"] for volume in lab.get("/volumes", host=host)["Volumes"] or ()]


def notes(lab: TestLab, host: str) -> list[str]:
    folder = f"/proc/{lab.pid(host)}/root{lab.layout.data(host)}/moves"  # it may be on the host's own disk
    return sorted(entry.name for entry in Path(folder).iterdir())


def running(lab: TestLab, name: str) -> list[str]:
    """The hosts it runs on."""
    return [
        host
        for host in ("m1", "w1", "w2")
        if any(f"/{name}" in item["Names"] and item["State"] == "running" for item in containers(lab, host))
    ]


def inside(lab: TestLab, host: str, script: str, name: str = "app") -> str:
    return str(lab.fleet("container", "exec", name, "sh", "-c", script, host=host).stdout)


def moving(lab: TestLab) -> subprocess.Popen[str]:
    """The command under way, from w1 to w2."""
    argv = [sys.executable, "-m", "fleet.cli.main", "container", "move", "--from", "w1", "app", "w2"]
    environment = lab.command_environment("m1")
    return subprocess.Popen(
        argv, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def until_stage(process: subprocess.Popen[str], stage: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == stage:
            return
    pytest.fail(f"the move never was at {stage!r}")


def make_app(lab: TestLab, *flags: str, command: str = BEAT) -> None:
    lab.fleet("container", "run", "-d", "--name", "app", "-v", "data:/data", *flags, "fleet/hello:1", "sh", "-c", command,
              host="w1")  # fmt: skip


def test_everything_that_is_its_own_comes_along(lab: TestLab) -> None:
    make_app(lab, "-v", "/anon", "-l", "a=b", "-e", "X=1", "-p", "8080:80", "--restart", "always")
    before = lab.get("/containers/app/json", host="w1")
    inside(
        lab,
        "w1",
        "cd /root; echo hi >f; chown 5:6 f; chmod 4750 f; ln f g; ln -s f s; mkfifo p; mkdir -m 1777 d; rm /bin/ls; "
        "rm -r /tmp; mkdir /tmp; "
        "dd if=/dev/zero of=sparse bs=1 count=1 seek=50000000 2>/dev/null; touch -d @1000000000 f; "
        "echo anon >/anon/x; dd if=/dev/urandom of=/data/big bs=1M count=3 2>/dev/null; sha256sum /data/big >/root/sum",
    )
    report = lab.fleet("container", "move", "--from", "w1", "app", "w2").stdout
    assert "app is on w2, started" in report
    assert "stopped, copied and started" in report

    assert running(lab, "app") == ["w2"]
    assert containers(lab, "w1") == []
    assert volumes(lab, "w1") == []
    after = lab.get("/containers/app/json", host="w2")
    assert after["Id"] == before["Id"]
    assert after["Image"] == before["Image"]
    for key in ("Labels", "Env", "Cmd", "Hostname"):
        assert after["Config"][key] == before["Config"][key], key
    for key in ("RestartPolicy", "PortBindings"):
        assert after["HostConfig"][key] == before["HostConfig"][key], key
    assert {m["Destination"] for m in after["Mounts"]} == {"/data", "/anon"}
    assert inside(lab, "w2", "cd /root; stat -c '%n %a %u %g %h %s %Y' f g; stat -c '%n %a %F' s p d; readlink s") == (
        "f 4750 5 6 2 3 1000000000\ng 4750 5 6 2 3 1000000000\ns 777 symbolic link\np 644 fifo\nd 1777 directory\nf\n"
    )
    assert int(inside(lab, "w2", "stat -c %b /root/sparse")) < 100
    assert inside(lab, "w2", "cat /anon/x; sha256sum -c /root/sum") == "anon\n/data/big: OK\n"
    assert inside(lab, "w2", "test -e /bin/ls || echo gone") == "gone\n"
    assert notes(lab, "w1") == notes(lab, "w2") == []
    for host in ("w1", "w2"):
        lab.restart_daemon(host)
    assert running(lab, "app") == ["w2"]


def test_a_stopped_one_stays_stopped_and_keep_leaves_it_here_too(lab: TestLab) -> None:
    make_app(lab, "--restart", "always")
    lab.fleet("container", "stop", "app", host="w1")
    lab.fleet("container", "move", "--from", "w1", "--keep", "app", "w2")
    assert [c["State"] for host in ("w1", "w2") for c in containers(lab, host)] == ["exited", "created"]
    lab.restart_daemon("w1")
    assert running(lab, "app") == []
    lab.fleet("container", "start", "app", host="w2")
    assert "beat" in inside(lab, "w2", "cat /data/log")


def test_refusals_say_what_and_where_and_it_runs_on(lab: TestLab, tmp_path: Path) -> None:
    make_app(lab, "-p", "8081:80", "--mount", f"type=bind,src={tmp_path},dst=/bound")

    def refused(*args: str) -> str:
        done = lab.fleet("container", "move", "--from", "w1", "app", *args, check=False)
        assert done.returncode != 0
        assert running(lab, "app") == ["w1"]
        assert notes(lab, "w1") == notes(lab, "w2") == []
        return done.stderr

    assert "node nope not found" in refused("nope")
    assert "is on w1 already" in refused("w1")
    assert "checkpoints are not supported" in refused("w2", "--checkpoint")
    assert "directories of the host (bind mounts)" in refused("w2")
    lab.fleet("volume", "create", "data", host="w2")
    assert "w2: a volume data is there already" in refused("w2", "--allow-host-access")
    lab.fleet("volume", "rm", "data", host="w2")
    lab.load_hello("w2")
    lab.fleet("container", "create", "--name", "app", "fleet/hello:1", host="w2")
    assert "w2: container app" in refused("w2", "--allow-host-access")
    lab.fleet("container", "rm", "app", host="w2")
    lab.fleet(
        "container", "run", "-d", "--name", "holder", "-p", "8081:80", "fleet/hello:1", "sleep", "1000", host="w2"
    )
    assert "port 8081/tcp is published by container holder there" in refused("w2", "--allow-host-access")
    from_worker = lab.fleet("container", "move", "app", "w2", host="w1", check=False)
    assert from_worker.returncode != 0
    assert "not a swarm manager" in from_worker.stderr


def test_what_cannot_be_started_there_runs_here_again(lab: TestLab) -> None:
    """The port is taken by a program of the host, which only the start can see."""
    make_app(lab, "-p", "8082:80", "--restart", "always")
    taker = subprocess.Popen(
        lab.command(
            "w2", [sys.executable, "-c",
                   "import socket,sys; s=socket.create_server(('',8082)); print(1, flush=True); sys.stdin.read()"]
        ),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"1\n"
        done = lab.fleet("container", "move", "--from", "w1", "app", "w2", check=False)
    finally:
        taker.communicate(timeout=30)
    assert done.returncode != 0, done.stdout
    assert "it runs here again" in done.stderr
    assert running(lab, "app") == ["w1"]
    assert lab.get("/containers/app/json", host="w1")["HostConfig"]["RestartPolicy"]["Name"] == "always"
    assert containers(lab, "w2") == []
    assert volumes(lab, "w2") == []


def test_networks_of_the_cluster_and_of_the_host_are_found_there_by_name(lab: TestLab) -> None:
    lab.fleet("network", "create", "-d", "overlay", "--attachable", "meeting")
    try:
        lab.load_hello("m1")
        lab.fleet(
            "container", "run", "-d", "--name", "friend", "--network", "meeting", "fleet/hello:1", "sleep", "1000"
        )
        lab.fleet("network", "create", "own", host="w1")
        make_app(lab, "--network", "meeting")
        lab.fleet("network", "connect", "own", "app", host="w1")
        lacking = lab.fleet("container", "move", "--from", "w1", "app", "w2", check=False)
        assert "w2: network own does not exist there" in lacking.stderr
        assert running(lab, "app") == ["w1"]
        lab.fleet("network", "create", "own", host="w2")
        lab.fleet("container", "move", "--from", "w1", "app", "w2")
        joined = lab.get("/containers/app/json", host="w2")["NetworkSettings"]["Networks"]
        assert sorted(joined) == ["meeting", "own"]
        ping = ("container", "exec", "friend", "ping", "-c1", "-W1", "app")
        lab.wait_until(lambda: lab.fleet(*ping, check=False).returncode == 0, 30, what="its friend reaches it there")
    finally:
        lab.fleet("container", "rm", "-f", "friend", check=False)
        for host in ("w1", "w2"):
            lab.fleet("container", "rm", "-f", "app", host=host, check=False)
            lab.fleet("network", "rm", "own", host=host, check=False)
        gone = ("network", "rm", "meeting")
        lab.wait_until(
            lambda: lab.fleet(*gone, check=False).returncode == 0, 30, what="the network is free to be removed"
        )


def test_a_worker_can_neither_announce_nor_set_going_nor_send_unannounced(lab: TestLab) -> None:
    make_app(lab)
    identity = load_identity(Path(lab.layout.data("w2")) / "swarm" / "identity")
    assert identity is not None
    move = "ab" * 16

    def post(host: str, what: str, body: dict[str, Any]) -> httpx.Response:
        url = f"https://{lab.address(host)}:2377/cluster/v1/moves/{move}/{what}"
        return httpx.post(url, json=body, verify=client_context(identity), timeout=10, trust_env=False)

    wish = {"Container": "app", "TargetName": "w2", "TargetAddress": f"{lab.address('w2')}:2377"}
    assert post("w1", "run", wish).status_code == 401
    expected = {"SourceNode": identity.node_id, "SourceName": "w2", "SourceAddress": f"{lab.address('w2')}:2377"}
    assert post("m1", "expect", expected).status_code == 401
    manifest = {"ContainerId": "c" * 64, "Name": "evil", "Config": {"Image": "fleet/hello:1"}, "ImageId": "", "Machine": "",
                "ImageDigest": "", "ImageReference": ""}  # fmt: skip
    refused = post("m1", "begin", manifest)
    assert refused.status_code == 403, refused.text
    assert "no manager has announced" in refused.text
    for what in ("files?tree=0", "ready", "commit"):
        assert post("m1", what, {}).status_code == 404, what
    assert containers(lab, "m1") == []
    assert running(lab, "app") == ["w1"]


def test_a_target_that_is_cut_off_while_it_is_stopped_does_not_keep_it(lab: TestLab) -> None:
    make_app(lab, "--restart", "always", command=f"{FILL.format(40)}; {BEAT}")
    lab.wait_until(lambda: "log" in inside(lab, "w1", "ls /data"), 60, what="its volume is filled")
    with moving(lab) as process:
        try:
            until_stage(process, "stopping")
            lab.partition(["w2"], ["w1", "m1"])
            _, told = process.communicate(timeout=120)
        finally:
            lab.heal()
    assert process.returncode != 0
    assert "w2" in told
    lab.wait_until(
        lambda: running(lab, "app") == ["w1"] and notes(lab, "w1") == [], 60, what="it runs where it was, and alone"
    )
    lab.restart_daemon("w2")
    assert notes(lab, "w2") == volumes(lab, "w2") == containers(lab, "w2") == []


def test_a_target_that_becomes_full_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    lab = TestLab(f"e{os.environ['FLEET_TEST_RUN']}movefull", root=tmp_path, disk_bytes=512 << 20)
    try:
        lab.up(managers=1, workers=2)
        lab.load_hello("w1")
        make_app(lab, command=f"{FILL.format(150)}; {BEAT}")
        lab.wait_until(lambda: "log" in inside(lab, "w1", "ls /data"), 60, what="its volume is filled")
        with moving(lab) as process:
            until_stage(process, "copying while it runs")
            lab.exec("w2", ["sh", "-c", f"dd if=/dev/zero of={lab.layout.data('w2')}/filler bs=1M 2>/dev/null; true"])
            _, told = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "No space left" in told, told
        assert running(lab, "app") == ["w1"]
        lab.wait_until(lambda: notes(lab, "w1") == notes(lab, "w2") == [], 60, what="nothing is left over")
        refused = lab.fleet("container", "move", "--from", "w1", "app", "w2", check=False)
        assert "free some space there" in refused.stderr
        assert running(lab, "app") == ["w1"]
    finally:
        lab.down()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", ["w1", "w2", "m1"])
def test_kill_9_of_a_daemon_at_any_stage_leaves_one_running_with_its_data(
    lab: TestLab, victim: str, stage: str
) -> None:
    make_app(lab, "--restart", "always")
    inside(lab, "w1", "dd if=/dev/urandom of=/data/big bs=1M count=24 2>/dev/null; sha256sum /data/big >/data/sum")
    with moving(lab) as process:
        until_stage(process, stage)
        lab.restart_daemon(victim, signum=signal.SIGKILL)
        _, rest = process.communicate(timeout=120)

    def settled() -> bool:
        where = running(lab, "app")
        done = where == ["w2"] if victim == "m1" else len(where) == 1  # the manager only set it going
        return done and notes(lab, "w1") == [] and notes(lab, "w2") == []

    lab.wait_until(settled, 60, what=f"one runs, and nothing is left over ({rest})")
    (where,) = running(lab, "app")
    other = "w2" if where == "w1" else "w1"
    assert containers(lab, other) == []
    assert volumes(lab, other) == []
    assert inside(lab, where, "sha256sum -c /data/sum") == "/data/big: OK\n"
    rule: str = lab.get("/containers/app/json", host=where)["HostConfig"]["RestartPolicy"]["Name"]
    assert rule == "always"
