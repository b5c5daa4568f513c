"""What a control group uses, read from v1's or v2's files; see `ContainerStats` for names and units. Standard library only.

Raises FileNotFoundError when the group is gone.
"""

from __future__ import annotations

import contextlib

from fleet.node_runtime.cgroup_files import field, read

__all__ = ["figures_v1", "figures_v2"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UNLIMITED = 0x7FFFFFFFFFFFF000  # v1's way of writing "none": LONG_MAX rounded down to a page


def figures_v1(find: Callable[[str], str | None]) -> dict[str, int]:
    """``find``: the group's directory of a controller."""
    result: dict[str, int] = {}
    if (directory := find("cpuacct")) is not None:
        result["cpu_usage_ns"] = int(read(f"{directory}/cpuacct.usage"))
        with contextlib.suppress(OSError):
            result["cpu_user_ns"] = int(read(f"{directory}/cpuacct.usage_user"))
            result["cpu_system_ns"] = int(read(f"{directory}/cpuacct.usage_sys"))
    if (directory := find("cpu")) is not None:
        text = read(f"{directory}/cpu.stat")
        result["cpu_periods"], result["cpu_throttled_periods"] = (
            field(text, "nr_periods"),
            field(text, "nr_throttled"),
        )
        result["cpu_throttled_ns"] = field(text, "throttled_time")
    if (directory := find("memory")) is not None:
        result["memory_usage_bytes"] = int(read(f"{directory}/memory.usage_in_bytes"))
        result["memory_peak_bytes"] = int(read(f"{directory}/memory.max_usage_in_bytes"))
        limit = int(read(f"{directory}/memory.limit_in_bytes"))
        result["memory_limit_bytes"] = 0 if limit >= _UNLIMITED else limit
        text = read(f"{directory}/memory.stat")
        result["memory_inactive_file_bytes"] = field(text, "total_inactive_file")
        result["memory_anonymous_bytes"] = field(text, "total_rss")
        result["memory_file_bytes"] = field(text, "total_cache")
    if (directory := find("pids")) is not None:
        result["pids"] = int(read(f"{directory}/pids.current"))
        text = read(f"{directory}/pids.max").strip()
        result["pids_limit"] = 0 if text == "max" else int(text)
    if (directory := find("blkio")) is not None:
        with contextlib.suppress(OSError):
            for line in read(f"{directory}/blkio.throttle.io_service_bytes").splitlines():
                _, _, tail = line.partition(" ")
                kind, _, number = tail.partition(" ")
                if kind in ("Read", "Write"):
                    key = f"block_{kind.lower()}_bytes"
                    result[key] = result.get(key, 0) + int(number)
    return result


def figures_v2(directory: str) -> dict[str, int]:
    """Of the group's directory."""
    text = read(f"{directory}/cpu.stat")
    result = {
        "cpu_usage_ns": field(text, "usage_usec") * 1000,
        "cpu_user_ns": field(text, "user_usec") * 1000,
        "cpu_system_ns": field(text, "system_usec") * 1000,
        "cpu_periods": field(text, "nr_periods"),
        "cpu_throttled_periods": field(text, "nr_throttled"),
        "cpu_throttled_ns": field(text, "throttled_usec") * 1000,
    }
    with contextlib.suppress(FileNotFoundError):
        result["memory_usage_bytes"] = int(read(f"{directory}/memory.current"))
        limit = read(f"{directory}/memory.max").strip()
        result["memory_limit_bytes"] = 0 if limit == "max" else int(limit)
        text = read(f"{directory}/memory.stat")
        result["memory_inactive_file_bytes"] = field(text, "inactive_file")
        result["memory_anonymous_bytes"] = field(text, "anon")
        result["memory_file_bytes"] = field(text, "file")
        result["memory_peak_bytes"] = int(read(f"{directory}/memory.peak"))
    with contextlib.suppress(FileNotFoundError):
        result["pids"] = int(read(f"{directory}/pids.current"))
        limit = read(f"{directory}/pids.max").strip()
        result["pids_limit"] = 0 if limit == "max" else int(limit)
    with contextlib.suppress(FileNotFoundError):
        for line in read(f"{directory}/io.stat").splitlines():
            for pair in line.split()[1:]:
                key, _, number = pair.partition("=")
                if key in ("rbytes", "wbytes"):
                    name = "block_read_bytes" if key == "rbytes" else "block_write_bytes"
                    result[name] = result.get(name, 0) + int(number)
    return result
