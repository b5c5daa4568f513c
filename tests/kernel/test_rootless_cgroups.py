"""``fleetd`` as an ordinary user who was given a control group (cgroup v2): limits, pausing and figures as root has them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.images import busybox_rootfs_tar
from support.ordinary_user import UID, UsersFleet, ordinary_user, why_impossible

from fleet.lab import cgroups
from fleet.node_runtime.cgroup_layout import detect_layout

LAYOUT = detect_layout()
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.story,
    pytest.mark.skipif(not LAYOUT.is_v2, reason="not run: only groups of cgroup v2 can be given to ordinary users"),
    pytest.mark.skipif(bool(why := why_impossible()), reason=f"not run: {why}"),
]
GIVEN = ("cpu", "memory", "pids")


@pytest.fixture(scope="module")
def given() -> Iterator[Path]:
    """As root gives a group away by hand, with a leaf to start fleetd in."""
    top = Path(LAYOUT.unified)
    (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in GIVEN))
    path = f"/fleet-test-{os.environ['FLEET_TEST_RUN']}-given"
    base = top / path.strip("/")
    for group in (base, base / "fleetd"):
        group.mkdir()
        for file in (group, group / "cgroup.procs", group / "cgroup.subtree_control"):
            os.chown(file, UID, UID)
    yield base
    cgroups.sweep(path)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with ordinary_user() as home:
        yield home


@pytest.fixture(scope="module")
def mine(home: Path, given: Path) -> Iterator[UsersFleet]:
    image = home / "busybox.tar"
    busybox_rootfs_tar(image)
    image.chmod(0o644)
    mine = UsersFleet(home, group=given / "fleetd")
    mine.start()
    try:
        mine.fleet("image", "import", str(image), "busybox")
        yield mine
    finally:
        mine.clear()


def group_of(mine: UsersFleet, given: Path, name: str) -> Path:
    return given / "fleet" / mine.fleet("inspect", "--format", "{{.Id}}", name).stdout.strip()


def test_what_can_be_limited_is_told(mine: UsersFleet) -> None:
    info = json.loads(mine.fleet("info", "--format", "json").stdout)
    assert (info["CgroupDriver"], info["CgroupVersion"]) == ("cgroupfs", "2")
    assert info["MemoryLimit"] and info["PidsLimit"] and info["CpuCfsQuota"] and not info["CPUSet"]
    assert not any("cannot be paused" in text for text in info["Warnings"])


def test_limits_are_the_kernels_and_those_not_given_are_discarded(mine: UsersFleet, given: Path) -> None:
    limits = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cpuset-cpus", "0")
    done = mine.fleet("run", "-d", "--name", "kept", *limits, "busybox", "sleep", "1000")
    assert done.stderr.count("Limitation discarded") == 1
    assert "was not given the cgroup controller cpuset. Limitation discarded: cpuset CPU" in done.stderr
    group = group_of(mine, given, "kept")
    assert (group / "memory.max").read_text() == f"{64 << 20}\n"
    assert (group / "cpu.max").read_text() == "50000 100000\n"
    assert (group / "pids.max").read_text() == "50\n"
    assert mine.fleet("exec", "kept", "cat", "/sys/fs/cgroup/memory.max").stdout == f"{64 << 20}\n"


def test_limits_are_changed_while_it_runs(mine: UsersFleet, given: Path) -> None:
    mine.fleet("update", "--memory", "96m", "--memory-swap", "96m", "kept")
    assert (group_of(mine, given, "kept") / "memory.max").read_text() == f"{96 << 20}\n"


def test_containers_are_paused(mine: UsersFleet, given: Path) -> None:
    mine.fleet("pause", "kept")
    assert (group_of(mine, given, "kept") / "cgroup.freeze").read_text() == "1\n"
    assert mine.fleet("inspect", "--format", "{{.State.Status}}", "kept").stdout == "paused\n"
    mine.fleet("unpause", "kept")
    assert (group_of(mine, given, "kept") / "cgroup.freeze").read_text() == "0\n"


def test_figures_are_those_of_the_group(mine: UsersFleet) -> None:
    assert "96MiB" in mine.fleet("stats", "--no-stream", "kept").stdout
    assert "sleep 1000" in mine.fleet("top", "kept").stdout


def test_a_container_beyond_its_memory_is_killed_and_that_is_told(mine: UsersFleet) -> None:
    eat = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo survived"
    limits = ("--memory", "16m", "--memory-swap", "16m")
    assert mine.fleet("run", "--name", "hungry", *limits, "busybox", "sh", "-c", eat, check=False).returncode != 0
    assert mine.fleet("inspect", "--format", "{{.State.OOMKilled}}", "hungry").stdout == "true\n"


def test_a_fleetd_after_a_killed_one_finds_the_groups(mine: UsersFleet, given: Path) -> None:
    mine.kill()
    mine.start()
    mine.fleet("pause", "kept")
    mine.fleet("unpause", "kept")
    mine.fleet("run", "--rm", "--memory", "32m", "busybox", "true")
    assert mine.pid in map(int, (given / "fleetd/cgroup.procs").read_text().split())


def test_a_stranger_to_the_group_is_told_where_to_start(mine: UsersFleet, home: Path) -> None:
    mine.kill()
    stranger = UsersFleet(home)
    with pytest.raises(AssertionError, match=r"live in control group .* and it cannot go there"):
        stranger.start()
    mine.start()


def test_the_group_is_left_as_it_was_given(mine: UsersFleet, given: Path, wait_until: Callable[..., None]) -> None:
    mine.fleet("rm", "-f", "kept", "hungry")
    assert "namespaces ended" in mine.stop()
    wait_until(lambda: mine.processes() == [], 60, what="no process of the user")
    assert [path.name for path in given.iterdir() if path.is_dir()] == ["fleetd"]
    assert (given / "cgroup.subtree_control").read_text().split() == []
    mine.start()  # and again from there
    assert mine.fleet("run", "--rm", "--memory", "32m", "busybox", "echo", "again").stdout == "again\n"
