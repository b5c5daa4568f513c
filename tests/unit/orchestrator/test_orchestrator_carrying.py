"""A task that moves with its data: what is kept for it meanwhile, what is left alone after it. The story is in a scenario."""

from __future__ import annotations

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task_spec
from support.orchestrated import Cluster, S

from fleet import errors
from fleet.model.ids import NodeId
from fleet.model.service import RestartCondition, RestartPolicy, UpdateConfig
from fleet.model.task import Move, Task
from fleet.orchestrator.check_plan import check_plan
from fleet.orchestrator.moves import mobility
from fleet.orchestrator.plan import Plan


def moving(
    *, order: str = "stop-first", condition: RestartCondition | None = None, attempts: int = 0
) -> tuple[Cluster, Task]:
    """web.1 on a, marked to go to b, where nothing gets on."""
    policy = RestartPolicy(condition=condition, max_attempts=attempts, delay_ns=0)
    service = a_service(spec=a_task_spec(restart=policy), update=UpdateConfig(order=order))
    cluster = Cluster(service, [a_node("a"), a_node("b")])
    cluster.run()
    (task,) = cluster.running()
    cluster.stuck.add(NodeId("b"))
    mark = Move(to=NodeId("b"), since=cluster.now, data=True)
    cluster.tasks[task.id] = msgspec.structs.replace(task, move=mark)
    rest(cluster)
    return cluster, task


def rest(cluster: Cluster) -> None:
    while not cluster.plan().is_empty or cluster.run_agents():
        pass


def arriving(cluster: Cluster) -> Task:
    return next(task for task in cluster.runnable() if task.moved_from is not None)


def copied(cluster: Cluster) -> None:
    task = arriving(cluster)
    status = msgspec.structs.replace(task.status, copied=True)
    cluster.tasks[task.id] = msgspec.structs.replace(task, status=status)
    rest(cluster)


def test_the_old_task_is_not_forgotten_until_another_has_run_with_its_data() -> None:
    cluster, old = moving()
    copied(cluster)
    assert cluster.tasks[old.id].status.state is S.SHUTDOWN
    cluster.reap(history_limit=0)
    assert old.id in cluster.tasks
    cluster.observe(arriving(cluster), S.REJECTED)
    cluster.reap(history_limit=0)
    assert old.id in cluster.tasks, "another is to use its data where it is"
    rest(cluster)
    (back,) = cluster.running()
    assert (back.node_id, back.moved_from.task if back.moved_from else "") == ("a", old.id)
    cluster.reap(history_limit=0)
    assert old.id not in cluster.tasks


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_there_are_never_two_that_may_run_whatever_the_order_of_updates(order: str) -> None:
    cluster, old = moving(order=order)
    assert [(task.id == old.id, task.desired_state) for task in cluster.runnable()] == [
        (True, S.RUNNING),
        (False, S.READY),
    ]
    copied(cluster)
    assert [task.desired_state for task in cluster.runnable()] == [S.READY]
    cluster.stuck.clear()
    rest(cluster)
    (after,) = cluster.running()
    assert after.node_id == "b"


def test_a_service_that_never_restarts_is_moved_and_taken_back_all_the_same() -> None:
    cluster, _ = moving(condition=RestartCondition.NONE)
    copied(cluster)
    cluster.observe(arriving(cluster), S.REJECTED)
    rest(cluster)
    assert [task.node_id for task in cluster.running()] == ["a"]


@pytest.mark.parametrize("condition", [RestartCondition.NONE, RestartCondition.ANY])
def test_data_that_cannot_be_had_for_a_while_costs_no_attempt_to_restart(condition: RestartCondition) -> None:
    cluster, _ = moving(condition=condition, attempts=1)
    copied(cluster)
    cluster.stuck.add(NodeId("a"))
    for _ in range(4):
        cluster.observe(arriving(cluster), S.REJECTED)
        rest(cluster)
    cluster.stuck.clear()
    rest(cluster)
    assert [task.node_id for task in cluster.running()] == ["a"]


def test_a_task_that_ended_for_good_while_it_was_copied_is_not_followed() -> None:
    cluster, old = moving(condition=RestartCondition.ON_FAILURE)
    cluster.observe(old, S.COMPLETE)
    rest(cluster)
    cluster.stuck.clear()
    rest(cluster)
    assert cluster.runnable() == []


def test_a_task_that_was_told_to_stop_is_followed_however_its_agent_says_it_ended() -> None:
    """Killed right after it stopped the container, an agent may know nothing of the wish, and find one that completed."""
    cluster, old = moving(condition=RestartCondition.ON_FAILURE)
    status = msgspec.structs.replace(arriving(cluster).status, copied=True)
    cluster.tasks[arriving(cluster).id] = msgspec.structs.replace(arriving(cluster), status=status)
    cluster.plan()
    assert cluster.tasks[old.id].desired_state is S.SHUTDOWN
    cluster.observe(cluster.tasks[old.id], S.COMPLETE)
    rest(cluster)
    cluster.stuck.clear()
    rest(cluster)
    assert [task.node_id for task in cluster.running()] == ["b"]


def test_scaling_down_takes_both_away() -> None:
    cluster, _ = moving()
    assert cluster.service is not None
    mode = msgspec.structs.replace(
        cluster.service.spec.mode, replicated=msgspec.structs.replace(cluster.service.spec.mode.replicated, replicas=0)
    )
    cluster.update(mode=mode)
    cluster.stuck.clear()
    rest(cluster)
    assert cluster.runnable() == []


def test_rebalancing_leaves_a_task_alone_that_was_moved_by_hand() -> None:
    cluster, _ = moving(order="start-first")
    copied(cluster)
    cluster.stuck.clear()
    rest(cluster)
    cluster.advance(3600)
    assert mobility(cluster.view, now=cluster.now).reason == "its tasks were moved by hand, with their data"


def test_a_plan_that_starts_a_task_without_its_data_is_a_bug() -> None:
    cluster, _ = moving()
    copied(cluster)
    plan = Plan()
    plan.want_running(arriving(cluster), now=cluster.now)
    with pytest.raises(errors.InvariantError, match="released before its data came"):
        check_plan(cluster.view, plan, now=cluster.now)
