"""Leases of sessions: how long one lasts without a heartbeat, and how long a node may be without one.

A silent node becomes *disconnected* after ``suspect_after`` (its endpoints leave names and balancing at once) and *down* after
``down_after`` (its tasks are replaced). When the connection was closed by the node's own kernel the host is alive and only its
daemon is gone: then ``daemon_grace_s`` holds, so restarting or upgrading fleetd moves no task. After a start of this manager,
``startup_grace_s`` lets nodes come back before any is called down.

Beats cost more than all else of a quiet cluster. So the heartbeat period grows with the nodes (``nodes_a_second``): five thousand
are asked for one in five seconds, and a silent one is *down* after fifteen.

A stall of this process looks like silence of all nodes; the loop measures its own lateness and grants it to everyone.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.manager.node_states import NodeStates
from fleet.manager.sessions import ChannelClosed, Session, Sessions
from fleet.model.common import SECOND_NS
from fleet.model.ids import NodeId
from fleet.model.node import NodeState
from fleet.store import Store

__all__ = ["Leases", "Tolerances"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """In seconds, or in beats where the name says so."""

    suspect_after_beats: float = 1.5
    down_after_beats: float = 3.0
    daemon_suspect_s: float = 5.0
    """The host lives and so do its containers: they keep getting traffic while the daemon restarts."""
    daemon_grace_s: float = 15.0
    startup_grace_s: float = 10.0
    nodes_a_second: int = 1_000
    """So many at least for each second of the heartbeat period, which grows with more."""


@dataclass(slots=True)
class _Silence:
    """A node without a session: since when, and how long that is tolerated."""

    since: float
    tolerance_s: float


class Leases:
    """Over the dispatcher's ``sessions``, and the nodes that have none."""

    def __init__(
        self, store: Store, clock: Clock, *, sessions: Sessions, states: NodeStates, tolerances: Tolerances
    ) -> None:
        self._store = store
        self._clock = clock
        self._sessions = sessions
        self._states = states
        self._tolerances = tolerances
        self._silent: dict[NodeId, _Silence] = {}

    @property
    def beat_period_s(self) -> float:
        """The cluster's heartbeat period in seconds, longer if there are many nodes."""
        least_s = len(self._sessions) / self._tolerances.nodes_a_second
        for cluster in self._store.clusters.all():
            if cluster.spec.dispatcher.heartbeat_period_ns > 0:
                return max(cluster.spec.dispatcher.heartbeat_period_ns / SECOND_NS, least_s)
        return max(1.0, least_s)

    def begin(self) -> None:
        """This manager has just started: every node that is not down has a while to come."""
        now = self._clock.monotonic()
        for node in self._store.nodes.all():
            if not node.removed and node.status.state is not NodeState.DOWN:
                self._silent[node.id] = _Silence(since=now, tolerance_s=self._tolerances.startup_grace_s)

    def session_closed(self, node_id: NodeId) -> None:
        """By the node's own kernel: its daemon has a while to come back."""
        self._silent[node_id] = _Silence(since=self._clock.monotonic(), tolerance_s=self._tolerances.daemon_grace_s)

    def forget(self, node_id: NodeId) -> None:
        """Its silence means nothing (any more): it has a session, or is no member."""
        self._silent.pop(node_id, None)

    async def run(self) -> None:
        """Until cancelled."""
        woke = self._clock.monotonic()
        while True:
            tick = min(self.beat_period_s / 4, 0.25)
            await self._clock.sleep(tick)
            now = self._clock.monotonic()
            lateness = now - woke - tick
            woke = now
            if lateness > tick:
                self._grant(lateness)
            for session in list(self._sessions.values()):
                silence = now - session.last_heard
                if silence > self._tolerances.down_after_beats * session.period_s:
                    await self._give_up(session, silence)
                elif silence > self._tolerances.suspect_after_beats * session.period_s:
                    await self._states.set_state(session.node_id, NodeState.DISCONNECTED, f"silent for {silence:.1f} s")
            for node_id, gone in list(self._silent.items()):
                silence = now - gone.since
                if silence > gone.tolerance_s:
                    self._silent.pop(node_id, None)
                    await self._states.set_state(node_id, NodeState.DOWN, f"no session for {silence:.1f} s")
                elif silence > self._tolerances.daemon_suspect_s:
                    await self._states.set_state(node_id, NodeState.DISCONNECTED, "its daemon closed the session")

    def _grant(self, lateness_s: float) -> None:
        for session in self._sessions.values():
            session.last_heard += lateness_s
        for gone in self._silent.values():
            gone.since += lateness_s

    async def _give_up(self, session: Session, silence_s: float) -> None:
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]
        try:
            await self._states.set_state(
                session.node_id, NodeState.DOWN, f"heartbeat failure: silent for {silence_s:.1f} s"
            )
        finally:  # written or not: nobody looks after this session any more
            with contextlib.suppress(ChannelClosed):
                await session.channel.close("no heartbeat")
