"""When scheduled jobs run: instants, zones, and what becomes of those that nobody saw."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task, a_task_spec

from fleet import errors
from fleet.model.common import Version
from fleet.model.node import Node
from fleet.model.schedule import parse_schedule
from fleet.model.service import JobMode, JobStatus, RestartCondition, RestartPolicy, Service, ServiceMode
from fleet.model.task import Task, TaskState
from fleet.orchestrator import schedule as planner
from fleet.orchestrator.schedule import is_waiting_for_its_time
from fleet.orchestrator.view import ServiceView

START = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def labels(cron: str = "*/5 * * * *", **more: str) -> dict[str, str]:
    return {"fleet.schedule.cron": cron, **{f"fleet.schedule.{key}": value for key, value in more.items()}}


def a_job(**schedule: str) -> Service:
    service = a_service(spec=a_task_spec(restart=RestartPolicy(condition=RestartCondition.NONE)))
    spec = msgspec.structs.replace(
        service.spec, mode=ServiceMode(replicated_job=JobMode(total_completions=2)), labels=labels(**schedule)
    )
    return msgspec.structs.replace(service, spec=spec, created_at=START, job_status=JobStatus(scheduled=START))


def tasks_of(service: Service, *states: TaskState) -> list[Task]:
    return [
        a_task(slot=n, state=state, spec=service.spec.task_template, job_iteration=service.job_iteration)
        for n, state in enumerate(states, start=1)
    ]


def plan_schedule(
    service: Service, tasks: Sequence[Task], *, now: datetime, nodes: Sequence[Node] = ()
) -> tuple[Service | None, datetime | None]:
    view = ServiceView(service=service, tasks=tasks, nodes={n.id: n for n in nodes}, fits=lambda *_: True)
    return planner.plan_schedule(view, now=now)


def begun(service: Service, now: datetime, *states: TaskState) -> Service:
    changed, _ = plan_schedule(service, tasks_of(service, *states), now=now)
    assert changed is not None
    return changed


def outcomes(service: Service) -> list[tuple[str, str]]:
    assert service.job_status is not None
    return [(run.scheduled.strftime("%H:%M"), run.outcome) for run in service.job_status.runs]


def test_a_new_job_waits_for_its_first_instant_and_begins_one_run_at_it() -> None:
    job = a_job()
    assert is_waiting_for_its_time(job)
    for later in (0, 60, 269):
        assert plan_schedule(job, (), now=START + timedelta(seconds=later)) == (None, at("2026-05-01T12:05:00Z"))
    job = begun(job, at("2026-05-01T12:05:00Z"))
    assert not is_waiting_for_its_time(job)
    assert job.job_iteration == Version(index=1)
    assert plan_schedule(job, (), now=at("2026-05-01T12:05:01Z")) == (None, at("2026-05-01T12:10:00Z"))
    job = begun(job, at("2026-05-01T12:10:02Z"), TaskState.COMPLETE, TaskState.COMPLETE)
    assert (job.job_iteration, outcomes(job)) == (Version(index=2), [("12:05", "succeeded"), ("12:10", "running")])


def test_of_instants_nobody_saw_the_last_counts_if_it_is_not_long_ago() -> None:
    job = begun(a_job(deadline="2m"), at("2026-05-01T13:01:00Z"))
    assert (job.job_iteration, outcomes(job)) == (Version(index=1), [("13:00", "running")])
    job = begun(a_job(deadline="30s"), at("2026-05-01T13:01:00Z"))
    assert (job.job_iteration, outcomes(job)) == (Version(index=0), [("13:00", "missed")])
    assert plan_schedule(job, (), now=at("2026-05-01T13:02:00Z"))[0] is None, "it is said once"


def test_a_clock_that_goes_back_repeats_nothing() -> None:
    job = begun(a_job(), at("2026-05-01T12:05:00Z"))
    assert plan_schedule(job, (), now=at("2026-05-01T12:01:00Z"))[0] is None


@pytest.mark.parametrize(
    ("concurrency", "iteration", "said"),
    [
        ("forbid", 1, [("12:05", "running"), ("12:10", "skipped")]),
        ("replace", 2, [("12:05", "failed"), ("12:10", "running")]),
    ],
)
def test_a_run_that_is_due_while_another_runs(concurrency: str, iteration: int, said: list[tuple[str, str]]) -> None:
    job = begun(a_job(concurrency=concurrency), at("2026-05-01T12:05:00Z"))
    job = begun(job, at("2026-05-01T12:10:00Z"), TaskState.COMPLETE, TaskState.RUNNING)
    assert (job.job_iteration, outcomes(job)) == (Version(index=iteration), said)


def test_what_came_of_a_run_is_remembered_with_its_reason_and_the_last_ten() -> None:
    job = begun(a_job(), at("2026-05-01T12:05:00Z"))
    job = begun(job, at("2026-05-01T12:10:00Z"), TaskState.COMPLETE, TaskState.FAILED)
    assert job.job_status is not None
    assert (job.job_status.runs[0].outcome, job.job_status.runs[0].reason) == ("failed", "1 of 2 ended well")
    for hour in range(13, 23):
        job = begun(job, at(f"2026-05-01T{hour}:00:00Z"))
    assert job.job_status is not None
    assert len(job.job_status.runs) == 10


def test_what_came_of_a_run_is_known_when_it_ends_and_not_before() -> None:
    job = begun(a_job(), at("2026-05-01T12:05:00Z"))
    soon = at("2026-05-01T12:05:09Z")
    for going_on in ([], [TaskState.COMPLETE], [TaskState.COMPLETE, TaskState.RUNNING]):
        assert plan_schedule(job, tasks_of(job, *going_on), now=soon)[0] is None, going_on
    ended, wake_at = plan_schedule(job, tasks_of(job, TaskState.COMPLETE, TaskState.COMPLETE), now=soon)
    assert ended is not None
    assert (outcomes(ended), wake_at) == ([("12:05", "succeeded")], at("2026-05-01T12:10:00Z"))
    assert outcomes(begun(job, soon, TaskState.FAILED, TaskState.COMPLETE)) == [("12:05", "failed")]
    for more in ({"suspended": "true"}, None):
        labelled = labels(**more) if more else {}
        changed = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, labels=labelled))
        assert outcomes(begun(changed, soon, TaskState.COMPLETE, TaskState.COMPLETE)) == [("12:05", "succeeded")]


@pytest.mark.parametrize("states", [(), (TaskState.COMPLETE,)], ids=["no task is made yet", "one slot is to be filled"])
def test_a_run_goes_on_while_tasks_of_it_are_to_come(states: tuple[TaskState, ...]) -> None:
    job = begun(begun(a_job(), at("2026-05-01T12:05:00Z")), at("2026-05-01T12:10:00Z"), *states)
    assert (job.job_iteration, outcomes(job)) == (Version(index=1), [("12:05", "running"), ("12:10", "skipped")])


def test_a_long_run_is_not_forgotten_however_many_are_skipped_meanwhile() -> None:
    job = begun(a_job(), at("2026-05-01T12:05:00Z"))
    for hour in range(13, 24):
        job = begun(job, at(f"2026-05-01T{hour}:00:00Z"), TaskState.RUNNING)
    assert [len(outcomes(job)), outcomes(job)[0], outcomes(job)[-1]] == [10, ("12:05", "running"), ("23:00", "skipped")]
    job = begun(job, at("2026-05-01T23:01:00Z"), TaskState.COMPLETE, TaskState.COMPLETE)
    assert outcomes(job)[0] == ("12:05", "succeeded")


def test_a_run_that_was_asked_for_ends_the_one_before_in_the_history_too() -> None:
    job = begun(a_job(), at("2026-05-01T12:05:00Z"))
    assert job.job_status is not None
    asked = msgspec.structs.replace(job.job_status, job_iteration=Version(index=2))
    job = begun(msgspec.structs.replace(job, job_status=asked), at("2026-05-01T12:06:00Z"), TaskState.RUNNING)
    assert outcomes(job) == [("12:05", "failed")]


@pytest.mark.parametrize(
    ("states", "outcome"), [("CC", "succeeded"), ("CF", "failed"), ("FF", "failed"), ("", "failed")]
)
def test_a_global_run_succeeds_if_it_ended_well_on_each_node(states: str, outcome: str) -> None:
    service = a_job()
    spec = msgspec.structs.replace(service.spec, mode=ServiceMode(global_job=JobMode()))
    job = begun(msgspec.structs.replace(service, spec=spec), at("2026-05-01T12:05:00Z"))
    nodes = [a_node(f"n{n}") for n in range(len(states))]
    state = {"C": TaskState.COMPLETE, "F": TaskState.FAILED}
    tasks = [
        a_task(slot=0, node=node.id, state=state[letter], job_iteration=job.job_iteration, spec=spec.task_template)
        for node, letter in zip(nodes, states, strict=True)
    ]
    ended, _ = plan_schedule(job, tasks, now=at("2026-05-01T12:05:09Z"), nodes=nodes)
    assert ended is not None
    assert outcomes(ended) == [("12:05", outcome)]


def test_a_job_that_ran_and_then_got_a_schedule_is_not_waiting() -> None:
    job = a_job()
    ran = msgspec.structs.replace(job, job_status=JobStatus(last_execution=START, scheduled=START))
    assert is_waiting_for_its_time(job) and not is_waiting_for_its_time(ran)


def test_suspended_removed_or_no_job_is_never_due() -> None:
    assert plan_schedule(a_job(suspended="true"), (), now=at("2026-05-01T13:00:00Z")) == (None, None)
    gone = msgspec.structs.replace(a_job(), pending_delete=True)
    assert plan_schedule(gone, (), now=at("2026-05-01T13:00:00Z")) == (None, None)
    plain = a_service()
    labelled = msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, labels=labels()))
    assert plan_schedule(labelled, (), now=at("2026-05-01T13:00:00Z")) == (None, None)


def test_zones_and_their_odd_days() -> None:
    schedule = parse_schedule(labels("30 2 * * *", timezone="Europe/Berlin"))
    assert schedule is not None
    assert schedule.next(at("2026-05-01T12:00:00Z")) == at("2026-05-02T00:30:00Z")
    assert schedule.next(at("2026-03-28T12:00:00Z")) == at("2026-03-29T01:00:00Z"), "02:30 was skipped: right after it"
    first = schedule.next(at("2026-10-24T12:00:00Z"))
    assert first == at("2026-10-25T00:30:00Z")
    assert schedule.next(first) == at("2026-10-26T01:30:00Z"), "02:30 was there twice: once"


def test_in_the_hour_shown_twice_a_run_of_each_instant_begins_and_the_next_look_is_ahead() -> None:
    for cron, times in (("*/20 * * * *", 6), ("30 2 * * *", 1)):
        job, begun_runs = a_job(cron=cron, timezone="Europe/Berlin"), 0
        assert job.job_status is not None
        at_midnight = msgspec.structs.replace(job.job_status, scheduled=at("2026-10-24T23:59:59Z"))
        job = msgspec.structs.replace(job, job_status=at_midnight)
        for minute in range(120):
            now = at("2026-10-25T00:00:00Z") + timedelta(minutes=minute)
            changed, wake_at = plan_schedule(job, (), now=now)
            assert wake_at is not None and wake_at > now
            job, begun_runs = changed or job, begun_runs + (changed is not None)
        assert begun_runs == times


@pytest.mark.parametrize("cron", ["*/7 * * * *", "0 3 * * 1-5", "15,45 */6 1,15 * *", "@hourly", "0 0 1 * SUN"])
def test_next_and_latest_are_what_a_walk_over_minutes_finds(cron: str) -> None:
    schedule = parse_schedule(labels(cron))
    assert schedule is not None
    start = datetime(2028, 2, 27, 23, 50, tzinfo=UTC)
    minutes = [start + timedelta(minutes=n) for n in range(3 * 24 * 60)]
    due = [minute for minute in minutes if schedule.next(minute - timedelta(minutes=1)) == minute]
    assert due
    for minute in minutes[::97]:
        later = [each for each in due if each > minute]
        earlier = [each for each in due if each <= minute]
        if later:
            assert schedule.next(minute) == later[0]
        if earlier:
            assert schedule.latest(minute + timedelta(seconds=59)) == earlier[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fleet.schedule.timezone": "UTC"}, "fleet.schedule.timezone needs fleet.schedule.cron"),
        (labels("* * *"), "has 3 fields; expected minute hour"),
        (labels("61 * * * *"), "bad minute"),
        (labels("0 0 31 2 *"), "'0 0 31 2 *'"),
        (labels("@noon"), "is not one of @yearly"),
        (labels(timezone="Mars/Base"), "'Mars/Base' is no time zone"),
        (labels(timezone="../../etc/passwd"), "is no time zone"),
        (labels(concurrency="allow"), "'allow' is not one of forbid, replace"),
        (labels(deadline="soon"), "is no duration such as 30s"),
        (labels(suspended="maybe"), "neither true nor false"),
        (labels(every="5m"), "fleet.schedule.every is not known"),
        (labels("*" * 300), "longer than 256"),
    ],
)
def test_what_means_nothing_is_refused_by_name(given: dict[str, str], words: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        parse_schedule(given)
    assert words in str(caught.value)


def test_no_schedule_is_none() -> None:
    assert parse_schedule({"a": "b"}) is None
