"""Sessions with agents: assignments down, task status up, and who is alive.

Here are the life of one session, and the changes of the tables, which wake the senders of the sessions that they concern.
What all sessions share is put together from ``senders`` (what agents are told), ``reports`` (what they say of tasks), ``leases``
(who is silent) and ``node_states`` (what of this is written of nodes).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from fleet import errors
from fleet.api import dispatch
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.audience import Audience, audience_of
from fleet.manager.figures import ManagerFigures
from fleet.manager.held_images import HeldImages
from fleet.manager.host_loads import HostLoads
from fleet.manager.leases import Leases, Tolerances
from fleet.manager.node_states import NodeStates
from fleet.manager.reports import Reports
from fleet.manager.senders import Senders
from fleet.manager.sessions import Channel, ChannelClosed, Session, Sessions
from fleet.manager.usage import TaskLoads
from fleet.model.ids import NodeId
from fleet.model.node import Node, NodeState
from fleet.store import Change, Kind, Store

__all__ = ["Dispatcher"]

log = get_logger("dispatcher")

_REPLY_AFTER: Final = 0.9
"""Of a period: agents beat more often, and one answer a period tells them that the manager lives."""


class Dispatcher:
    """Runs on the leader. ``run`` owns all loops; ``serve`` is one session's life and is called by the listener."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        new_session_id: Callable[[], str],
        manager_addresses: Callable[[], tuple[str, ...]],
        tolerances: Tolerances | None = None,
        figures: ManagerFigures | None = None,
    ) -> None:
        self._store = store
        self._figures = figures or ManagerFigures()
        self._clock = clock
        self._new_session_id = new_session_id
        self._manager_addresses = manager_addresses
        self._is_running = False
        self._sessions: Sessions = {}
        self.images = HeldImages()
        """What agents said that they have."""
        self.loads = TaskLoads(store, clock)
        """What they said that tasks use."""
        self.hosts = HostLoads(store, clock)
        """And their hosts."""
        self._states = NodeStates(store, clock, self._figures)
        self._leases = Leases(
            store, clock, sessions=self._sessions, states=self._states, tolerances=tolerances or Tolerances()
        )
        self._reports = Reports(store, clock)
        self._senders = Senders(
            store,
            clock,
            sessions=self._sessions,
            loads=self.loads,
            hosts=self.hosts,
            manager_addresses=manager_addresses,
        )

    # What others ask ------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """How many nodes have one open here."""
        return len(self._sessions)

    def is_connected(self, node_id: NodeId) -> bool:
        """Whether the node has an open session here."""
        return node_id in self._sessions

    def holders_of(self, image: str) -> list[Node]:
        """Live nodes whose agents said they have ``image`` (a reference or a digest)."""
        nodes = (self._store.nodes.get(node_id) for node_id in sorted(self.images.named(image)))
        return [node for node in nodes if node is not None and node.id in self._sessions]

    # Loops ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        self._leases.begin()
        self._is_running = True
        try:
            async with TaskGroup() as group:
                group.create_task(self._watch_changes())
                group.create_task(self._reports.run())
                group.create_task(self._leases.run())
                group.create_task(self._senders.watch_withdrawals())
                group.create_task(self._senders.watch_looks())
        finally:
            self._is_running = False
            for session in list(self._sessions.values()):
                with contextlib.suppress(Exception):
                    await session.channel.close("this manager is stopping")

    async def _watch_changes(self) -> None:
        subscription = self._store.subscribe(
            Kind.TASK,
            Kind.SERVICE,
            Kind.NODE,
            Kind.NETWORK,
            Kind.SECRET,
            Kind.CONFIG,
            Kind.LOGIN,
            Kind.AUTHORITY,
            Kind.GUEST,
            Kind.USER,
        )
        self._senders.trust_changed()
        try:
            while True:
                changes = await subscription.wait()
                self.hosts.follow(changes)
                audience = Audience(everyone=changes.resync)
                for service_id in self.loads.follow(changes):
                    audience.nodes.update(
                        task.node_id for task in self._store.tasks.by_service(service_id) if task.node_id
                    )
                if changes.resync or any(_concerns_trust(change) for change in changes):
                    self._senders.trust_changed()
                    await self._end_removed()
                    audience.everyone = True
                for change in changes:
                    audience_of(change, self._store, audience)
                self._senders.wake(audience)
        finally:
            subscription.close()

    async def _end_removed(self) -> None:
        for node_id in list(self._sessions):
            node = self._store.nodes.get(node_id)
            if node is None or node.removed:
                log.info("session ended: its node was removed", node=node_id)
                await self.disconnect(node_id, "this node was removed from the cluster")

    # One session ----------------------------------------------------------------------------------------------

    async def serve(self, channel: Channel, node_id: NodeId) -> None:
        """The life of one session; returns when it ends. ``node_id`` is from the peer's certificate.

        Raises ``ForbiddenError`` for a node that is not (any more) a member, ``UserError`` for a peer that does not keep
        to the protocol. A newer session of the same node ends the older one.
        """
        node = self._store.nodes.get(node_id)
        if node is None or node.removed:
            raise errors.ForbiddenError(
                f"node {node_id} is not a member of this cluster; it was removed or never joined"
            )
        hello = dispatch.decode_agent(await channel.receive())
        if not isinstance(hello, dispatch.Hello):
            raise errors.UserError(f"session of node {node_id}: expected Hello first, got {type(hello).__name__}")
        if not self._is_running:  # the term ended before the agent spoke
            raise errors.UnavailableError("this manager leads no more")
        session = Session(
            id=self._new_session_id(),
            node_id=node_id,
            channel=channel,
            last_heard=self._clock.monotonic(),
            period_s=self._leases.beat_period_s,
        )
        older = self._sessions.pop(node_id, None)
        self._sessions[node_id] = session
        self._leases.forget(node_id)
        self.images.set(node_id, hello.images)
        if older is not None:
            await older.channel.close("replaced by a newer session of this node")
        await self._states.register(node_id, hello)
        await channel.send(
            dispatch.encode(
                dispatch.Welcome(
                    session_id=session.id,
                    node_id=node_id,
                    beat_period_s=session.period_s,
                    managers=self._manager_addresses(),
                )
            )
        )
        log.info("session opened", node=node_id, session=session.id, address=hello.address)
        session.dirty.set()
        try:
            async with TaskGroup() as group:
                group.create_task(self._senders.send(session))
                group.create_task(self._receive(session))
        except* ChannelClosed as closed:
            log.info("session closed", node=node_id, session=session.id, cause=str(closed.exceptions[0]))
        except* errors.FleetError as failed:
            log.warning("session ended", node=node_id, session=session.id, cause=str(failed.exceptions[0]))
            await channel.close(str(failed.exceptions[0]))
        finally:
            self._senders.ended(session)
            if self._sessions.get(node_id) is session:
                del self._sessions[node_id]
                self._leases.session_closed(node_id)

    async def _receive(self, session: Session) -> None:
        while True:
            frame = await session.channel.receive()
            if self._sessions.get(session.node_id) is not session:
                raise ChannelClosed("this session was ended")
            session.last_heard = self._clock.monotonic()
            message = dispatch.decode_agent(frame)
            match message:
                case dispatch.Beat():
                    self._figures.beats.inc()
                    if session.last_heard - session.last_reply >= _REPLY_AFTER * session.period_s:
                        session.last_reply, session.period_s = session.last_heard, self._leases.beat_period_s
                        await session.channel.send(dispatch.encode(dispatch.BeatReply(beat_period_s=session.period_s)))
                case dispatch.Report():
                    self._figures.reports.inc(by=len(message.tasks))
                    await self._reports.take(session, message)
                case dispatch.Applied():
                    self._senders.confirmed(session, message.number)
                case dispatch.Usage():
                    self.loads.note(session.node_id, message)
                    self.hosts.note(session.node_id, message)
                case dispatch.Describe():
                    self.images.set(session.node_id, message.images)
                    await self._states.describe(session.node_id, message.description)
                case dispatch.Hello():
                    raise errors.UserError(f"session of node {session.node_id}: a second Hello")
            node = self._store.nodes.get(session.node_id)
            if node is not None and node.status.state is not NodeState.READY:
                await self._states.set_state(session.node_id, NodeState.READY, "")

    async def disconnect(self, node_id: NodeId, reason: str) -> None:
        """End a node's session, if it has one (it was removed, or left)."""
        session = self._sessions.pop(node_id, None)
        self._leases.forget(node_id)
        if session is not None:
            await session.channel.close(reason)


def _concerns_trust(change: Change) -> bool:
    """Of nodes: whether they are members, and whether and where they manage; one that joins as a worker changes nothing. Of
    users: that they are.
    """
    if change.kind is Kind.AUTHORITY:
        return True
    if change.kind is Kind.USER:
        return change.old is None or change.new is None
    if change.kind is not Kind.NODE:
        return False
    old, new = change.old, change.new
    if not isinstance(new, Node):
        return True
    was = (old.removed, old.manager_status) if isinstance(old, Node) else (False, None)
    return was != (new.removed, new.manager_status)
