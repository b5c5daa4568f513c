"""The cgroup that an ordinary user was given to divide among containers: cgroup v2's delegation (cgroups(7)).

    BASE           what was given: by systemd (``Delegate=yes``), or by root, who made it and changed the owner of the folder and
                   of its cgroup.procs and cgroup.subtree_control
    BASE/fleetd    fleetd and the processes around it: a group whose children have controllers may hold no process itself
    BASE/fleet     the containers', as root's fleetd has them below the root

fleetd is started in BASE or in BASE/fleetd; what it found is noted in ``rootless/cgroup.json``, for the next fleetd that joins
the same namespaces. The anchor's cgroup namespace begins at BASE, for where systemd mounts cgroups (``nsdelegate``) no process
is moved to or from a group its mover's namespace does not show: so it is made in BASE, and left for BASE/fleetd afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet.node_runtime.cgroup_layout import NO_CGROUPS, Layout, detect_layout

__all__ = ["Delegated", "find", "move_to_base", "note", "noted", "release", "settle"]

LEAF: Final = "fleetd"
"""As systemd's DelegateSubgroup= would name it."""
_FILE: Final = "cgroup.json"
_RELEASE_TIMEOUT_S: Final = 10.0
_HINT: Final = "start it in one of its own: systemd-run --user --scope -p Delegate=yes fleetd"


@dataclass(frozen=True, slots=True)
class Delegated:
    """``base``: the group's path, "" for none, and then ``why_not`` in a sentence."""

    base: str
    why_not: str = ""

    def parent(self, configured: str) -> str:
        """The parent of containers' groups, where root's would be ``configured``."""
        return f"{self.base}{configured}" if self.base else NO_CGROUPS


def find(*, own: str | None = None, layout: Layout | None = None) -> Delegated:
    """Whether this process's group (``own``: its path) is the user's to divide. Never raises."""
    layout = layout or detect_layout()
    if not layout.is_v2:
        return Delegated("", "an ordinary user can have control groups of version 2 only, and this host has others")
    own = _own_group() if own is None else own
    base = own.removesuffix(f"/{LEAF}")
    folder = Path(layout.unified + base)
    needed = (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    if base.strip("/") == "" or not all(os.access(path, os.W_OK) for path in needed):
        return Delegated("", f"fleetd's control group {own or '/'} is not this user's to divide; {_HINT}")
    try:
        if "memory" not in (folder / "cgroup.controllers").read_text().split():
            return Delegated("", f"control group {base} was given without the controller memory; {_HINT}")
        others = [pid for pid in (folder / "cgroup.procs").read_text().split() if pid != str(os.getpid())]
    except OSError as cause:
        return Delegated("", f"control group {base}: {cause.strerror}")
    if others:
        return Delegated(
            "", f"fleetd shares control group {base} with other processes ({' '.join(others[:4])}); {_HINT}"
        )
    return Delegated(base)


def note(folder: Path, found: Delegated) -> None:
    """For ``noted``; ``folder`` is that of the records. Raises ``OSError``."""
    (folder / _FILE).write_text(json.dumps({"base": found.base, "why_not": found.why_not}) + "\n")


def noted(folder: Path) -> Delegated:
    """What the namespaces there were made with."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = json.loads((folder / _FILE).read_text())
        return Delegated(str(record["base"]), str(record["why_not"]))
    return Delegated("", "fleetd was started by an older version, whose containers still run")


def move_to_base(base: str) -> None:
    """Into the group itself, once nothing of an earlier fleetd keeps processes out of it. Raises ``OSError``."""
    folder = _folder(base)
    _tidy(folder)
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def settle(base: str, pid: int = 0) -> None:
    """Move a process (0: this one) out of the way of the containers' groups. Idempotent. Raises ``OSError``."""
    leaf = _folder(base) / LEAF
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(pid or os.getpid()))


def release(folder: Path) -> None:
    """Nothing runs any more: leave the group as it was given, but for its leaf, and forget it. Waits for processes that are just
    ending. Raises ``OSError``.
    """
    base = noted(folder).base
    (folder / _FILE).unlink(missing_ok=True)
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while base:
        try:
            _tidy(_folder(base))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _tidy(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        if path != str(folder) and path != str(folder / LEAF):
            Path(path).rmdir()
    control = folder / "cgroup.subtree_control"
    if words := control.read_text().split():
        control.write_text(" ".join(f"-{word}" for word in words))


def _folder(base: str) -> Path:
    return Path(detect_layout().unified + base)


def _own_group() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:].rstrip("/")
    return ""
