"""Priorities: who comes first, who yields, and whose room is kept."""

from __future__ import annotations

import msgspec
import pytest
from support.decision_builders import a_node, a_task, a_task_spec

from fleet import errors
from fleet.model.ids import NodeId, TaskId
from fleet.model.node import Node
from fleet.model.task import Preempted, Task, TaskState
from fleet.scheduler.place import make_demand_of, place
from fleet.scheduler.pool import build_views
from fleet.scheduler.preempt import Yielding, plan_preemptions
from fleet.scheduler.wishes import parse_wishes, priority_of

LABEL = "fleet.placement.priority"


def of(service: str, priority: int, slot: int = 1, *, cpus: float = 1, node: str = "") -> Task:
    state = TaskState.RUNNING if node else TaskState.PENDING
    task = a_task(service, slot=slot, node=node, spec=a_task_spec(cpus=cpus), state=state, task_id=f"{service}{slot}")
    return msgspec.structs.replace(task, service_labels={LABEL: str(priority)})


def preempt(nodes: list[Node], there: list[Task], *waiting: Task, at_once: int = 9) -> list[tuple[str, str, list[str]]]:
    pool = build_views(nodes, there)
    left = [task for task in waiting if task.id in place(waiting, pool).pending]
    services = {task.service_id: priority_of(task.service_labels) for task in there}
    yielding = {
        service: Yielding(priority=priority, tasks=[t for t in there if t.service_id == service], at_once=at_once)
        for service, priority in services.items()
    }
    found = plan_preemptions(left, pool, yielding=yielding, make_demand=make_demand_of(pool))
    return [(each.task.id, each.node_id, [victim.id for victim in each.victims]) for each in found]


def test_higher_priority_is_placed_first() -> None:
    waiting = [of("low", 0, slot) for slot in (1, 2)] + [of("high", 1)]
    assert set(place(waiting, build_views([a_node("a", cpus=2)], [])).pending) == {TaskId("low2")}


def test_fewest_yield_then_the_lowest() -> None:
    nodes = [a_node("a", cpus=2), a_node("b", cpus=2), a_node("c", cpus=2)]
    there = [
        of("x", 0, 1, node="a"),
        of("x", 0, 2, node="a"),
        of("y", 1, cpus=2, node="b"),
        of("z", 0, cpus=2, node="c"),
    ]
    assert preempt(nodes, there, of("high", 5, cpus=2)) == [("high1", "c", ["z1"])]
    assert preempt(nodes[:2], there[:3], of("high", 5, cpus=2)) == [("high1", "b", ["y1"])]
    assert preempt(nodes[:2], there[:3], of("high", 1, cpus=2)) == [("high1", "a", ["x1", "x2"])]
    assert preempt(nodes[:2], there[:3], of("high", 1, cpus=2), at_once=1) == []
    assert preempt(nodes, there, of("same", 0)) == []


def test_room_that_is_made_is_kept_from_those_of_less_and_named() -> None:
    going = msgspec.structs.replace(
        of("low", 0, 1, node="a"),
        preempted=Preempted(by=TaskId("high1"), service="high", since=a_task().created_at),
        desired_state=TaskState.SHUTDOWN,
    )
    nominated = {TaskId("high1"): NodeId("a")}
    pool = build_views([a_node("a", cpus=2)], [going])
    result = place([of("high", 5, cpus=2), of("low", 0, 2)], pool, nominated=nominated)
    assert result.assignments == {}
    assert result.pending["high1"].endswith("(insufficient resources on 1 node); room is made on a")
    assert pool[NodeId("a")].nano_cpus_free == 10**9, "nothing is kept after the pass"
    pool.remove_task(going.id)
    result = place([of("low", 0, 2), of("high", 5, cpus=2)], pool, nominated=nominated)
    assert result.assignments == {"high1": "a"}


def test_room_of_tasks_that_stop_anyway_is_waited_for() -> None:
    nodes = [a_node("a", cpus=1), a_node("b", cpus=1)]
    stops = msgspec.structs.replace(of("low", 0, 1, node="a"), desired_state=TaskState.SHUTDOWN)
    there = [stops, of("low", 0, 2, node="b")]
    assert preempt(nodes, there, of("high", 5)) == []
    assert preempt(nodes, there, of("high", 5, 1), of("high", 5, 2)) == [("high2", "b", ["low2"])]


def test_global_task_takes_room_on_its_own_node_alone() -> None:
    nodes = [a_node("a", cpus=1), a_node("b", cpus=2)]
    there = [of("low", 0, 1, node="a"), of("low", 0, 2, cpus=2, node="b")]
    waiting = msgspec.structs.replace(of("agent", 5, 0), node_id=NodeId("b"))
    assert preempt(nodes, there, waiting) == [("agent0", "b", ["low2"])]
    assert preempt(nodes, there, msgspec.structs.replace(waiting, node_id=NodeId("gone"))) == []


def test_constraints_taints_and_size_are_no_reason_to_stop_anybody() -> None:
    there = [of("low", 0, 1, node="a")]
    assert preempt([a_node("a", cpus=1, labels={"fleet.taint.x": ":no-schedule"})], there, of("high", 5)) == []
    assert preempt([a_node("a", cpus=1)], there, of("high", 5, cpus=2)) == []
    assert preempt([], [], of("high", 5)) == []


def test_priority_is_a_number_between_bounds() -> None:
    assert parse_wishes({LABEL: "-7"}, service_name="web").priority == -7
    assert (priority_of({}), priority_of({LABEL: "x"}), priority_of({LABEL: "1000"})) == (0, 0, 1000)
    for text in ("", "high", "1001", "1.5", "--1"):
        with pytest.raises(errors.UserError, match="is not a whole number from -1000 to 1000"):
            parse_wishes({LABEL: text}, service_name="web")
