"""Jobs: so many completions, so many at a time; once a node; again when asked."""

from __future__ import annotations

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task_spec
from support.orchestrated import Cluster, S

from fleet.model.common import Version
from fleet.model.node import Availability, Node
from fleet.model.service import GlobalMode, JobMode, JobStatus, RestartCondition, RestartPolicy, Service, ServiceMode
from fleet.model.task import Task


def a_job(*, total: int = 3, at_once: int = 2, is_global: bool = False, policy: RestartPolicy | None = None) -> Service:
    service = a_service(spec=a_task_spec(restart=policy or RestartPolicy(delay_ns=0)))
    mode = (
        ServiceMode(global_job=GlobalMode())
        if is_global
        else ServiceMode(replicated_job=JobMode(max_concurrent=at_once, total_completions=total))
    )
    return msgspec.structs.replace(
        service,
        spec=msgspec.structs.replace(service.spec, mode=mode),
        job_status=JobStatus(job_iteration=Version(index=0)),
    )


def completed(cluster: Cluster) -> list[Task]:
    return [task for task in cluster.tasks.values() if task.status.state is S.COMPLETE]


def end(cluster: Cluster, state: S) -> None:
    """Whatever runs ends."""
    for task in cluster.running():
        cluster.observe(task, state)


def test_a_replicated_job_runs_so_many_at_a_time_and_stops_at_the_total() -> None:
    cluster = Cluster(a_job(total=3, at_once=2), [a_node("a"), a_node("b")])
    cluster.run()
    assert len(cluster.running()) == 2
    end(cluster, S.COMPLETE)
    cluster.run()
    assert len(cluster.running()) == 1
    end(cluster, S.COMPLETE)
    cluster.run()
    assert not cluster.running()
    assert sorted(task.slot for task in completed(cluster)) == [1, 2, 3]
    assert cluster.plan().is_empty


def test_a_failed_task_is_tried_again_in_its_slot_and_completion_is_not_though_the_policy_says_any() -> None:
    cluster = Cluster(a_job(total=1, at_once=1), [a_node("a")])
    cluster.run()
    end(cluster, S.FAILED)
    cluster.run()
    (task,) = cluster.running()
    assert task.slot == 1
    cluster.observe(task, S.COMPLETE)
    cluster.run()
    assert len(completed(cluster)) == 1
    assert not cluster.running()


@pytest.mark.parametrize(
    ("policy", "tries"),
    [
        (RestartPolicy(condition=RestartCondition.NONE, delay_ns=0), 1),
        (RestartPolicy(condition=RestartCondition.ON_FAILURE, max_attempts=2, delay_ns=0), 3),
    ],
)
def test_a_job_that_can_not_succeed_comes_to_an_end(policy: RestartPolicy, tries: int) -> None:
    cluster = Cluster(a_job(total=2, at_once=1, policy=policy), [a_node("a")])
    for _ in range(20):
        cluster.run()
        if not cluster.running():
            break
        end(cluster, S.FAILED)
    assert not cluster.running()
    assert len(cluster.tasks) == 2 * tries
    assert cluster.plan().is_empty


def test_another_iteration_removes_the_one_before_and_runs_the_job_again() -> None:
    cluster = Cluster(a_job(total=1, at_once=1), [a_node("a")])
    cluster.run()
    end(cluster, S.COMPLETE)
    cluster.run()
    assert cluster.service is not None
    cluster.service = msgspec.structs.replace(cluster.service, job_status=JobStatus(job_iteration=Version(index=1)))
    cluster.run()
    (task,) = cluster.running()
    assert task.job_iteration == Version(index=1)
    assert all(other.desired_state is S.REMOVE for other in cluster.tasks.values() if other.id != task.id)


def test_a_global_job_runs_once_on_each_node_and_on_one_that_comes_later() -> None:
    drained = msgspec.structs.replace(
        a_node("c"), spec=msgspec.structs.replace(a_node("c").spec, availability=Availability.DRAIN)
    )
    cluster = Cluster(a_job(is_global=True), [a_node("a"), a_node("b"), drained])
    cluster.run()
    assert sorted(task.node_id for task in cluster.running()) == ["a", "b"]
    end(cluster, S.COMPLETE)
    cluster.run()
    assert not cluster.running()
    cluster.change_node("c", lambda _node: a_node("c"))
    cluster.run()
    (task,) = cluster.running()
    assert task.node_id == "c"


def test_a_task_in_work_on_a_drained_node_moves_and_a_completed_one_stays_done() -> None:
    cluster = Cluster(a_job(total=2, at_once=1), [a_node("a"), a_node("b")])
    cluster.run()
    end(cluster, S.COMPLETE)
    cluster.run()
    (task,) = cluster.running()
    away = task.node_id
    cluster.change_node(
        away,
        lambda node: msgspec.structs.replace(
            node, spec=msgspec.structs.replace(node.spec, availability=Availability.DRAIN)
        ),
    )
    cluster.run()
    (moved,) = cluster.running()
    assert moved.node_id != away
    assert moved.slot == task.slot
    assert len(completed(cluster)) == 1


def test_the_numbers_of_a_job_have_dockers_defaults() -> None:
    alone = a_job().spec
    assert (alone.completions, alone.concurrency, alone.mode_name) == (3, 2, "replicated-job")
    bare = msgspec.structs.replace(alone, mode=ServiceMode(replicated_job=JobMode()))
    assert (bare.completions, bare.concurrency) == (1, 1)
    all_at_once = msgspec.structs.replace(
        alone, mode=ServiceMode(replicated_job=JobMode(max_concurrent=0, total_completions=7))
    )
    assert (all_at_once.completions, all_at_once.concurrency) == (7, 7)


@pytest.mark.parametrize("is_global", [False, True])
def test_a_task_that_completes_although_it_was_to_leave_needs_no_successor(is_global: bool) -> None:
    """It may end well just before it is told to stop: the one that was held back for it must not wait for ever."""
    cluster = Cluster(
        a_job(total=1, at_once=1, is_global=is_global), [a_node("a"), *([] if is_global else [a_node("b")])]
    )
    cluster.run(rounds=20)
    (first,) = cluster.running()
    cluster.change_node(first.node_id, lambda node: available(node, Availability.DRAIN))
    cluster.settle()
    if is_global:  # back before the old task has stopped: a successor waits for it
        cluster.change_node(first.node_id, lambda node: available(node, Availability.ACTIVE))
        cluster.settle()
    (held,) = [task for task in cluster.runnable() if task.desired_state is S.READY]
    assert held.hold is not None
    cluster.observe(first, S.COMPLETE)
    cluster.run()
    assert cluster.runnable() == []
    assert [task.id for task in completed(cluster)] == [first.id]


def available(node: Node, availability: Availability) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, availability=availability))
