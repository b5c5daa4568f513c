"""How many tasks a second the scheduler places, by number of nodes. One core, no store: the decision alone.

    python bench/scheduler.py [--tasks N]

"like" tasks are one service's (one group); "mixed" come from 100 services, with reservations and a spread preference.
"""

from __future__ import annotations

import argparse
import gc
import time
from datetime import UTC, datetime

from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import Node, NodeDescription, NodeResources, NodeSpec, NodeState, NodeStatus
from fleet.model.service import Placement, PlacementPreference, Reservations, Resources, SpreadOver, TaskSpec
from fleet.model.task import Task, TaskState, TaskStatus
from fleet.scheduler.node_view import build_views
from fleet.scheduler.place import place

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
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


if __name__ == "__main__":
    main()
