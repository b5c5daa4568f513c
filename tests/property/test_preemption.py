"""Who yields to whom, compared with trying every set of tasks on every node."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decision_builders import a_node, a_task, a_task_spec

from fleet.model.ids import ServiceId
from fleet.model.node import Node, NodeState
from fleet.model.task import Task, TaskState
from fleet.scheduler.place import make_demand_of, place
from fleet.scheduler.pool import build_views
from fleet.scheduler.preempt import Yielding, plan_preemptions

LABEL = "fleet.placement.priority"
PRIORITIES = {"low": -5, "none": 0, "some": 3, "high": 10}


def of(service: str, slot: int, *, cpus: float, port: int = 0, node: str = "", going: bool = False) -> Task:
    state = TaskState.RUNNING if node else TaskState.PENDING
    desired = TaskState.SHUTDOWN if going else TaskState.RUNNING
    spec = a_task_spec(cpus=cpus)
    name = f"{service}{slot:02}{node}"
    task = a_task(service, slot=slot, node=node, spec=spec, state=state, desired=desired, host_port=port, task_id=name)
    return msgspec.structs.replace(task, service_labels={LABEL: str(PRIORITIES[service])})


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    states = st.sampled_from([NodeState.READY, NodeState.READY, NodeState.READY, NodeState.DOWN])
    return [a_node(f"n{i}", cpus=draw(st.integers(1, 4)), state=draw(states)) for i in range(draw(st.integers(1, 4)))]


CPUS = st.sampled_from([0, 0.5, 1, 1.5, 2])
PORTS = st.sampled_from([0, 0, 0, 80])


@st.composite
def running(draw: st.DrawFn, nodes: list[Node]) -> list[Task]:
    names = st.sampled_from([node.id for node in nodes])
    return [
        of(
            draw(st.sampled_from(sorted(PRIORITIES))),
            i,
            cpus=draw(CPUS),
            port=draw(PORTS),
            node=draw(names),
            going=draw(st.sampled_from([False, False, False, True])),
        )
        for i in range(draw(st.integers(0, 8)))
    ]


def spare(data: st.DataObject, there: Iterable[Task]) -> dict[ServiceId, Yielding]:
    found = {}
    for service, priority in PRIORITIES.items():
        tasks = [t for t in there if t.service_id == service and t.desired_state is TaskState.RUNNING]
        at_once = data.draw(st.integers(0, 3))
        if tasks and at_once:
            found[ServiceId(service)] = Yielding(priority=priority, tasks=tasks, at_once=at_once)
    return found


def fits(task: Task, node: Node, there: list[Task]) -> bool:
    return bool(place([task], build_views([node], there)).assignments)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_fewest_and_lowest_yield_where_any_can_and_never_in_vain(data: st.DataObject) -> None:
    nodes = data.draw(clusters())
    there = data.draw(running(nodes))
    task = of(data.draw(st.sampled_from(["some", "high"])), 90, cpus=data.draw(CPUS), port=data.draw(PORTS))
    allowed = spare(data, there)
    pool = build_views(nodes, there)
    if place([task], build_views(nodes, there)).assignments:
        return
    found = plan_preemptions([task], pool, yielding=allowed, make_demand=make_demand_of(pool))

    stay = [t for t in there if t.desired_state is TaskState.RUNNING]
    if any(fits(task, node, [t for t in stay if t.node_id == node.id]) for node in nodes):
        assert not found, "it gets the room of tasks that are being stopped anyway"
        return
    ways: list[int] = []
    for node in nodes:
        here = [t for t in stay if t.node_id == node.id]
        able = [t for t in here if t.service_id in allowed and PRIORITIES[t.service_id] < PRIORITIES[task.service_id]]
        for size in range(1, len(able) + 1):
            for victims in itertools.combinations(able, size):
                counts = Counter(victim.service_id for victim in victims)
                if all(count <= allowed[s].at_once for s, count in counts.items()) and fits(
                    task, node, [t for t in here if t not in victims]
                ):
                    ways.append(size)
    if not found:
        assert not ways
        return
    (chosen,) = found
    victims = chosen.victims
    assert {v.node_id for v in victims} == {chosen.node_id}
    assert all(PRIORITIES[v.service_id] < PRIORITIES[task.service_id] for v in victims)
    assert all(count <= allowed[s].at_once for s, count in Counter(v.service_id for v in victims).items())
    (node,) = (node for node in nodes if node.id == chosen.node_id)
    here = [t for t in stay if t.node_id == node.id]
    assert fits(task, node, [t for t in here if t not in victims])
    for victim in victims:
        assert not fits(task, node, [t for t in here if t not in victims or t is victim]), "stopped in vain"
    if 1 in ways:
        assert len(victims) == 1, "one is enough"


@settings(deadline=None)
@given(st.data())
def test_nobody_yields_twice_and_all_for_whom_they_yield_come_to_a_place(data: st.DataObject) -> None:
    nodes = data.draw(clusters())
    there = data.draw(running(nodes))
    shapes = {"some": data.draw(CPUS), "high": data.draw(CPUS)}
    names = [data.draw(st.sampled_from(sorted(shapes))) for _ in range(4)]
    waiting = [of(name, 90 + i, cpus=shapes[name]) for i, name in enumerate(names)]
    allowed = spare(data, there)
    pool = build_views(nodes, there)
    left = [task for task in waiting if task.id in place(waiting, pool).pending]
    facts = {node_id: (view.nano_cpus_free, view.tasks_total) for node_id, view in pool.items()}
    found = plan_preemptions(left, pool, yielding=allowed, make_demand=make_demand_of(pool))
    assert facts == {node_id: (view.nano_cpus_free, view.tasks_total) for node_id, view in pool.items()}
    victims = [victim for each in found for victim in each.victims]
    assert len({victim.id for victim in victims}) == len(victims)
    assert all(count <= allowed[s].at_once for s, count in Counter(v.service_id for v in victims).items())
    gone = {victim.id for victim in victims} | {t.id for t in there if t.desired_state is not TaskState.RUNNING}
    after = build_views(nodes, [t for t in there if t.id not in gone])
    nominated = {each.task.id: each.node_id for each in found}
    result = place(waiting, after, nominated=nominated)
    assert nominated.keys() <= result.assignments.keys()
