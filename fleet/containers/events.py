"""What happens to containers, told to whoever listens: the agent's controllers, the event stream of the API, health, tests.

Events only wake: who needs the truth reads the container's record, which was changed before the event was sent. A
listener that does
not keep up loses its oldest events, and is told so by ``Subscription.lost``; the engine never waits for a listener.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Final, Self

import msgspec

from fleet.model.wire import Value

__all__ = ["Action", "ContainerEvent", "EventHub", "Subscription"]

QUEUE_MAX: Final = 4096
"""Events kept for a slow listener; a node runs at most some hundreds of containers."""


class Action(enum.StrEnum):
    """Docker's words for what happened (Engine API, ``/events``)."""

    CREATE = "create"
    START = "start"
    DIE = "die"
    OOM = "oom"
    STOP = "stop"
    KILL = "kill"
    RESTART = "restart"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    RENAME = "rename"
    UPDATE = "update"
    DESTROY = "destroy"
    EXEC_CREATE = "exec_create"
    EXEC_START = "exec_start"
    EXEC_DIE = "exec_die"
    HEALTH_STATUS = "health_status"
    VOLUME_CREATE = "volume create"
    VOLUME_DESTROY = "volume destroy"
    NETWORK_CREATE = "network create"
    NETWORK_DESTROY = "network destroy"
    NETWORK_CONNECT = "network connect"
    NETWORK_DISCONNECT = "network disconnect"


class ContainerEvent(Value, frozen=True, kw_only=True):
    """One happening. ``attributes`` as in Docker: image, name, the labels, exitCode, signal, status of the health check."""

    action: Action
    id: str
    time: datetime
    attributes: dict[str, str] = msgspec.field(default_factory=dict)


class Subscription:
    """A listener's queue, filling from the moment it was made. Iterate it; ``close`` (or the end of ``with``) ends it."""

    def __init__(self, remove: Callable[[Subscription], None]) -> None:
        self._events: deque[ContainerEvent] = deque()
        self._wake = asyncio.Event()
        self._remove = remove
        self._closed = False
        self.lost = 0
        """How many events were dropped because nobody took them."""

    def put(self, event: ContainerEvent) -> None:
        """Called by the hub."""
        if len(self._events) >= QUEUE_MAX:
            self._events.popleft()
            self.lost += 1
        self._events.append(event)
        self._wake.set()

    def close(self) -> None:
        """Stop listening; an iteration ends after what is queued. Idempotent."""
        self._closed = True
        self._remove(self)
        self._wake.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ContainerEvent:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()


class EventHub:
    """Hands every event to every subscription."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(self) -> Subscription:
        """A subscription that sees everything from now on."""
        subscription = Subscription(self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    def send(self, event: ContainerEvent) -> None:
        """Tell all; never blocks."""
        for subscription in tuple(self._subscriptions):
            subscription.put(event)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
