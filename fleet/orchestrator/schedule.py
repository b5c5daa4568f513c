"""When a scheduled job begins its next run: pure, and the same answer whoever leads.

The last instant that was dealt with is kept with the service, and written together with the run it began. So an instant begins
one run at most, and of those that nobody saw the last one counts, if it is not too long ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from fleet import errors
from fleet.model.common import Version
from fleet.model.schedule import Schedule, parse_schedule
from fleet.model.service import RUNS_KEPT, JobRun, JobStatus, Service
from fleet.model.task import Task, TaskState
from fleet.orchestrator.job import current_tasks

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
    iteration = service.job_iteration
    return iteration is not None and iteration.index == 0 and schedule_of(service) is not None


def plan_schedule(service: Service, tasks: Iterable[Task], *, now: datetime) -> tuple[Service | None, datetime | None]:
    """(the service with its next run, or with the note that one was skipped; when to look again)."""
    schedule = schedule_of(service)
    if schedule is None or schedule.is_suspended or service.pending_delete:
        return None, None
    status = service.job_status or JobStatus()
    first = schedule.next(status.scheduled or service.created_at)
    due = None if first is None or first > now else schedule.latest(now)
    if due is None:
        return None, first
    wake_at = schedule.next(now)
    iteration = status.job_iteration.index
    current = current_tasks(service, tasks)
    is_running = any(not task.status.state.is_terminal for task in current)
    if now - due > schedule.deadline:
        run = JobRun(scheduled=due, outcome="missed", reason=f"nobody led until {_text(now)}")
    elif is_running and not schedule.replaces:
        run = JobRun(scheduled=due, outcome="skipped", reason="the run before had not ended")
    else:
        iteration += 1
        run = JobRun(scheduled=due, iteration=iteration, started_at=now, outcome="running")
    goes_on = is_running and not run.iteration
    runs = status.runs if goes_on else _ended(status.runs, service, current, is_running=is_running)
    changed = msgspec.structs.replace(
        status,
        job_iteration=Version(index=iteration),
        last_execution=now if run.started_at else status.last_execution,
        scheduled=due,
        runs=(*runs, run)[-RUNS_KEPT:],
    )
    return msgspec.structs.replace(service, job_status=changed, updated_at=now), wake_at


def _ended(runs: tuple[JobRun, ...], service: Service, current: list[Task], *, is_running: bool) -> tuple[JobRun, ...]:
    """The runs with what came of the one whose tasks are about to be forgotten."""
    if not current:
        return runs
    done = len({task.slot or task.node_id for task in current if task.status.state is TaskState.COMPLETE})
    wanted = service.spec.completions or done
    outcome, reason = ("succeeded", "") if done >= wanted and not is_running else ("failed", "")
    if outcome == "failed":
        faults = sorted((t.status.timestamp, t.status.err) for t in current if t.status.err)
        reason = (
            "ended by the next run" if is_running else (faults[-1][1] if faults else f"{done} of {wanted} ended well")
        )
    return tuple(
        msgspec.structs.replace(run, outcome=outcome, reason=reason)
        if run.iteration == current[0].job_iteration.index and run.outcome == "running"  # type: ignore[union-attr]
        else run
        for run in runs
    )


def _text(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S UTC")
