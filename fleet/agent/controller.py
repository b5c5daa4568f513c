"""Drives one task: asks ``task_machine`` for the step, takes it, reports, again.

A controller owns one asyncio task. A step is interrupted when the wish becomes *stop* (a pull of minutes, a wait for
health); the stop itself is not. Everything a step does can be repeated: after a crash of the daemon the next controller
finds the container by the task's name and goes on from what is really there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import msgspec

from fleet import errors, traces
from fleet.agent.task_machine import Step, fault_state, next_step
from fleet.cancellation import cancel_and_wait
from fleet.clock import Clock
from fleet.logs import about_requests, get_logger
from fleet.model.task import ContainerStatus, PortStatus, Task, TaskState, TaskStatus

__all__ = ["Controller", "Exit", "Progress", "TaskRuntime"]

log = get_logger("controller")

T = TypeVar("T")

_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a task's container ended. ``unhealthy``: it was stopped because its health check failed."""

    code: int
    oom_killed: bool = False
    unhealthy: bool = False
    detail: str = ""


Progress = Callable[[str, bool], None]
"""Told how far it is, in words, and whether the old task may stop now."""


class TaskRuntime(Protocol):
    """What a controller needs of the host. Every call is idempotent per task; blocking parts run elsewhere."""

    async def fetch_data(self, task: Task, progress: Progress) -> None:
        """What a task with ``moved_from`` takes over is on this host, complete; any number may do this at a time."""
        ...

    async def prepare(self, task: Task) -> str:
        """Image, networks and container are there; returns the container's id."""
        ...

    async def start(self, task: Task) -> ContainerStatus:
        """The container runs (it may already); raises ``RuntimeFault`` when it can not."""
        ...

    async def wait_healthy(self, task: Task) -> bool:
        """Returns ``True`` once healthy (or without health check at once), ``False`` when it became unhealthy or ended."""
        ...

    async def watch(self, task: Task) -> Exit:
        """Returns when the container has ended, or has become unhealthy and was stopped."""
        ...

    async def stop(self, task: Task) -> Exit | None:
        """Stop signal, grace, kill; ``None`` when there was nothing to stop."""
        ...

    async def remove(self, task: Task) -> None:
        """Container, its file system and addresses are gone."""
        ...


