"""Whatever ends the command that makes a lab, and whenever: the next finishes the job or removes all of it, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from fleet import errors
from fleet.lab import Lab, cgroups, processes
from fleet.lab.names import RUN_ROOT
from fleet.lab.record import HostRecord, load, save
from fleet.lab.wires import run, used_networks

pytestmark = pytest.mark.kernel

STANDIN = (sys.executable, "-I", str(Path(__file__).with_name("lab_standin.py")))
UP = """
import sys
from pathlib import Path
from fleet.lab import Lab
print("go", flush=True)
Lab(sys.argv[1], root=Path(sys.argv[2]), daemon=sys.argv[3:]).up(workers=2, swarm=False)
print("done", flush=True)
"""


def start_up(name: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", UP, name, str(root), *STANDIN], stdout=subprocess.PIPE, text=True)


def traces_of(name: str, root: Path, token: str) -> list[object]:
    links = [link for link in run(["ip", "-o", "link"]).splitlines() if f"flab{token[:8]}" in link]
    folders = [path for path in (root / name, RUN_ROOT / name) if path.exists()]
    return [*processes.find(token), *links, *folders, *cgroups.leftovers(f"/fleet-lab/{name}")]


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3])
def test_down_removes_a_lab_whose_making_was_killed(after_s: float, unique: str, tmp_path: Path) -> None:
    with start_up(unique, tmp_path) as making:
        assert making.stdout is not None
        assert making.stdout.readline() == "go\n"
        time.sleep(after_s)
        making.kill()
    lab = Lab(unique, root=tmp_path)
    record = load(lab.layout)
    token = record.token if record else "no token was drawn yet"
    lab.down()
    assert traces_of(unique, tmp_path, token) == []


@pytest.mark.parametrize("after_s", [0.02, 0.06, 0.1, 0.15])
def test_up_finishes_a_lab_whose_making_was_killed(after_s: float, unique: str, tmp_path: Path) -> None:
    with start_up(unique, tmp_path) as making:
        assert making.stdout is not None
        making.stdout.readline()
        time.sleep(after_s)
        making.kill()
    with Lab(unique, root=tmp_path, daemon=STANDIN) as lab:
        lab.up(workers=2, swarm=False)
        assert {(row.state, row.daemon) for row in lab.status()} == {("on", "running")}
        record = load(lab.layout)
        assert record is not None
        assert len(processes.find(record.token)) == 3
        ping = ["busybox", "ping", "-c", "1", "-W", "1", "w2"]
        assert lab.exec("m1", ping, check=False).returncode == 0


def test_a_lost_run_folder_and_switch_are_made_again_as_after_a_reboot(unique: str, tmp_path: Path) -> None:
    with Lab(unique, root=tmp_path, daemon=STANDIN) as lab:
        lab.up(workers=1, swarm=False)
        address = lab.address("w1")
        record = load(lab.layout)
        assert record is not None
        processes.end_all(processes.find(record.token), timeout_s=5)
        run(["ip", "link", "delete", f"flab{record.token[:8]}"])
        run(["umount", str(lab.layout.switch)])
        for path in sorted(lab.layout.run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        lab.layout.run.rmdir()
        assert [row.state for row in lab.status()] == ["off", "off"]
        lab.up(workers=1, swarm=False)
        assert lab.address("w1") == address
        assert {(row.state, row.daemon) for row in lab.status()} == {("on", "running")}


def test_a_process_that_got_the_pid_of_a_dead_host_is_left_alone(unique: str, tmp_path: Path) -> None:
    with Lab(unique, root=tmp_path, daemon=STANDIN) as lab, subprocess.Popen(["sleep", "604"]) as stranger:
        lab.up(workers=1, swarm=False)
        record = load(lab.layout)
        assert record is not None
        w1 = record.host("w1")
        save(lab.layout, record.with_host(msgspec.structs.replace(w1, pid=stranger.pid)))
        assert [row.state for row in lab.status()] == ["on", "off"]
        lab.kill("w1")
        lab.down()
        assert stranger.poll() is None
        assert not processes.find(record.token)
        stranger.kill()


def test_the_machines_links_rules_routes_and_sysctls_are_as_before(unique: str, tmp_path: Path) -> None:
    sysctls = ["net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.forwarding"]
    watched = [
        ["nft", "list", "ruleset"],
        ["ip", "rule"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-br", "link"],
        ["cat", "/proc/self/mounts"],
    ]
    run(["ip", "link", "add", "flabstranger", "type", "bridge"])
    try:
        run(["nft", "add", "table", "inet", "fleet_lab"])
        before = [run(command) for command in [*watched, ["sysctl", *sysctls]]]
        with Lab(unique, root=tmp_path, daemon=STANDIN) as lab:
            lab.up(workers=1, swarm=False)
            lab.partition(["m1"], ["w1"])
            assert run(["nft", "list", "ruleset"]) == before[0]
            assert run(["sysctl", *sysctls]) == before[-1]
        assert [run(command) for command in [*watched, ["sysctl", *sysctls]]] == before
    finally:
        run(["ip", "link", "delete", "flabstranger"])
        run(["nft", "delete", "table", "inet", "fleet_lab"])


def test_a_name_held_elsewhere_and_a_subnet_in_use_are_refused_and_leave_nothing(unique: str, tmp_path: Path) -> None:
    with Lab(unique, root=tmp_path / "one", daemon=STANDIN) as lab:
        lab.up(workers=0, swarm=False)
        with pytest.raises(errors.ConflictError, match=f"name '{unique}' is taken: its data is in {tmp_path}/one"):
            Lab(unique, root=tmp_path / "two", daemon=STANDIN).up(workers=0, swarm=False)
        subnet = lab.machine_address().rsplit(".", 1)[0] + ".0/24"
        with pytest.raises(errors.ConflictError, match=f"subnet {subnet} is taken"):
            Lab(f"{unique}b", root=tmp_path / "two", daemon=STANDIN).up(workers=0, swarm=False, subnet=subnet)
        assert list((tmp_path / "two").iterdir()) == []
        assert subnet in used_networks(except_link="")


def test_down_leaves_a_folder_it_did_not_make_alone(unique: str, tmp_path: Path) -> None:
    precious = tmp_path / unique / "thesis"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(errors.ConflictError, match="leaves it alone"):
        Lab(unique, root=tmp_path).down()
    with pytest.raises(errors.ConflictError, match="is taken"):
        Lab(unique, root=tmp_path).up(workers=0, swarm=False)
    assert precious.read_text() == "years of work"


def test_a_second_command_waits_for_the_first(unique: str, tmp_path: Path) -> None:
    heard: list[str] = []
    with Lab(unique, root=tmp_path, daemon=STANDIN, say=heard.append) as lab, start_up(unique, tmp_path) as making:
        assert making.stdout is not None
        making.stdout.readline()
        while load(lab.layout) is None:
            time.sleep(0.002)
        lab.up(workers=2, swarm=False)
        assert any(text.startswith("waiting for another command") for text in heard)
        assert making.wait(timeout=20) == 0
        assert {(row.state, row.daemon) for row in lab.status()} == {("on", "running")}


def test_a_host_recorded_but_never_started_is_off(unique: str, tmp_path: Path) -> None:
    with Lab(unique, root=tmp_path, daemon=STANDIN) as lab:
        lab.up(workers=0, swarm=False)
        record = load(lab.layout)
        assert record is not None
        save(lab.layout, record.with_host(HostRecord(name="w1", address="10.0.0.1")))
        assert [row.state for row in lab.status()] == ["on", "off"]
