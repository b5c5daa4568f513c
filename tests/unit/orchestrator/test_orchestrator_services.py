"""Which tasks exist: scaling, global services, drained and lost nodes, removal."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task, a_task_spec
from support.orchestrated import Cluster, S

from fleet import errors
from fleet.model.node import Availability, Node, NodeState
from fleet.model.service import ReplicatedMode, RestartCondition, RestartPolicy, ServiceMode, UpdateConfig
from fleet.orchestrator.check_plan import check_plan
from fleet.orchestrator.plan import Plan


def scale(cluster: Cluster, replicas: int) -> None:
    cluster.update(mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)))


def in_state(node: Node, state: NodeState) -> Node:
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, state=state))


def available(node: Node, availability: Availability) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, availability=availability))


def test_new_service_gets_its_tasks_at_once_numbered_from_one() -> None:
    cluster = Cluster(a_service(replicas=3))
    plan = cluster.plan()
    assert [task.slot for task in plan.create] == [1, 2, 3]
    assert {task.desired_state for task in plan.create} == {S.RUNNING}
    assert {task.status.state for task in plan.create} == {S.NEW}
    assert plan.wake_at is None


def test_tasks_carry_the_request_that_their_service_comes_from() -> None:
    service = msgspec.structs.replace(a_service(replicas=2), request="story-1")
    assert [task.request for task in Cluster(service).plan().create] == ["story-1", "story-1"]


def test_converged_service_needs_nothing() -> None:
    cluster = Cluster(a_service(replicas=3), [a_node("a"), a_node("b")])
    cluster.run()
    assert len(cluster.running()) == 3
    assert cluster.plan().is_empty


def test_growing_fills_the_lowest_free_numbers() -> None:
    tasks = [a_task(slot=slot, node="a", state=S.RUNNING) for slot in (2, 5)]
    cluster = Cluster(a_service(replicas=5), [a_node("a")], tasks)
    assert [task.slot for task in cluster.plan().create] == [1, 3, 4]


def test_large_service_grows_in_steps() -> None:
    cluster = Cluster(a_service(replicas=2500))
    assert [len(cluster.plan().create) for _ in range(4)] == [1000, 1000, 500, 0]
    assert cluster.slots() == list(range(1, 2501))


def test_shrinking_takes_from_the_node_with_most_tasks() -> None:
    tasks = [a_task(slot=i, node=n, state=S.RUNNING) for i, n in enumerate(["a", "b", "b", "b", "c"], start=1)]
    cluster = Cluster(a_service(replicas=3), [a_node(n) for n in "abc"], tasks)
    assert sorted(task.slot for task in cluster.plan().remove) == [3, 4]


def test_shrinking_prefers_tasks_that_do_not_run() -> None:
    tasks = [
        a_task(slot=1, node="a", state=S.PREPARING),
        a_task(slot=2, node="b", state=S.RUNNING),
        a_task(slot=3, state=S.PENDING),
    ]
    cluster = Cluster(a_service(replicas=2), [a_node(n) for n in "ab"], tasks)
    assert [task.slot for task in cluster.plan().remove] == [3]
    scale(cluster, 1)
    assert [task.slot for task in cluster.plan().remove] == [1]


def test_shrinking_removes_the_history_of_the_slot_too() -> None:
    old = a_task(slot=2, node="a", state=S.FAILED, desired=S.SHUTDOWN)
    tasks = [a_task(slot=1, node="a", state=S.RUNNING), old, a_task(slot=2, node="a", state=S.RUNNING)]
    cluster = Cluster(a_service(replicas=1), [a_node("a")], tasks)
    assert {task.id for task in cluster.plan().remove} == {tasks[1].id, tasks[2].id}
    cluster.run_agents()
    cluster.reap()
    assert set(cluster.tasks) == {tasks[0].id}


def test_scaling_leaves_the_others_alone() -> None:
    cluster = Cluster(a_service(replicas=2), [a_node("a")])
    cluster.run()
    before = {task.id for task in cluster.running()}
    scale(cluster, 4)
    cluster.run()
    assert before < {task.id for task in cluster.running()}
    assert cluster.service is not None
    assert cluster.service.update_status is None


def test_drain_moves_tasks_without_delay_after_the_old_one_stopped() -> None:
    cluster = Cluster(a_service(replicas=1), [a_node("a"), a_node("b")])
    cluster.run()
    (old,) = cluster.running()
    cluster.change_node("a", lambda node: available(node, Availability.DRAIN))
    plan = cluster.plan()
    (new,) = plan.create
    assert [task.id for task in plan.shut_down] == [old.id]
    assert new.desired_state is S.READY
    assert new.hold is not None
    assert (new.hold.after_task, new.hold.not_before) == (old.id, None)
    assert cluster.plan().is_empty
    cluster.observe(old, S.SHUTDOWN)
    assert [task.id for task in cluster.plan().release] == [new.id]


def start_first_on(*names: str) -> Cluster:
    cluster = Cluster(a_service(update=UpdateConfig(order="start-first")), [a_node(name) for name in names])
    cluster.run()
    cluster.change_node("a", lambda node: available(node, Availability.DRAIN))
    return cluster


def test_drain_with_start_first_keeps_the_old_task_until_its_successor_runs() -> None:
    cluster = start_first_on("a", "b")
    (old,) = cluster.running()
    plan = cluster.plan()
    (new,) = plan.create
    assert (plan.shut_down, new.desired_state) == ([], S.RUNNING)
    while not any(task.id == new.id for task in cluster.running()):
        assert cluster.plan().is_empty
        assert cluster.run_agents()
    assert [task.id for task in cluster.plan().shut_down] == [old.id]


def test_drain_with_start_first_ends_after_a_minute_though_there_is_no_other_place() -> None:
    cluster = start_first_on("a")
    cluster.settle()
    assert len(cluster.running()) == 1
    plan = cluster.plan()
    assert plan.wake_at is not None
    assert round((plan.wake_at - cluster.now).total_seconds()) == 60
    cluster.now = plan.wake_at
    cluster.settle()
    assert cluster.running() == []


def test_drain_with_start_first_waits_out_the_restart_delay_of_a_successor_that_failed() -> None:
    cluster = start_first_on("a", "b")
    (new,) = cluster.plan().create
    cluster.assign(new, "b")
    cluster.observe(new, S.FAILED)
    (again,) = cluster.plan().create
    assert again.hold is not None
    assert len(cluster.running()) == 1
    cluster.run()
    assert [task.id for task in cluster.running()] == [again.id]


def test_drain_with_start_first_and_a_new_spec_makes_one_move() -> None:
    cluster = start_first_on("a", "b")
    cluster.plan()
    cluster.update(a_task_spec(image="app:2"))
    cluster.settle()
    assert len(cluster.runnable()) == 2
    cluster.run()
    assert [task.spec.container_spec.image for task in cluster.running()] == ["app:2"]


def test_drain_with_start_first_stops_a_task_that_must_not_restart() -> None:
    spec = a_task_spec(restart=RestartPolicy(condition=RestartCondition.NONE))
    config = UpdateConfig(order="start-first")
    cluster = Cluster(a_service(update=config, spec=spec), [a_node("a"), a_node("b")])
    cluster.run()
    cluster.change_node("a", lambda node: available(node, Availability.DRAIN))
    plan = cluster.plan()
    assert (len(plan.shut_down), plan.create) == (1, [])


def test_replacement_waits_a_minute_at_most_for_a_task_that_does_not_stop() -> None:
    cluster = Cluster(a_service(replicas=1), [a_node("a")])
    cluster.run()
    cluster.change_node("a", lambda node: available(node, Availability.DRAIN))
    (new,) = cluster.plan().create
    plan = cluster.plan()
    assert plan.wake_at is not None
    assert (plan.wake_at - cluster.now).total_seconds() == 60
    cluster.advance(59.9)
    assert cluster.plan().is_empty
    cluster.advance(0.1)
    assert [task.id for task in cluster.plan().release] == [new.id]


@pytest.mark.parametrize("lost", ["down", "removed", "missing"])
def test_tasks_of_a_lost_node_are_replaced_at_once_and_keep_what_was_observed(lost: str) -> None:
    cluster = Cluster(a_service(replicas=2), [a_node("a"), a_node("b")])
    cluster.run()
    victim = next(task for task in cluster.running() if task.node_id == "a")
    if lost == "down":
        cluster.change_node("a", lambda node: in_state(node, NodeState.DOWN))
    elif lost == "removed":
        cluster.change_node("a", lambda node: msgspec.structs.replace(node, removed=True))
    else:
        del cluster.nodes[victim.node_id]
    (new,) = cluster.plan().create
    assert (new.slot, new.desired_state, new.hold) == (victim.slot, S.RUNNING, None)
    stored = cluster.tasks[victim.id]
    assert (stored.desired_state, stored.status.state) == (S.SHUTDOWN, S.RUNNING)


@pytest.mark.parametrize("state", [NodeState.DISCONNECTED, NodeState.UNKNOWN])
def test_silent_node_keeps_its_tasks(state: NodeState) -> None:
    cluster = Cluster(a_service(replicas=2), [a_node("a"), a_node("b")])
    cluster.run()
    cluster.change_node("a", lambda node: in_state(node, state))
    assert cluster.plan().is_empty


def test_paused_node_keeps_its_tasks() -> None:
    cluster = Cluster(a_service(replicas=2), [a_node("a"), a_node("b")])
    cluster.run()
    cluster.change_node("a", lambda node: available(node, Availability.PAUSE))
    assert cluster.plan().is_empty


def test_task_leaves_a_node_that_no_longer_satisfies_its_constraints() -> None:
    spec = a_task_spec(constraints=["node.labels.disk==ssd"])
    cluster = Cluster(a_service(spec=spec), [a_node("a", labels={"disk": "ssd"})])
    cluster.run()
    cluster.change_node(
        "a", lambda node: msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels={}))
    )
    plan = cluster.plan()
    assert (len(plan.shut_down), len(plan.create)) == (1, 1)


def relabelled(**labels: str) -> Callable[[Node], Node]:
    named = {f"fleet.taint.{key}": text for key, text in labels.items()}
    return lambda node: msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels=named))


def tolerate(cluster: Cluster, text: str) -> None:
    cluster.update(labels={"fleet.placement.toleration": text})


def test_no_execute_moves_running_tasks_at_once_and_no_schedule_leaves_them() -> None:
    cluster = Cluster(a_service(replicas=2), [a_node("a"), a_node("b")])
    cluster.run()
    cluster.change_node("a", relabelled(gpu="x:no-schedule", slow=":prefer-no-schedule"))
    assert cluster.plan().is_empty
    cluster.change_node("a", relabelled(gpu="x:no-execute"))
    plan = cluster.plan()
    assert [task.node_id for task in plan.shut_down] == ["a"]
    assert plan.create[0].hold is not None and plan.create[0].hold.not_before is None, (
        "nothing failed: no restart delay"
    )
    cluster.run()
    assert [task.node_id for task in cluster.running()] == ["b", "b"]


def test_task_stays_where_its_service_tolerates_the_taint_now() -> None:
    """The label counts as it is, not as it was when the task was made: it can be set without replacing a task."""
    cluster = Cluster(a_service(), [a_node("a"), a_node("b")])
    cluster.run()
    tolerate(cluster, "gpu=x, other")
    cluster.change_node("a", relabelled(gpu="x:no-execute"))
    assert cluster.plan().is_empty
    tolerate(cluster, "gpu=y")
    assert len(cluster.plan().shut_down) == 1


def test_global_task_stays_beside_no_schedule_but_none_comes_and_leaves_at_no_execute() -> None:
    cluster = Cluster(
        a_service(is_global=True), [a_node("a"), a_node("b"), a_node("c", labels={"fleet.taint.x": ":no-schedule"})]
    )
    cluster.run()
    assert cluster.slots() == ["a", "b"]
    cluster.change_node("a", relabelled(x=":no-schedule"))
    assert cluster.plan().is_empty
    cluster.change_node("b", relabelled(x=":no-execute"))
    cluster.run()
    assert cluster.slots() == ["a"]
    tolerate(cluster, "x")
    cluster.run()
    assert cluster.slots() == ["a", "b", "c"]


def test_tasks_doubled_by_two_leaders_become_one_and_the_running_one_stays() -> None:
    tasks = [
        a_task(slot=1, node="a", state=S.PREPARING, task_id="older"),
        a_task(slot=1, node="b", state=S.RUNNING, task_id="runs"),
    ]
    cluster = Cluster(a_service(), [a_node("a"), a_node("b")], tasks)
    assert [task.id for task in cluster.plan().shut_down] == ["older"]


def test_removed_service_loses_its_tasks_and_then_itself() -> None:
    cluster = Cluster(a_service(replicas=2), [a_node("a"), a_node("b")])
    cluster.run()
    assert cluster.service is not None
    cluster.service = msgspec.structs.replace(cluster.service, pending_delete=True)
    assert len(cluster.plan().remove) == 2
    assert cluster.reap().delete_tasks == []
    cluster.run_agents()
    cluster.reap()
    assert cluster.tasks == {}
    cluster.reap()
    assert cluster.service is None


# -- global


def test_global_service_runs_once_on_each_eligible_node() -> None:
    nodes = [
        a_node("a"),
        a_node("b"),
        a_node("c", availability=Availability.PAUSE),
        a_node("d", availability=Availability.DRAIN),
        a_node("e", state=NodeState.DOWN),
        a_node("f", removed=True),
    ]
    cluster = Cluster(a_service(is_global=True), nodes)
    plan = cluster.plan()
    assert [(task.slot, task.node_id) for task in plan.create] == [(0, "a"), (0, "b")]


def test_global_service_respects_constraints_and_follows_labels() -> None:
    spec = a_task_spec(constraints=["node.labels.gpu==yes"])
    cluster = Cluster(a_service(is_global=True, spec=spec), [a_node("a", labels={"gpu": "yes"}), a_node("b")])
    cluster.run()
    assert cluster.slots() == ["a"]

    def relabel(labels: dict[str, str]) -> Callable[[Node], Node]:
        return lambda node: msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels=labels))

    cluster.change_node("a", relabel({}))
    cluster.change_node("b", relabel({"gpu": "yes"}))
    cluster.run()
    assert cluster.slots() == ["b"]


def test_global_task_returns_with_its_drained_node() -> None:
    cluster = Cluster(a_service(is_global=True), [a_node("a"), a_node("b")])
    cluster.run()
    cluster.change_node("a", lambda node: available(node, Availability.DRAIN))
    cluster.run()
    assert cluster.slots() == ["b"]
    cluster.change_node("a", lambda node: available(node, Availability.ACTIVE))
    cluster.run()
    assert cluster.slots() == ["a", "b"]


@pytest.mark.parametrize("condition", list(RestartCondition))
def test_global_task_returns_with_its_lost_node_whatever_the_restart_condition(condition: RestartCondition) -> None:
    spec = a_task_spec(restart=RestartPolicy(condition=condition))
    cluster = Cluster(a_service(is_global=True, spec=spec), [a_node("a")])
    cluster.run()
    (old,) = cluster.running()
    cluster.change_node("a", lambda node: in_state(node, NodeState.DOWN))
    cluster.run()
    assert cluster.runnable() == []
    cluster.change_node("a", lambda node: in_state(node, NodeState.READY))
    cluster.run()
    (new,) = cluster.running()
    assert new.id != old.id
    assert cluster.tasks[old.id].status.state is S.SHUTDOWN


def test_global_tasks_of_a_removed_node_are_removed() -> None:
    cluster = Cluster(a_service(is_global=True), [a_node("a"), a_node("b")])
    cluster.run()
    cluster.change_node("a", lambda node: msgspec.structs.replace(node, removed=True))
    cluster.run()
    cluster.reap()
    assert {task.node_id for task in cluster.tasks.values()} == {"b"}


# -- reaper


def test_history_keeps_the_newest_up_to_the_limit() -> None:
    dead = [
        a_task(slot=1, node="a", state=S.FAILED, desired=S.SHUTDOWN, at=Cluster(a_service()).now, task_id=f"t{i}")
        for i in range(7)
    ]
    live = a_task(slot=1, node="a", state=S.RUNNING, at=Cluster(a_service()).now, task_id="t9")
    cluster = Cluster(a_service(), [a_node("a")], [*dead, live])
    assert [task.id for task in cluster.reap().delete_tasks] == ["t0", "t1", "t2"]
    assert cluster.reap().is_empty


def test_history_keeps_what_counting_attempts_needs() -> None:
    spec = a_task_spec(restart=RestartPolicy(max_attempts=8))
    dead = [
        a_task(slot=1, node="a", state=S.FAILED, desired=S.SHUTDOWN, spec=spec, task_id=f"t{i:02}") for i in range(12)
    ]
    cluster = Cluster(a_service(spec=spec), [a_node("a")], dead)
    cluster.reap(history_limit=0)
    assert len(cluster.tasks) == 9


def test_tasks_that_cannot_go_yet_do_not_push_out_what_counting_attempts_needs() -> None:
    """A lost node's tasks of older specs stay until it is back; a limited restart must not lose its count for it."""
    spec = a_task_spec(image="app:2", restart=RestartPolicy(max_attempts=2))
    stuck = [a_task(slot=1, node="lost", state=S.RUNNING, desired=S.SHUTDOWN, task_id=f"a{i}") for i in range(6)]
    failed = [
        a_task(slot=1, node="a", state=S.FAILED, desired=S.SHUTDOWN, spec=spec, task_id=f"b{i}") for i in range(4)
    ]
    nodes = [a_node("a"), a_node("lost", state=NodeState.DOWN)]
    cluster = Cluster(a_service(spec=spec), nodes, [*stuck, *failed])
    assert [task.id for task in cluster.reap(history_limit=5).delete_tasks] == ["b0"]


