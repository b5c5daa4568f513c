"""Events to whoever listens, in the order told; a listener that does not read is ended, not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fleet.node_runtime.events import RuntimeEvent

__all__ = ["Subscriptions"]

_EVENTS_MAX = 10_000


class Subscriptions:
    """Of one client."""

    def __init__(self) -> None:
        self._subscribers: list[asyncio.Queue[RuntimeEvent | None]] = []

    def tell(self, event: RuntimeEvent) -> None:
        """All of them."""
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._subscribers.remove(queue)
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)

    def subscribe(self) -> AsyncIterator[RuntimeEvent]:
        """Events from now on (from this call, not from the first iteration). Ends with ``end`` or when the
        reader is 10,000 events behind.
        """
        queue: asyncio.Queue[RuntimeEvent | None] = asyncio.Queue(_EVENTS_MAX)
        self._subscribers.append(queue)
        return self._iterate(queue)

    async def _iterate(self, queue: asyncio.Queue[RuntimeEvent | None]) -> AsyncIterator[RuntimeEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            if queue in self._subscribers:
                self._subscribers.remove(queue)

    def end(self) -> None:
        """Each subscription ends after what was told."""
        for queue in self._subscribers:
            queue.put_nowait(None)
        self._subscribers.clear()
