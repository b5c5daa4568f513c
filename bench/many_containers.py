"""A thousand containers on one host, through the engine: start, list, exec, stop, remove; time, memory, failures.

Each is ``sleep`` with its own network namespace, address on the default bridge, overlay, cgroups and full security. Memory
per container is what the host lost while all run (MemAvailable, page cache not counted), so the kernel's share is in it; the
supervisor's and the engine's own are told apart. ``FLEET_BENCH_CONTAINERS`` changes how many.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/kernel"))

AT_ONCE = 8
EXECS = 50


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def available_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return 0


class Phase:
    """Runs one operation for each of many, some at a time, and keeps times and complaints."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    async def run(self, name: str, items: list[str], operation: Callable[[str], Awaitable[Any]]) -> list[str]:
        """Those for which it succeeded."""
        limit, times, faults, good = asyncio.Semaphore(AT_ONCE), [], Counter[str](), []

        async def one(item: str) -> None:
            async with limit:
                started = time.perf_counter()
                try:
                    await operation(item)
                except Exception as fault:  # noqa: BLE001 - counted and shown
                    faults[f"{type(fault).__name__}: {fault}"[:200]] += 1
                else:
                    times.append(time.perf_counter() - started)
                    good.append(item)

        began = time.perf_counter()
        await asyncio.gather(*(one(item) for item in items))
        total = time.perf_counter() - began
        times.sort()
        p50, p99 = (statistics.median(times), times[int(len(times) * 0.99)]) if times else (0.0, 0.0)
        self.figures[name] = {
            "count": len(good),
            "total_s": round(total, 2),
            "per_s": round(len(good) / total, 1),
            "p50_ms": round(p50 * 1e3, 1),
            "p99_ms": round(p99 * 1e3, 1),
            "failures": dict(faults),
        }
        rate, p50_ms, p99_ms = len(good) / total, p50 * 1e3, p99 * 1e3
        print(
            f"{name:7} {len(good):4} in {total:7.2f} s {rate:7.1f}/s  p50 {p50_ms:7.1f} p99 {p99_ms:7.1f} ms",
            flush=True,
        )
        for text, count in faults.items():
            print(f"         {count} failed: {text}", flush=True)
        return good


async def measure(count: int) -> dict[str, Any]:
    """All phases on a host of its own; leaves nothing."""
    import containers_host
    from containers_host import RealHost

    from fleet.containers import ContainerConfig
    from fleet.network.topology import NetworkSpec

    root = Path(tempfile.mkdtemp(prefix="fleet-many-", dir="/tmp"))
    os.chmod(root, 0o755)
    host = RealHost(root, f"m{uuid.uuid4().hex[:6]}")
    phase = Phase()
    containers_host.BRIDGE = NetworkSpec(
        id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/20", gateway="172.30.0.1"
    )
    try:
        async with host.opened() as engine:
            await host.add_image("busybox", 'CMD ["sh"]')
            await engine.recover()
            names = [f"many{number}" for number in range(count)]

            async def create(name: str) -> None:
                await engine.create(ContainerConfig(image="busybox", name=name, command=("sleep", "86400")))

            free, own, supervisor = available_kib(), pss_kib(os.getpid()), pss_kib(host.runtime.supervisor_pid)
            made = await phase.run("create", names, create)
            up = await phase.run("start", made, engine.start)
            lost = free - available_kib()
            began = time.perf_counter()
            listed = engine.list()
            states = await host.runtime.list()
            phase.figures["list_ms"] = round((time.perf_counter() - began) * 1e3, 1)
            phase.figures["running"] = sum(state.status == "running" for state in states)
            phase.figures["memory_kib_per_container"] = round(lost / max(1, len(up)))
            phase.figures["engine_kib_per_container"] = round((pss_kib(os.getpid()) - own) / max(1, len(up)), 1)
            phase.figures["supervisor_kib_per_container"] = round(
                (pss_kib(host.runtime.supervisor_pid) - supervisor) / max(1, len(up)), 1
            )
            phase.figures["supervisor_descriptors"] = len(os.listdir(f"/proc/{host.runtime.supervisor_pid}/fd"))
            print(f"list     {len(listed)} known, {phase.figures['running']} running, {phase.figures['list_ms']} ms")
            for key in ("memory", "engine", "supervisor"):
                print(f"memory   {phase.figures[f'{key}_kib_per_container']} KiB a container ({key})", flush=True)

            async def execute(name: str) -> None:
                from fleet.node_runtime.spec import ProcessSpec

                code, _ = await host.runtime.exec_capture(
                    engine.get(name).id, ProcessSpec(args=("true",)), timeout_s=30
                )
                if code:
                    raise RuntimeError(f"exit code {code}")

            await phase.run("exec", up[:: max(1, len(up) // EXECS)], execute)
            await phase.run("stop", up, lambda name: engine.stop(name, grace_s=0))
            await phase.run("remove", made, lambda name: engine.remove(name, force=True))
    finally:
        await host.clear()
        shutil.rmtree(root, ignore_errors=True)
    return phase.figures


def run(json_path: str | None = None) -> None:
    """Measure, print, and write the figures where told. Raises RuntimeError when anything failed."""
    if os.geteuid():
        raise RuntimeError("needs root")
    figures = asyncio.run(measure(int(os.environ.get("FLEET_BENCH_CONTAINERS", "1000"))))
    if json_path:
        Path(json_path).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if failures := {
        key: value["failures"] for key, value in figures.items() if isinstance(value, dict) and value["failures"]
    }:
        raise RuntimeError(f"operations failed: {failures}")


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else None)
