"""Processes as /proc shows them, for ``top``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from fleet.node_runtime.events import ContainerProcess

__all__ = ["namespace_pids", "read_processes"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def read_processes(pids: Iterable[int]) -> list[ContainerProcess]:
    """One value per process that is still there."""
    booted = next(
        int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")
    )
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(_read_process(pid, booted))
    return found


def namespace_pids(first: int) -> list[int]:
    """The processes in the pid namespace of ``first``; those of namespaces below are not among them. [] when it has ended."""
    try:
        wanted = os.readlink(f"/proc/{first}/ns/pid")
    except OSError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # gone, or somebody else's
                if os.readlink(f"/proc/{name}/ns/pid") == wanted:
                    found.append(int(name))
    return found


def _read_process(pid: int, booted_s: int) -> ContainerProcess:
    directory = Path(f"/proc/{pid}")
    text = (directory / "stat").read_text(errors="replace")
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    command = (directory / "cmdline").read_bytes()[:4096].rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return ContainerProcess(
        pid=pid,
        parent_pid=int(fields[1]),
        uid=directory.stat().st_uid,
        start_time=datetime.fromtimestamp(booted_s + int(fields[19]) / _TICKS, UTC),
        cpu_time_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        resident_bytes=int(fields[21]) * _PAGE,
        state=fields[0],
        command=command or f"[{name}]",
    )
