"""What a person is told of each node."""

from __future__ import annotations

import msgspec
import pytest
from support.decision_builders import a_node, a_task, a_task_spec

from fleet.model.node import Availability, Node, NodeState
from fleet.model.task import Task, TaskState
from fleet.scheduler.explain import explain_nodes
from fleet.scheduler.filters import Demand, failing_filter
from fleet.scheduler.pool import build_views


def reasons(node: Node, task: Task, *there: Task) -> tuple[str, ...]:
    pool = build_views([node], there)
    demand = Demand(task, service_id_of=pool.service_id_of)
    (verdict,) = explain_nodes(demand, pool)
    assert bool(verdict.reasons) == (failing_filter(demand, verdict.view) is not None)
    return verdict.reasons


def running(service: str = "web", slot: int = 1, **fields: object) -> Task:
    return a_task(service, slot=slot, node="a", state=TaskState.RUNNING, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("node", "task", "there", "expected"),
    [
        (a_node("a"), a_task(), (), ()),
        (
            a_node("a", state=NodeState.DOWN, availability=Availability.DRAIN),
            a_task(),
            (),
            ("is down", "availability is drain"),
        ),
        (
            a_node("a", cpus=1, memory_bytes=1 << 30),
            a_task(spec=a_task_spec(cpus=2, memory_bytes=2 << 30, gpus=1)),
            (),
            (
                "needs 2 CPUs, 1 are free",
                "needs 2048.0 MiB of memory, 1024.0 MiB are free",
                "needs 1 gpu, 0 are free",
            ),
        ),
        (
            a_node("a", labels={"zone": "eu"}),
            a_task(spec=a_task_spec(constraints=["node.labels.zone in (us, asia)", "node.role==worker"])),
            (),
            ("node.labels.zone in (us, asia) does not hold",),
        ),
        (
            a_node("a", labels={"fleet.taint.gpu": "a100:no-schedule", "fleet.taint.old": ":no-execute"}),
            a_task(service_labels={"fleet.placement.toleration": "old:no-schedule"}),
            (),
            ("taint gpu=a100:no-schedule is not tolerated", "taint old:no-execute is not tolerated"),
        ),
        (a_node("a"), a_task(host_port=80), (running("db", host_port=80),), ("port 80/tcp is in use",)),
        (
            a_node("a"),
            a_task(slot=2, spec=a_task_spec(max_replicas=1)),
            (running(),),
            ("has 1 tasks of the service, at most 1 a node",),
        ),
    ],
)
def test_every_reason_against_a_node_is_told(
    node: Node, task: Task, there: tuple[Task, ...], expected: tuple[str, ...]
) -> None:
    assert reasons(node, task, *there) == expected


def test_affinities_are_told_by_name() -> None:
    labels = {"fleet.placement.affinity": "cache", "fleet.placement.anti-affinity": "batch"}
    task = msgspec.structs.replace(a_task(), service_labels=labels)
    assert reasons(a_node("a"), task, running("batch")) == ("has no task of cache", "has a task of batch")


def test_the_best_node_comes_first_and_those_that_cannot_last() -> None:
    nodes = [a_node("b"), a_node("c", labels={"disk": "ssd"}), a_node("a", state=NodeState.DOWN), a_node("d")]
    task = msgspec.structs.replace(a_task(), service_labels={"fleet.placement.prefer": "node.labels.disk==ssd:7"})
    pool = build_views(nodes, [a_task("db", node="b", state=TaskState.RUNNING)])
    verdicts = explain_nodes(Demand(task, service_id_of=pool.service_id_of), pool)
    assert [(each.view.node.id, each.score) for each in verdicts] == [("c", 7), ("d", 0), ("b", 0), ("a", 0)]
