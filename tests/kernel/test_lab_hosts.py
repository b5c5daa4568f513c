"""Hosts of a lab are hosts: own name, address, processes; they lose power, restart, and are cut off from each other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet import errors
from fleet.lab import Lab, cgroups, list_labs

pytestmark = pytest.mark.kernel

STANDIN = (sys.executable, "-I", str(Path(__file__).with_name("lab_standin.py")))
LISTEN = """
import socket, sys, time
server = socket.create_server(("0.0.0.0", 7000))
print("listening", flush=True)
peer, _ = server.accept()
peer.sendall(b"hello")
time.sleep(600)
"""
ECHO = """
import socket
server = socket.create_server(("", 7002))
print("ready", flush=True)
peer, _ = server.accept()
while data := peer.recv(9):
    peer.sendall(data)
"""
ECHO_USER = """
import socket, sys
peer = socket.create_connection(("w1", 7002))
for line in sys.stdin:
    peer.sendall(b"x")
    print(peer.recv(9), flush=True)
"""


@pytest.fixture
def lab(unique: str, tmp_path: Path) -> Iterator[Lab]:
    with Lab(unique, root=tmp_path, daemon=STANDIN) as made:
        yield made


def inside(lab: Lab, host: str, script: str) -> str:
    return lab.exec(host, ["sh", "-c", script]).stdout.strip()


def reaches(lab: Lab, source: str, target: str) -> bool:
    ping = ["busybox", "ping", "-c", "1", "-W", "1", target]
    return lab.exec(source, ping, check=False).returncode == 0


def states(lab: Lab) -> dict[str, tuple[str, str]]:
    return {row.name: (row.state, row.daemon) for row in lab.status()}


@contextlib.contextmanager
def in_background(lab: Lab, host: str, script: str) -> Iterator[subprocess.Popen[str]]:
    argv = lab.command(host, [sys.executable, "-c", script])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # or a failed test would wait for it for ever


def test_each_host_has_its_own_name_address_processes_and_boot(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    for host in ("m1", "w1"):
        assert inside(lab, host, "hostname") == host
        assert lab.address(host) in inside(lab, host, "ip -4 -o addr show eth0")
        assert inside(lab, host, "ls /sys/class/net").split() == ["eth0", "lo"]
        assert "hostinit.py" in inside(lab, host, "tr '\\0' ' ' < /proc/1/cmdline")
    if Path("/etc/machine-id").exists():  # minimal systems have none, and so have the hosts then
        assert inside(lab, "m1", "cat /etc/machine-id") != inside(lab, "w1", "cat /etc/machine-id")
    assert inside(lab, "m1", "cat /proc/sys/kernel/random/boot_id") != inside(
        lab, "w1", "cat /proc/sys/kernel/random/boot_id"
    )
    assert len(inside(lab, "m1", "ls /sys/fs/cgroup").split()) == len(os.listdir("/sys/fs/cgroup"))


def test_hosts_reach_each_other_by_name_and_the_machine_reaches_them(lab: Lab) -> None:
    lab.up(managers=1, workers=2, swarm=False)
    assert reaches(lab, "m1", "w2")
    assert reaches(lab, "w1", "w2")
    assert reaches(lab, "w1", "machine")
    ping = ["busybox", "ping", "-c", "1", "-W", "1", lab.address("w2")]
    assert subprocess.run(ping, capture_output=True, check=False).returncode == 0


def test_what_a_host_mounts_is_not_seen_by_the_machine_or_others(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    inside(lab, "m1", "mkdir /run/only-here && mount -t tmpfs none /run/only-here")
    assert "/run/only-here" in inside(lab, "m1", "cat /proc/mounts")
    assert "/run/only-here" not in Path("/proc/self/mounts").read_text()
    assert "/run/only-here" not in inside(lab, "w1", "cat /proc/mounts")
    assert not Path("/run/only-here").exists()


def test_up_again_starts_what_is_off_and_adds_what_is_missing_and_leaves_the_rest_alone(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    first = lab.pid("m1")
    lab.kill("w1")
    lab.up(managers=1, workers=2, swarm=False)
    assert lab.hosts() == ["m1", "w1", "w2"]
    assert set(states(lab).values()) == {("on", "running")}
    assert lab.pid("m1") == first
    assert inside(lab, "m1", "getent hosts w2").split()[0] == lab.address("w2")


def test_power_loss_ends_every_process_of_the_host_at_once(lab: Lab, wait_until: Callable[..., None]) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    inside(lab, "w1", "setsid sh -c 'trap : TERM; sleep 601 & wait' >/dev/null 2>&1 & sleep 0.1")
    sleepers = [p for p in Path("/proc").glob("[0-9]*") if _argv(p)[:2] == ["sleep", "601"] and _hostname(p) == "w1"]
    assert sleepers
    lab.kill("w1")
    assert not any(path.exists() and _argv(path)[:2] == ["sleep", "601"] for path in sleepers)
    assert states(lab) == {"m1": ("on", "running"), "w1": ("killed", "-")}
    with pytest.raises(errors.UnavailableError, match="host w1 is killed"):
        lab.pid("w1")


def _argv(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _hostname(process: Path) -> str:
    return subprocess.run(
        ["nsenter", f"--uts={process}/ns/uts", "hostname"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_peers_of_a_host_without_power_hear_no_farewell(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    with in_background(lab, "w1", LISTEN) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        with socket.create_connection((lab.address("w1"), 7000), timeout=5) as connection:
            assert connection.recv(5) == b"hello"
            lab.kill("w1")
            server.wait(timeout=5)
            connection.settimeout(1.0)
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_a_host_comes_back_with_its_data_but_with_an_empty_run_folder_and_a_new_boot(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    data, run = lab.layout.data("w1"), lab.layout.exec_root("w1")
    inside(lab, "w1", f"echo kept > {data}/kept; echo lost > {run}/lost")
    identity = inside(lab, "w1", "cat /sys/class/net/eth0/address")
    boot = inside(lab, "w1", "cat /proc/sys/kernel/random/boot_id")
    lab.kill("w1")
    lab.start("w1")
    assert (data / "kept").read_text() == "kept\n"
    assert not (run / "lost").exists()
    assert inside(lab, "w1", "cat /sys/class/net/eth0/address") == identity
    assert inside(lab, "w1", "cat /proc/sys/kernel/random/boot_id") != boot
    assert reaches(lab, "m1", "w1")


def test_power_loss_clears_the_hosts_cgroups_and_no_others(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    top = cgroups.hierarchies()[0]
    for host in ("m1", "w1"):
        (top / lab.layout.host_cgroup(host).lstrip("/") / "web.1").mkdir(parents=True)
    lab.kill("w1")
    assert not cgroups.leftovers(lab.layout.host_cgroup("w1"))
    assert cgroups.leftovers(lab.layout.host_cgroup("m1"))


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_what_is_frozen_on_a_host_ends_with_its_power_too(lab: Lab, wait_until: Callable[..., None], end: str) -> None:
    freezer = next((top for top in cgroups.hierarchies() if "freezer" in top.name.split(",")), None)
    if freezer is None:
        pytest.skip("not run: this kernel has no freezer of cgroup v1; what v2 freezes can be killed")
    lab.up(managers=1, workers=1, swarm=False)
    group = freezer / lab.layout.host_cgroup("w1").lstrip("/") / "paused"
    group.mkdir(parents=True)
    freeze = f"echo 0 >{group}/cgroup.procs; echo FROZEN >{group}/freezer.state; sleep 1000"
    process = subprocess.Popen(lab.command("w1", ["sh", "-c", freeze]))
    try:
        wait_until(lambda: (group / "freezer.state").read_text().strip() == "FROZEN", 20, what="it is frozen")
        getattr(lab, end)("w1")
        assert process.wait(30) != 0
        assert not cgroups.leftovers(lab.layout.host_cgroup("w1"))
    finally:
        if group.exists():
            (group / "freezer.state").write_text("THAWED")
        process.kill()
        process.wait()


def test_stop_lets_the_daemon_end_in_order_and_ends_the_stubborn_after_the_grace(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    inside(lab, "w1", "setsid sh -c 'trap : TERM; while :; do sleep 60; done' >/dev/null 2>&1 & sleep 0.1")
    began = time.monotonic()
    lab.stop("w1", grace_s=1.0)
    assert 0.9 < time.monotonic() - began < 8
    assert (lab.layout.data("w1") / "ended-by").read_text() == "SIGTERM"
    assert states(lab)["w1"] == ("stopped", "-")


def test_only_the_daemon_restarts(lab: Lab) -> None:
    lab.up(managers=1, workers=0, swarm=False)
    before = inside(lab, "m1", "pgrep -f lab_standin")
    inside(lab, "m1", "setsid sleep 602 >/dev/null 2>&1 & sleep 0.1")
    lab.restart_daemon("m1")
    assert inside(lab, "m1", "pgrep -f lab_standin") != before
    assert inside(lab, "m1", "pgrep -x sleep")
    assert not (lab.layout.data("m1") / "ended-by").exists()
    lab.restart_daemon("m1", signum=signal.SIGTERM)
    assert (lab.layout.data("m1") / "ended-by").read_text() == "SIGTERM"


def test_a_daemon_that_was_killed_is_reported_and_can_be_started(lab: Lab, wait_until: Callable[..., None]) -> None:
    lab.up(managers=1, workers=0, swarm=False)
    lab.signal_daemon("m1", signal.SIGKILL)
    wait_until(lambda: states(lab)["m1"] == ("on", "killed by signal 9"), 5, what="death of the daemon seen")
    lab.start_daemon("m1")
    assert states(lab)["m1"] == ("on", "running")


def test_a_partition_cuts_both_ways_survives_a_restart_and_heals(lab: Lab) -> None:
    lab.up(managers=1, workers=2, swarm=False)
    lab.partition(["m1"], ["w1"])
    assert not reaches(lab, "m1", "w1")
    assert not reaches(lab, "w1", "m1")
    assert reaches(lab, "m1", "w2")
    assert reaches(lab, "w2", "w1")
    lab.kill("w1")
    lab.start("w1")
    assert not reaches(lab, "w1", "m1")
    lab.heal()
    assert reaches(lab, "m1", "w1")
    assert inside(lab, "w1", "nft list ruleset") == ""


def test_a_one_way_partition_loses_only_what_the_first_sends(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    lab.partition(["m1"], ["w1"], one_way=True)
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7001)); s.settimeout(1); {}"
    )
    for source, target, arrives in (("m1", "w1", False), ("w1", "m1", True)):
        with in_background(lab, target, script.format("print('ready', flush=True); print(s.recv(9))")) as receiver:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            send = f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{target}', 7001))"
            lab.exec(source, [sys.executable, "-c", f"import socket; {send}"])  # silent: the sender is told nothing
            assert (receiver.stdout.readline() == "b'x'\n") == arrives


def test_a_connection_outlives_a_partition_that_heals(lab: Lab) -> None:
    lab.up(managers=1, workers=1, swarm=False)
    with in_background(lab, "w1", ECHO) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with in_background(lab, "m1", ECHO_USER) as user:
            assert user.stdin is not None
            assert user.stdout is not None
            user.stdin.write("1\n")
            user.stdin.flush()
            assert user.stdout.readline() == "b'x'\n"
            lab.partition(["m1"], ["w1"])
            user.stdin.write("2\n")
            user.stdin.flush()
            threading.Timer(1.0, lab.heal).start()
            began = time.monotonic()
            assert user.stdout.readline() == "b'x'\n"
            assert time.monotonic() - began > 0.9


def test_exec_gives_output_exit_code_and_the_hosts_own_daemon(lab: Lab) -> None:
    lab.up(managers=1, workers=0, swarm=False)
    done = lab.exec("m1", ["sh", "-c", "echo $FLEET_HOST; cat; exit 7"], check=False, stdin="typed")
    assert (done.returncode, done.stdout) == (7, f"unix://{lab.socket('m1')}\ntyped")


def test_what_exec_runs_ends_with_its_caller(lab: Lab, wait_until: Callable[..., None]) -> None:
    lab.up(managers=1, workers=0, swarm=False)
    with subprocess.Popen(lab.command("m1", ["sleep", "603"])) as caller:
        wait_until(lambda: "sleep" in inside(lab, "m1", "ps -e -o comm="), 5, what="sleep runs")
        caller.kill()
    wait_until(lambda: "sleep" not in inside(lab, "m1", "ps -e -o comm="), 5, what="sleep ended")


def test_a_daemon_that_cannot_start_is_reported_with_its_last_words(unique: str, tmp_path: Path) -> None:
    with Lab(unique, root=tmp_path, daemon=STANDIN, daemon_args=["--die-saying", "the disk is on fire"]) as lab:
        with pytest.raises(errors.RuntimeFault, match=r"fleetd of m1 exited 1; .*\n.*the disk is on fire"):
            lab.up(workers=0, swarm=False)
        assert states(lab) == {"m1": ("on", "exited 1")}


def test_an_unknown_host_or_lab_is_named_with_what_there_is(lab: Lab) -> None:
    with pytest.raises(errors.NotFoundError, match="no lab is called"):
        lab.kill("m1")
    lab.up(workers=1, swarm=False)
    with pytest.raises(errors.NotFoundError, match="no host 'w9'; it has m1, w1"):
        lab.kill("w9")
    with pytest.raises(errors.UserError, match="cannot partition m1 from itself"):
        lab.partition(["m1", "w1"], ["m1"])


def test_labs_live_side_by_side_on_different_subnets(lab: Lab, unique: str, tmp_path: Path) -> None:
    lab.up(workers=1, swarm=False)
    with Lab(f"{unique}b", root=tmp_path, daemon=STANDIN) as other:
        other.up(workers=1, swarm=False)
        assert list_labs(tmp_path) == sorted([lab.name, other.name])
        assert lab.machine_address() != other.machine_address()
    assert list_labs(tmp_path) == [lab.name]
    assert reaches(lab, "m1", "w1")


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="not run: needs mkfs.ext4 (package e2fsprogs)")
def test_a_host_can_have_a_disk_of_its_own_which_can_be_full_and_outlives_the_power(
    unique: str, tmp_path: Path
) -> None:
    with Lab(unique, root=tmp_path, daemon=STANDIN, disk_bytes=256 << 20) as lab:
        lab.up(managers=1, workers=1, swarm=False)
        data = {host: lab.layout.data(host) for host in ("m1", "w1")}
        inside(lab, "w1", f"echo kept >{data['w1']}/kept; sync")
        filled = lab.exec("w1", ["sh", "-c", f"cat /dev/zero >{data['w1']}/filler"], check=False)
        assert filled.returncode != 0 and "No space left" in filled.stderr
        inside(lab, "m1", f"head -c 1000000 /dev/zero >{data['m1']}/mine")
        assert not list(data["w1"].iterdir())  # the machine sees the folder, not the disk
        lab.kill("w1")
        lab.start("w1")
        assert inside(lab, "w1", f"cat {data['w1']}/kept; rm {data['w1']}/filler; echo >{data['w1']}/more") == "kept"
        with pytest.raises(errors.ConflictError, match="disks of 268435456 bytes"):
            Lab(unique, root=tmp_path, daemon=STANDIN, disk_bytes=1 << 30).up(managers=1, workers=1, swarm=False)
        image = str(lab.layout.disk("w1"))
        backing = [
            Path("/sys/class/block", path.name, "loop/backing_file") for path in Path("/sys/class/block").glob("loop*")
        ]
        assert any(file.read_text().strip() == image for file in backing if file.exists())
    end = time.monotonic() + 20
    while any(str(tmp_path) in file.read_text() for file in backing if file.exists()):
        assert time.monotonic() < end, "a loop device is still in use"
        time.sleep(0.05)


def test_a_disk_too_small_for_a_host_is_refused_before_anything_is_made(unique: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UserError, match="at least 256m"):
        Lab(unique, root=tmp_path, disk_bytes=1000)
    assert not list(tmp_path.iterdir())