def test_newest_task_of_a_slot_is_never_forgotten() -> None:
    dead = a_task(slot=1, node="a", state=S.COMPLETE, desired=S.SHUTDOWN)
    cluster = Cluster(a_service(), [a_node("a")], [dead])
    assert cluster.reap(history_limit=0).is_empty


def test_negative_history_limit_keeps_everything() -> None:
    dead = [a_task(slot=1, node="a", state=S.FAILED, desired=S.SHUTDOWN) for _ in range(50)]
    assert Cluster(a_service(), [a_node("a")], dead).reap(history_limit=-1).is_empty


def test_task_stopped_before_it_got_a_node_is_forgotten() -> None:
    cluster = Cluster(a_service(), [a_node("a")], [a_task(state=S.PENDING, desired=S.SHUTDOWN)])
    assert len(cluster.reap().delete_tasks) == 1


def test_tasks_of_a_node_down_for_a_day_are_orphaned() -> None:
    cluster = Cluster(a_service(), [a_node("a"), a_node("b")])
    cluster.run()
    (task,) = cluster.running()
    down_since = cluster.now
    cluster.change_node(
        task.node_id, lambda node: msgspec.structs.replace(in_state(node, NodeState.DOWN), down_since=down_since)
    )
    cluster.run()
    plan = cluster.reap()
    assert plan.is_empty
    assert plan.wake_at is not None
    assert (plan.wake_at - down_since).total_seconds() == 24 * 3600
    cluster.now = plan.wake_at
    assert [t.id for t in cluster.reap().orphan] == [task.id]
    assert cluster.tasks[task.id].status.state is S.ORPHANED


