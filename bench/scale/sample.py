"""What is measured beside the story: processor time and memory by process, and how long the API takes meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from fleet import errors
from fleet.api.client import EngineClient
from fleet.lab import Lab

__all__ = ["Prober", "busy_s", "cpu_s", "pids_of", "rss_mib"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAUSE_S: Final = 0.1
_WORDS: Final = {"fleetd": b"--exec-root", "etcd": b"--data-dir="}


def pids_of(lab: Lab, host: str) -> dict[str, int]:
    """``fleetd`` and ``etcd`` of a host, those that run."""
    place = str(lab.layout.host_folder(host)).encode() + b"/"
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            for what, word in _WORDS.items():
                if word in line and place in line:
                    found[what] = int(entry.name)
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds of a process with all its threads; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mib(pid: int) -> float:
    """Resident memory; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def busy_s() -> float:
    """Processor seconds that the whole machine has worked, anybody's."""
    fields = [int(text) for text in Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICKS


class Prober:
    """Asks a manager three things in turn for as long as it is open. ``url`` is asked anew each time: leaders change."""

    def __init__(self, url: Callable[[], str], service: Callable[[], str]) -> None:
        self._url = url
        self._service = service
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._spent: dict[str, list[float]] = {}
        self._failed = 0
        self._thread = threading.Thread(target=self._work, name="prober", daemon=True)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def take(self) -> dict[str, object]:
        """p50 and p99 in ms of each question since the last call, and how many found no answer."""
        with self._lock:
            spent, self._spent = self._spent, {}
            failed, self._failed = self._failed, 0
        rows: dict[str, object] = {
            what: {"p50_ms": _quantile(found, 0.5), "p99_ms": _quantile(found, 0.99), "count": len(found)}
            for what, found in spent.items()
        }
        return {**rows, "failed": failed}

    def _work(self) -> None:
        client, at = None, ""
        while not self._stop.is_set():
            url = self._url()
            if client is None or url != at:
                client, at = EngineClient(url, timeout_s=30.0), url
            questions: dict[str, Callable[[EngineClient], object]] = {
                "list services": lambda c: c.get("/services"),
                "info": lambda c: c.get("/info"),
            }
            if service := self._service():
                questions["tasks of a service"] = lambda c, s=service: c.get("/tasks", filters={"service": [s]})  # type: ignore[misc]
            for what, ask in questions.items():
                began = time.perf_counter()
                try:
                    ask(client)
                except (errors.FleetError, OSError):
                    with self._lock:
                        self._failed += 1
                    client = None
                    break
                with self._lock:
                    self._spent.setdefault(what, []).append(time.perf_counter() - began)
            self._stop.wait(_PAUSE_S)


def _quantile(found: Iterable[float], share: float) -> float:
    ordered = sorted(found)
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000, 1)
