"""Deciding: tasks placed a second by number of nodes, and what planning a service costs. One core, no store.

    scripts/bench scheduler        or        python bench/scheduler.py [--tasks N]

"like" tasks are one service's (one group); "mixed" come from 100 services, with reservations, a constraint and a spread
preference. Planning is of one service: nothing to do, all to create, and the first step of an update.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

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


def run(json_path: str | None = None, *, tasks: int = 10_000) -> None:
    """Print the tables; write the numbers to ``json_path`` too if given."""
    numbers = {"placing": list(bench_placing(tasks)), "planning": list(bench_planning())}
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def bench_placing(tasks: int) -> Iterator[dict[str, object]]:
    print(f"{'nodes':>6} {'tasks':>7} {'kind':>6} {'views ms':>9} {'place ms':>9} {'tasks/s':>9}")
    for count in (10, 1_000, 5_000):
        nodes = [make_node(i) for i in range(count)]
        for kind, services, spec in (("like", 1, PLAIN), ("mixed", 100, DEMANDING)):
            waiting = [make_task(i, services=services, spec=spec) for i in range(tasks)]
            gc.collect()
            start = time.perf_counter()
            views = build_views(nodes, [])
            built = time.perf_counter()
            result = place(waiting, views)
            end = time.perf_counter()
            assert len(result.assignments) + len(result.pending) == tasks
            rate = tasks / (end - start)
            print(
                f"{count:>6} {len(result.assignments):>7} {kind:>6} {(built - start) * 1e3:>9.1f} "
                f"{(end - built) * 1e3:>9.1f} {rate:>9,.0f}"
            )
            yield {"nodes": count, "tasks": tasks, "kind": kind, "tasks_per_s": round(rate)}


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
    parser.add_argument("--tasks", type=int, default=10_000)
    run(tasks=parser.parse_args().tasks)
