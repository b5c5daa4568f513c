"""Removing the cgroups a host left behind, in whatever hierarchies this machine has (v1, hybrid or v2)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from fleet import errors

__all__ = ["hierarchies", "leftovers", "remove_empty", "sweep", "thaw"]


def hierarchies(mountinfo: str | None = None) -> list[Path]:
    """Mount points of every cgroup hierarchy, from the text of /proc/self/mountinfo (proc(5))."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8") if mountinfo is None else mountinfo
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] in ("cgroup", "cgroup2") and before.split(" ")[3] == "/":
            found.append(Path(before.split(" ")[4]))
    return found


def leftovers(cgroup: str) -> list[Path]:
    """Every directory at and below ``cgroup`` (an absolute cgroup path), children before parents."""
    found = []
    for hierarchy in hierarchies():
        top = hierarchy / cgroup.lstrip("/")
        for folder, _, _ in os.walk(top, topdown=False):
            found.append(Path(folder))
    return found


def thaw(cgroup: str) -> None:
    """Let what is frozen there run on, so that it can be killed: cgroup v1 delivers no signal to a frozen process."""
    for folder in leftovers(cgroup):
        with contextlib.suppress(OSError):  # gone meanwhile, or of a hierarchy that freezes nothing
            state = folder / "freezer.state"
            if state.exists():
                state.write_text("THAWED", encoding="utf-8")


def sweep(cgroup: str, *, timeout_s: float = 5.0) -> None:
    """Remove ``cgroup`` and all below it, waiting out the kernel's short EBUSY after the last process of a group has died.

    Raises ``RuntimeFault`` naming the groups that still hold processes after ``timeout_s``; processes are not touched.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        busy = [folder for folder in leftovers(cgroup) if not _removed(folder)]
        if not busy:
            return
        if time.monotonic() > deadline:
            holders = "; ".join(f"{folder}: processes {_processes(folder) or 'none'}" for folder in busy[:4])
            raise errors.RuntimeFault(
                f"{len(busy)} cgroups below {cgroup} are still in use after {timeout_s:g} s: {holders}"
            )
        time.sleep(0.02)


def remove_empty(cgroup: str) -> None:
    """Remove this one group wherever nothing is in it, neither groups nor processes; others stay."""
    for hierarchy in hierarchies():
        _removed(hierarchy / cgroup.lstrip("/"))


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as cause:
        if cause.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def _processes(folder: Path) -> str:
    try:
        return " ".join((folder / "cgroup.procs").read_text(encoding="utf-8").split()[:8])
    except OSError as cause:
        return f"unreadable ({cause.strerror})"
