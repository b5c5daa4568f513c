"""Restart policies: whether, when, how often."""

from __future__ import annotations

import pytest
from support.decision_builders import a_node, a_service, a_task_spec
from support.orchestrated import Cluster, S

from fleet.model.common import SECOND_NS
from fleet.model.node import Availability, Node
from fleet.model.service import RestartCondition, RestartPolicy
from fleet.model.task import Task, TaskState


def cluster_with(policy: RestartPolicy | None, *, is_global: bool = False) -> Cluster:
    cluster = Cluster(a_service(spec=a_task_spec(restart=policy), is_global=is_global), [a_node("a")])
    cluster.run()
    return cluster


def end(cluster: Cluster, state: TaskState = S.FAILED) -> list[Task]:
    """The one runnable task ends; returns what was made in its place."""
    (task,) = cluster.runnable()
    cluster.observe(task, state)
    created = cluster.plan().create
    assert cluster.tasks[task.id].desired_state is S.SHUTDOWN
    return created


@pytest.mark.parametrize("is_global", [False, True])
@pytest.mark.parametrize(
    ("condition", "state", "restarts"),
    [
        (RestartCondition.ANY, S.COMPLETE, True),
        (RestartCondition.ANY, S.FAILED, True),
        (RestartCondition.ANY, S.REJECTED, True),
        (RestartCondition.ON_FAILURE, S.COMPLETE, False),
        (RestartCondition.ON_FAILURE, S.FAILED, True),
        (RestartCondition.ON_FAILURE, S.REJECTED, True),
        (RestartCondition.NONE, S.COMPLETE, False),
        (RestartCondition.NONE, S.FAILED, False),
    ],
)
def test_condition_decides_whether_a_task_is_replaced(
    condition: RestartCondition, state: TaskState, restarts: bool, is_global: bool
) -> None:
    cluster = cluster_with(RestartPolicy(condition=condition), is_global=is_global)
    assert bool(end(cluster, state)) is restarts
    assert cluster.plan().is_empty


def test_replacement_is_prepared_at_once_and_released_after_the_delay() -> None:
    cluster = cluster_with(None)
    (new,) = end(cluster)
    assert new.desired_state is S.READY
    plan = cluster.plan()
    assert plan.is_empty
    assert plan.wake_at is not None
    assert (plan.wake_at - cluster.now).total_seconds() == 5
    cluster.advance(4.999)
    assert cluster.plan().is_empty
    cluster.advance(0.001)
    (released,) = cluster.plan().release
    assert (released.id, released.desired_state, released.hold) == (new.id, S.RUNNING, None)


def test_zero_delay_runs_at_once() -> None:
    cluster = cluster_with(RestartPolicy(delay_ns=0))
    (new,) = end(cluster)
    assert (new.desired_state, new.hold) == (S.RUNNING, None)


def test_replacement_stays_in_its_slot_and_is_younger() -> None:
    cluster = cluster_with(None)
    (old,) = cluster.running()
    (new,) = end(cluster)
    assert new.slot == old.slot
    assert new.created_at > old.created_at


def test_task_that_fails_while_held_back_does_not_shorten_the_wait() -> None:
    cluster = cluster_with(RestartPolicy(delay_ns=10 * SECOND_NS))
    (held,) = end(cluster)
    cluster.advance(3)
    cluster.observe(held, S.REJECTED)
    (again,) = cluster.plan().create
    assert again.hold is not None
    assert held.hold is not None
    assert again.hold.not_before is not None
    assert held.hold.not_before is not None
    assert (again.hold.not_before - held.hold.not_before).total_seconds() == 10


def test_drain_skips_the_delay_of_a_task_that_failed() -> None:
    cluster = cluster_with(None)

    def drained(node: Node) -> Node:
        return a_node(node.id, availability=Availability.DRAIN)

    cluster.change_node("a", drained)
    (new,) = end(cluster)
    assert new.hold is None


