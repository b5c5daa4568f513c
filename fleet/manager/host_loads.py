"""What hosts use, as agents told the leader: now, and a short history, in memory only.

A new leader knows nothing, and has a history again as time passes. What is kept is bounded for all hosts together: with many of
them each has a shorter one. An agent tells of its own host alone.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fleet.api.dispatch import HostUsage, Usage
from fleet.clock import Clock
from fleet.model.ids import NodeId
from fleet.model.node import Node
from fleet.store import Changes, Store

__all__ = ["POINTS_MAX", "HostLoad", "HostLoads"]

POINTS_MAX: Final = 180
"""Of one host: half an hour."""
_POINTS_TOTAL: Final = 20_000
"""About 5 MiB."""
_PERIOD_S: Final = 10.0
_NODES_A_PERIOD: Final = 1_000
"""With more the period grows, so that no more than a hundred frames a second come."""
_SPACING_NS: Final = 8_000_000_000
"""Between two points of the history, however often a host is read."""
_GAP_MIN_S: Final = 0.25
"""Frames of one host that come sooner are not read."""
_FRESH_PERIODS: Final = 3.0


class HostLoad(NamedTuple):
    """``at``: Unix seconds. Rates are billionths of a core; the second pair is what the host's containers have of it."""

    at: float
    nano_cpus: int
    memory_bytes: int
    containers_nano_cpus: int
    containers_memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Reading:
    at_ns: int
    used: HostUsage


@dataclass(slots=True)
class _Host:
    heard_at: float
    last: _Reading
    base: _Reading
    """Where the next point of the history begins."""
    now: HostLoad | None = None
    points: deque[HostLoad] = field(default_factory=lambda: deque(maxlen=POINTS_MAX))


class HostLoads:
    """One a leader's term; fed by the dispatcher."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._hosts: dict[NodeId, _Host] = {}

    @staticmethod
    def period_s(nodes: int) -> float:
        """How often each of so many nodes is to be asked."""
        return _PERIOD_S * max(1, math.ceil(nodes / _NODES_A_PERIOD))

    def follow(self, changes: Changes) -> None:
        """The tables changed: forget hosts that are members no more."""
        if changes.resync:
            for node_id in list(self._hosts):
                if (node := self._store.nodes.get(node_id)) is None or node.removed:
                    del self._hosts[node_id]
        for change in changes:
            if isinstance(change.old, Node) and (not isinstance(change.new, Node) or change.new.removed):
                self._hosts.pop(change.old.id, None)

    def note(self, node_id: NodeId, said: Usage) -> None:
        """An agent's answer. What comes too often, or cannot be, is not read."""
        used, now = said.host, self._clock.monotonic()
        if (
            used is None
            or min(used.cpu_ns, used.memory_bytes, used.containers_cpu_ns, used.containers_memory_bytes) < 0
        ):
            return
        reading, host = _Reading(said.at_ns, used), self._hosts.get(node_id)
        if host is None or said.at_ns <= host.last.at_ns or used.cpu_ns < host.last.used.cpu_ns:
            points = host.points if host is not None else deque(maxlen=POINTS_MAX)
            self._hosts[node_id] = _Host(now, reading, reading, points=points)  # the first, or the host started anew
            return
        if now - host.heard_at < _GAP_MIN_S:
            return
        host.now = self._between(host.last, reading)
        host.heard_at, host.last = now, reading
        if reading.at_ns - host.base.at_ns >= _SPACING_NS:
            host.points.append(self._between(host.base, reading))
            host.base = reading
            while len(host.points) > max(1, _POINTS_TOTAL // len(self._hosts)):
                host.points.popleft()

    def _between(self, before: _Reading, after: _Reading) -> HostLoad:
        elapsed_ns = after.at_ns - before.at_ns
        containers_ns = after.used.containers_cpu_ns - before.used.containers_cpu_ns
        return HostLoad(
            at=round(self._clock.now().timestamp(), 1),
            nano_cpus=(after.used.cpu_ns - before.used.cpu_ns) * 1_000_000_000 // elapsed_ns,
            memory_bytes=after.used.memory_bytes,
            containers_nano_cpus=max(0, containers_ns) * 1_000_000_000 // elapsed_ns,
            containers_memory_bytes=after.used.containers_memory_bytes,
        )

    def now(self, node_id: NodeId) -> HostLoad | None:
        """None when two readings are not known yet, or nothing was heard lately."""
        host = self._hosts.get(node_id)
        period_s = self.period_s(len(self._hosts))
        if host is None or self._clock.monotonic() - host.heard_at > _FRESH_PERIODS * period_s + 1:
            return None
        return host.now

    def history(self, node_id: NodeId, *, since: float) -> list[HostLoad]:
        """Points after the Unix second ``since``, oldest first."""
        host = self._hosts.get(node_id)
        return [point for point in host.points if point.at > since] if host is not None else []
