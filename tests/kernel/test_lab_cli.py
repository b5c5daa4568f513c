"""The ``fleet lab`` commands as a person types them, on a lab whose daemons are stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.lab import Lab

pytestmark = pytest.mark.kernel

STANDIN = (sys.executable, "-I", str(Path(__file__).with_name("lab_standin.py")))


@pytest.fixture
def lab(unique: str, tmp_path: Path) -> Iterator[Lab]:
    with Lab(unique, root=tmp_path, daemon=STANDIN) as made:
        made.up(workers=1, swarm=False)
        yield made


def fleet_lab(lab: Lab, verb: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "fleet.cli.main", "lab", verb, "--name", lab.name, *args]
    environment = {**os.environ, "FLEET_LAB_ROOT": str(lab.layout.root)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_env_makes_a_shell_talk_to_the_host(lab: Lab) -> None:
    exports = fleet_lab(lab, "env", "w1").stdout
    said = subprocess.run(
        ["sh", "-c", f"{exports} echo $FLEET_HOST $DOCKER_HOST"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"unix://{lab.socket('w1')} unix://{lab.socket('w1')}\n"
    assert str(lab.socket("m1")) in fleet_lab(lab, "env").stdout


def test_exec_becomes_the_command(lab: Lab) -> None:
    done = fleet_lab(lab, "exec", "w1", "--", "sh", "-c", "hostname; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, "w1\n")
    assert fleet_lab(lab, "exec", "w1", "ls", "-d", "/proc/1").stdout == "/proc/1\n"


def test_power_and_partitions_from_the_command_line(lab: Lab) -> None:
    fleet_lab(lab, "kill", "w1")
    rows = json.loads(fleet_lab(lab, "ls", "--format", "json").stdout)
    assert [(row["name"], row["state"], row["daemon"]) for row in rows] == [
        ("m1", "on", "running"),
        ("w1", "killed", "-"),
    ]
    fleet_lab(lab, "start", "w1")
    fleet_lab(lab, "partition", "m1", "w1")
    assert "drop" in lab.exec("w1", ["nft", "list", "ruleset"]).stdout
    fleet_lab(lab, "heal")
    fleet_lab(lab, "restart-daemon", "w1", "--signal", "TERM")
    fleet_lab(lab, "stop", "m1", "w1", "--grace", "5")
    table = fleet_lab(lab, "ls").stdout.splitlines()
    assert table[0].split() == ["LAB", "HOST", "ROLE", "ADDRESS", "STATE", "DAEMON", "SOCKET"]
    assert [line.split()[4] for line in table[1:]] == ["stopped", "stopped"]
    done = fleet_lab(lab, "exec", "m1", "true", check=False)
    assert (done.returncode, done.stderr) == (1, "Error: host m1 is stopped; 'fleet lab start m1' starts it\n")
    fleet_lab(lab, "down")
    assert not lab.exists()


def test_logs_can_be_followed_across_a_restart(lab: Lab, wait_until: Callable[..., None]) -> None:
    assert fleet_lab(lab, "logs", "w1", "-n", "1").stdout.endswith('"GET /_ping HTTP/1.1" 200 -\n')
    argv = [sys.executable, "-m", "fleet.cli.main", "lab", "logs", "-f", "-n", "0", "--name", lab.name, "w1"]
    environment = {**os.environ, "FLEET_LAB_ROOT": str(lab.layout.root)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        wait_until(lambda: _command(following.pid).startswith("tail"), 10, what="tail runs")
        lab.restart_daemon("w1")
        assert following.stdout.readline()
        following.kill()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_running_daemon_is_not_started_twice(lab: Lab) -> None:
    before = lab.exec("m1", ["pgrep", "-f", "lab_standin"]).stdout
    fleet_lab(lab, "start", "m1")
    assert lab.exec("m1", ["pgrep", "-f", "lab_standin"]).stdout == before
