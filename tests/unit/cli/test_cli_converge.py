"""When a service counts as converged, when it never will, and what the user is told meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.cli import converge
from fleet.cli.converge import judge
from tests.support.fake_engine import FakeEngine, Reply, Request

ID = "svc"


def task(
    slot: int, state: str = "running", *, desired: str = "running", err: str = "", node: str = "n1"
) -> dict[str, Any]:
    return {
        "ID": f"t{slot}{state}",
        "ServiceID": ID,
        "Slot": slot,
        "NodeID": node,
        "DesiredState": desired,
        "UpdatedAt": f"2026-01-01T00:00:{slot:02}Z",
        "Status": {"State": state, "Err": err},
    }


def service(replicas: int = 2, **more: Any) -> dict[str, Any]:
    spec = {"Name": "web", "TaskTemplate": more.pop("template", {}), "Mode": {"Replicated": {"Replicas": replicas}}}
    return {"ID": ID, "Version": {"Index": 1}, "Spec": {**spec, **more.pop("spec", {})}, **more}


GLOBAL = {"Mode": {"Global": {}}}
NEWER = {"Index": 2}
NO_RESTART = {"RestartPolicy": {"Condition": "none"}}


@pytest.mark.parametrize(
    ("found", "tasks", "converged"),
    [
        (service(), [task(1), task(2)], True),
        (service(), [task(1), task(2, "starting")], False),
        (service(), [task(1)], False),
        (service(), [], False),
        (service(0), [], True),
        (service(1), [task(1), task(2)], False),  # scaled down, the second not yet told to stop
        (service(1), [task(1), task(2, desired="shutdown")], True),
        (service(), [task(1), task(1, "failed", desired="shutdown"), task(2)], True),
        (service(spec=GLOBAL, ServiceStatus={"DesiredTasks": 2}), [task(0, node="a"), task(0, node="b")], True),
        (service(spec=GLOBAL, ServiceStatus={"DesiredTasks": 2}), [task(0, node="a")], False),
        (service(1, template=NO_RESTART), [task(1, "complete", desired="shutdown")], True),
        (service(1), [task(1, "complete", desired="shutdown")], False),
        (service(1, UpdateStatus={"State": "updating"}), [task(1)], True),
        (
            service(spec={"Mode": {"ReplicatedJob": {}}, "Labels": {"fleet.schedule.cron": "0 3 * * *"}}),
            [task(1)],
            True,
        ),
        (
            service(spec={"Mode": {"ReplicatedJob": {"TotalCompletions": 2}}}, ServiceStatus={"CompletedTasks": 2}),
            [],
            True,
        ),
        (
            service(spec={"Mode": {"ReplicatedJob": {"TotalCompletions": 2}}}, ServiceStatus={"CompletedTasks": 1}),
            [],
            False,
        ),
    ],
)
def test_converged_means_every_task_of_the_newest_spec_runs(found: Any, tasks: Any, converged: bool) -> None:
    assert judge(found, tasks).converged is converged


@pytest.mark.parametrize(
    ("state", "wanted", "failed"),
    [
        ("paused", False, "update paused: why"),
        ("rollback_completed", False, "update rolled back: why"),
        ("rollback_paused", True, "rollback paused: why"),
        ("rollback_completed", True, ""),
        ("completed", False, ""),
    ],
)
def test_update_that_stopped_is_a_failure_with_its_reason(state: str, wanted: bool, failed: str) -> None:
    found = service(1, UpdateStatus={"State": state, "Message": "why"})
    assert judge(found, [task(1)], rollback_wanted=wanted).failed == failed


def test_update_status_from_before_the_change_does_not_count() -> None:
    status = {"State": "paused", "Message": "earlier"}
    assert judge(service(1, UpdateStatus=status), [task(1)], ignore_status=status).converged


def test_pending_and_failed_tasks_say_why() -> None:
    verdict = judge(
        service(), [task(1, "pending", err="no suitable node"), task(2, "failed", desired="shutdown", err="boom")]
    )
    assert [text for _, text in verdict.notes] == ["web.1: pending: no suitable node", "web.2: failed: boom"]
    assert verdict.lines == (("1", "pending: no suitable node"),)


def test_exhausted_restart_policy_is_stuck_and_names_the_last_error() -> None:
    verdict = judge(service(1, template=NO_RESTART), [task(1, "failed", desired="shutdown", err="exit 3")])
    assert "restart condition none" in verdict.stuck
    assert "exit 3" in verdict.stuck
    assert judge(service(1), [task(1, "failed", desired="shutdown", err="exit 3")]).stuck == ""


# --- the loop, against a daemon ---------------------------------------------------------------------------------------


def test_a_job_whose_task_failed_is_stuck_when_nothing_else_is_in_work() -> None:
    job = service(template=NO_RESTART, spec={"Mode": {"ReplicatedJob": {"TotalCompletions": 3}}})
    failed = task(1, "failed", desired="shutdown", err="exit 3")
    assert "exit 3" in judge(job, [failed]).stuck
    assert judge(job, [failed, task(2)]).stuck == "", "the third is yet to be made"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converge, "POLL_S", 0.005)
    monkeypatch.setattr(converge, "GIVE_UP_S", 0.02)
    monkeypatch.setattr(converge, "NO_TASKS_S", 0.02)
    monkeypatch.setattr(converge, "UNREACHABLE_S", 0.2)
    monkeypatch.setattr(converge, "STALE_S", 0.05)


def serve(engine: FakeEngine, found: Any, *steps: list[dict[str, Any]]) -> None:
    engine.on("POST", "/services/create", Reply(201, {"ID": ID}))
    engine.on("GET", "/services", [found])
    rest = list(steps)

    def tasks(request: Request) -> Reply:
        assert request.query["filters"] == {"service": [ID], "_up-to-date": ["true"]}
        return Reply(body=rest.pop(0) if len(rest) > 1 else rest[0])

    engine.on("GET", "/tasks", tasks)


@pytest.mark.usefixtures("quick")
def test_create_waits_and_tells_each_reason_once(fleet: Any, engine: FakeEngine) -> None:
    pending = task(2, "pending", err="no suitable node (1 node not available)")
    serve(engine, service(), [task(1), pending], [task(1), pending], [task(1), task(2)])
    ran = fleet("service", "create", "--name", "web", "--replicas", "2", "img")
    assert (ran.code, ran.out) == (0, f"{ID}\n")
    assert ran.err.splitlines() == [
        "web.2: pending: no suitable node (1 node not available)",
        "web: 1 of 2 tasks running",
        "web: 2 of 2 tasks running",
    ]


@pytest.mark.usefixtures("quick")
def test_one_look_is_not_enough(fleet: Any, engine: FakeEngine) -> None:
    serve(
        engine,
        service(1),
        [task(1)],
        [task(1, "failed", desired="shutdown", err="boom"), task(1, "starting")],
        [task(1)],
    )
    ran = fleet("service", "create", "--name", "web", "img")
    assert ran.code == 0
    assert "web.1: failed: boom" in ran.err
    assert len(engine.sent("GET", "/tasks")) == 4


@pytest.mark.usefixtures("quick")
def test_service_that_is_not_restarted_any_more_fails_the_command(fleet: Any, engine: FakeEngine) -> None:
    serve(
        engine, service(1, template=NO_RESTART), [task(1, "failed", desired="shutdown", err="task: non-zero exit (3)")]
    )
    ran = fleet("service", "create", "--name", "web", "--restart-condition", "none", "img")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == (
        "Error: service web: 1 task ended and is not restarted (restart condition none): task: non-zero exit (3)"
    )


@pytest.mark.usefixtures("quick")
def test_time_limit_says_what_is_missing(fleet: Any, engine: FakeEngine) -> None:
    serve(engine, service(), [task(1), task(2, "preparing")])
    ran = fleet("service", "create", "--name", "web", "--timeout", "50ms", "img")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "Error: not converged after 0.05s: web has 1 of 2 tasks running (2 is preparing)"


@pytest.mark.usefixtures("quick")
def test_paused_update_tells_what_its_tasks_said(fleet: Any, engine: FakeEngine) -> None:
    before = service(1)
    engine.on("GET", f"/services/{ID}", before)
    engine.on("GET", "/services/web", before)
    engine.on("POST", f"/services/{ID}/update", {})
    serve(
        engine,
        service(1, UpdateStatus={"State": "updating"}),
        [],
        [task(1, "failed", desired="shutdown", err="exit 4")],
    )
    rest = [
        Reply(body=[service(1, Version=NEWER, UpdateStatus={"State": "updating"})]),
        Reply(body=[service(1, Version=NEWER, UpdateStatus={"State": "paused", "Message": "task t1 failed"})]),
    ]
    engine.on("GET", "/services", lambda _request: rest.pop(0) if len(rest) > 1 else rest[0])
    ran = fleet("service", "update", "--force", "web")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "web: 0 of 1 tasks running",
        "web.1: failed: exit 4",
        "Error: service web: update paused: task t1 failed",
    ]


@pytest.mark.usefixtures("quick")
def test_rollback_keeps_the_reason_it_began_with(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/web", service(1))
    engine.on("POST", f"/services/{ID}/update", {})
    serve(engine, service(1), [task(1, "starting")])
    rest = [
        Reply(
            body=[service(1, Version=NEWER, UpdateStatus={"State": "rollback_started", "Message": "task t1 failed"})]
        ),
        Reply(
            body=[
                service(1, Version=NEWER, UpdateStatus={"State": "rollback_completed", "Message": "rollback completed"})
            ]
        ),
    ]
    engine.on("GET", "/services", lambda _request: rest.pop(0) if len(rest) > 1 else rest[0])
    ran = fleet("service", "update", "--force", "web")
    assert ran.code == 1
    assert "update rolled back: rollback completed (it began with: task t1 failed)" in ran.err


@pytest.mark.usefixtures("quick")
def test_rollback_faster_than_a_look_still_says_what_failed(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/web", service(1))
    engine.on("POST", f"/services/{ID}/update", {})
    status = {"State": "rollback_completed", "Message": "rollback completed"}
    serve(engine, service(1, Version=NEWER, UpdateStatus=status), [])

    def tasks(request: Request) -> Reply:
        newest = "_up-to-date" in request.query["filters"]
        return Reply(body=[task(1)] if newest else [task(1), task(1, "rejected", desired="shutdown", err="no image")])

    engine.on("GET", "/tasks", tasks)
    ran = fleet("service", "update", "--image", "nope", "web")
    expected = "Error: service web: update rolled back: rollback completed; last failure: web.1: rejected: no image"
    assert (ran.code, ran.err.splitlines()[-1]) == (1, expected)


@pytest.mark.usefixtures("quick")
def test_flapping_service_does_not_fill_the_output(fleet: Any, engine: FakeEngine) -> None:
    up, down = [task(1)], [task(1, "starting")]
    serve(engine, service(1), *([up, down] * 20), up)
    ran = fleet("service", "create", "--name", "web", "img")
    assert (ran.code, ran.err) == (0, "web: 1 of 1 tasks running\nweb: 0 of 1 tasks running\n")


@pytest.mark.usefixtures("quick")
def test_failures_from_before_an_update_are_no_news(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/web", service(1))
    engine.on("POST", f"/services/{ID}/update", {})
    serve(engine, service(1, Version=NEWER), [task(1, "failed", desired="shutdown", err="old"), task(1)])
    ran = fleet("service", "scale", "web=1")
    assert (ran.code, ran.err) == (0, "web: 1 of 1 tasks running\n")


@pytest.mark.usefixtures("quick")
def test_global_service_without_a_node_ends_the_wait(fleet: Any, engine: FakeEngine) -> None:
    serve(engine, service(spec=GLOBAL, ServiceStatus={"DesiredTasks": 0}), [])
    ran = fleet("service", "create", "--name", "web", "--mode", "global", "img")
    assert (ran.code, ran.err) == (0, "web: 0 of 0 tasks running\n")


@pytest.mark.usefixtures("quick")
def test_daemon_without_a_leader_is_waited_for(fleet: Any, engine: FakeEngine) -> None:
    serve(engine, service(1), [task(1)])
    answers = [Reply(503, {"message": "there is no leader"}), Reply(body=[service(1)])]
    engine.on("GET", "/services", lambda _request: answers.pop(0) if len(answers) > 1 else answers[0])
    ran = fleet("service", "create", "--name", "web", "img")
    assert ran.code == 0
    assert "waiting for the daemon: there is no leader" in ran.err


@pytest.mark.usefixtures("quick")
def test_service_removed_meanwhile_ends_the_wait(fleet: Any, engine: FakeEngine) -> None:
    serve(engine, service(1), [])
    engine.on("GET", "/services", [])
    ran = fleet("service", "create", "--name", "web", "img")
    assert ran.code == 1
    assert "was removed while waiting" in ran.err


@pytest.mark.usefixtures("quick")
def test_manager_that_is_behind_does_not_count_as_converged(
    fleet: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converge, "STALE_S", 30.0)  # it catches up at its fourth answer, however long that takes
    old, new = service(1), {**service(2), "Version": {"Index": 2}}
    engine.on("GET", "/services/web", old)
    engine.on("POST", f"/services/{ID}/update", {})
    serve(engine, old, [task(1), task(2)])
    rest = [Reply(body=[old]), Reply(body=[old]), Reply(body=[old]), Reply(body=[new])]
    engine.on("GET", "/services", lambda _request: rest.pop(0) if len(rest) > 1 else rest[0])
    ran = fleet("service", "scale", "web=2")
    assert (ran.code, ran.err) == (0, "web: 2 of 2 tasks running\n")


@pytest.mark.usefixtures("quick")
def test_update_that_wrote_nothing_is_not_waited_for_forever(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/web", service(1))
    engine.on("POST", f"/services/{ID}/update", {})
    serve(engine, service(1), [task(1)])
    assert fleet("service", "update", "-q", "web").code == 0


def test_detach_and_quiet(fleet: Any, engine: FakeEngine) -> None:
    serve(engine, service(1), [task(1)])
    assert fleet("service", "create", "-d", "--name", "web", "img").code == 0
    assert [request.path for request in engine.sent("GET", ".*")] == ["/distribution/img/json"]
    ran = fleet("service", "create", "-q", "--name", "web", "img")
    assert (ran.code, ran.err) == (0, "")


def test_interrupt_leaves_the_service_going(fleet: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(engine, service(2), [task(1)])

    def interrupted(_duration_s: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(converge.clock, "sleep", interrupted)
    ran = fleet("service", "create", "--name", "web", "img")
    assert ran.code == 130
    assert "continues in the background. See: fleet service ps web" in ran.err
