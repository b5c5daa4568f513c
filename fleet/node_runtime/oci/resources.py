"""``linux.resources`` of a bundle, or of an update: limits, device rules and single files of control groups."""

from __future__ import annotations

import re

from fleet.errors import UserError
from fleet.node_runtime.cgroups import DEFAULT_DEVICE_RULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fleet.node_runtime.oci.reading import Reader

__all__ = ["GroupFile", "parse_resources"]


class GroupFile:
    """A limit that is one file of the container's control group and nothing more; '' where a version has none."""

    def __init__(self, place: str, controller: str, v1: str, v2: str, value: str) -> None:
        self.place, self.controller, self.v1, self.v2, self.value = place, controller, v1, v2, value


def parse_resources(
    entry: Reader, *, warnings: list[str]
) -> tuple[dict[str, Any], list[tuple[str, int, int, str]] | None, list[GroupFile]]:
    """(limits as `CgroupTree.apply_limits` takes them: only those named; device rules, None allows all; further files)."""
    for name in ("hugepageLimits", "network", "rdma"):
        entry.refuse(name, "limits of this kind are not supported")
    limits: dict[str, Any] = {}
    memory, cpu, block = entry.object("memory"), entry.object("cpu"), entry.object("blockIO")
    if memory.number("kernel") > 0:  # the specification lets it be ignored
        warnings.append(f"{memory.place('kernel')}: Linux has dropped limits of kernel memory; there is none")
    files = [
        GroupFile(part.place(name), controller, v1, v2, str(part.number(name)))
        for part, name, controller, v1, v2 in (
            (memory, "kernelTCP", "memory", "memory.kmem.tcp.limit_in_bytes", ""),
            (cpu, "burst", "cpu", "cpu.cfs_burst_us", "cpu.max.burst"),
            (cpu, "idle", "cpu", "cpu.idle", "cpu.idle"),
            (cpu, "realtimePeriod", "cpu", "cpu.rt_period_us", ""),
            (cpu, "realtimeRuntime", "cpu", "cpu.rt_runtime_us", ""),
        )
        if part.number(name)
    ]
    if memory.has("limit"):
        limits["memory_bytes"] = max(memory.number("limit"), 0)
        limits["memory_swap_bytes"] = -1
    if memory.has("swap"):
        limits["memory_swap_bytes"] = memory.number("swap") or -1
    if memory.has("reservation"):
        limits["memory_reservation_bytes"] = max(memory.number("reservation"), 0)
    if memory.has("swappiness"):
        limits["memory_swappiness"] = memory.number("swappiness", least=0, most=100)
    if memory.has("disableOOMKiller"):
        limits["oom_kill_disable"] = memory.flag("disableOOMKiller")
    for name, key, least in (
        ("shares", "cpu_shares", 0),
        ("quota", "cpu_quota_us", -1),
        ("period", "cpu_period_us", 0),
    ):
        if cpu.has(name):
            limits[key] = cpu.number(name, least=least, most=1 << 40)
    for name, key in (("cpus", "cpuset_cpus"), ("mems", "cpuset_mems")):
        if cpu.text(name):
            if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", cpu.text(name)):
                raise UserError(f"{cpu.place(name)}: {cpu.text(name)!r} is not a list like 0-2,4")
            limits[key] = cpu.text(name)
    if entry.object("pids").has("limit"):
        limits["pids_limit"] = max(entry.object("pids").number("limit"), 0)
    if block.number("weight"):
        limits["blkio_weight"] = block.number("weight", least=10, most=1000)
    if block.number("leafWeight"):
        raise UserError(f"{block.place('leafWeight')}: Linux has dropped it")
    for name, key, value in (
        ("weightDevice", "blkio_weight_devices", "weight"),
        ("throttleReadBpsDevice", "device_read_bps", "rate"),
        ("throttleWriteBpsDevice", "device_write_bps", "rate"),
        ("throttleReadIOPSDevice", "device_read_iops", "rate"),
        ("throttleWriteIOPSDevice", "device_write_iops", "rate"),
    ):
        rates = [
            [f"{device.number('major', least=0)}:{device.number('minor', least=0)}", device.number(value, least=0)]
            for device in block.objects(name)
        ]
        if rates:
            limits[key] = rates
    unified = entry.pairs("unified")
    for name in unified:
        if not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+", name):
            raise UserError(f"{entry.place('unified')}: {name!r} is not a file of a control group")
        files.append(GroupFile(f"{entry.place('unified')}: {name}", "", "", name, unified[name]))
    return limits, _device_rules(entry), files


def _device_rules(entry: Reader) -> list[tuple[str, int, int, str]] | None:
    allowed: list[tuple[str, int, int, str]] = []
    allows_all = False
    for rule in entry.objects("devices"):
        kind, access = rule.text("type", "a") or "a", rule.text("access", "rwm") or "rwm"
        if kind not in ("a", "b", "c", "u") or not re.fullmatch(r"[rwm]{1,3}", access):
            raise UserError(f"{rule.place('type')}: {kind} {access} is not like c rwm")
        major, minor = (rule.number(name, -1, least=-1, most=1 << 31) for name in ("major", "minor"))
        is_allowed = rule.flag("allow")
        if kind == "a" or (major < 0 and minor < 0 and kind == "a"):
            allows_all, allowed = is_allowed, []
            continue
        entry_of = ("c" if kind == "u" else kind, major, minor, access)
        if is_allowed:
            allowed.append(entry_of)
        elif allows_all:
            raise UserError(f"{rule.place('allow')}: a single device cannot be denied where all are allowed")
        else:
            allowed = [other for other in allowed if other != entry_of]
    return None if allows_all else [*allowed, *DEFAULT_DEVICE_RULES]
