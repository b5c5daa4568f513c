"""A manager with 1,000 services and 20,000 tasks: how long it takes to open its state, and what memory that keeps.

On SQLite and on an etcd of fleet's own, each in a fresh process. Memory is the growth of RSS over the process before, with the
interpreter and all imports.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.store import NOW, make_task, rss_kib
from fleet.clock import SystemClock
from fleet.daemon.own_state import OwnState
from fleet.engines.sqlite import SqliteEngine
from fleet.model.ids import ClusterId, NodeId, ServiceId
from fleet.model.service import Service, ServiceSpec
from fleet.store import Store, Transaction
from fleet.store.engine import Engine

SERVICES: Final = 1_000
TASKS: Final = 20_000
CLUSTER: Final = ClusterId("c" * 25)
NODE: Final = NodeId("n" * 25)


async def fill(folder: Path) -> OwnState:
    """The state in ``folder/store``, and moved to an etcd in ``folder/etcd``, which runs until ``erase``."""
    (folder / "store").mkdir()
    engine = SqliteEngine(folder / "store", cluster_id=CLUSTER)
    await engine.start()
    store = await Store.open(engine)
    await store.commit_all(Transaction().create(make_task(number)) for number in range(TASKS))
    spec = make_task(0).spec
    await store.commit_all(
        Transaction().create(
            Service(
                id=ServiceId(f"s{number:024}"),
                created_at=NOW,
                updated_at=NOW,
                spec=ServiceSpec(name=f"service-{number}", task_template=spec),
            )
        )
        for number in range(SERVICES)
    )
    own = OwnState(folder, SystemClock(), run_folder=folder / "run")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        peer = f"127.0.0.1:{probe.getsockname()[1]}"
    await own.begin_move(store, node_id=NODE, cluster_id=CLUSTER, peer=peer)
    copy = own.copy(engine, CLUSTER)
    await copy.first()
    await store.close()
    await copy.rest()
    await copy.finish(CLUSTER)
    await copy.aclose()
    await engine.close()
    return own


async def _open(folder: Path, kind: str) -> tuple[float, int]:
    before, began = rss_kib(), time.perf_counter()
    engine: Engine
    if kind == "SQLite":
        engine = SqliteEngine(folder / "store", cluster_id=CLUSTER)
    else:
        engine = await OwnState(folder, SystemClock(), run_folder=folder / "run").open(cluster_id=CLUSTER, node_id=NODE)
    await engine.start()
    store = await Store.open(engine)
    spent, kept = time.perf_counter() - began, rss_kib() - before
    if len(store.tasks.all()) != TASKS or len(store.services.all()) != SERVICES:
        raise RuntimeError("the state is not what was put there")
    await store.close()
    await engine.close()
    return spent, kept


def opened(folder: Path, kind: str) -> tuple[float, int]:
    """(seconds, KiB)."""
    return asyncio.run(_open(folder, kind))


async def measure(folder: Path) -> dict[str, tuple[float, int]]:
    """Engine -> (seconds, KiB)."""
    own = await fill(folder)
    found = {}
    try:
        for kind in ("SQLite", "etcd"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[kind] = await asyncio.to_thread(pool.apply, opened, (folder, kind))
    finally:
        await own.erase()
    return found


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as temporary:
        found = asyncio.run(measure(Path(temporary)))
    print(f"{SERVICES:,} services, {TASKS:,} tasks{'':12}{'opened, s':>12}{'MiB':>8}")
    for kind, (spent, kept) in found.items():
        print(f"{kind:40}{spent:12.2f}{kept / 1024:8.0f}")
    if json_path is not None:
        numbers = {kind: {"seconds": spent, "kib": kept} for kind, (spent, kept) in found.items()}
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(*sys.argv[1:2])
