"""Measure the store on SQLite: commits, lists, memory. Prints a table.

    python bench/store.py [DIRECTORY]

DIRECTORY should be on the disk the state will live on; a temporary directory by default.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fleet.engines.sqlite import SqliteEngine
from fleet.model.common import SECOND_NS
from fleet.model.ids import NetworkId, NodeId, ServiceId, TaskId
from fleet.model.service import ContainerSpec, Limits, Resources, RestartPolicy, TaskSpec
from fleet.model.task import Attachment, Task, TaskState, TaskStatus
from fleet.store import Kind, Store, Transaction

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TASKS = 10_000


def make_task(number: int) -> Task:
    """About as large as a real web service's task."""
    return Task(
        id=TaskId(f"{number:025}"),
        created_at=NOW,
        updated_at=NOW,
        service_id=ServiceId("s" * 25),
        slot=number,
        node_id=NodeId(f"{number % 50:025}"),
        service_name="shop_web",
        spec=TaskSpec(
            container_spec=ContainerSpec(
                image="registry.example.com/shop/web:1.2.3@sha256:" + "0" * 64,
                env=tuple(f"SETTING_{i}=value number {i}" for i in range(10)),
                labels={"com.docker.stack.namespace": "shop"},
            ),
            resources=Resources(limits=Limits(nano_cpus=500_000_000, memory_bytes=256 << 20)),
            restart_policy=RestartPolicy(delay_ns=5 * SECOND_NS),
        ),
        status=TaskStatus(timestamp=NOW, state=TaskState.RUNNING, message="started"),
        network_attachments=(
            Attachment(network_id=NetworkId("n" * 25), addresses=(f"10.0.{number // 250}.{number % 250}/16",)),
        ),
    )


def rss_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024


async def commits_per_second(store: Store, *, in_flight: int, size: int, seconds: float = 2.0) -> tuple[float, float]:
    """(transactions/s, median ms) of creations of ``size`` tasks each."""
    numbers = iter(range(int(time.time() * 1000) * 100_000, 10**24))
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def worker() -> None:
        while (began := time.perf_counter()) < end:
            tx = Transaction()
            for _ in range(size):
                tx.create(make_task(next(numbers)))
            await store.commit(tx)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    took = time.perf_counter() - began
    return len(latencies) / took, sorted(latencies)[len(latencies) // 2] * 1000


async def with_store(run: Callable[[Store, SqliteEngine], Coroutine[Any, Any, None]], directory: Path) -> None:
    engine = SqliteEngine(directory, cluster_id="bench")
    await engine.start()
    store = await Store.open(engine)
    await run(store, engine)
    await store.close()
    await engine.close()


async def main(directory: Path) -> None:
    table = Table("what", "result", title=f"store on SQLite in {directory}")

    for in_flight, size in ((1, 1), (64, 1), (64, 20)):

        async def commits(store: Store, _engine: SqliteEngine, in_flight: int = in_flight, size: int = size) -> None:
            rate, median_ms = await commits_per_second(store, in_flight=in_flight, size=size)
            table.add_row(
                f"commits, {size} task(s) each, {in_flight} in flight",
                f"{rate:,.0f} commits/s, {rate * size:,.0f} tasks/s, median {median_ms:.2f} ms",
            )

        await with_store(commits, directory / f"commits-{in_flight}-{size}")

    async def fill(store: Store, engine: SqliteEngine) -> None:
        began = time.perf_counter()
        await store.commit_all([Transaction().create(make_task(number)) for number in range(TASKS)])
        table.add_row(f"create {TASKS:,} tasks in one batch", f"{time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        listing = await engine.list(Kind.TASK.prefix)
        table.add_row(f"engine list of {len(listing.entries):,}", f"{(time.perf_counter() - began) * 1000:.0f} ms")
        stored = sum(len(entry.value) for entry in listing.entries) / len(listing.entries)
        table.add_row("bytes of a stored task", f"{stored:,.0f}")
        began = time.perf_counter()
        for _ in range(1000):
            store.tasks.by_service(ServiceId("s" * 25))
        table.add_row(f"by_service of {TASKS:,} tasks", f"{(time.perf_counter() - began):.3f} ms")

    await with_store(fill, directory / "fill")

    engine = SqliteEngine(directory / "fill", cluster_id="bench")
    await engine.start()
    before, began = rss_kib(), time.perf_counter()
    store = await Store.open(engine)
    took = time.perf_counter() - began
    table.add_row(f"open with {TASKS:,} tasks", f"{took * 1000:.0f} ms")
    table.add_row("memory per 1,000 tasks, after open", f"{(rss_kib() - before) * 1000 / TASKS / 1024:.1f} MiB")
    await store.close()
    await engine.close()
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory(prefix="fleet-bench-") as temporary:
            asyncio.run(main(Path(temporary)))
