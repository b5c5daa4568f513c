"""The runs of containers: start, exit, stop, restart.

    created --start--> running --exit--> exited --start--> ...
                       |  ^ \\              |
                 pause v  | resume          | restart rule, after a delay
                      paused             restarting --start--> running

What makes each step safe against a crash of fleetd:

start    the record gets ``starting_boot`` before the supervisor is asked; ``fleet.containers.recovery`` then knows that
         the supervisor's list
         decides. Sandbox and container carry the container's id, so whatever was made is found and either adopted or removed.
exit     the supervisor keeps the exit code on disk until told to forget the container; that happens after the record was saved.
stop     nothing is decided here: the exit arrives like any other. Latency is the container's own plus one event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Final

from fleet.containers import assemble
from fleet.containers.attach import Attachments
from fleet.containers.config import DEFAULT_STOP_GRACE_S
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.events import Action
from fleet.containers.execs import Execs
from fleet.containers.exits import UNSEEN, exit_of
from fleet.containers.forwarding import Forwarding
from fleet.containers.health import HealthMonitor
from fleet.containers.launch import Launcher
from fleet.containers.record import UNKNOWN_EXIT, ExitStatus, HealthState, Status
from fleet.containers.restart import next_delay_s, should_restart
from fleet.errors import ConflictError, FleetError, NotFoundError, RejectedFault, RuntimeFault

__all__ = ["Runs", "boot_id"]

_FORGET_TRIES: Final = 250
_FORGET_PAUSE_S: Final = 0.02

_KILL_WAIT_S: Final = 30.0
"""How long a process may take to die of SIGKILL; longer means that it hangs in the kernel, and somebody must be told."""


class Runs:
    """Drives runs for one engine."""

    def __init__(
        self,
        core: Core,
        execs: Execs,
        attachments: Attachments,
        *,
        forwarding: Forwarding,
        auto_remove: Callable[[Entry], Coroutine[None, None, None]],
    ) -> None:
        self._core = core
        self._execs = execs
        self._launcher = Launcher(core, attachments)
        self._forwarding = forwarding
        self._auto_remove = auto_remove
        self._boot_id = boot_id()

    @property
    def boot(self) -> str:
        """The host's boot id."""
        return self._boot_id

    # --- start ---

    async def start(self, entry: Entry) -> bool:
        """Start it; False when it was running already. Raises ``RejectedFault`` for what this host cannot run, else
        ``RuntimeFault``.
        """
        async with entry.lock:
            self.cancel_restart(entry)
            if entry.removing or entry.is_gone:
                raise ConflictError(f"container {entry.id[:12]} is being removed")
            if entry.record.state.status is Status.PAUSED:
                raise ConflictError("cannot start a paused container, try unpause instead")
            if entry.record.is_up:
                return False
            entry.restart_delay_s = 0.0
            await self._start_locked(entry, restart_count=0)
            return True

    async def _start_locked(self, entry: Entry, *, restart_count: int) -> None:
        core = self._core
        await self.release(entry)
        entry.early_exit, entry.early_oom = None, False
        entry.change_state(starting_boot=self._boot_id, stopped_by_hand=False, error="", restart_count=restart_count)
        entry.starting = entry.needs_release = True
        try:
            async with core.starts:
                saved = asyncio.ensure_future(core.save(entry))
                try:
                    await self._launcher.launch(entry, saved)
                finally:
                    await asyncio.wait((saved,))
                    if not saved.cancelled():
                        saved.exception()  # it was raised above, or something worse was
        except BaseException as cause:
            entry.starting = False
            await asyncio.shield(self._undo_start(entry, cause))
            raise
        entry.starting = False
        entry.announce_health()
        core.emit(Action.START, entry.record)
        self._forwarding.begin(entry)
        core.spawn(core.save(entry), what=f"save container {entry.id[:12]}")
        if entry.early_oom:
            core.emit(Action.OOM, entry.record)
        if entry.early_exit is not None:
            self.exited(entry, entry.early_exit)
        else:
            self.watch_health(entry)

    async def _undo_start(self, entry: Entry, cause: BaseException) -> None:
        """A start failed or was cancelled: leave nothing, say why in the record, and wake who waits for the end of this run."""
        entry.streams.close()
        text = str(cause) if isinstance(cause, FleetError) else "the start was interrupted"
        status = ExitStatus(
            code=getattr(cause, "container_exit_code", 128), error=text, finished_at=self._core.clock.now()
        )
        entry.change_state(
            status=Status.EXITED if entry.record.state.started_at else Status.CREATED,
            pid=0,
            starting_boot="",
            error=text,
            exit=status,
        )
        try:
            await self.release(entry)
        except FleetError as trouble:
            self._core.log.error("clean-up after a failed start", container=entry.id, cause=str(trouble))
        entry.announce_exit(status)
        if entry.record.config.auto_remove:
            self._core.spawn(self._auto_remove(entry), what=f"remove container {entry.id[:12]}")

    # --- exit ---

    def oom(self, entry: Entry) -> None:
        """The kernel killed something in it for memory."""
        if entry.starting:
            entry.early_oom = True
        else:
            self._core.emit(Action.OOM, entry.record)

    def exited(self, entry: Entry, status: ExitStatus) -> None:
        """It ended. Waiters wake now; disk, sandbox and restart follow in a task. Idempotent for one run."""
        if entry.starting:
            entry.early_exit = status
            return
        if not entry.record.is_up:
            return
        before = entry.record.state
        finished_at = status.finished_at or self._core.clock.now()
        restarting = not entry.removing and should_restart(
            entry.record.config.restart,
            exit_code=status.code,
            stopped_by_hand=before.stopped_by_hand,
            restart_count=before.restart_count,
        )
        self._stop_health(entry)
        entry.change_state(
            status=Status.RESTARTING if restarting else Status.EXITED, pid=0, exit=status, error=status.error
        )
        entry.change(networks=())
        self._execs.forget_container(entry.id)
        entry.streams.close()
        entry.announce_exit(status)
        self._core.emit(Action.DIE, entry.record, exitCode=str(status.code))
        if restarting:
            entry.restart_delay_s = next_delay_s(entry.restart_delay_s, ran_s=_seconds(before.started_at, finished_at))
            entry.restart_task = self._core.spawn(self._restart_later(entry), what=f"restart container {entry.id[:12]}")
        else:
            self._core.spawn(self._after_exit(entry), what=f"release container {entry.id[:12]}")

    async def _after_exit(self, entry: Entry) -> None:
        async with entry.lock:
            if not entry.is_gone and not entry.record.is_up:
                await self.release(entry)
        if entry.record.config.auto_remove and not entry.removing:
            await self._forwarding.finish(entry)
            await self._auto_remove(entry)

    async def _restart_later(self, entry: Entry) -> None:
        await self._after_exit(entry)
        await self._core.clock.sleep(entry.restart_delay_s)
        async with entry.lock:
            if entry.record.state.status is not Status.RESTARTING or entry.removing:
                return
            entry.restart_task = None
            try:
                await self._start_locked(entry, restart_count=entry.record.state.restart_count + 1)
            except RejectedFault:
                raise  # will not get better by itself
            except FleetError as cause:
                self._retry(entry, cause)

    def _retry(self, entry: Entry, cause: FleetError) -> None:
        """A restart failed for what may pass (no address free, disk full): stay in *restarting* and come back."""
        self._core.log.warning("restart failed, will try again", container=entry.id, cause=str(cause))
        state = entry.change_state(status=Status.RESTARTING)
        entry.restart_delay_s = next_delay_s(entry.restart_delay_s, ran_s=0)
        if should_restart(
            entry.record.config.restart, exit_code=1, stopped_by_hand=False, restart_count=state.restart_count
        ):
            entry.restart_task = self._core.spawn(self._restart_later(entry), what=f"restart container {entry.id[:12]}")
        else:
            entry.change_state(status=Status.EXITED)

    def cancel_restart(self, entry: Entry) -> bool:
        """Give up a planned restart; whether there was one."""
        task, entry.restart_task = entry.restart_task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if entry.record.state.status is Status.RESTARTING:
            entry.change_state(status=Status.EXITED)
            return True
        return False

    async def release(self, entry: Entry) -> None:
        """Let go of what a finished run holds: cgroup and notes of the supervisor, network sandbox. Caller holds
        ``lock``. Idempotent.
        """
        if not entry.needs_release:
            return
        core = self._core
        await core.save(entry)
        await self.forget(entry.id)
        if entry.record.config.network_mode.has_sandbox:
            await core.network.remove_sandbox(entry.id)
        if entry.record.config.guest_of and core.overlays is not None:
            core.overlays.left()
        entry.needs_release = False

    async def forget(self, container_id: str) -> None:
        """Have the supervisor kill and forget a run. One that is being started right now (its caller was cancelled, or died)
        cannot be removed until that is done, some milliseconds later.
        """
        for _ in range(_FORGET_TRIES):
            try:
                await self._core.runtime.remove(container_id)
                return
            except ConflictError:
                await self._core.clock.sleep(_FORGET_PAUSE_S)
        await self._core.runtime.remove(container_id)

    # --- stop ---

    async def stop(self, entry: Entry, *, grace_s: float | None, signal: str | int | None) -> bool:
        """End it and return when it has ended; False when it was not running. ``grace_s`` below 0 waits for ever."""
        core = self._core
        if entry.starting:
            async with entry.lock:
                pass
        if self.cancel_restart(entry):
            entry.change_state(stopped_by_hand=True)
            await core.save(entry)
            core.emit(Action.STOP, entry.record)
            return True
        if not entry.record.is_up:
            return False
        config = entry.record.config
        number = assemble.parse_signal(signal or entry.record.stop_signal)
        if grace_s is None:
            grace_s = config.stop_grace_s if config.stop_grace_s is not None else DEFAULT_STOP_GRACE_S
        ended = entry.next_exit
        entry.change_state(stopped_by_hand=True)
        if grace_s != 0:
            await self.signal(entry, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s if grace_s > 0 else None):
                    await asyncio.shield(ended)
        if not ended.done():
            await self.kill_and_wait(entry)
        core.emit(Action.STOP, entry.record)
        return True

    async def signal(self, entry: Entry, number: int) -> None:
        """Deliver a signal to the first process; a paused container is resumed, as it could not act on it. Silent when
        it is gone.
        """
        try:
            await self._core.runtime.signal(entry.id, number)
        except (NotFoundError, ConflictError):
            await self._look_again(entry)
            return
        self._core.emit(Action.KILL, entry.record, signal=str(number))
        if entry.record.state.status is Status.PAUSED:
            await self.resume(entry)

    async def _look_again(self, entry: Entry) -> None:
        """The supervisor says that it does not run. If its exit was told when nobody listened yet, it is taken from the
        list now.
        """
        if not entry.record.is_up:
            return
        seen = next((s for s in await self._core.runtime.list() if s.id == entry.id), None)
        if seen is None:
            self.exited(entry, ExitStatus(code=UNKNOWN_EXIT, error=UNSEEN))
        elif seen.status == "exited":
            self.exited(entry, exit_of(seen))

    async def resume(self, entry: Entry) -> None:
        """Thaw. Raises ``ConflictError`` when it is not paused."""
        if entry.record.state.status is not Status.PAUSED:
            raise ConflictError(f"Container {entry.id} is not paused")
        with contextlib.suppress(NotFoundError):
            await self._core.runtime.resume(entry.id)
        if entry.record.state.status is Status.PAUSED:
            entry.change_state(status=Status.RUNNING)
            self._core.emit(Action.UNPAUSE, entry.record)

    async def kill_and_wait(self, entry: Entry) -> None:
        """SIGKILL, and wait for the end. Raises ``RuntimeFault`` when it does not die."""
        if not entry.record.is_up:
            return
        ended = entry.next_exit
        await self.signal(entry, 9)
        try:
            async with asyncio.timeout(_KILL_WAIT_S):
                await asyncio.shield(ended)
        except TimeoutError:
            raise RuntimeFault(
                f"container {entry.id[:12]} did not end within {_KILL_WAIT_S:.0f} s of SIGKILL: process "
                f"{entry.record.state.pid} may be blocked in the kernel (state D); see its /proc/PID/stack"
            ) from None

    # --- health ---

    def watch_health(self, entry: Entry) -> None:
        """Begin to probe, when the container has a health check."""
        record = entry.record
        if record.healthcheck is None or entry.health_task is not None:
            return
        monitor = HealthMonitor(
            record.healthcheck,
            started_at=record.state.started_at or self._core.clock.now(),
            state=record.state.health or HealthState(),
            probe=lambda args, timeout_s: self._execs.probe(entry, args, timeout_s),
            report=lambda state: self._report_health(entry, state),
            clock=self._core.clock,
        )
        entry.health_task = self._core.spawn(monitor.run(), what=f"health of container {entry.id[:12]}")

    def _report_health(self, entry: Entry, state: HealthState) -> None:
        before = entry.record.state.health
        if not entry.record.is_up:
            return
        entry.change_state(health=state)
        entry.announce_health()
        if before is None or before.status != state.status:
            self._core.emit(Action.HEALTH_STATUS, entry.record, status=state.status)
            self._core.spawn(self._core.save(entry), what=f"save container {entry.id[:12]}")

    def _stop_health(self, entry: Entry) -> None:
        task, entry.health_task = entry.health_task, None
        if task is not None:
            task.cancel()


def boot_id() -> str:
    """Differs after every boot of the host (proc_sys_kernel(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _seconds(start: datetime | None, end: datetime) -> float:
    return (end - start).total_seconds() if start else 0.0
