"""What this host's kernel offers the engine: looked up, never assumed. ``docker info`` and its warnings show it.

Read when asked, since an administrator changes forwarding and mounts while the daemon runs; a dozen file look-ups, about
a millisecond. ``root`` stands for ``/`` so that a test can show another host.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from fleet.node_runtime.apparmor import is_enabled
from fleet.node_runtime.cgroup_layout import Layout, detect_layout

__all__ = ["EngineFacts", "backing_filesystem", "read_engine_facts"]

_FILES_V1: Final = {
    "memory_limit": ("memory", "memory.limit_in_bytes"),
    "swap_limit": ("memory", "memory.memsw.limit_in_bytes"),
    "oom_kill_disable": ("memory", "memory.oom_control"),
    "cpu_shares": ("cpu", "cpu.shares"),
    "cpu_cfs_period": ("cpu", "cpu.cfs_period_us"),
    "cpu_cfs_quota": ("cpu", "cpu.cfs_quota_us"),
    "cpu_set": ("cpuset", "cpuset.cpus"),
}


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Named as Docker's ``/info`` names them, in words of their own."""

    cgroup_version: str
    memory_limit: bool = False
    swap_limit: bool = False
    oom_kill_disable: bool = False
    cpu_shares: bool = False
    cpu_cfs_period: bool = False
    cpu_cfs_quota: bool = False
    cpu_set: bool = False
    pids_limit: bool = False
    ipv4_forwarding: bool = False
    bridge_nf_iptables: bool = False
    bridge_nf_ip6tables: bool = False
    seccomp: bool = False
    apparmor: bool = False

    def warnings(self) -> list[str]:
        """What a user of this host should know does not work, in the words of Docker's client."""
        missing = (
            (self.memory_limit, "No memory limit support"),
            (self.swap_limit, "No swap limit support"),
            (self.cpu_cfs_quota, "No cpu cfs quota support"),
            (self.cpu_shares, "No cpu shares support"),
            (self.cpu_set, "No cpuset support"),
            (self.pids_limit, "No pids limit support"),
            (self.ipv4_forwarding, "IPv4 forwarding is disabled"),
            (self.seccomp, "No seccomp support: containers will not start"),
        )
        return [f"WARNING: {sentence}" for there, sentence in missing if not there]


def read_engine_facts(*, layout: Layout | None = None, root: Path = Path("/")) -> EngineFacts:
    """Never raises: what cannot be read is not there."""
    layout = layout or detect_layout()
    features = _features_v2(layout, root) if layout.is_v2 else _features_v1(layout)
    return EngineFacts(
        cgroup_version="2" if layout.is_v2 else "1",
        **features,
        ipv4_forwarding=_text(root / "proc/sys/net/ipv4/ip_forward") == "1",
        bridge_nf_iptables=_text(root / "proc/sys/net/bridge/bridge-nf-call-iptables") == "1",
        bridge_nf_ip6tables=_text(root / "proc/sys/net/bridge/bridge-nf-call-ip6tables") == "1",
        seccomp=(root / "proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=is_enabled(str(root)),
    )


def backing_filesystem(path: Path, *, mountinfo: str | None = None) -> str:
    """The type of the file system ``path`` is on, such as ``ext4``; ``unknown`` when the mount table does not tell."""
    try:
        device = path.stat().st_dev
        table = mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text()
    except OSError:
        return "unknown"
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best, kind = "", "unknown"
    real = os.path.realpath(path)
    for line in table.splitlines():
        fields, _, tail = line.partition(" - ")
        parts = fields.split()
        if len(parts) < 5 or not tail:
            continue
        point = parts[4]
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if parts[2] == wanted or inside:  # btrfs shows another device number in stat(2) than in the table
            score = point if inside else ""
            if kind == "unknown" or len(score) >= len(best):
                best, kind = score, tail.split()[0]
    return kind


def _features_v1(layout: Layout) -> dict[str, bool]:
    found = {
        name: controller in layout.v1 and Path(layout.v1[controller], file).exists()
        for name, (controller, file) in _FILES_V1.items()
    }
    return {**found, "pids_limit": "pids" in layout.v1}


def _features_v2(layout: Layout, root: Path) -> dict[str, bool]:
    there = layout.unified_controllers
    return {
        "memory_limit": "memory" in there,
        "swap_limit": "memory" in there
        and (root / "proc/swaps").exists(),  # made by CONFIG_SWAP, as memory.swap.max is
        "oom_kill_disable": False,  # v2 has no such thing
        "cpu_shares": "cpu" in there,
        "cpu_cfs_period": "cpu" in there,
        "cpu_cfs_quota": "cpu" in there,
        "cpu_set": "cpuset" in there,
        "pids_limit": "pids" in there,
    }


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