class Controller:
    """One task's. ``report`` is called with every new status; it must not block."""

    def __init__(
        self,
        task: Task,
        status: TaskStatus,
        *,
        runtime: TaskRuntime,
        clock: Clock,
        limiter: asyncio.Semaphore,
        report: Callable[[Task, TaskStatus], None],
    ) -> None:
        self.task = task
        self.status = status
        self._runtime = runtime
        self._clock = clock
        self._limiter = limiter
        self._report = report
        self._wish_changed = asyncio.Event()
        self._removal = False
        self._container_id = status.container_status.container_id if status.container_status else ""

    def update(self, task: Task) -> None:
        """The manager's newer version of the task; wishes only grow."""
        if task.desired_state.rank > self.task.desired_state.rank:
            self.task = msgspec.structs.replace(self.task, desired_state=task.desired_state)
            self._wish_changed.set()

    def remove(self) -> None:
        """The task is no longer assigned here: stop it if need be, remove what it left, and end."""
        self._removal = True
        self.update(msgspec.structs.replace(self.task, desired_state=TaskState.REMOVE))
        self._wish_changed.set()

    async def run(self) -> None:
        """Until removed (then everything of the task is gone) or cancelled (then everything stays)."""
        retry_s = _RETRY_FIRST_S
        while True:
            self._wish_changed.clear()
            step = next_step(self.status.state, self.task.desired_state)
            if step is Step.NOTHING:
                if self._removal:
                    await self._remove()
                    return
                await self._wish_changed.wait()
                continue
            try:
                await self._take(step)
                retry_s = _RETRY_FIRST_S
            except errors.FleetError as fault:
                if fault.transient:
                    log.warning("task step will be tried again", task=self.task.id, step=step.value, cause=str(fault))
                    self._note(str(fault))
                    await self._pause(retry_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreading load, not secrets
                    retry_s = min(retry_s * 2, _RETRY_MAX_S)
                else:
                    self._fail(str(fault))
            except OSError as fault:
                self._fail(f"{step.value}: {fault}")

    async def _pause(self, duration_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(duration_s):
                await self._wish_changed.wait()

    async def _take(self, step: Step) -> None:
        task = self.task
        match step:
            case Step.ACCEPT:
                self._enter(TaskState.ACCEPTED, "accepted")
            case Step.PREPARE:
                if self.status.state is not TaskState.PREPARING or task.moved_from is None:
                    self._enter(TaskState.PREPARING, "preparing")
                if task.moved_from is not None:
                    await self._unless_stopped(self._runtime.fetch_data(task, self._fetched))
                async with self._limiter:
                    container_id = await self._unless_stopped(self._runtime.prepare(task))
                if container_id is not None:
                    self._container_id = container_id
                    self._enter(TaskState.READY, "prepared")
            case Step.START:
                self._enter(TaskState.STARTING, "starting")
                async with self._limiter:
                    container = await self._runtime.start(task)
                self._container_id = container.container_id
                self._enter(TaskState.STARTING, "started", container=container)
                if await self._unless_stopped(self._runtime.wait_healthy(task)):
                    self._enter(TaskState.RUNNING, "started", container=container)
                elif self.task.desired_state.rank < TaskState.SHUTDOWN.rank:
                    self._ended(await self._runtime.watch(task))
            case Step.WATCH:
                exit_ = await self._unless_stopped(self._runtime.watch(task))
                if exit_ is not None:
                    self._ended(exit_)
            case Step.STOP:
                stopped = await self._runtime.stop(task)  # whatever the status says: what was kept of it may be too old
                container = ContainerStatus(container_id=self._container_id, exit_code=stopped.code if stopped else 0)
                self._enter(TaskState.SHUTDOWN, "shutdown", container=container if self._container_id else None)
            case Step.NOTHING:
                raise errors.InvariantError(f"task {task.id}: no step to take")

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result, or ``None`` when the wish became *stop* first (the work is then cancelled)."""
        doing = asyncio.ensure_future(work)
        try:
            while not doing.done():
                if self.task.desired_state.rank >= TaskState.SHUTDOWN.rank:
                    return None
                wish = asyncio.ensure_future(self._wish_changed.wait())
                try:
                    await asyncio.wait((doing, wish), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wish.cancel()
                if not doing.done():
                    self._wish_changed.clear()
            return doing.result()
        finally:
            await cancel_and_wait(doing)

    def _ended(self, exit_: Exit) -> None:
        container = ContainerStatus(container_id=self._container_id, exit_code=exit_.code)
        if exit_.code == 0 and not exit_.unhealthy:
            self._enter(TaskState.COMPLETE, "finished", container=container)
            return
        err = exit_.detail or f"task: non-zero exit ({exit_.code})"
        if exit_.unhealthy:
            err = f"task: unhealthy container ({exit_.detail or f'exit {exit_.code}'})"
        elif exit_.oom_killed:
            err += ": out of memory, the limit was reached"
        self._enter(TaskState.FAILED, "started", err=err, container=container)

    def _fail(self, err: str) -> None:
        state = fault_state(self.status.state)
        self._enter(state, "preparing" if state is TaskState.REJECTED else "starting", err=err)

    def _enter(
        self, state: TaskState, message: str, *, err: str = "", container: ContainerStatus | None = None
    ) -> None:
        old = self.status
        if state.rank < old.state.rank:
            return
        ports = tuple(p for p in self.task.ports if p.publish_mode == "host") if state is TaskState.RUNNING else ()
        self.status = TaskStatus(
            timestamp=self._clock.now(),
            state=state,
            message=message,
            err=err,
            container_status=container or old.container_status,
            port_status=PortStatus(ports=ports) if ports else old.port_status,
            copied=old.copied,
        )
        if state is not old.state:
            change, asked = f"{old.state} -> {state}", about_requests([self.task.request])
            log.info("task", task=self.task.id, name=self.task.service_name, state=change, err=err, **asked)
            traces.span(
                f"task {old.state}", request=self.task.request, began=old.timestamp, ended=self.status.timestamp,
                task=self.task.id, service=self.task.service_name, state=change, err=err,
            )  # fmt: skip
        self._report(self.task, self.status)

    def _fetched(self, message: str, is_copied: bool) -> None:
        old = self.status
        self.status = msgspec.structs.replace(
            old, timestamp=self._clock.now(), message=message, copied=old.copied or is_copied, err=""
        )
        self._report(self.task, self.status)

    def _note(self, err: str) -> None:
        if self.status.err != err:
            self.status = msgspec.structs.replace(self.status, err=err)
            self._report(self.task, self.status)

    async def _remove(self) -> None:
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                await self._runtime.remove(self.task)
            except (errors.FleetError, OSError) as fault:
                log.warning("task not removed yet", task=self.task.id, cause=str(fault))
                await self._clock.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_MAX_S)
            else:
                return
