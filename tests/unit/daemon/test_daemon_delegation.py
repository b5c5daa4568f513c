"""Whether an ordinary user's fleetd finds a control group of its own, and what it says where it does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleet.daemon.rootless.delegation import Delegated, find, note, noted
from fleet.node_runtime.cgroup_layout import NO_CGROUPS, Layout

V2 = frozenset({"memory", "pids"})


def group(path: Path, *, controllers: str = "memory pids", processes: str = "") -> None:
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text(processes)
    (path / "cgroup.subtree_control").touch()
    (path / "cgroup.controllers").write_text(controllers + "\n")


@pytest.mark.parametrize("own", ["/ann.scope", "/ann.scope/fleetd"])
def test_a_group_of_its_own_is_found_from_within_and_from_its_leaf(tmp_path: Path, own: str) -> None:
    group(tmp_path / "ann.scope")
    assert find(own=own, layout=Layout({}, str(tmp_path), V2)) == Delegated("/ann.scope")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("", "control group / is not this user's"),
        ("/session-1.scope", "control group /session-1.scope is not this user's to divide; start it in one of its own"),
        ("/shell", r"other processes \(17 18\)"),
        ("/few", "without the controller memory"),
    ],
)
def test_where_there_is_none_the_reason_is_told(tmp_path: Path, own: str, words: str) -> None:
    group(tmp_path / "shell", processes="17\n18\n")
    group(tmp_path / "few", controllers="pids")
    found = find(own=own, layout=Layout({}, str(tmp_path), V2))
    assert found.base == "" and re.search(words, found.why_not), found
    assert found.parent("/fleet") == NO_CGROUPS


def test_version_1_can_not_be_given_away(tmp_path: Path) -> None:
    found = find(own="/x", layout=Layout({"memory": str(tmp_path)}, "", frozenset()))
    assert found.base == "" and "version 2" in found.why_not


def test_what_was_found_is_known_to_the_next_fleetd(tmp_path: Path) -> None:
    assert noted(tmp_path).base == ""
    note(tmp_path, Delegated("/ann.scope"))
    assert noted(tmp_path).parent("/fleet") == "/ann.scope/fleet"
