"""Where the hierarchies of control groups are mounted, and whether the limits live on v1 or v2. Standard library only."""

from __future__ import annotations

import contextlib
import os

from fleet.node_runtime.cgroup_files import read

__all__ = ["NO_CGROUPS", "USED_V1", "Layout", "detect_layout", "layout_for"]

NO_CGROUPS = "none"
"""As a parent: make no groups, for whoever may not. Containers then have no limits and cannot be paused."""
USED_V1 = ("memory", "cpu", "cpuacct", "pids", "devices", "freezer", "blkio")
"""Controllers of v1 in which every container has a group."""


class Layout:
    """Where the hierarchies are mounted."""

    __slots__ = ("unified", "unified_controllers", "v1")

    def __init__(self, v1: dict[str, str], unified: str, unified_controllers: frozenset[str]) -> None:
        self.v1 = v1
        """Controller (or ``name=systemd``) to mount point."""
        self.unified = unified
        """Mount point of cgroup2, '' when there is none."""
        self.unified_controllers = unified_controllers

    @property
    def is_v2(self) -> bool:
        """True when the limits live on the unified hierarchy: all of them. A kernel without v1's memory (Linux 6.12 of
        Debian), booted for v1, has memory alone there.
        """
        return (
            bool(self.unified) and not any(name in self.v1 for name in USED_V1) and "memory" in self.unified_controllers
        )


def layout_for(parent: str) -> Layout:
    """Where ``parent`` may be made: nowhere for `NO_CGROUPS`. Controllers of v2 are those given to the topmost group on
    the way to it that is this process's to divide: the root's, or those an ordinary user was given.
    """
    layout = Layout({}, "", frozenset()) if parent == NO_CGROUPS else detect_layout()
    if layout.is_v2:
        directory = layout.unified
        for part in parent.strip("/").split("/"):
            if os.access(f"{directory}/cgroup.subtree_control", os.W_OK):
                return Layout(layout.v1, layout.unified, frozenset(read(f"{directory}/cgroup.controllers").split()))
            directory = f"{directory}/{part}"
    return layout


def detect_layout(mountinfo: str | None = None) -> Layout:
    """Read /proc/self/mountinfo (or the given text of it)."""
    text = read("/proc/self/mountinfo") if mountinfo is None else mountinfo
    v1: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, rest = tail.partition(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        mount_point = fields.split()[4]
        if kind == "cgroup2":
            unified = unified or mount_point
        else:
            for option in rest.split()[-1].split(","):
                if option in USED_V1 or option in ("cpuset", "name=systemd"):
                    v1.setdefault(option, mount_point)
    controllers: frozenset[str] = frozenset()
    if unified:
        with contextlib.suppress(OSError):
            controllers = frozenset(read(f"{unified}/cgroup.controllers").split())
    return Layout(v1, unified, controllers)
