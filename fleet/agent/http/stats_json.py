"""Resource use in the shape of ``GET /containers/{id}/stats``. Pure but for reading the host's own CPU time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from fleet.agent.http.container_json import time_text
from fleet.containers import Container
from fleet.node_runtime.events import ContainerStats

__all__ = ["EMPTY_READ", "host_cpu_ns", "stats_json"]

EMPTY_READ: Final = "0001-01-01T00:00:00Z"
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def host_cpu_ns() -> int:
    """CPU time all cores spent since boot, in ns (proc_stat(5): user to steal of the first line)."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        fields = file.readline().split()[1:9]
    return sum(map(int, fields)) * _TICK_NS


def stats_json(
    container: Container, stats: ContainerStats | None, *, system_ns: int, previous: dict[str, Any] | None
) -> dict[str, Any]:
    """One reading; ``previous`` is the last one of the same stream, from which clients compute percentages."""
    result: dict[str, Any] = {
        "name": f"/{container.name}",
        "id": container.id,
        "read": EMPTY_READ,
        "preread": previous["read"] if previous else EMPTY_READ,
        "pids_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}},
        "precpu_stats": previous["cpu_stats"] if previous else {"cpu_usage": {"total_usage": 0}},
        "memory_stats": {},
        "networks": {},
    }
    if stats is None:
        return result
    result["read"] = time_text(stats.read_at)
    result["pids_stats"] = {"current": stats.pids, "limit": stats.pids_limit or 2**64 - 1}
    result["cpu_stats"] = {
        "cpu_usage": {
            "total_usage": stats.cpu_usage_ns,
            "usage_in_kernelmode": stats.cpu_system_ns,
            "usage_in_usermode": stats.cpu_user_ns,
        },
        "system_cpu_usage": system_ns,
        "online_cpus": os.cpu_count() or 1,
        "throttling_data": {
            "periods": stats.cpu_periods,
            "throttled_periods": stats.cpu_throttled_periods,
            "throttled_time": stats.cpu_throttled_ns,
        },
    }
    result["memory_stats"] = {
        "usage": stats.memory_usage_bytes,
        "max_usage": stats.memory_peak_bytes,
        "stats": {
            "inactive_file": stats.memory_inactive_file_bytes,
            "total_inactive_file": stats.memory_inactive_file_bytes,
            "anon": stats.memory_anonymous_bytes,
            "file": stats.memory_file_bytes,
        },
        "limit": stats.memory_limit_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    result["blkio_stats"] = {
        "io_service_bytes_recursive": [
            {"major": 0, "minor": 0, "op": "read", "value": stats.block_read_bytes},
            {"major": 0, "minor": 0, "op": "write", "value": stats.block_write_bytes},
        ]
    }
    return result
