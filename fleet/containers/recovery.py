"""After a restart of fleetd, a crash, or a power cut: make records and reality agree again.

Inputs: the records (what was decided), the supervisor's list (what runs or ran), the sandboxes and secret directories
that exist. For each
container ``decide`` gives the one thing to do; everything else that carries an id nobody knows is removed. Safe to run
at any time, twice as well:
the supervisor itself may have been restarted while fleetd lived.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.exits import UNSEEN, exit_of
from fleet.containers.record import UNKNOWN_EXIT, Container, ExitStatus, Status
from fleet.containers.restart import should_start_at_boot
from fleet.containers.runs import Runs
from fleet.errors import FleetError
from fleet.node_runtime.events import ContainerState

__all__ = ["Decision", "Recovered", "Step", "decide", "recover"]


class Step(enum.Enum):
    """What to do with one container."""

    KEEP = "keep"
    ADOPT = "adopt"
    END = "end"
    UNSTART = "unstart"
    FINISH_REMOVAL = "finish removal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``exit`` is set for END only."""

    step: Step
    exit: ExitStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was done: ids by kind, and sentences for the log."""

    adopted: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decide(record: Container, seen: ContainerState | None, *, boot_id: str) -> Decision:
    """The rule, pure.

    =================  ==================  =====================================================
    record says        supervisor says     so
    =================  ==================  =====================================================
    removing           anything            finish the removal
    up, or starting    running, paused     adopt it
    up, or starting    exited              record that exit
    up                 nothing             it ended unseen: 255
    starting           nothing             same boot: it never started; other boot: 255
    not up             running             adopt it (the record was written before the start was)
    not up             exited, nothing     keep
    =================  ==================  =====================================================
    """
    state = record.state
    if state.status is Status.REMOVING:
        return Decision(step=Step.FINISH_REMOVAL)
    if seen is not None and seen.status != "exited":
        return Decision(step=Step.ADOPT)
    pending = record.is_up or bool(state.starting_boot)
    if not pending:
        return Decision(step=Step.KEEP)
    if seen is not None:
        return Decision(step=Step.END, exit=exit_of(seen))
    if state.starting_boot == boot_id and not record.is_up:
        return Decision(step=Step.UNSTART)
    return Decision(
        step=Step.END,
        exit=ExitStatus(code=UNKNOWN_EXIT, error=UNSEEN),
    )


async def recover(core: Core, runs: Runs, *, finish_removal: list[Entry]) -> Recovered:
    """Bring everything into agreement. Containers to be removed are only appended to ``finish_removal``: the engine removes."""
    adopted: list[str] = []
    ended: list[str] = []
    removed: list[str] = []
    notes: list[str] = []
    listed = {seen.id: seen for seen in await core.runtime.list()}
    for entry in list(core.entries.values()):
        if entry.lock.locked() or entry.starting:
            continue  # somebody works on it now, and sees to the rest
        seen = listed.get(entry.id)
        entry.needs_release = (
            entry.needs_release or seen is not None or entry.record.is_up or bool(entry.record.state.starting_boot)
        )
        decision = decide(entry.record, seen, boot_id=runs.boot)
        match decision.step:
            case Step.ADOPT:
                assert seen is not None
                if _adopt(core, runs, entry, seen):
                    adopted.append(entry.id)
            case Step.END:
                assert decision.exit is not None
                _end(runs, entry, decision.exit)
                ended.append(entry.id)
            case Step.UNSTART:
                entry.change_state(
                    status=Status.EXITED if entry.record.state.started_at else Status.CREATED,
                    starting_boot="",
                    error="the start was interrupted",
                )
            case Step.FINISH_REMOVAL:
                finish_removal.append(entry)
            case Step.KEEP:
                if entry.record.state.status is Status.RESTARTING and entry.restart_task is None:
                    entry.change_state(status=Status.EXITED)
                if entry.record.config.auto_remove and entry.record.state.status in (Status.EXITED, Status.DEAD):
                    finish_removal.append(entry)
    ended += await _ended_meanwhile(core, runs, adopted)
    for container_id in listed.keys() - core.entries.keys():
        await runs.forget(container_id)
        removed.append(container_id)
        notes.append(f"removed the running remains of container {container_id[:12]}, which has no record")
    await _release_idle(core, runs, notes)
    await _remove_strays(core, notes)
    return Recovered(adopted=tuple(adopted), ended=tuple(ended), removed=tuple(removed), notes=tuple(notes))


async def _ended_meanwhile(core: Core, runs: Runs, adopted: Sequence[str]) -> list[str]:
    """Adopted containers that ended between the supervisor's list and their adoption.

    Such an exit is told while the record does not yet say *running*, and is dropped then. From the adoption on none is.
    """
    if not adopted:
        return []
    listed = {seen.id: seen for seen in await core.runtime.list()}
    ended = []
    for container_id in adopted:
        entry, seen = core.entries.get(container_id), listed.get(container_id)
        if entry is not None and entry.record.is_up and seen is not None and seen.status == "exited":
            runs.exited(entry, exit_of(seen))
            ended.append(container_id)
    return ended


async def start_by_rule(core: Core, runs: Runs) -> list[str]:
    """Start what its restart rule wants running; sentences about what could not be started."""
    notes = []
    for entry in list(core.entries.values()):
        record = entry.record
        if record.is_up or entry.starting or entry.removing or record.state.status is Status.RESTARTING:
            continue
        last = record.state.exit
        if should_start_at_boot(
            record.config.restart,
            ever_started=record.state.started_at is not None,
            exit_code=last.code if last else 0,
            stopped_by_hand=record.state.stopped_by_hand,
        ):
            try:
                await runs.start(entry)
            except FleetError as cause:
                notes.append(f"container {record.name} could not be started again: {cause}")
    return notes


def _adopt(core: Core, runs: Runs, entry: Entry, seen: ContainerState) -> bool:
    """Take a running container over; whether that changed anything."""
    status = Status.PAUSED if seen.status == "paused" else Status.RUNNING
    state = entry.record.state
    changed = state.status is not status or state.pid != seen.pid
    if changed:
        entry.change_state(
            status=status,
            pid=seen.pid,
            started_at=seen.started_at or state.started_at or core.clock.now(),
            starting_boot="",
            exit=None,
        )
        core.spawn(core.save(entry), what=f"save container {entry.id[:12]}")
    runs.watch_health(entry)
    return changed or not state.starting_boot


def _end(runs: Runs, entry: Entry, status: ExitStatus) -> None:
    if not entry.record.is_up:  # it was starting: it ran, and we only see the end
        entry.change_state(status=Status.RUNNING, starting_boot="")
    runs.exited(entry, status)


async def _release_idle(core: Core, runs: Runs, notes: list[str]) -> None:
    """Free cgroups and sandboxes of containers that do not run."""
    for entry in list(core.entries.values()):
        async with entry.lock:
            if entry.needs_release and not entry.record.is_up and not entry.is_gone and not entry.starting:
                try:
                    await runs.release(entry)
                except FleetError as cause:
                    notes.append(f"container {entry.id[:12]}: {cause}")


async def _remove_strays(core: Core, notes: list[str]) -> None:
    """Sandboxes and secrets of containers that are not there, or do not run."""
    for sandbox_id in await core.network.sandboxes():
        entry = core.entries.get(sandbox_id)
        if entry is None or not (entry.record.is_up or entry.starting or entry.lock.locked()):
            await core.network.remove_sandbox(sandbox_id)
            notes.append(f"removed the network sandbox of {sandbox_id[:12]}, which does not run")
    for container_id in await core.in_thread(core.files.known):
        if container_id not in core.entries:
            await core.in_thread(core.files.remove, container_id)
            notes.append(f"removed the secrets of {container_id[:12]}, which is gone")
