"""Moves always make things better, come to an end, and leave nothing that a dumb look at every pair of nodes would gain."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decision_builders import a_node, a_task, a_task_spec

from fleet.model.ids import NodeId, ServiceId
from fleet.model.node import Node
from fleet.model.task import Task, TaskState
from fleet.scheduler.constraints import attribute_reader, matcher, parse_constraint
from fleet.scheduler.filters import Demand, failing_filter
from fleet.scheduler.pool import build_views
from fleet.scheduler.rebalance import Relocation, plan_moves

ZONES = ("", "eu", "us")
SERVICES = ("web", "api", "db")
ROUNDS_MAX = 20
PREFERRED = "node.labels.zone==eu"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Node], list[Task]]:
    nodes = [
        a_node(
            f"n{i}",
            labels={"zone": zone} if (zone := draw(st.sampled_from(ZONES))) else {},
            cpus=draw(st.sampled_from([2, 4, 16])),
        )
        for i in range(draw(st.integers(1, 7)))
    ]
    tasks: list[Task] = []
    for name in SERVICES:
        spec = a_task_spec(
            cpus=draw(st.sampled_from([0, 0.25, 1])),
            max_replicas=draw(st.sampled_from([0, 0, 3])),
            constraints=draw(st.sampled_from([(), (), ("node.labels.zone!=us",)])),
            spread=draw(st.sampled_from([(), (), ("node.labels.zone",), ("node.labels.zone", "node.role")])),
        )
        labels = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "fleet.placement.strategy": st.sampled_from(["spread", "binpack", "balanced"]),
                    "fleet.placement.prefer": st.just(f"{PREFERRED}:5"),
                    "fleet.placement.anti-affinity": st.sampled_from([s for s in SERVICES if s != name]),
                },
            )
        )
        for slot in range(1, draw(st.integers(0, 9)) + 1):
            node = draw(st.sampled_from(nodes)).id
            task = a_task(name, slot=slot, node=node, state=TaskState.RUNNING, spec=spec)
            tasks.append(msgspec.structs.replace(task, service_labels=labels))
    return nodes, tasks


def plan(nodes: list[Node], tasks: list[Task]) -> list[Relocation]:
    movable: dict[ServiceId, list[Task]] = defaultdict(list)
    for task in tasks:
        movable[task.service_id].append(task)
    labels = {task.service_id: (task.service_name, task.service_labels) for task in tasks}
    return plan_moves(movable, build_views(nodes, tasks), labels=labels)


def moved(tasks: list[Task], each: Relocation) -> list[Task]:
    return [msgspec.structs.replace(t, node_id=each.target) if t.id == each.task.id else t for t in tasks]


def unevenness(nodes: list[Node], tasks: list[Task], name: str) -> tuple[tuple[int, ...], int, int]:
    """How bad it is for the service, for the nodes' counts, and for their reserved shares; counted from nothing."""
    by_id = {node.id: node for node in nodes}
    own = [task for task in tasks if task.service_name == name]
    task = own[0]
    readers = [attribute_reader(p.spread.spread_descriptor) for p in task.spec.placement.preferences if p.spread]
    counts: list[Counter[object]] = [
        Counter(tuple(read(by_id[t.node_id]) for read in readers[:depth]) for t in own)
        for depth in range(1, len(readers) + 1)
    ]
    if task.service_labels.get("fleet.placement.strategy", "spread") == "spread":
        counts.append(Counter(t.node_id for t in own))
    weight = 0
    if "fleet.placement.prefer" in task.service_labels:
        prefers = matcher(parse_constraint(PREFERRED))
        weight = sum(prefers(by_id[t.node_id]) for t in own)
    totals = Counter(t.node_id for t in tasks)
    views = build_views(nodes, tasks)
    return (
        (-weight, *(squares(count) for count in counts)),
        squares(totals),
        sum(view.reserved_permille() ** 2 for view in views.values()),
    )


def squares(counts: Counter[object]) -> int:
    return sum(count * count for count in counts.values())


@settings(deadline=None)
@given(worlds())
def test_each_move_is_allowed_and_makes_things_better(world: tuple[list[Node], list[Task]]) -> None:
    nodes, tasks = world
    for each in plan(nodes, tasks):
        name = each.task.service_name
        views = build_views(nodes, tasks)
        demand = Demand(each.task, service_id_of=views.service_id_of)
        assert failing_filter(demand, views[each.target]) is None
        assert each.task.service_labels.get("fleet.placement.strategy") != "binpack"
        after = moved(tasks, each)
        assert unevenness(nodes, after, name) < unevenness(nodes, tasks, name), each.reason
        for other in {task.service_name for task in tasks} - {name}:
            assert unevenness(nodes, after, other)[0] == unevenness(nodes, tasks, other)[0]
        tasks = after


@settings(deadline=None)
@given(worlds())
def test_moving_comes_to_an_end_whoever_plans_anew(world: tuple[list[Node], list[Task]]) -> None:
    nodes, tasks = world
    for _ in range(ROUNDS_MAX):
        moves = plan(nodes, tasks)
        if not moves:
            return
        assert len({each.task.id for each in moves}) == len(moves)
        tasks = moved(tasks, moves[0])  # as if all else had been overtaken
        for each in moves[1:]:
            tasks = moved(tasks, each)
    raise AssertionError("tasks are moved without end")


@settings(deadline=None)
@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from(SERVICES), st.integers(0, 5)), max_size=25))
def test_nothing_is_left_to_gain_by_any_single_move(count: int, placed: list[tuple[str, int]]) -> None:
    nodes = [a_node(f"n{i}") for i in range(count)]
    tasks = [
        a_task(name, slot=slot, node=f"n{at % count}", state=TaskState.RUNNING)
        for slot, (name, at) in enumerate(placed, start=1)
    ]
    for _ in range(ROUNDS_MAX):
        moves = plan(nodes, tasks)
        if not moves:
            break
        for each in moves:
            tasks = moved(tasks, each)
    for task in tasks:
        before = unevenness(nodes, tasks, task.service_name)[:2]
        for node in nodes:
            there = [msgspec.structs.replace(t, node_id=NodeId(node.id)) if t.id == task.id else t for t in tasks]
            assert unevenness(nodes, there, task.service_name)[:2] >= before
