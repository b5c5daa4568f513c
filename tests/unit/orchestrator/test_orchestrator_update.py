"""Rolling updates: turns, order, delay, watching, pausing, going back."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task_spec
from support.orchestrated import Cluster, S

from fleet.model.autoscale import with_replicas
from fleet.model.common import SECOND_NS
from fleet.model.node import Availability
from fleet.model.service import RestartCondition, RestartPolicy, UpdateConfig

NEW = a_task_spec(image="app:2")


def running_cluster(update: UpdateConfig | None = None, *, replicas: int = 4, **more: object) -> Cluster:
    cluster = Cluster(a_service(replicas=replicas, update=update, **more), [a_node("a"), a_node("b")])  # type: ignore[arg-type]
    cluster.run()
    assert len(cluster.running()) == replicas
    return cluster


def state(cluster: Cluster) -> str:
    assert cluster.service is not None
    return cluster.service.update_status.state if cluster.service.update_status else ""


def images(cluster: Cluster) -> list[str]:
    return [task.spec.container_spec.image for task in cluster.running()]


def step_without_agents(cluster: Cluster) -> None:
    """Plan, and stop what is to stop, until nothing moves; no new task comes to run."""
    for _ in range(50):
        for task in list(cluster.tasks.values()):
            if task.desired_state is S.SHUTDOWN and not task.status.state.is_terminal:
                cluster.observe(task, S.SHUTDOWN)
        if cluster.plan().is_empty:
            return
    raise AssertionError("does not come to rest")


def step(cluster: Cluster) -> None:
    """Plan and agents in turn until nothing moves; time stands still."""
    for _ in range(50):
        if cluster.plan().is_empty and not cluster.run_agents():
            return
    raise AssertionError("does not come to rest")


def test_update_replaces_every_task_and_completes_after_the_monitor() -> None:
    cluster = running_cluster()
    began = cluster.now
    cluster.update(NEW)
    cluster.run()
    assert images(cluster) == ["app:2"] * 4
    assert state(cluster) == "completed"
    assert cluster.service is not None
    status = cluster.service.update_status
    assert status is not None
    assert status.started_at == began
    assert status.completed_at is not None
    assert (status.completed_at - began).total_seconds() == 5
    assert status.message == "update completed"
    assert cluster.plan().is_empty


@pytest.mark.parametrize(("parallelism", "at_once"), [(1, 1), (2, 2), (0, 4), (9, 4)])
def test_parallelism_bounds_the_slots_in_work(parallelism: int, at_once: int) -> None:
    cluster = running_cluster(UpdateConfig(parallelism=parallelism))
    cluster.update(NEW)
    cluster.settle()
    assert len(cluster.running()) == 4 - at_once


def test_stop_first_starts_the_successor_after_the_old_task_stopped() -> None:
    cluster = running_cluster(replicas=1)
    (old,) = cluster.running()
    cluster.update(NEW)
    assert cluster.plan().changed_services
    plan = cluster.plan()
    (new,) = plan.create
    assert [t.id for t in plan.shut_down] == [old.id]
    assert new.desired_state is S.READY
    assert new.hold is not None
    assert new.hold.after_task == old.id
    cluster.observe(old, S.SHUTDOWN)
    assert [t.id for t in cluster.plan().release] == [new.id]


def test_start_first_keeps_the_old_task_until_the_successor_runs() -> None:
    cluster = running_cluster(UpdateConfig(order="start-first"), replicas=1)
    (old,) = cluster.running()
    cluster.update(NEW)
    assert cluster.plan().changed_services
    plan = cluster.plan()
    (new,) = plan.create
    assert plan.shut_down == []
    assert new.desired_state is S.RUNNING
    for observed in (S.ASSIGNED, S.PREPARING, S.STARTING):
        if observed is S.ASSIGNED:
            cluster.assign(new, "b")
        cluster.observe(new, observed)
        assert cluster.plan().is_empty
    cluster.observe(new, S.RUNNING)
    assert [t.id for t in cluster.plan().shut_down] == [old.id]


def test_start_first_never_has_fewer_than_all_replicas_running() -> None:
    cluster = running_cluster(UpdateConfig(order="start-first", parallelism=2))
    cluster.update(NEW)
    for _ in range(100):
        plan = cluster.plan()
        assert len({t.slot for t in cluster.running()}) == 4
        if plan.is_empty and not cluster.run_agents():
            if plan.wake_at is None:
                break
            cluster.now = plan.wake_at
    assert images(cluster) == ["app:2"] * 4
    assert state(cluster) == "completed"


def test_delay_passes_between_batches() -> None:
    cluster = running_cluster(UpdateConfig(delay_ns=30 * SECOND_NS, parallelism=2))
    cluster.update(NEW)
    step(cluster)
    assert images(cluster).count("app:2") == 2
    plan = cluster.plan()
    assert plan.wake_at is not None
    assert (plan.wake_at - cluster.now).total_seconds() == 30
    cluster.advance(30)
    step(cluster)
    assert images(cluster) == ["app:2"] * 4


def test_update_waits_for_a_task_that_can_not_run_yet() -> None:
    cluster = running_cluster(UpdateConfig(parallelism=1))
    cluster.update(NEW)
    cluster.settle()
    cluster.advance(3600)
    cluster.settle()
    assert len([t for t in cluster.runnable() if t.spec_version == 2]) == 1


@pytest.mark.parametrize("action", ["pause", "rollback", "continue"])
def test_a_task_that_does_not_run_when_the_deadline_is_over_has_failed(action: str) -> None:
    cluster = running_cluster(
        UpdateConfig(parallelism=1, failure_action=action, progress_deadline_ns=30 * SECOND_NS, delay_ns=SECOND_NS)
    )
    cluster.update(NEW)
    step_without_agents(cluster)
    fresh = [task for task in cluster.runnable() if task.spec_version == 2]
    assert len(fresh) == 1
    plan = cluster.plan()
    assert plan.is_empty and plan.wake_at == fresh[0].created_at + timedelta(seconds=30)
    cluster.advance(29)
    assert cluster.plan().is_empty
    cluster.advance(2)
    cluster.plan()
    assert cluster.service is not None and cluster.service.update_status is not None
    said = cluster.service.update_status.message
    if action == "continue":
        step_without_agents(cluster)
        assert state(cluster) == "updating"
        assert len([task for task in cluster.runnable() if task.spec_version == 2]) == 2, "the next one has its turn"
    else:
        assert f"because task {fresh[0].id} does not run after 30 s (it is new)" in said
        assert state(cluster) == {"pause": "paused", "rollback": "rollback_started"}[action]
    if action == "rollback":
        cluster.run()
        assert state(cluster) == "rollback_completed"
        assert images(cluster) == ["app:1"] * 4


def update_one(cluster: Cluster) -> None:
    """As far as the first task of the new spec runs and the others were not touched."""
    cluster.update(NEW)
    cluster.settle()
    while "app:2" not in images(cluster):
        cluster.run_agents()
        if "app:2" not in images(cluster):
            cluster.settle()


def fail_new(cluster: Cluster) -> None:
    """Every task of the new spec fails as soon as it runs."""
    for task in cluster.running():
        if task.spec.container_spec.image == "app:2":
            cluster.observe(task, S.FAILED)


def test_failure_pauses_the_update_and_says_which_task() -> None:
    cluster = running_cluster()
    cluster.update(NEW)
    step(cluster)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "paused"
    assert cluster.service is not None
    assert cluster.service.update_status is not None
    message = cluster.service.update_status.message
    assert message.startswith("update paused due to failure or early termination of task new")
    cluster.run()
    assert state(cluster) == "paused"


def test_a_task_that_ran_past_the_monitor_is_no_failure_of_the_update() -> None:
    cluster = running_cluster(UpdateConfig(parallelism=1, delay_ns=30 * SECOND_NS, monitor_ns=5 * SECOND_NS))
    update_one(cluster)
    cluster.advance(7)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "updating"


def test_long_preparation_does_not_excuse_a_task_that_ends_soon_after_it_began_to_run() -> None:
    cluster = running_cluster(UpdateConfig(parallelism=1, monitor_ns=5 * SECOND_NS))
    cluster.update(NEW)
    cluster.settle()
    cluster.advance(3600)  # an image of many gigabytes
    for _ in range(50):
        if "app:2" in images(cluster):
            break
        cluster.run_agents()
        cluster.plan()
    cluster.advance(2)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "paused"


def test_paused_update_touches_no_further_slot_and_replaces_like_with_like() -> None:
    cluster = running_cluster(UpdateConfig(monitor_ns=60 * SECOND_NS))
    update_one(cluster)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "paused"
    old = next(t for t in cluster.running() if t.spec.container_spec.image == "app:1")
    cluster.observe(old, S.FAILED)
    cluster.run()
    (successor,) = [t for t in cluster.running() if t.slot == old.slot]
    assert successor.spec.container_spec.image == "app:1"
    assert images(cluster).count("app:1") == 3


def test_new_update_goes_on_after_a_pause() -> None:
    cluster = running_cluster()
    cluster.update(NEW)
    step(cluster)
    fail_new(cluster)
    cluster.settle()
    cluster.update(a_task_spec(image="app:3"))
    cluster.run()
    assert images(cluster) == ["app:3"] * 4
    assert state(cluster) == "completed"


def test_continue_ignores_failures() -> None:
    cluster = running_cluster(UpdateConfig(failure_action="continue", parallelism=4))
    cluster.update(NEW)
    step(cluster)
    fail_new(cluster)
    cluster.run()
    assert images(cluster) == ["app:2"] * 4
    assert state(cluster) == "completed"


def test_failures_within_the_ratio_are_tolerated() -> None:
    cluster = running_cluster(UpdateConfig(parallelism=0, max_failure_ratio=0.25))
    cluster.update(NEW)
    step(cluster)
    one, two, *_ = cluster.running()
    cluster.observe(one, S.FAILED)
    cluster.settle()
    assert state(cluster) == "updating"
    cluster.observe(two, S.FAILED)
    cluster.settle()
    assert state(cluster) == "paused"


def test_failure_long_after_it_ran_is_no_failure_of_the_update() -> None:
    cluster = running_cluster(UpdateConfig(delay_ns=600 * SECOND_NS))
    cluster.update(NEW)
    step(cluster)
    cluster.advance(120)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "updating"


def test_rollback_brings_the_previous_spec_back_and_keeps_tasks_that_never_left_it() -> None:
    cluster = running_cluster(UpdateConfig(failure_action="rollback"))
    before = {t.slot: t.id for t in cluster.running()}
    update_one(cluster)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "rollback_started"
    cluster.run()
    assert state(cluster) == "rollback_completed"
    assert images(cluster) == ["app:1"] * 4
    assert sum(before[t.slot] == t.id for t in cluster.running()) == 3
    assert cluster.service is not None
    assert cluster.service.previous_spec is None


def test_tasks_that_a_policy_adds_while_an_update_is_in_work_are_of_the_new_spec_and_it_completes() -> None:
    cluster = running_cluster(UpdateConfig(delay_ns=60 * SECOND_NS))
    cluster.update(NEW)
    step(cluster)
    assert cluster.service is not None and state(cluster) == "updating"
    cluster.service = msgspec.structs.replace(
        cluster.service,
        spec=with_replicas(cluster.service.spec, 6),
        spec_version=cluster.service.spec_version + 1,
    )
    step(cluster)
    assert state(cluster) == "updating"
    assert sorted(images(cluster)) == ["app:1"] * 3 + ["app:2"] * 3
    cluster.run()
    assert (state(cluster), images(cluster)) == ("completed", ["app:2"] * 6)


def test_rollback_keeps_the_number_of_tasks_that_a_policy_led_to() -> None:
    cluster = running_cluster(UpdateConfig(failure_action="rollback"))
    assert cluster.service is not None
    labels = {"fleet.autoscale.max": "9", "fleet.autoscale.cpu": "50"}
    cluster.service = msgspec.structs.replace(
        cluster.service, spec=msgspec.structs.replace(cluster.service.spec, labels=labels)
    )
    update_one(cluster)
    cluster.service = msgspec.structs.replace(cluster.service, spec=with_replicas(cluster.service.spec, 6))
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "rollback_started"
    assert cluster.service.spec.replicas == 6
    assert cluster.service.spec.task_template.container_spec.image == "app:1"


def test_rollback_that_fails_pauses() -> None:
    cluster = running_cluster(UpdateConfig(failure_action="rollback", parallelism=0))
    cluster.update(NEW)
    step(cluster)
    fail_new(cluster)
    cluster.settle()
    assert state(cluster) == "rollback_started"
    step(cluster)
    started = cluster.service
    assert started is not None
    for task in cluster.running():
        cluster.observe(task, S.FAILED)
    cluster.settle()
    assert state(cluster) == "rollback_paused"


def test_start_first_successor_that_fails_is_tried_again_after_the_restart_delay() -> None:
    config = UpdateConfig(order="start-first", failure_action="continue")
    cluster = running_cluster(config, replicas=1, spec=a_task_spec(restart=RestartPolicy(delay_ns=7 * SECOND_NS)))
    cluster.update(a_task_spec(image="app:2", restart=RestartPolicy(delay_ns=7 * SECOND_NS)))
    assert cluster.plan().changed_services
    (first,) = cluster.plan().create
    cluster.assign(first, "a")
    cluster.observe(first, S.FAILED)
    plan = cluster.plan()
    (second,) = plan.create
    assert second.hold is not None
    assert second.hold.not_before is not None
    assert (second.hold.not_before - cluster.now).total_seconds() == 7
    assert images(cluster) == ["app:1"]
    cluster.run()
    assert images(cluster) == ["app:2"]


def test_start_first_stops_trying_when_attempts_are_used_up() -> None:
    policy = RestartPolicy(max_attempts=2, delay_ns=0)
    config = UpdateConfig(order="start-first", failure_action="continue")
    cluster = running_cluster(config, replicas=1, spec=a_task_spec(restart=policy))
    cluster.update(a_task_spec(image="app:2", restart=policy))
    for _ in range(20):
        cluster.settle()
        for task in cluster.runnable():
            if task.spec.container_spec.image == "app:2":
                cluster.assign(task, "a")
                cluster.observe(task, S.FAILED)
    assert len([t for t in cluster.tasks.values() if t.spec.container_spec.image == "app:2"]) == 3
    assert images(cluster) == ["app:1"]


def test_placement_change_keeps_tasks_on_nodes_that_still_satisfy_it() -> None:
    cluster = running_cluster()
    before = {t.id for t in cluster.running() if t.node_id == "a"}
    cluster.update(a_task_spec(constraints=["node.id==a"]))
    cluster.run()
    assert before < {t.id for t in cluster.tasks.values() if t.status.state is S.RUNNING}


def test_spec_that_comes_out_the_same_restarts_nothing() -> None:
    cluster = running_cluster()
    before = {t.id for t in cluster.running()}
    cluster.update(a_task_spec())
    cluster.run()
    assert {t.id for t in cluster.running()} == before


def test_forced_update_restarts_everything() -> None:
    cluster = running_cluster()
    before = {t.id for t in cluster.running()}
    cluster.update(a_task_spec(force_update=1))
    cluster.run()
    assert not {t.id for t in cluster.running()} & before


def test_task_that_completed_for_good_is_updated_too() -> None:
    spec = a_task_spec(restart=RestartPolicy(condition=RestartCondition.NONE))
    cluster = running_cluster(replicas=1, spec=spec)
    (task,) = cluster.running()
    cluster.observe(task, S.COMPLETE)
    cluster.run()
    assert cluster.runnable() == []
    cluster.update(msgspec.structs.replace(spec, force_update=1))
    cluster.run()
    assert len(cluster.running()) == 1


def test_global_service_is_updated_node_by_node() -> None:
    cluster = Cluster(a_service(is_global=True), [a_node(n) for n in "abc"])
    cluster.run()
    cluster.update(NEW)
    cluster.settle()
    assert len(cluster.running()) == 2
    cluster.run()
    assert images(cluster) == ["app:2"] * 3
    assert state(cluster) == "completed"


def test_update_and_scaling_go_together() -> None:
    cluster = running_cluster()
    cluster.update(NEW, mode=a_service(replicas=6).spec.mode)
    cluster.run()
    assert images(cluster) == ["app:2"] * 6
    assert state(cluster) == "completed"


def test_overlap_on_a_paused_node_ends_when_the_order_becomes_stop_first() -> None:
    cluster = Cluster(a_service(is_global=True, update=UpdateConfig(order="start-first")), [a_node("a")])
    cluster.run()
    cluster.update(NEW)
    cluster.settle()
    assert len(cluster.runnable()) == 2
    cluster.change_node("a", lambda node: a_node(node.id, availability=Availability.PAUSE))
    cluster.update(a_task_spec(image="app:3"), update_config=UpdateConfig())
    cluster.settle()
    assert images(cluster) == ["app:1"]
    assert len(cluster.runnable()) == 1


def test_a_task_that_fits_nowhere_is_made_anew_when_its_placement_changes() -> None:
    """A constraint nobody meets, taken back while its task still waits for a node."""
    cluster = Cluster(a_service(), [a_node("a")])
    cluster.run()
    (running,) = cluster.running()
    cluster.update(spec=a_task_spec(constraints=["node.labels.no == such"]))
    for _ in range(10):
        cluster.plan()
        cluster.run_agents()
    (waiting,) = (task for task in cluster.runnable() if not task.node_id)
    cluster.update(spec=a_task_spec())
    cluster.run()
    (task,) = cluster.running()
    assert task.id not in (running.id, waiting.id)
    assert task.spec.placement.constraints == ()
