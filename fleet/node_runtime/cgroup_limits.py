"""Limits of a control group, v1's and v2's files for the same `ResourceLimits`. Standard library only.

Rules of the kernel: cpuset v1 needs cpus and mems filled in before a task may enter; raising a v1 memory limit needs memsw raised
first, lowering needs it lowered last.
"""

from __future__ import annotations

import os

from fleet.node_runtime.cgroup_files import read, write
from fleet.node_runtime.cgroup_layout import NO_CGROUPS

__all__ = ["limit_v1", "limit_v2"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fleet.node_runtime.cgroup_layout import Layout

_CPU_PERIOD_US = 100_000
_THROTTLES_V1 = (
    ("device_read_bps", "throttle.read_bps_device"),
    ("device_write_bps", "throttle.write_bps_device"),
    ("device_read_iops", "throttle.read_iops_device"),
    ("device_write_iops", "throttle.write_iops_device"),
)
_THROTTLES_V2 = (
    ("device_read_bps", "rbps"),
    ("device_write_bps", "wbps"),
    ("device_read_iops", "riops"),
    ("device_write_iops", "wiops"),
)


def limit_v1(layout: Layout, group: str, limits: Mapping[str, Any], *, fresh: bool) -> None:
    """Set them on the group with the absolute path ``group`` in each hierarchy of v1; see `CgroupTree.apply_limits`."""

    def find(controller: str) -> str | None:
        root = layout.v1.get(controller)
        return None if root is None else root + group

    cpu, memory = find("cpu"), find("memory")
    shares = int(limits.get("cpu_shares", 0))
    period, quota = _period_and_quota(limits)
    if cpu and (quota > 0 or period or not fresh):
        if quota > 0:  # a shorter period first may be refused: quota over period must not exceed the parent's
            write(f"{cpu}/cpu.cfs_quota_us", "-1")
        write(f"{cpu}/cpu.cfs_period_us", str(period or _CPU_PERIOD_US))
        write(f"{cpu}/cpu.cfs_quota_us", str(quota) if quota > 0 else "-1")
    if cpu and (shares or not fresh):
        write(f"{cpu}/cpu.shares", str(max(2, min(shares, 262144))) if shares else "1024")
    bytes_max = int(limits.get("memory_bytes", 0))
    if bytes_max and memory is None and not group.startswith(f"/{NO_CGROUPS}/"):
        raise OSError(95, "this host has cgroup v1, and its kernel no memory controller for it: boot with v2", "memory")
    if memory and (bytes_max or not fresh):
        _set_memory_v1(memory, bytes_max, _memory_and_swap(bytes_max, int(limits.get("memory_swap_bytes", 0))))
    reservation = int(limits.get("memory_reservation_bytes", 0))
    if memory and (reservation or not fresh):
        write(f"{memory}/memory.soft_limit_in_bytes", str(reservation or -1))
    pids, pids_max = find("pids"), int(limits.get("pids_limit", 0))
    if pids and (pids_max > 0 or not fresh):
        write(f"{pids}/pids.max", str(pids_max) if pids_max > 0 else "max")
    cpus = str(limits.get("cpuset_cpus", ""))
    mems = str(limits.get("cpuset_mems", ""))
    swappiness = int(limits.get("memory_swappiness", -1))
    if memory and swappiness >= 0:
        write(f"{memory}/memory.swappiness", str(swappiness))
    if memory and (limits.get("oom_kill_disable") or not fresh):
        write(f"{memory}/memory.oom_control", "1" if limits.get("oom_kill_disable") else "0")
    _limit_io_v1(find("blkio"), limits)
    if cpus or mems:
        _pin_v1(layout, group, cpus, mems)
    elif not fresh and (directory := find("cpuset")) and os.path.isdir(directory):
        write(f"{directory}/cpuset.cpus", read(f"{os.path.dirname(directory)}/cpuset.cpus").strip())


def _limit_io_v1(blkio: str | None, limits: Mapping[str, Any]) -> None:
    weight, weights = int(limits.get("blkio_weight", 0)), limits.get("blkio_weight_devices") or ()
    for name, device, value in (
        *([("weight", "", weight)] if weight else []),
        *(("weight_device", device, value) for device, value in weights),
        *((file, device, rate) for key, file in _THROTTLES_V1 for device, rate in limits.get(key) or ()),
    ):
        if blkio is None:
            raise OSError(95, "blkio controller is not mounted on this host", "blkio")
        files = [f"{blkio}/blkio.{name}", f"{blkio}/blkio.bfq.{name}"]
        found = next((file for file in files if os.path.exists(file)), "")
        if not found:
            raise OSError(95, "this kernel has no I/O scheduler with weights (bfq)", files[0])
        write(found, f"{device} {value}".strip())


def _pin_v1(layout: Layout, group: str, cpus: str, mems: str) -> None:
    root = layout.v1.get("cpuset")
    if root is None:
        raise OSError(95, "cpuset controller is not mounted on this host", "cpuset")
    directory, parts = root, group.strip("/").split("/")
    for part in parts:
        above, directory = directory, f"{directory}/{part}"
        os.makedirs(directory, exist_ok=True)
        for name in ("cpuset.mems", "cpuset.cpus"):
            if not read(f"{directory}/{name}").strip():
                write(f"{directory}/{name}", read(f"{above}/{name}").strip())
    if mems:
        write(f"{directory}/cpuset.mems", mems)
    if cpus:
        write(f"{directory}/cpuset.cpus", cpus)


def limit_v2(directory: str, limits: Mapping[str, Any], *, fresh: bool) -> None:
    """The same in a group's directory on v2."""
    values: list[tuple[str, str, bool]] = []
    shares = int(limits.get("cpu_shares", 0))
    period, quota = _period_and_quota(limits)
    limited = str(quota) if quota > 0 else "max"
    values.append(("cpu.max", f"{limited} {period or _CPU_PERIOD_US}", quota > 0 or bool(period)))
    weight = 1 + ((max(2, min(shares, 262144)) - 2) * 9999) // 262142 if shares else 100
    values.append(("cpu.weight", str(weight), bool(shares)))
    bytes_max = int(limits.get("memory_bytes", 0))
    values.append(("memory.max", str(bytes_max) if bytes_max else "max", bool(bytes_max)))
    total = _memory_and_swap(bytes_max, int(limits.get("memory_swap_bytes", 0)))
    values.append(
        ("memory.swap.max", str(max(total - bytes_max, 0)) if bytes_max and total > 0 else "max", bool(bytes_max))
    )
    reservation = int(limits.get("memory_reservation_bytes", 0))
    values.append(("memory.low", str(reservation), bool(reservation)))
    pids_max = int(limits.get("pids_limit", 0))
    values.append(("pids.max", str(pids_max) if pids_max > 0 else "max", pids_max > 0))
    cpus = str(limits.get("cpuset_cpus", ""))
    if not (cpus or fresh) and _is_pinned(directory):  # with processes in it, it must not be emptied (ENOSPC)
        cpus = read(f"{os.path.dirname(directory)}/cpuset.cpus.effective").strip()
    values.append(("cpuset.cpus", cpus, bool(cpus)))
    values.append(("cpuset.mems", str(limits.get("cpuset_mems", "")), bool(limits.get("cpuset_mems"))))
    if int(limits.get("memory_swappiness", -1)) >= 0 or limits.get("oom_kill_disable"):
        raise OSError(95, "cgroup v2 has neither swappiness nor a switch for the OOM killer", directory)
    values += [(name, value, True) for name, value in _io_v2(limits)]
    for name, value, wanted in values:
        if not wanted and (fresh or not value or not os.path.exists(f"{directory}/{name}")):
            continue
        try:
            write(f"{directory}/{name}", value)
        except FileNotFoundError:
            if name != "memory.swap.max":  # a kernel without swap accounting has no such file, and no swap to limit
                raise


def _is_pinned(directory: str) -> bool:
    try:
        return bool(read(f"{directory}/cpuset.cpus").strip())
    except FileNotFoundError:
        return False


def _period_and_quota(limits: Mapping[str, Any]) -> tuple[int, int]:
    """(period, quota) in microseconds; 0 is the kernel's own period and no limit."""
    nano_cpus = int(limits.get("nano_cpus", 0))
    if nano_cpus:
        return _CPU_PERIOD_US, max(nano_cpus // 10_000, 1000)
    return int(limits.get("cpu_period_us", 0)), int(limits.get("cpu_quota_us", 0))


def _io_v2(limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines for io.max and io.weight; v1's weight of 10..1000 becomes v2's 1..10000 as runc converts it."""
    lines = []
    weight = int(limits.get("blkio_weight", 0))
    if weight:
        lines.append(("io.weight", str(_io_weight(weight))))
    lines += [
        ("io.weight", f"{device} {_io_weight(value)}") for device, value in limits.get("blkio_weight_devices") or ()
    ]
    lines += [
        ("io.max", f"{device} {word}={rate or 'max'}")
        for key, word in _THROTTLES_V2
        for device, rate in limits.get(key) or ()
    ]
    return lines


def _io_weight(weight: int) -> int:
    return 1 + (weight - 10) * 9999 // 990


def _memory_and_swap(memory: int, total: int) -> int:
    """Docker's rule: unset means twice the memory, -1 means no limit."""
    return total or 2 * memory


def _set_memory_v1(directory: str, memory: int, total: int) -> None:
    limit, both = str(memory or -1), str(total if memory and total > 0 else -1)
    names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    values = dict(zip(names, (limit, both), strict=True))
    if not os.path.exists(f"{directory}/{names[1]}"):
        write(f"{directory}/{names[0]}", limit)
        return
    current = int(read(f"{directory}/{names[1]}"))
    if both == "-1" or int(both) > current:
        names.reverse()
    for name in names:
        write(f"{directory}/{name}", values[name])
