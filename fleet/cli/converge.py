"""Waiting until services are as asked for: poll, judge, show, and say why when it cannot happen.

A service has converged when each task the newest spec asks for runs (or, where nothing restarts it, has completed), seen
twice in a row. ``judge`` is pure; ``wait`` is the loop around it. The wait ends with code 1 when the update pauses or
rolls back, when the restart policy gives up, or at the caller's time limit; an interrupt only stops the watching.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import click

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock
from fleet.cli.tasks import has_ended, state_of
from fleet.cli.widths import clean, columns_of, cut, is_live

__all__ = ["Verdict", "Watch", "judge", "wait"]

POLL_S: Final = 0.1
GIVE_UP_S: Final = 1.5
"""How long a slot must stay empty before the restart policy is taken to have given up on it."""
NO_TASKS_S: Final = 2.0
"""A global service without any task this long fits no node."""
STALE_S: Final = 2.0
"""How far a manager's copy of the state may be behind the write that was acknowledged."""
UNREACHABLE_S: Final = 30.0
"""How long the daemon may be unavailable (a new leader is elected in seconds)."""
LINES_MAX: Final = 16
NOTES_MAX: Final = 50

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One look at a service. ``lines`` is (slot, state) for show; ``notes`` are sentences worth telling once."""

    running: int
    desired: int
    converged: bool
    lines: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    """(task id, sentence)."""
    failed: str = ""
    """Why it will never converge, if it is certain."""
    stuck: str = ""
    """Why it will never converge, if it stays as it is."""
    is_job: bool = False
    """``running`` counts the tasks that are complete."""

    @property
    def progress(self) -> str:
        """``2 of 3 tasks running``."""
        return f"{self.running} of {self.desired} tasks {'complete' if self.is_job else 'running'}"


def judge(
    service: Json, tasks: Sequence[Json], *, ignore_status: Json | None = None, rollback_wanted: bool = False
) -> Verdict:
    """``tasks`` are those of the newest spec. ``ignore_status`` is an update status from before the change."""
    spec = service.get("Spec") or {}
    name = str(spec.get("Name", ""))
    mode = spec.get("Mode") or {}
    job = mode.get("ReplicatedJob") is not None or mode.get("GlobalJob") is not None
    active = [t for t in tasks if _wanted(t) and not has_ended(t)]
    ended = [t for t in tasks if has_ended(t)]
    desired = _desired(service, active)
    running = sum(state_of(t) == "running" for t in active)
    condition, attempts = _restart_policy(spec)
    slots = {_slot(t) for t in active}
    completed = 0
    if job or condition != "any":
        completed = len({_slot(t) for t in ended if state_of(t) == "complete"} - slots)
    if job:
        completed = (service.get("ServiceStatus") or {}).get("CompletedTasks") or completed
    count = completed if job else running + completed
    update = service.get("UpdateStatus") or {}
    update = {} if update == (ignore_status or {}) else update
    state = str(update.get("State") or "")
    failed = _update_failure(state, str(update.get("Message") or ""), rollback_wanted=rollback_wanted)
    exact = not job and len(active) + completed > desired
    return Verdict(
        is_job=job,
        running=min(count, desired),
        desired=desired,
        converged=not failed and count >= desired and not exact and (state != "rollback_started" or rollback_wanted),
        lines=tuple((_slot_name(t), _shown_state(t)) for t in sorted(active, key=_slot_order)),
        notes=tuple(_notes(name, tasks)),
        failed=failed if state != "rollback_started" else "",
        stuck=_stuck(
            missing=desired - len(active) - completed,
            ended=ended,
            condition=condition,
            attempts=attempts,
            goes_on=job and bool(active),
        ),
    )


def _wanted(task: Json) -> bool:
    return str(task.get("DesiredState", "")).lower() in ("ready", "running", "accepted", "complete", "completed")


def _slot(task: Json) -> str:
    return str(task.get("Slot") or task.get("NodeID") or "")


def _slot_order(task: Json) -> tuple[int, str]:
    return (int(task.get("Slot") or 0), str(task.get("NodeID") or ""))


def _slot_name(task: Json) -> str:
    return str(task.get("Slot") or str(task.get("NodeID") or "")[:12])


def _error(task: Json) -> str:
    status = task.get("Status") or {}
    return str(status.get("Err") or "")


def _shown_state(task: Json) -> str:
    error = _error(task)
    return f"{state_of(task)}: {error}" if error else state_of(task)


def _desired(service: Json, active: Sequence[Json]) -> int:
    mode = (service.get("Spec") or {}).get("Mode") or {}
    if _has_schedule(service):
        return 0
    if mode.get("ReplicatedJob") is not None:
        total = mode["ReplicatedJob"].get("TotalCompletions")
        return 1 if total is None else int(total)
    if mode.get("Global") is None and mode.get("GlobalJob") is None:
        replicas = (mode.get("Replicated") or {}).get("Replicas")
        return 1 if replicas is None else int(replicas)
    counted = (service.get("ServiceStatus") or {}).get("DesiredTasks")
    return len(active) if counted is None else int(counted)


def _has_schedule(service: Json) -> bool:
    """Its runs come at their times; nothing is to be waited for."""
    return "fleet.schedule.cron" in ((service.get("Spec") or {}).get("Labels") or {})


def _restart_policy(spec: Json) -> tuple[str, int]:
    policy = (spec.get("TaskTemplate") or {}).get("RestartPolicy") or {}
    return str(policy.get("Condition") or "any"), int(policy.get("MaxAttempts") or 0)


def _update_failure(state: str, message: str, *, rollback_wanted: bool) -> str:
    if state == "paused":
        return f"update paused: {message}"
    if state == "rollback_paused":
        return f"rollback paused: {message}"
    if state in ("rollback_started", "rollback_completed") and not rollback_wanted:
        return f"update rolled back: {message}"
    return ""


def _notes(name: str, tasks: Sequence[Json]) -> Iterable[tuple[str, str]]:
    for task in tasks:
        error = _error(task)
        if error and state_of(task) in ("failed", "rejected", "pending"):
            yield str(task.get("ID", "")), f"{name}.{_slot_name(task)}: {state_of(task)}: {error}"


def _stuck(*, missing: int, ended: Sequence[Json], condition: str, attempts: int, goes_on: bool) -> str:
    """``goes_on``: a job has tasks in work, and makes those that are missing after them."""
    failures = [t for t in ended if state_of(t) in ("failed", "rejected", "orphaned")]
    if missing <= 0 or not failures or (condition == "any" and not attempts) or goes_on:
        return ""
    ended_text = "1 task ended and is" if missing == 1 else f"{missing} tasks ended and are"
    policy = f"restart condition {condition}" + (f", at most {attempts} restarts" if attempts else "")
    latest = max(failures, key=lambda t: str(t.get("UpdatedAt", "")))
    return f"{ended_text} not restarted ({policy}): {_error(latest) or state_of(latest)}"


class _Show(Protocol):
    def update(self, watches: Sequence[Watch]) -> None: ...

    def note(self, text: str) -> None: ...


class Watch:
    """One service being waited for; ``before`` is the service as it was read for an update, None for a new one."""

    def __init__(
        self,
        service_id: str,
        name: str,
        *,
        before: Json | None = None,
        rollback_wanted: bool = False,
    ) -> None:
        self.service_id = service_id
        self.name = name
        self.verdict: Verdict | None = None
        self.since: float | None = None
        """Monotonic time since when it has looked converged."""
        self.seen = 0
        self.failure = ""
        self._rollback_reason = ""
        self._ignore_status: Json = (before or {}).get("UpdateStatus") or {}
        self._after_version = int(((before or {}).get("Version") or {}).get("Index") or 0)
        self._rollback_wanted = rollback_wanted
        self._stuck_since: float | None = None
        self._earlier: set[str] | None = set() if before is None else None
        """Tasks that had failed before the change; what became of them is no news."""
        self._empty_since: float | None = None
        self._stale_since: float | None = None

    def look(self, client: EngineClient, *, now: float) -> None:
        """Ask the daemon once; sets ``failure`` when the service will not converge."""
        service = self._service(client, now=now)
        if service is None:
            return
        tasks = client.get("/tasks", filters={"service": [self.service_id], "_up-to-date": ["true"]}) or []
        verdict = judge(service, tasks, ignore_status=self._ignore_status, rollback_wanted=self._rollback_wanted)
        self.verdict = verdict
        if self._earlier is None:
            self._earlier = {str(t.get("ID", "")) for t in tasks if has_ended(t)}
        self._note_reason(service)
        self.failure = self._why_not(verdict, now=now)
        if verdict.failed and not self.news():
            self.failure += self._last_failure(client)
        empty = verdict.desired == 0 and "Replicated" not in ((service.get("Spec") or {}).get("Mode") or {})
        self._empty_since = (self._empty_since or now) if empty else None
        settled = verdict.converged and (self._empty_since is None or now - self._empty_since >= NO_TASKS_S)
        self.since = (self.since if self.since is not None else now) if settled else None
        self.seen = self.seen + 1 if settled else 0

    def news(self) -> list[str]:
        """Sentences of the last look about tasks of this change."""
        if self.verdict is None:
            return []
        return [text for task_id, text in self.verdict.notes if task_id not in (self._earlier or ())]

    def _service(self, client: EngineClient, *, now: float) -> Json | None:
        """The service, or None while the manager asked does not know the change yet. Raises ``NotFoundError``."""
        listed = client.get("/services", status=True, filters={"id": [self.service_id]}) or []
        found = next((dict(item) for item in listed if item["ID"] == self.service_id), None)
        if found is not None and int((found.get("Version") or {}).get("Index") or 0) > self._after_version:
            self._stale_since = None
            return found
        self._stale_since = now if self._stale_since is None else self._stale_since
        if now - self._stale_since < STALE_S:
            return None
        if found is None:
            raise errors.NotFoundError(f"service {self.name} was removed while waiting for it")
        return found

    def _note_reason(self, service: Json) -> None:
        """A rollback says why it began, and forgets it when it is done."""
        update = service.get("UpdateStatus") or {}
        if update.get("State") == "rollback_started" and update != self._ignore_status:
            self._rollback_reason = str(update.get("Message") or "")

    def _why_not(self, verdict: Verdict, *, now: float) -> str:
        if verdict.failed:
            reason = f" (it began with: {self._rollback_reason})" if self._rollback_reason else ""
            return verdict.failed + reason
        if not verdict.stuck:
            self._stuck_since = None
            return ""
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        return verdict.stuck if now - self._stuck_since >= GIVE_UP_S else ""

    def _last_failure(self, client: EngineClient) -> str:
        """After a rollback the tasks that failed are no longer of the newest spec: look at all of them."""
        tasks = client.get("/tasks", filters={"service": [self.service_id]}) or []
        told = [
            (str((t.get("Status") or {}).get("Timestamp", "")), text)
            for t in tasks
            for _, text in _notes(self.name, [t])
        ]
        return f"; last failure: {max(told)[1]}" if told else ""

    def converged(self, *, now: float, stable_s: float) -> bool:
        """Seen converged twice, and for ``stable_s`` seconds."""
        return self.seen >= 2 and self.since is not None and now - self.since >= stable_s


def wait(
    client: EngineClient, watches: Sequence[Watch], *, quiet: bool, timeout_ns: int | None = None, stable_ns: int = 0
) -> int:
    """Wait for all; returns 0, or 130 when interrupted. Raises ``FleetError`` saying why it did not come to that."""
    show: _Show = _Quiet() if quiet else _Terminal() if is_live(sys.stderr) else _Lines()
    started = clock.monotonic()
    told: set[str] = set()
    unreachable_since: float | None = None
    try:
        while True:
            now = clock.monotonic()
            try:
                pending = [w for w in watches if not w.converged(now=now, stable_s=stable_ns / 1e9)]
                for watch in pending:
                    watch.look(client, now=now)
                unreachable_since = None
            except (errors.UnavailableError, EngineError) as cause:
                if unreachable_since is None:
                    unreachable_since = now
                    if cause.transient:
                        show.note(f"waiting for the daemon: {cause}")
                if not cause.transient or now - unreachable_since >= UNREACHABLE_S:
                    raise
            for watch in watches:
                for note in watch.news():
                    _tell_once(show, told, note)
            show.update(watches)
            for watch in watches:
                if watch.failure:
                    raise errors.ConflictError(f"service {watch.name}: {watch.failure}")
            if all(w.converged(now=now, stable_s=stable_ns / 1e9) for w in watches):
                return 0
            if timeout_ns is not None and now - started >= timeout_ns / 1e9:
                raise errors.UnavailableError(_timeout_text(watches, timeout_ns))
            clock.sleep(POLL_S)
    except KeyboardInterrupt:
        names = " ".join(watch.name for watch in watches[:3])
        click.echo(f"\nStopped watching; it continues in the background. See: fleet service ps {names}", err=True)
        return 130


def _tell_once(show: _Show, told: set[str], text: str) -> None:
    if text not in told and len(told) < NOTES_MAX:
        told.add(text)
        show.note(text)


def _timeout_text(watches: Sequence[Watch], timeout_ns: int) -> str:
    behind = [
        f"{watch.name} has {watch.verdict.progress}{_waiting_for(watch.verdict)}"
        for watch in watches
        if watch.verdict is not None and not watch.seen
    ]
    return f"not converged after {timeout_ns / 1e9:g}s: {'; '.join(behind) or 'the daemon did not answer'}"


def _waiting_for(verdict: Verdict) -> str:
    states = [f"{slot} is {state}" for slot, state in verdict.lines if state != "running"][:3]
    return f" ({', '.join(states)})" if states else ""


class _Quiet:
    def update(self, watches: Sequence[Watch]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Lines:
    """For pipes and logs: a line for each count not seen before, so that a flapping service does not fill them."""

    def __init__(self) -> None:
        self.told: set[tuple[str, int, int]] = set()

    def update(self, watches: Sequence[Watch]) -> None:
        for watch in watches:
            if watch.verdict is None:
                continue
            running, desired = watch.verdict.running, watch.verdict.desired
            if not desired and not watch.seen:  # a global service whose tasks are not made yet
                continue
            if (watch.service_id, running, desired) not in self.told:
                self.told.add((watch.service_id, running, desired))
                click.echo(f"{watch.name}: {watch.verdict.progress}", err=True)

    def note(self, text: str) -> None:
        click.echo(text, err=True)


class _Terminal:
    """For terminals: a block of lines that is rewritten in place."""

    def __init__(self) -> None:
        self.block: list[str] = []

    def update(self, watches: Sequence[Watch]) -> None:
        lines: list[str] = []
        for watch in watches:
            verdict = watch.verdict
            if verdict is None:
                continue
            lines.append(f"{watch.name}: {verdict.progress}")
            if len(watches) == 1:
                shown = verdict.lines[:LINES_MAX]
                lines += [f"  {slot}: {state}" for slot, state in shown]
                if len(verdict.lines) > len(shown):
                    lines.append(f"  and {len(verdict.lines) - len(shown)} more")
        if lines != self.block:
            self._erase()
            self._draw(lines)

    def note(self, text: str) -> None:
        block = self.block
        self._erase()
        click.echo(text, err=True)
        self._draw(block)

    def _erase(self) -> None:
        if self.block:
            click.echo(f"\x1b[{len(self.block)}A\x1b[J", err=True, nl=False, color=True)
        self.block = []

    def _draw(self, lines: list[str]) -> None:
        width = columns_of(sys.stderr) or 80  # standard output may well be a pipe meanwhile
        self.block = lines
        for line in lines:
            click.echo(cut(clean(line), max(20, width - 1)), err=True)