def fail_until_left_alone(cluster: Cluster, *, seconds_between: float = 0, most: int = 50) -> int:
    restarts = 0
    while restarts < most:
        cluster.advance(seconds_between)
        if not end(cluster):
            return restarts
        restarts += 1
        cluster.run()
    return restarts


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_are_counted(attempts: int) -> None:
    cluster = cluster_with(RestartPolicy(max_attempts=attempts))
    assert fail_until_left_alone(cluster) == attempts
    assert cluster.plan().is_empty


def test_attempts_are_counted_though_the_history_is_reaped() -> None:
    cluster = cluster_with(RestartPolicy(max_attempts=4))
    restarts = 0
    while end(cluster):
        restarts += 1
        cluster.run()
        cluster.reap(history_limit=1)
    assert restarts == 4


def test_attempts_outside_the_window_are_forgiven() -> None:
    policy = RestartPolicy(max_attempts=2, window_ns=60 * SECOND_NS, delay_ns=SECOND_NS)
    assert fail_until_left_alone(cluster_with(policy), seconds_between=40, most=10) == 10
    assert fail_until_left_alone(cluster_with(policy), seconds_between=20, most=10) == 2


def test_new_spec_starts_counting_anew() -> None:
    cluster = cluster_with(RestartPolicy(max_attempts=1))
    assert fail_until_left_alone(cluster) == 1
    cluster.update(a_task_spec(image="app:2", restart=RestartPolicy(max_attempts=1)))
    cluster.run()
    assert len(cluster.running()) == 1


def test_moving_from_a_drained_node_costs_no_attempt() -> None:
    policy = RestartPolicy(max_attempts=1)
    cluster = Cluster(a_service(spec=a_task_spec(restart=policy)), [a_node("a"), a_node("b")])
    for name in ("a", "b", "a"):
        cluster.run()
        cluster.change_node(name, lambda node: a_node(node.id, availability=Availability.DRAIN))
        cluster.run()
        cluster.change_node(name, lambda node: a_node(node.id))
    cluster.run()
    assert fail_until_left_alone(cluster) == 1


def test_replicated_task_that_must_not_restart_is_not_moved() -> None:
    cluster = cluster_with(RestartPolicy(condition=RestartCondition.NONE))
    cluster.change_node("a", lambda node: a_node(node.id, availability=Availability.DRAIN))
    plan = cluster.plan()
    assert (len(plan.shut_down), plan.create) == (1, [])


@pytest.mark.parametrize("policy", [None, RestartPolicy(delay_ns=0)])
@pytest.mark.parametrize("end_of_second", [None, S.SHUTDOWN, S.REJECTED])
def test_the_third_of_a_slot_waits_for_the_first_too(
    policy: RestartPolicy | None, end_of_second: TaskState | None
) -> None:
    """The second never ran: it waited for the first, which takes its time to stop, when its own node was drained."""
    cluster = Cluster(a_service(spec=a_task_spec(restart=policy)), [a_node("a"), a_node("b"), a_node("c")])
    cluster.run()
    (first,) = cluster.running()

    def drained(node: Node) -> Node:
        return a_node(node.id, availability=Availability.DRAIN)

    cluster.change_node(first.node_id, drained)
    (second,) = cluster.plan().create
    cluster.assign(second, "b")
    if end_of_second is not S.REJECTED:
        cluster.change_node(cluster.tasks[second.id].node_id, drained)
    if end_of_second is not None:
        cluster.observe(second, end_of_second)
    (third,) = cluster.plan().create
    assert third.desired_state is S.READY
    cluster.assign(third, "c")
    cluster.advance(6)
    if not cluster.tasks[second.id].status.state.is_terminal:
        cluster.observe(second, S.SHUTDOWN)
    assert cluster.plan().is_empty
    assert cluster.tasks[third.id].desired_state is S.READY
    cluster.observe(first, S.SHUTDOWN)
    assert [task.id for task in cluster.plan().release] == [third.id]
