"""A task leaves names and balancing before it is stopped: its stop is held back until every host has confirmed that.

Otherwise clients on other hosts still connect while it ends, and some of their connections are refused or cut. What was
connected at the last moment waits to be accepted by the task for ``LINGER_S`` more. The wish itself is in the state already;
only its way to the task's host takes this long, and ``PATIENCE_S`` at most, so that a host that says nothing holds nobody up.
Nothing is kept: another leader sends the stop at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from fleet.api.dispatch import Assign, EndpointItem, Item, TaskItem, key_of
from fleet.clock import Clock
from fleet.model.ids import NodeId, TaskId
from fleet.model.task import Task, TaskState

__all__ = ["LINGER_S", "PATIENCE_S", "Withdrawals"]

LINGER_S: Final = 0.1
PATIENCE_S: Final = 1.0
_ENDPOINT: Final = "endpoint/"


@dataclass(slots=True)
class _Held:
    node_id: NodeId
    until: float
    waits_for: set[str]


class Withdrawals:
    """Sessions are known by their ids. After ``held`` is set, ``due`` is asked now and then whose sets are to be sent again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.held = asyncio.Event()
        self._held: dict[TaskId, _Held] = {}
        self._unconfirmed: dict[str, dict[TaskId, int]] = {}
        """Session -> task -> number of the set without it."""

    def hold_back(
        self,
        *,
        sent: Mapping[str, Item],
        wanted: dict[str, Item],
        all_sent: Callable[[], Mapping[str, Mapping[str, Item]]],
    ) -> None:
        """Leave in ``wanted`` each task as it was ``sent`` that is to stop while other hosts lead clients to it.

        ``all_sent``: session -> what it was sent.
        """
        now = self._clock.monotonic()
        for key, item in wanted.items():
            if not isinstance(item, TaskItem) or not _is_to_stop(item.task):
                continue
            old = sent.get(key)
            if not isinstance(old, TaskItem) or old.task.desired_state.rank > TaskState.RUNNING.rank:
                continue
            held = self._held.get(item.task.id)
            if held is None:
                held = self._hold(item.task, all_sent())
            if held is not None and now < held.until:
                wanted[key] = old
            else:
                self._held.pop(item.task.id, None)
        if self._held:
            self.held.set()

    def _hold(self, task: Task, all_sent: Mapping[str, Mapping[str, Item]]) -> _Held | None:
        keys = [f"{_ENDPOINT}{each.network_id}/{task.id}" for each in task.network_attachments]
        waits_for = {
            session
            for session, items in all_sent.items()
            if task.id in self._unconfirmed.get(session, ()) or any(_leads(items.get(key)) for key in keys)
        }
        if not waits_for:
            return None
        held = self._held[task.id] = _Held(task.node_id, self._clock.monotonic() + PATIENCE_S, waits_for)
        return held

    def about_to_send(self, session: str, message: Assign, *, sent: Mapping[str, Item]) -> Assign:
        """Ask for a confirmation if the increment takes tasks out of balancing."""
        gone = [key for key in message.removed if key.startswith(_ENDPOINT) and _leads(sent.get(key))]
        tasks = {TaskId(key.rpartition("/")[2]) for key in gone}
        tasks |= {
            item.task_id
            for item in message.items
            if isinstance(item, EndpointItem) and not item.ready and _leads(sent.get(key_of(item)))
        }
        if not tasks:
            return message
        self._unconfirmed.setdefault(session, {}).update(dict.fromkeys(tasks, message.results_in))
        return replace(message, confirm=True)

    def confirmed(self, session: str, number: int) -> None:
        """The session's host leads nobody any more to what was gone from set ``number``."""
        unconfirmed = self._unconfirmed.get(session, {})
        tasks = [task_id for task_id, since in unconfirmed.items() if since <= number]
        for task_id in tasks:
            del unconfirmed[task_id]
        self._let_go(session, tasks)

    def ended(self, session: str) -> None:
        """It confirms nothing any more."""
        self._unconfirmed.pop(session, None)
        self._let_go(session, list(self._held))

    def due(self) -> set[NodeId]:
        """Nodes that can have the stop of a task now."""
        now = self._clock.monotonic()
        for task_id in [task_id for task_id, held in self._held.items() if now > held.until + PATIENCE_S]:
            del self._held[task_id]  # its node has gone, or it ended by itself
        if not self._held:
            self.held.clear()
        return {held.node_id for held in self._held.values() if now >= held.until}

    def _let_go(self, session: str, tasks: list[TaskId]) -> None:
        until = self._clock.monotonic() + LINGER_S
        for task_id in tasks:
            held = self._held.get(task_id)
            if held is not None and session in held.waits_for:
                held.waits_for.discard(session)
                if not held.waits_for:
                    held.until = min(held.until, until)


def _is_to_stop(task: Task) -> bool:
    return (
        task.desired_state.rank > TaskState.RUNNING.rank
        and task.status.state is TaskState.RUNNING
        and bool(task.network_attachments)
    )


def _leads(item: Item | None) -> bool:
    return isinstance(item, EndpointItem) and item.ready