def test_tasks_of_a_removed_node_are_orphaned_at_once() -> None:
    cluster = Cluster(a_service(), [a_node("a"), a_node("b")])
    cluster.run()
    (task,) = cluster.running()
    cluster.change_node(task.node_id, lambda node: msgspec.structs.replace(node, removed=True))
    cluster.run()
    assert [t.id for t in cluster.reap().orphan] == [task.id]


def test_tasks_of_a_service_that_is_gone_are_removed() -> None:
    cluster = Cluster(a_service(), [a_node("a")], [a_task("vanished", node="a", state=S.RUNNING)])
    assert len(cluster.reap().remove) == 1


# -- check_plan


def test_checker_refuses_a_plan_that_fills_a_slot_twice() -> None:
    cluster = Cluster(a_service(), [a_node("a")], [a_task(slot=1, node="a", state=S.RUNNING)])
    with pytest.raises(errors.InvariantError, match="shares its slot"):
        check_plan(cluster.view, Plan(create=[a_task(slot=1)]), now=cluster.now)


def test_checker_refuses_a_plan_that_takes_a_wish_back() -> None:
    task = a_task(slot=1, node="a", state=S.RUNNING, desired=S.SHUTDOWN)
    cluster = Cluster(a_service(), [a_node("a")], [task])
    back = msgspec.structs.replace(task, desired_state=S.RUNNING)
    with pytest.raises(errors.InvariantError, match="wanted running after shutdown"):
        check_plan(cluster.view, Plan(shut_down=[back]), now=cluster.now)


def test_checker_refuses_a_plan_with_too_many_slots() -> None:
    cluster = Cluster(a_service(replicas=1), [a_node("a")], [a_task(slot=1, node="a", state=S.RUNNING)])
    with pytest.raises(errors.InvariantError, match="leaves 2 slots of web, wanted 1"):
        check_plan(cluster.view, Plan(create=[a_task(slot=2)]), now=cluster.now)
