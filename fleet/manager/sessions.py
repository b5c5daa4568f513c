"""A session: an agent's registration with this manager, over one open connection, and what the agent was told by it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from fleet.api import dispatch
from fleet.model.ids import NodeId

__all__ = ["Channel", "ChannelClosed", "Session", "Sessions"]


class ChannelClosed(Exception):
    """The peer closed, or its kernel did for it."""


class Channel(Protocol):
    """One open connection to an agent; frames keep their order and bounds."""

    async def send(self, frame: bytes) -> None:
        """Raises ``ChannelClosed``."""
        ...

    async def receive(self) -> bytes:
        """Raises ``ChannelClosed``."""
        ...

    async def close(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Session:
    """What was sent and asked is ``senders``' to write, beats are ``dispatcher``'s; ``leases`` grants time."""

    id: str
    node_id: NodeId
    channel: Channel
    last_heard: float
    """Monotonic seconds."""
    period_s: float
    """The heartbeat period that it was last told."""
    last_reply: float = 0.0
    sequence: int = 0
    sent: dict[str, dispatch.Item] | None = None
    networks: frozenset[str] = frozenset()
    """Those in ``sent``."""
    trust: dispatch.Trust | None = None
    """What it was last told."""
    measure: dispatch.Measure = field(default_factory=dispatch.Measure)
    """What it was last asked."""
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    """Its node's set may differ from what was sent."""


Sessions = dict[NodeId, Session]
"""The newest of each node. ``Dispatcher`` enters them and takes them out, and so does ``Leases`` with one that is silent."""
