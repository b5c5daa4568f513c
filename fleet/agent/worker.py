"""Assignments -> controllers: keeps exactly one controller per assigned task, and everything they need at hand.

The worker holds the assignment set as numbered by the manager. ``apply`` refuses an increment that does not follow (the
session then starts over with a complete set). Tasks that leave the set are stopped and removed; tasks in it are driven
toward their desired state whether or not a manager can be reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Final

from fleet import errors
from fleet.agent.controller import Controller, TaskRuntime
from fleet.agent.local_state import LocalState
from fleet.agent.network_sync import NetworkSync
from fleet.agent.reporter import Reporter
from fleet.api import dispatch
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.model.ids import ConfigId, LoginId, SecretId, TaskId
from fleet.model.task import Task, TaskState, TaskStatus, later

__all__ = ["OutOfStepError", "Worker"]

log = get_logger("worker")

_CONCURRENT_STARTS: Final = 8
"""Prepare and start steps at a time: enough to keep two cores busy, few enough not to thrash."""
_SAVE_DELAY_S: Final = 0.1


class OutOfStepError(errors.FleetError):
    """An increment does not apply to the set held here; a complete one is needed."""


class Worker:
    """``run`` owns the controllers; ``apply`` and the getters are called on the same loop."""

    def __init__(
        self,
        *,
        runtime: Callable[[Worker], TaskRuntime],
        network_sync: NetworkSync,
        reporter: Reporter,
        local_state: LocalState,
        clock: Clock,
    ) -> None:
        self._runtime = runtime(self)
        self._network_sync = network_sync
        self._reporter = reporter
        self._local_state = local_state
        self._clock = clock
        self._items: dict[str, dispatch.Item] = {}
        self._sequence = 0
        self._controllers: dict[TaskId, Controller] = {}
        self._limiter = asyncio.Semaphore(_CONCURRENT_STARTS)
        self._group: asyncio.TaskGroup | None = None
        self._save_needed = asyncio.Event()
        self.ready = asyncio.Event()
        """What the last run left is taken up; until then nothing may be applied: it would be replaced by something older."""
        self._kept: dict[TaskId, TaskStatus] = {}

    # What tasks need ------------------------------------------------------------------------------------------

    def secret(self, secret_id: str) -> dispatch.SecretItem:
        """The secret. Raises ``UnavailableError`` while it has not come."""
        item = self._items.get(f"secret/{secret_id}")
        if not isinstance(item, dispatch.SecretItem):
            raise errors.UnavailableError(f"secret {SecretId(secret_id)} is not here yet")
        return item

    def config(self, config_id: str) -> dispatch.ConfigItem:
        """The config. Raises ``UnavailableError`` while it has not come."""
        item = self._items.get(f"config/{config_id}")
        if not isinstance(item, dispatch.ConfigItem):
            raise errors.UnavailableError(f"config {ConfigId(config_id)} is not here yet")
        return item

    def login(self, login_id: str) -> dispatch.LoginItem:
        """The registry login. Raises ``UnavailableError`` while it has not come."""
        item = self._items.get(f"login/{login_id}")
        if not isinstance(item, dispatch.LoginItem):
            raise errors.UnavailableError(f"the registry login {LoginId(login_id)} is not here yet")
        return item

    async def ensure_network(self, network_id: str) -> None:
        """The network is there with its present state. Raises ``UnavailableError`` while it has not come."""
        await self._network_sync.ensure(network_id)

    def task(self, task_id: str) -> Task | None:
        """An assigned task by id."""
        controller = self._controllers.get(TaskId(task_id))
        return controller.task if controller else None

    def running_tasks(self, services: Collection[str] | None) -> list[Task]:
        """Those of these services that run here now; of all with None."""
        return [
            controller.task
            for controller in self._controllers.values()
            if (services is None or controller.task.service_id in services)
            and controller.status.state is TaskState.RUNNING
        ]

    def assigned_networks(self) -> set[str]:
        """Ids of the networks that belong on this host now."""
        return {item.network.id for item in self._items.values() if isinstance(item, dispatch.NetworkItem)}

    def network_names(self) -> dict[str, str]:
        """Their names, by id."""
        return {
            item.network.id: item.network.spec.name
            for item in self._items.values()
            if isinstance(item, dispatch.NetworkItem)
        }

    def own_guests(self, node_id: str) -> set[tuple[str, str]]:
        """(container id, network id) of places that managers hold for containers of this node that no service made."""
        return {
            (item.task_id, item.network_id)
            for item in self._items.values()
            if isinstance(item, dispatch.EndpointItem) and item.node_id == node_id and not item.service_id
        }

    # Life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up what the last run left, then serve until cancelled; cancelling leaves all containers running."""
        items, self._kept = await asyncio.to_thread(self._local_state.load)
        async with TaskGroup() as group:
            self._group = group
            group.create_task(self._network_sync.run())
            group.create_task(self._save_when_needed())
            if items:
                log.info("taking up kept assignments", items=len(items))
                self._replace({dispatch.key_of(item): item for item in items}, sequence=0)
            self.ready.set()

    def apply(self, message: dispatch.Assign) -> None:
        """The manager's next message. Raises ``OutOfStepError`` when it does not follow."""
        if message.complete:
            items = {dispatch.key_of(item): item for item in message.items}
        else:
            if message.applies_to != self._sequence:
                raise OutOfStepError(f"assignment {message.applies_to} -> {message.results_in} on set {self._sequence}")
            items = dict(self._items)
            for key in message.removed:
                items.pop(key, None)
            for item in message.items:
                items[dispatch.key_of(item)] = item
        self._replace(items, sequence=message.results_in)
        self._save_needed.set()

    async def network_applied(self) -> None:
        """Returns once the host's network is as the present assignments say."""
        await self._network_sync.applied()

    def report_all(self) -> None:
        """Say everything again: a new session began, and the manager may know less or more than this node."""
        for task_id, controller in self._controllers.items():
            self._reporter.note(task_id, controller.status)

    def _replace(self, items: Mapping[str, dispatch.Item], *, sequence: int) -> None:
        self._items = dict(items)
        self._sequence = sequence
        self._network_sync.update(self._items)
        tasks = {item.task.id: item.task for item in items.values() if isinstance(item, dispatch.TaskItem)}
        for task_id, controller in self._controllers.items():
            if task_id not in tasks:
                controller.remove()
        for task_id, task in tasks.items():
            known = self._controllers.get(task_id)
            if known is not None:
                known.update(task)
            else:
                self._adopt(task)

    def _adopt(self, task: Task) -> None:
        assert self._group is not None, "assignments before run()"
        kept = self._kept.pop(task.id, None)
        status = task.status
        if kept is not None and later(kept.state, status.state) is kept.state:
            status = kept
        controller = Controller(
            task,
            status,
            runtime=self._runtime,
            clock=self._clock,
            limiter=self._limiter,
            report=self._report,
        )
        driving = self._drive(controller)
        try:
            self._group.create_task(driving)
        except RuntimeError:  # the group is being cancelled: the daemon stops or leaves, the next one takes the task up
            driving.close()
            return
        self._controllers[task.id] = controller

    async def _drive(self, controller: Controller) -> None:
        await controller.run()
        self._controllers.pop(controller.task.id, None)
        self._reporter.forget(controller.task.id)
        self._save_needed.set()

    def _report(self, task: Task, status: TaskStatus) -> None:
        self._reporter.note(task.id, status)
        self._save_needed.set()

    async def _save_when_needed(self) -> None:
        while True:
            await self._save_needed.wait()
            await self._clock.sleep(_SAVE_DELAY_S)
            self._save_needed.clear()
            items = list(self._items.values())
            statuses = {task_id: controller.status for task_id, controller in self._controllers.items()}
            try:
                await asyncio.to_thread(self._local_state.save, items, statuses)
            except OSError as cause:
                # Tasks go on; only a restart without a manager would not find them assigned.
                log.warning("assignments not kept on disk", cause=str(cause))
