"""When a scheduled job begins its next run: pure, and the same answer whoever leads.

The last instant that was dealt with is kept with the service, and written together with the run it began. So an instant begins
one run at most, and of those that nobody saw the last one counts, if it is not too long ago.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from fleet import errors
from fleet.model.common import Version
from fleet.model.schedule import Schedule, parse_schedule
from fleet.model.service import RUNS_KEPT, JobRun, JobStatus, Service
from fleet.model.task import TaskState
from fleet.orchestrator.job import current_tasks, is_over
from fleet.orchestrator.view import ServiceView, slot_key

__all__ = ["is_waiting_for_its_time", "plan_schedule", "schedule_of"]


def schedule_of(service: Service) -> Schedule | None:
    """None for what is no job, and for labels that came past the API and mean nothing."""
    if not service.spec.is_job:
        return None
    try:
        return parse_schedule(service.spec.labels)
    except errors.UserError:
        return None


def is_waiting_for_its_time(service: Service) -> bool:
    """It has a schedule and has never run: it has no tasks yet."""
    status = service.job_status
    return status is not None and status.last_execution is None and schedule_of(service) is not None


def plan_schedule(view: ServiceView, *, now: datetime) -> tuple[Service | None, datetime | None]:
    """(the service with its next run, with the note that one was skipped, or with what came of one; when to look again)."""
    service = view.service
    if not service.spec.is_job or service.pending_delete:
        return None, None
    before = service.job_status or JobStatus()
    is_running = not is_waiting_for_its_time(service) and not is_over(view, now=now)
    status = _settled(before, view, is_running=is_running)
    schedule, wake_at = schedule_of(service), None
    if schedule is not None and not schedule.is_suspended:
        since = before.scheduled or service.created_at
        wake_at = schedule.next(since)
        if wake_at is not None and wake_at <= now and (due := schedule.latest(now)) is not None:
            status = _dealt_with(status, schedule, due, now=now, is_running=is_running)
            wake_at = schedule.next(now)
    if status == before:
        return None, wake_at
    return msgspec.structs.replace(service, job_status=status, updated_at=now), wake_at


def _dealt_with(status: JobStatus, schedule: Schedule, due: datetime, *, now: datetime, is_running: bool) -> JobStatus:
    """The status with a run that begins, or with why none does."""
    runs = status.runs
    if now - due > schedule.deadline:
        run = JobRun(scheduled=due, outcome="missed", reason=f"nobody led until {_text(now)}")
    elif is_running and not schedule.replaces:
        run = JobRun(scheduled=due, outcome="skipped", reason="the run before had not ended")
    else:
        runs = _closed(runs, "failed", "ended by the next run")
        run = JobRun(scheduled=due, iteration=status.job_iteration.index + 1, started_at=now, outcome="running")
    return msgspec.structs.replace(
        status,
        job_iteration=Version(index=run.iteration or status.job_iteration.index),
        last_execution=run.started_at or status.last_execution,
        scheduled=due,
        runs=_newest((*runs, run)),
    )


def _newest(runs: tuple[JobRun, ...]) -> tuple[JobRun, ...]:
    """Those that are kept; one in work is among them, however many were skipped since."""
    in_work = tuple(run for run in runs[:-RUNS_KEPT] if run.outcome == "running")
    return (*in_work, *runs[-RUNS_KEPT + len(in_work) :])


def _settled(status: JobStatus, view: ServiceView, *, is_running: bool) -> JobStatus:
    """The status with what came of the run that was in work, if it has ended."""
    run = next((run for run in status.runs if run.outcome == "running"), None)
    if run is None:
        return status
    if run.iteration != status.job_iteration.index:
        return msgspec.structs.replace(status, runs=_closed(status.runs, "failed", "ended by the next run"))
    if is_running:
        return status
    current = current_tasks(view.service, view.tasks)
    slots = {slot_key(task) for task in current}
    done = len({slot_key(task) for task in current if task.status.state is TaskState.COMPLETE})
    wanted = view.service.spec.completions or len(slots)
    outcome, reason = "succeeded", ""
    if not slots or done < wanted:
        faults = sorted((task.status.timestamp, task.status.err) for task in current if task.status.err)
        outcome, reason = "failed", faults[-1][1] if faults else f"{done} of {wanted} ended well"
    return msgspec.structs.replace(status, runs=_closed(status.runs, outcome, reason))


def _closed(runs: tuple[JobRun, ...], outcome: str, reason: str) -> tuple[JobRun, ...]:
    return tuple(
        msgspec.structs.replace(run, outcome=outcome, reason=reason) if run.outcome == "running" else run
        for run in runs
    )


def _text(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S UTC")
