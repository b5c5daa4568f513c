"""Placing: who gets what, and why others wait."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from support.decision_builders import NOW, a_node, a_task, a_task_spec

from fleet.model.common import Driver, GenericResource, NamedResource, Platform
from fleet.model.ids import NetworkId, NodeId, ServiceId, TaskId
from fleet.model.node import Availability, EngineDescription, Node, NodeDescription, NodeResources, NodeState
from fleet.model.service import ContainerSpec, Mount, Placement, TaskSpec, VolumeOptions
from fleet.model.task import Attachment, Task, TaskState
from fleet.scheduler.node_view import FailureLog
from fleet.scheduler.place import Placements, place
from fleet.scheduler.pool import build_views


def placed(nodes: list[Node], waiting: list[Task], running: list[Task] | None = None) -> Placements:
    return place(waiting, build_views(nodes, running or []))


def counts(placements: Placements) -> dict[str, int]:
    return dict(Counter(placements.assignments.values()))


def reason(placements: Placements) -> str:
    (text,) = set(placements.pending.values())
    return text


def test_tasks_spread_evenly_over_nodes() -> None:
    nodes = [a_node(n) for n in "abc"]
    assert counts(placed(nodes, [a_task(slot=i) for i in range(1, 8)])) == {"a": 3, "b": 2, "c": 2}


def test_node_with_fewest_tasks_of_the_service_wins_over_the_emptier_one() -> None:
    nodes = [a_node("a"), a_node("b")]
    running = [a_task(node="a", state=TaskState.RUNNING)] + [
        a_task("other", slot=i, node="b", state=TaskState.RUNNING) for i in range(5)
    ]
    assert counts(placed(nodes, [a_task(slot=2)], running)) == {"b": 1}
    assert counts(placed(nodes, [a_task("third")], running)) == {"a": 1}


def test_task_that_shuts_down_counts_no_more_but_keeps_its_resources() -> None:
    nodes = [a_node("a", cpus=2)]
    spec = a_task_spec(cpus=2)
    leaving = a_task(node="a", state=TaskState.RUNNING, desired=TaskState.SHUTDOWN, spec=spec)
    views = build_views(nodes, [leaving])
    assert views[NodeId("a")].tasks_total == 0
    assert reason(place([a_task(spec=spec)], views)) == "no suitable node (insufficient resources on 1 node)"


def test_reason_names_every_filter_and_the_most_frequent_first() -> None:
    nodes = [
        a_node("a", labels={"zone": "eu"}, cpus=1),
        a_node("b"),
        a_node("c"),
        a_node("d", state=NodeState.DOWN),
    ]
    task = a_task(spec=a_task_spec(constraints=["node.labels.zone==eu"], cpus=2))
    assert reason(placed(nodes, [task])) == (
        "no suitable node (scheduling constraints not satisfied on 2 nodes; "
        "1 node not available for new tasks; insufficient resources on 1 node)"
    )


def test_reason_without_any_node() -> None:
    assert reason(placed([], [a_task()])) == "no suitable node"


@pytest.mark.parametrize("availability", [Availability.PAUSE, Availability.DRAIN])
def test_node_that_is_not_active_gets_nothing(availability: Availability) -> None:
    assert reason(placed([a_node(availability=availability)], [a_task()])) == (
        "no suitable node (1 node not available for new tasks)"
    )


def test_removed_node_gets_nothing_and_is_not_counted() -> None:
    assert reason(placed([a_node(removed=True)], [a_task()])) == "no suitable node"


def test_resources_fill_up_within_one_pass() -> None:
    spec = a_task_spec(memory_bytes=3 << 30)
    result = placed([a_node("a", memory_bytes=8 << 30)], [a_task(slot=i, spec=spec) for i in range(1, 5)])
    assert counts(result) == {"a": 2}
    assert reason(result) == "no suitable node (insufficient resources on 1 node)"
    assert len(result.pending) == 2


def test_oldest_tasks_are_placed_first() -> None:
    spec = a_task_spec(cpus=4)
    young = a_task(spec=spec, at=NOW + timedelta(seconds=1))
    old = a_task(slot=2, spec=spec, at=NOW)
    assert list(placed([a_node(cpus=4)], [young, old]).assignments) == [old.id]


def test_host_port_is_given_once_a_node() -> None:
    nodes = [a_node("a"), a_node("b")]
    result = placed(nodes, [a_task(slot=i, host_port=8080) for i in range(1, 4)])
    assert counts(result) == {"a": 1, "b": 1}
    assert reason(result) == "no suitable node (host-mode port already in use on 2 nodes)"


def test_of_equal_nodes_the_one_with_the_image_is_taken_and_spread_goes_on_over_the_others() -> None:
    nodes = [a_node(n) for n in "abcd"]
    has = {"app:1": frozenset({NodeId("c")})}.__getitem__
    for count, expected in ((1, "c"), (2, "ca"), (5, "cabdc")):
        waiting = [a_task(slot=i) for i in range(count)]
        assert "".join(place(waiting, build_views(nodes, []), holders=has).assignments.values()) == expected
    busy = a_task("db", node="c", state=TaskState.RUNNING)
    assert set(place([a_task()], build_views(nodes, [busy]), holders=has).assignments.values()) == {"a"}


def test_max_replicas_per_node_is_obeyed_across_passes() -> None:
    spec = a_task_spec(max_replicas=2)
    running = [a_task(node="a", state=TaskState.RUNNING, spec=spec)]
    result = placed([a_node("a")], [a_task(slot=2, spec=spec), a_task(slot=3, spec=spec)], running)
    assert counts(result) == {"a": 1}
    assert reason(result) == "no suitable node (max replicas per node limit exceed)"


def test_platform_knows_both_names_of_an_architecture() -> None:
    spec = TaskSpec(placement=Placement(platforms=(Platform(architecture="amd64", os="linux"),)))
    assert counts(placed([a_node("a", architecture="x86_64")], [a_task(spec=spec)])) == {"a": 1}
    assert reason(placed([a_node(architecture="aarch64")], [a_task(spec=spec)])) == (
        "no suitable node (unsupported platform on 1 node)"
    )


def test_network_driver_must_be_among_the_plugins_of_the_node() -> None:
    task = a_task(network_attachments=(Attachment(network_id=NetworkId("net")),))
    drivers = {NetworkId("net"): "weave"}
    views = build_views([a_node("a", plugins=[("Network", "overlay")])], [])
    assert reason(place([task], views, network_drivers=drivers)) == "no suitable node (missing plugin on 1 node)"
    views = build_views([a_node("a", plugins=[("Network", "weave")]), a_node("b", plugins=[])], [])
    assert place([task], views, network_drivers=drivers).assignments == {task.id: "a"}


def test_volume_and_log_drivers_must_be_there() -> None:
    volume = Mount(target="/d", volume_options=VolumeOptions(driver_config=Driver(name="nfs")))
    both = TaskSpec(container_spec=ContainerSpec(mounts=(volume,)), log_driver=Driver(name="json-file"))
    node = a_node("a", plugins=[("Volume", "nfs"), ("Log", "json-file")])
    assert counts(placed([node], [a_task(spec=both)])) == {"a": 1}
    node = a_node("a", plugins=[("Volume", "local"), ("Log", "json-file")])
    assert "missing plugin" in reason(placed([node], [a_task(spec=both)]))


def test_preassigned_task_is_validated_on_its_own_node() -> None:
    nodes = [a_node("a", labels={"zone": "eu"}), a_node("b", availability=Availability.PAUSE)]
    good, paused, gone = (a_task(slot=0, node=n) for n in ("a", "b", "z"))
    result = placed(nodes, [good, paused, gone])
    assert result.assignments == {good.id: "a"}
    assert result.pending == {
        paused.id: "no suitable node (1 node not available for new tasks)",
        gone.id: "no suitable node (node z is gone)",
    }


def test_preassigned_task_takes_its_room_before_others() -> None:
    spec = a_task_spec(cpus=3)
    free, bound = a_task(spec=spec), a_task("agent", slot=0, node="a", spec=spec, at=NOW + timedelta(hours=1))
    result = placed([a_node("a", cpus=4)], [free, bound])
    assert list(result.assignments) == [bound.id]


def test_discrete_generic_resources_are_counted() -> None:
    spec = a_task_spec(gpus=2)
    result = placed([a_node("a", gpus=3)], [a_task(slot=1, spec=spec), a_task(slot=2, spec=spec)])
    assert counts(result) == {"a": 1}
    ((picked,),) = result.generic_resources.values()
    assert picked.discrete is not None
    assert picked.discrete.value == 2


def test_named_generic_resources_are_given_out_once() -> None:
    names = tuple(GenericResource(named=NamedResource(kind="gpu", value=v)) for v in ("u1", "u2", "u3"))
    base = a_node("a")
    node = Node(
        id=NodeId("a"),
        created_at=NOW,
        updated_at=NOW,
        status=base.status,
        description=NodeDescription(resources=NodeResources(generic_resources=names), engine=EngineDescription()),
    )
    holder = a_task(node="a", state=TaskState.RUNNING, assigned_generic_resources=names[:1])
    spec = a_task_spec(gpus=1)
    result = placed([node], [a_task(slot=i, spec=spec) for i in (2, 3, 4)], [holder])
    given = sorted(r.named.value for picked in result.generic_resources.values() for r in picked if r.named)
    assert given == ["u2", "u3"]
    assert len(result.pending) == 1


def test_spread_preference_equalises_branches_before_nodes() -> None:
    nodes = [a_node("a1", labels={"dc": "a"}), *(a_node(f"b{i}", labels={"dc": "b"}) for i in range(3))]
    spec = a_task_spec(spread=["node.labels.dc"])
    result = counts(placed(nodes, [a_task(slot=i, spec=spec) for i in range(1, 7)]))
    assert result == {"a1": 3, "b0": 1, "b1": 1, "b2": 1}


def test_nodes_without_the_label_are_a_branch_of_their_own() -> None:
    nodes = [a_node("a", labels={"dc": "a"}), a_node("x"), a_node("y")]
    spec = a_task_spec(spread=["node.labels.dc"])
    assert counts(placed(nodes, [a_task(slot=i, spec=spec) for i in range(1, 5)])) == {"a": 2, "x": 1, "y": 1}


def test_full_branch_overflows_to_the_others() -> None:
    nodes = [a_node("a", labels={"dc": "a"}, cpus=1), a_node("b", labels={"dc": "b"}, cpus=8)]
    spec = a_task_spec(spread=["node.labels.dc"], cpus=1)
    assert counts(placed(nodes, [a_task(slot=i, spec=spec) for i in range(1, 6)])) == {"a": 1, "b": 4}


def test_tasks_on_nodes_that_take_no_more_still_count_for_their_branch() -> None:
    nodes = [
        a_node("a1", labels={"dc": "a"}, availability=Availability.PAUSE),
        a_node("a2", labels={"dc": "a"}),
        a_node("b1", labels={"dc": "b"}),
    ]
    spec = a_task_spec(spread=["node.labels.dc"])
    running = [a_task(slot=i, node="a1", state=TaskState.RUNNING, spec=spec) for i in (1, 2)]
    result = placed(nodes, [a_task(slot=i, spec=spec) for i in (3, 4)], running)
    assert counts(result) == {"b1": 2}


def test_preferences_nest() -> None:
    nodes = [a_node(f"{dc}{rack}{i}", labels={"dc": dc, "rack": rack}) for dc in "ab" for rack in "xy" for i in "12"]
    spec = a_task_spec(spread=["node.labels.dc", "node.labels.rack"])
    result = placed(nodes, [a_task(slot=i, spec=spec) for i in range(1, 9)])
    assert set(counts(result).values()) == {1}
    first_four = list(result.assignments.values())[:4]
    assert {name[:2] for name in first_four} == {"ax", "ay", "bx", "by"}


def test_node_where_the_version_failed_five_times_comes_last() -> None:
    nodes = [a_node("a"), a_node("b")]
    log = FailureLog()
    for i in range(5):
        log.record(a_task(node="a", state=TaskState.FAILED, at=NOW + timedelta(seconds=i)))
    running = [a_task(slot=i, node="b", state=TaskState.RUNNING) for i in range(3)]
    views = build_views(nodes, running, failures=log.recent(NOW + timedelta(minutes=1)))
    assert place([a_task(slot=9)], views).assignments.popitem()[1] == "b"
    assert place([a_task(slot=9, version=2)], views).assignments.popitem()[1] == "a"
    views = build_views(nodes, running, failures=log.recent(NOW + timedelta(minutes=6)))
    assert place([a_task(slot=9)], views).assignments.popitem()[1] == "a"


def test_failure_log_counts_a_task_once_and_is_bounded() -> None:
    log = FailureLog(keys_max=2)
    task = a_task("s1", node="a", state=TaskState.FAILED)
    log.record(task)
    log.record(task)
    assert log.recent(NOW) == {"a": {("s1", 1): 1}}
    for name in ("s2", "s3"):
        log.record(a_task(name, node="a", state=TaskState.REJECTED))
    assert set(log.recent(NOW)[NodeId("a")]) == {(ServiceId("s2"), 1), (ServiceId("s3"), 1)}


def test_service_whose_constraints_do_not_parse_keeps_nobody_else_waiting() -> None:
    bad, good = a_task("bad", spec=a_task_spec(constraints=["nonsense"])), a_task("good")
    result = placed([a_node("a")], [bad, good])
    assert result.assignments == {good.id: "a"}
    assert "constraint 'nonsense': expected == or !=" in result.pending[TaskId(bad.id)]
