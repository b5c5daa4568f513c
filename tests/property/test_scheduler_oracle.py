"""The heaps decide as a dumb oracle does that looks at every node for every task."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decision_builders import a_node, a_task, a_task_spec

from fleet.model.ids import NodeId, TaskId
from fleet.model.node import Node, NodeState
from fleet.model.service import TaskSpec
from fleet.model.task import Task, TaskState
from fleet.scheduler.constraints import attribute_reader
from fleet.scheduler.filters import Demand, explain_pending, failing_filter
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.place import place
from fleet.scheduler.pool import NodePool, build_views
from fleet.scheduler.quotas import Quota, parse_quota
from fleet.scheduler.spread import rank
from fleet.scheduler.wishes import Strategy

ZONES = ("", "eu", "us")
TAINTS = st.sampled_from(
    [
        {},
        {},
        {"fleet.taint.gpu": "a:no-schedule"},
        {"fleet.taint.old": ":no-execute"},
        {"fleet.taint.x": ":prefer-no-schedule"},
    ]
)


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    count = draw(st.integers(0, 8))
    return [
        a_node(
            f"n{i}",
            labels=draw(TAINTS) | ({"zone": zone} if (zone := draw(st.sampled_from(ZONES))) else {}),
            cpus=draw(st.integers(0, 4)),
        )
        for i in range(count)
    ]


@st.composite
def specs(draw: st.DrawFn) -> TaskSpec:
    return a_task_spec(
        cpus=draw(st.sampled_from([0, 0.5, 1, 2])),
        max_replicas=draw(st.sampled_from([0, 0, 1, 3])),
        constraints=draw(st.sampled_from([(), ("node.labels.zone==eu",), ("node.labels.zone!=us",)])),
        spread=draw(st.sampled_from([(), ("node.labels.zone",), ("node.labels.zone", "node.role")])),
    )


WISHES = st.fixed_dictionaries(
    {},
    optional={
        "fleet.placement.strategy": st.sampled_from(list(Strategy)),
        "fleet.placement.prefer": st.sampled_from(
            ["node.labels.zone==eu:5", "node.labels.zone!=us:2; node.id == n1:3"]
        ),
        "fleet.placement.affinity": st.sampled_from(["other", "other:4", "nobody:4"]),
        "fleet.placement.anti-affinity": st.sampled_from(["web", "web:4, other:5", "other"]),
        "fleet.placement.toleration": st.sampled_from(["gpu", "gpu=b", "*:no-execute", "x, old:no-execute"]),
    },
)


def _quota(team: str, text: str) -> Quota:
    return parse_quota(f"fleet.quota.label=team={team}", text)


QUOTAS = st.sampled_from(
    [
        (),
        (_quota("red", "tasks=3"),),
        (_quota("red", "tasks=4,cpu=2"), _quota("blue", "cpu=1.5")),
        (_quota("blue", "tasks=0"), _quota("red", "cpu=1")),
    ]
)


def oracle(waiting: list[Task], views: NodePool, holding: frozenset[NodeId] = frozenset()) -> dict[TaskId, NodeId]:
    """One task at a time; every node filtered again; branches counted again; the least rank wins."""
    chosen: dict[TaskId, NodeId] = {}
    for task in waiting:
        demand = Demand(task, service_id_of=views.service_id_of, holders=lambda _image: holding)
        pool = list(views.values())
        able = [view for view in pool if failing_filter(demand, view) is None]
        assert not any(_is_kept_away(task, view.node) for view in able)
        if not able:
            continue
        for preference in task.spec.placement.preferences:
            assert preference.spread is not None
            reader = attribute_reader(preference.spread.spread_descriptor)
            load: Counter[str] = Counter()
            for view in pool:
                load[reader(view.node)] += view.count(task.service_id)
            best = min({reader(view.node) for view in able}, key=lambda value: (load[value], value))
            pool = [view for view in pool if reader(view.node) == best]
            able = [view for view in able if reader(view.node) == best]
        winner = min(able, key=lambda view: rank(view, demand))
        winner.assume(task)
        chosen[task.id] = winner.node.id
    return chosen


def _is_kept_away(task: Task, node: Node) -> bool:
    """By taints, as a person would go through the four that there are here."""
    tolerated = task.service_labels.get("fleet.placement.toleration", "")
    taints = node.spec.labels.keys() & {"fleet.taint.gpu", "fleet.taint.old"}
    if "fleet.taint.gpu" in taints:
        return tolerated != "gpu"
    return "fleet.taint.old" in taints and tolerated not in ("*:no-execute", "x, old:no-execute")


@st.composite
def loads(draw: st.DrawFn, nodes: list[Node], spec: TaskSpec) -> list[Task]:
    if not nodes:
        return []
    names = st.sampled_from([node.id for node in nodes])
    services = st.sampled_from(["web", "other"])
    return [
        a_task(draw(services), slot=100 + i, node=draw(names), state=TaskState.RUNNING, spec=spec)
        for i in range(draw(st.integers(0, 6)))
    ]


@settings(deadline=None)
@given(st.data())
def test_heaps_place_as_the_oracle_does(data: st.DataObject) -> None:
    nodes, spec = data.draw(clusters()), data.draw(specs())
    running = data.draw(loads(nodes, spec))
    labels = data.draw(WISHES)
    waiting = [
        msgspec.structs.replace(a_task(slot=i, spec=spec, task_id=f"t{i:02}"), service_labels=labels)
        for i in range(data.draw(st.integers(0, 20)))
    ]
    holding = frozenset(node.id for node in nodes if data.draw(st.booleans()))
    result = place(waiting, build_views(nodes, running), holders=lambda _image: holding)
    assert result.assignments == oracle(waiting, build_views(nodes, running), holding)
    assert set(result.assignments) | set(result.pending) == {task.id for task in waiting}
    assert not set(result.assignments) & set(result.pending)


@settings(deadline=None)
@given(st.data())
def test_quotas_keep_away_what_is_beyond_them_and_nothing_else(data: st.DataObject) -> None:
    """Compared with counting by hand, one task after the other, what runs and what was placed."""
    nodes, quotas = data.draw(clusters()), data.draw(QUOTAS)
    teams = {service: {"team": data.draw(st.sampled_from(["red", "blue"]))} for service in ("web", "db")}
    shapes = {service: a_task_spec(cpus=data.draw(st.sampled_from([0, 0.5, 1]))) for service in teams}

    def of(service: str, slot: int, **more: object) -> Task:
        task = a_task(service, slot=slot, spec=shapes[service], **more)  # type: ignore[arg-type]
        return msgspec.structs.replace(task, service_labels=teams[service])

    there = [
        of(
            data.draw(st.sampled_from(["web", "db"])),
            100 + i,
            node=data.draw(st.sampled_from([node.id for node in nodes])),
            state=data.draw(st.sampled_from([TaskState.RUNNING, TaskState.FAILED])),
            desired=data.draw(st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN])),
        )
        for i in range(data.draw(st.integers(0, 4)) if nodes else 0)
    ]
    waiting = [
        of(service, i, task_id=f"{service}{i}") for service in teams for i in range(data.draw(st.integers(0, 6)))
    ]
    pool = build_views(nodes, there)
    pool.set_quotas(quotas)
    result = place(waiting, pool)

    taken = [t for t in there if t.status.state is TaskState.RUNNING and t.desired_state is TaskState.RUNNING]
    first_of: dict[str, int] = {}
    for task in sorted(waiting, key=lambda task: (task.created_at, task.slot, task.id)):
        first_of.setdefault(task.service_id, len(first_of))
    for task in sorted(waiting, key=lambda task: (first_of[task.service_id], task.slot)):
        is_beyond = False
        for quota in quotas:
            mine = [t for t in [*taken, task] if t.service_labels["team"] == quota.value]
            if task.service_labels["team"] != quota.value:
                continue
            cpus = sum(t.spec.resources.reservations.nano_cpus for t in mine)
            is_beyond |= quota.tasks is not None and len(mine) > quota.tasks
            needs = task.spec.resources.reservations.nano_cpus
            is_beyond |= quota.nano_cpus is not None and needs > 0 and cpus > quota.nano_cpus
        if task.id in result.assignments:
            assert not is_beyond
            taken.append(task)
        else:
            assert result.pending[task.id].startswith("beyond quota") == is_beyond


@settings(deadline=None)
@given(clusters().filter(bool), st.integers(0, 30))
def test_unconstrained_tasks_spread_within_one(nodes: list[Node], count: int) -> None:
    nodes = [node for node in nodes if not any("taint" in label for label in node.spec.labels)] or [a_node("n")]
    result = place([a_task(slot=i) for i in range(count)], build_views(nodes, []))
    per_node = Counter(result.assignments.values())
    numbers = [per_node[node.id] for node in nodes]
    assert sum(numbers) == count
    assert max(numbers) - min(numbers) <= 1


@settings(deadline=None)
@given(st.data())
def test_images_are_no_reason_to_be_less_even(data: st.DataObject) -> None:
    """Who has the image changes which of equal nodes are taken, never how many tasks nodes have."""
    nodes, spec = data.draw(clusters()), data.draw(specs())
    running = data.draw(loads(nodes, spec))
    holding = frozenset(node.id for node in nodes if data.draw(st.booleans()))
    waiting = [a_task(slot=i) for i in range(data.draw(st.integers(0, 20)))]

    def totals(holding: frozenset[NodeId]) -> list[int]:
        views = build_views(nodes, running)
        place(waiting, views, holders=lambda _image: holding)
        return sorted(view.tasks_total for view in views.values())

    assert totals(holding) == totals(frozenset())


@settings(deadline=None)
@given(st.data())
def test_nothing_is_promised_twice(data: st.DataObject) -> None:
    nodes, spec = data.draw(clusters()), data.draw(specs())
    views = build_views(nodes, [])
    place([a_task(slot=i, spec=spec) for i in range(30)], views)
    assert all(view.nano_cpus_free >= 0 for view in views.values())


@settings(deadline=None)
@given(st.data())
def test_placing_again_from_the_result_changes_nothing(data: st.DataObject) -> None:
    nodes, spec = data.draw(clusters()), data.draw(specs())
    waiting = [a_task(slot=i, spec=spec) for i in range(10)]
    first = place(waiting, build_views(nodes, []))
    there = [
        a_task(slot=i, node=n, state=TaskState.ASSIGNED, spec=spec) for i, n in enumerate(first.assignments.values())
    ]
    left = [task for task in waiting if task.id in first.pending]
    second = place(left, build_views(nodes, there))
    assert second.assignments == {}
    assert second.pending == first.pending


@settings(deadline=None)
@given(st.data())
def test_pool_kept_through_events_decides_as_one_built_anew(data: st.DataObject) -> None:
    """Nodes and tasks come, change and go in any order between passes; some of what was placed is never written."""
    names, shapes = [f"n{i}" for i in range(5)], [data.draw(specs()) for _ in range(2)]
    labels = {service: {**data.draw(WISHES), "team": team} for service, team in (("web", "red"), ("db", "blue"))}
    nodes: dict[str, Node] = {}
    tasks: dict[TaskId, Task] = {}
    quotas = data.draw(QUOTAS)
    pool = NodePool()
    pool.set_quotas(quotas)
    for step in range(data.draw(st.integers(1, 12))):
        name = data.draw(st.sampled_from(names))
        match data.draw(st.sampled_from(["node", "node", "gone", "place", "place", "place", "end", "leave"])):
            case "node":
                zone, state = data.draw(st.sampled_from(ZONES)), data.draw(st.sampled_from(list(NodeState)))
                nodes[name] = a_node(
                    name, labels={"zone": zone} | data.draw(TAINTS), cpus=data.draw(st.integers(0, 4)), state=state
                )
                pool.set_node(nodes[name])
            case "gone":
                nodes.pop(name, None)
                pool.remove_node(NodeId(name))
            case "end" | "leave" as how if tasks:
                task = tasks[data.draw(st.sampled_from(sorted(tasks)))]
                if how == "end":
                    tasks[task.id] = _with(task, state=TaskState.FAILED)
                else:
                    tasks[task.id] = msgspec.structs.replace(task, desired_state=TaskState.SHUTDOWN)
                pool.set_task(tasks[task.id])
            case "place":
                spec, service = data.draw(st.sampled_from(shapes)), data.draw(st.sampled_from(["web", "db"]))
                waiting = [
                    msgspec.structs.replace(
                        a_task(service, slot=i, spec=spec, task_id=f"s{step:02}t{i}"), service_labels=labels[service]
                    )
                    for i in range(data.draw(st.integers(0, 6)))
                ]
                anew = build_views(nodes.values(), tasks.values())
                anew.set_quotas(quotas)
                expected, result = place(waiting, anew), place(waiting, pool)
                assert result == expected
                for task in waiting:
                    chosen = result.assignments.get(task.id)
                    if chosen is None and not result.pending[task.id].startswith("beyond quota"):
                        demand = Demand(task, service_id_of=anew.service_id_of)
                        assert result.pending[task.id] == explain_pending(demand, anew.values())
                    elif chosen is not None and data.draw(st.booleans()):
                        tasks[task.id] = _with(task, state=TaskState.ASSIGNED, node=chosen)
                        pool.set_task(tasks[task.id])
                    else:  # the write was refused
                        pool.set_task(task)
            case _:
                pass
    pool.refresh()
    anew = build_views(nodes.values(), tasks.values())
    assert {n: _facts(view) for n, view in pool.items()} == {n: _facts(view) for n, view in anew.items()}


def _with(task: Task, *, state: TaskState, node: str = "") -> Task:
    status = msgspec.structs.replace(task.status, state=state)
    return msgspec.structs.replace(task, status=status, node_id=NodeId(node) if node else task.node_id)


def _facts(view: NodeView) -> tuple[object, ...]:
    counts = {service: count for service, count in view.tasks_by_service.items() if count}
    return (view.nano_cpus_free, view.memory_free_bytes, view.tasks_total, counts, view.ports)
