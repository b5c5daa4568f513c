"""Deciding: tasks placed a second by number of nodes, and what planning a service costs. One core.

    scripts/bench scheduler        or        python bench/scheduler.py [--small]

Kinds of placing: ``grouped``, one service; ``mixed``, 100 services with reservations, a constraint and a spread preference;
``one-off``, each task of a service of its own; ``one-off+``, that with the demands of ``mixed``. The pool of nodes is there
before, as it is in a manager; making it is a column of its own. Times are of the CPU, since nothing here waits. Each row is
the median of several runs on new pools. ``nothing fits`` is asked anew after one node of all
has changed. ``written`` goes through the scheduler's loop with an
SQLite store on disk, until the last decision is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fleet.clock import SystemClock
from fleet.engines.sqlite import SqliteEngine
from fleet.manager.loops.scheduler import SchedulerLoop
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import Node, NodeDescription, NodeResources, NodeSpec, NodeState, NodeStatus
from fleet.model.service import (
    Placement,
    PlacementPreference,
    ReplicatedMode,
    Reservations,
    Resources,
    Service,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskSpec,
)
from fleet.model.task import Task, TaskState, TaskStatus
from fleet.orchestrator.check_plan import check_plan
from fleet.orchestrator.replicated import CREATES_MAX
from fleet.orchestrator.service import plan_service
from fleet.orchestrator.view import ServiceView
from fleet.scheduler.place import place
from fleet.scheduler.pool import build_views
from fleet.store import Store, Transaction

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = TaskSpec()
DEMANDING = TaskSpec(
    resources=Resources(reservations=Reservations(nano_cpus=10_000_000, memory_bytes=1 << 20)),
    placement=Placement(
        constraints=("node.labels.disk==ssd",),
        preferences=(PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone")),),
    ),
)


def make_node(number: int) -> Node:
    return Node(
        id=NodeId(f"node{number:05}"),
        created_at=NOW,
        updated_at=NOW,
        spec=NodeSpec(labels={"zone": f"z{number % 5}", "disk": "ssd" if number % 2 else "hdd"}),
        description=NodeDescription(resources=NodeResources(nano_cpus=64 * 10**9, memory_bytes=256 << 30)),
        status=NodeStatus(state=NodeState.READY),
    )


def make_task(number: int, *, services: int, spec: TaskSpec) -> Task:
    return Task(
        id=TaskId(f"task{number:06}"),
        created_at=NOW,
        updated_at=NOW,
        service_id=ServiceId(f"service{number % services:03}"),
        slot=1 + number // services,
        spec=spec,
        spec_version=1,
        status=TaskStatus(timestamp=NOW, state=TaskState.PENDING),
    )


def run(json_path: str | None = None, *, small: bool = False) -> None:
    """Print the tables; write the numbers to ``json_path`` too if given."""
    numbers = {
        "placing": list(bench_placing(small=small)),
        "nothing_fits": list(bench_nothing_fits(small=small)),
        "written": list(bench_written(small=small)),
        "planning": list(bench_planning()),
    }
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


SIZES = (
    (1_000, 1_000),
    (1_000, 10_000),
    (1_000, 100_000),
    (5_000, 10_000),
    (5_000, 100_000),
    (10_000, 100_000),
    (100_000, 100_000),
    (100_000, 1_000_000),
)


def bench_placing(*, small: bool) -> Iterator[dict[str, object]]:
    print(f"{'kind':>8} {'nodes':>7} {'tasks':>9} {'pool ms':>8} {'place ms':>9} {'tasks/s':>9}")
    for kind, spec in (("grouped", PLAIN), ("mixed", DEMANDING), ("one-off", PLAIN), ("one-off+", DEMANDING)):
        for count, tasks in SIZES:
            if (small and count * tasks > 10**7) or (tasks == 10**6 and kind != "grouped"):
                continue
            services = {"grouped": 1, "mixed": 100}.get(kind, tasks)
            nodes = [make_node(i) for i in range(count)]
            waiting = [make_task(i, services=services, spec=spec) for i in range(tasks)]
            spent = []
            for _ in range(1 if tasks == 10**6 else 3):
                gc.collect()
                start = time.process_time()
                pool = build_views(nodes, [])
                built = time.process_time()
                result = place(waiting, pool)
                spent.append((time.process_time() - built, built - start))
                assert len(result.assignments) == tasks, next(iter(result.pending.values()))
            place_s, build_s = sorted(spent)[len(spent) // 2]
            print(
                f"{kind:>8} {count:>7} {tasks:>9} {build_s * 1e3:>8.0f} {place_s * 1e3:>9.1f} {tasks / place_s:>9,.0f}",
                flush=True,
            )
            yield {"kind": kind, "nodes": count, "tasks": tasks, "tasks_per_s": round(tasks / place_s)}


def bench_nothing_fits(*, small: bool) -> Iterator[dict[str, object]]:
    print(f"\n{'nodes':>7} {'tasks':>7} {'first answer ms':>15} {'after one change ms':>19}")
    spec = TaskSpec(resources=Resources(reservations=Reservations(nano_cpus=65 * 10**9)))
    for count in (1_000,) if small else (1_000, 10_000, 100_000):
        nodes = [make_node(i) for i in range(count)]
        for tasks in (1, 10_000):
            waiting = [make_task(i, services=1, spec=spec) for i in range(tasks)]
            pool = build_views(nodes, [])
            start = time.process_time()
            assert not place(waiting, pool).assignments
            first_s = time.process_time() - start
            again = []
            for number in range(9):
                pool.set_node(msgspec.structs.replace(nodes[number]))
                start = time.process_time()
                assert not place(waiting, pool).assignments
                again.append(time.process_time() - start)
            again_s = sorted(again)[len(again) // 2]
            print(f"{count:>7} {tasks:>7} {first_s * 1e3:>15.2f} {again_s * 1e3:>19.3f}", flush=True)
            yield {"nodes": count, "tasks": tasks, "first_ms": first_s * 1e3, "again_ms": again_s * 1e3}


def bench_written(*, small: bool) -> Iterator[dict[str, object]]:
    print(f"\n{'nodes':>7} {'tasks':>7} {'written ms':>10} {'tasks/s':>9}")
    for count, tasks in ((1_000, 1_000),) if small else ((1_000, 10_000), (5_000, 10_000)):
        spent_s = asyncio.run(_write(count, tasks))
        print(f"{count:>7} {tasks:>7} {spent_s * 1e3:>10.0f} {tasks / spent_s:>9,.0f}", flush=True)
        yield {"nodes": count, "tasks": tasks, "tasks_per_s": round(tasks / spent_s)}


async def _write(nodes: int, tasks: int) -> float:
    """Seconds from the start of the loop until every task is assigned in the store."""
    with tempfile.TemporaryDirectory() as folder:
        engine = SqliteEngine(Path(folder), cluster_id="bench")
        await engine.start()
        store = await Store.open(engine)
        try:
            things = [make_node(i) for i in range(nodes)]
            things += [make_task(i, services=1, spec=PLAIN) for i in range(tasks)]  # type: ignore[misc]
            for outcome in await store.commit_all([Transaction().create(thing) for thing in things]):
                if isinstance(outcome, BaseException):
                    raise outcome
            gc.collect()
            start = time.perf_counter()
            loop = asyncio.ensure_future(SchedulerLoop(store, SystemClock()).run())
            try:
                while any(not task.node_id for task in store.tasks.all()):
                    if loop.done():
                        loop.result()
                    await asyncio.sleep(0.02)
                return time.perf_counter() - start
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
        finally:
            await store.close()
            await engine.close()


def bench_planning() -> Iterator[dict[str, object]]:
    print(f"\n{'replicas':>8} {'situation':>10} {'plan ms':>8} {'check ms':>9}")
    nodes = {node.id: node for node in map(make_node, range(100))}
    for replicas in (10, 1_000, 5_000):
        running = [make_running(i) for i in range(replicas)]
        for situation, tasks, version in (("nothing", running, 1), ("create", [], 1), ("update", running, 2)):
            view = ServiceView(
                service=make_service(replicas, version), tasks=tasks, nodes=nodes, fits=lambda _spec, _node: True
            )
            ids = itertools.count()
            gc.collect()
            start = time.perf_counter()
            plan = plan_service(view, now=NOW, new_id=lambda ids=ids: TaskId(f"new{next(ids)}"))  # type: ignore[misc]
            planned = time.perf_counter()
            check_plan(view, plan, now=NOW)
            end = time.perf_counter()
            assert len(plan.create) == {"nothing": 0, "create": min(replicas, CREATES_MAX), "update": 1}[situation]
            plan_ms, check_ms = (planned - start) * 1e3, (end - planned) * 1e3
            print(f"{replicas:>8} {situation:>10} {plan_ms:>8.2f} {check_ms:>9.2f}")
            yield {"replicas": replicas, "situation": situation, "plan_ms": plan_ms, "check_ms": check_ms}


def make_service(replicas: int, version: int) -> Service:
    template = msgspec.structs.replace(PLAIN, force_update=version)
    return Service(
        id=ServiceId("service000"),
        created_at=NOW,
        updated_at=NOW,
        spec=ServiceSpec(
            name="web", task_template=template, mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas))
        ),
        spec_version=version,
        task_spec_version=version,
    )


def make_running(number: int) -> Task:
    return msgspec.structs.replace(
        make_task(number, services=1, spec=msgspec.structs.replace(PLAIN, force_update=1)),
        node_id=NodeId(f"node{number % 100:05}"),
        status=TaskStatus(timestamp=NOW, state=TaskState.RUNNING),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the small sizes alone")
    run(small=parser.parse_args().small)
