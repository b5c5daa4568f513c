"""Sessions with agents: assignments down, task status up, and who is alive.

Three loops share the sessions:

* *changes*: a change of the tables wakes the senders of the sessions that it concerns (``audience``), which compute their nodes'
  sets once more and send the difference. Senders coalesce: while one computes and sends, further changes only leave it marked.
* *reports*: statuses of all sessions are collected and written in few, large transactions; a report is acknowledged after
  its transaction is durable.
* *leases*: a silent node becomes *disconnected* after ``suspect_after`` (its endpoints leave names and balancing at once) and
  *down* after ``down_after`` (its tasks are replaced). When the connection was closed by the node's own kernel the host is
  alive and only its daemon is gone: then ``daemon_grace_s`` holds, so restarting or upgrading fleetd moves no task. After a
  start of this manager, ``startup_grace_s`` lets nodes come back before any is called down.

Beats cost more than all else of a quiet cluster. So the heartbeat period grows with the nodes (``nodes_a_second``): five thousand
are asked for one in five seconds, and a silent one is *down* after fifteen.

A stall of this process looks like silence of all nodes; the lease loop measures its own lateness and grants it to everyone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from fleet import errors
from fleet.api import dispatch
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.logs import about_requests, get_logger
from fleet.manager.assignments import Assembler, difference
from fleet.manager.audience import Audience, audience_of
from fleet.manager.figures import ManagerFigures
from fleet.manager.held_images import HeldImages
from fleet.manager.host_loads import HostLoads
from fleet.manager.managers import certified_role, change_node
from fleet.manager.root_rotation import trust_of
from fleet.manager.tunnel_keys import with_own_key
from fleet.manager.usage import TaskLoads
from fleet.manager.withdrawals import LINGER_S, Withdrawals
from fleet.model.common import SECOND_NS
from fleet.model.ids import NodeId, TaskId
from fleet.model.node import Node, NodeDescription, NodeState, NodeStatus
from fleet.model.task import Task, TaskState, TaskStatus, later
from fleet.store import Change, Kind, Store, Transaction

__all__ = ["Channel", "ChannelClosed", "Dispatcher", "Tolerances"]

log = get_logger("dispatcher")

_TOLD_MAX: Final = 16

_COALESCE_S: Final = 0.005
"""How long a sender lets changes gather; a burst of 100 tasks then leaves in a few frames."""
_REPORTS_MAX: Final = 10_000
_REPLY_AFTER: Final = 0.9
"""Of a period: agents beat more often, and one answer a period tells them that the manager lives."""
_COMMIT_TRIES: Final = 8


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


@dataclass(slots=True, eq=False)
class _Session:
    id: str
    node_id: NodeId
    channel: Channel
    last_heard: float
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


@dataclass(slots=True)
class _Silence:
    """A node without a session: since when, and how long that is tolerated."""

    since: float
    tolerance_s: float


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
        self._tolerances = tolerances or Tolerances()
        self._sessions: dict[NodeId, _Session] = {}
        self._is_running = False
        self._silent: dict[NodeId, _Silence] = {}
        self.images = HeldImages()
        """What agents said that they have."""
        self.loads = TaskLoads(store, clock)
        """What they said that tasks use."""
        self.hosts = HostLoads(store, clock)
        """And their hosts."""
        self._trust: dispatch.Trust | None = None
        self._reports: list[tuple[_Session, dispatch.Report]] = []
        self._reports_ready = asyncio.Event()
        self._reports_room = asyncio.Event()
        self._reports_room.set()
        self._withdrawals = Withdrawals(clock)
        self._assembler: Assembler | None = None
        self._on_network: dict[str, set[NodeId]] = {}
        """Nodes whose sets have the network."""

    # What others ask ------------------------------------------------------------------------------------------

    @property
    def beat_period_s(self) -> float:
        """The cluster's heartbeat period in seconds, longer if there are many nodes."""
        least_s = len(self._sessions) / self._tolerances.nodes_a_second
        for cluster in self._store.clusters.all():
            if cluster.spec.dispatcher.heartbeat_period_ns > 0:
                return max(cluster.spec.dispatcher.heartbeat_period_ns / SECOND_NS, least_s)
        return max(1.0, least_s)

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
        now = self._clock.monotonic()
        for node in self._store.nodes.all():
            if not node.removed and node.status.state is not NodeState.DOWN:
                self._silent[node.id] = _Silence(since=now, tolerance_s=self._tolerances.startup_grace_s)
        self._is_running = True
        try:
            async with TaskGroup() as group:
                group.create_task(self._watch_changes())
                group.create_task(self._write_reports())
                group.create_task(self._watch_leases())
                group.create_task(self._watch_withdrawals())
                group.create_task(self._watch_looks())
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
        self._trust = self._common_trust()
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
                    self._trust = self._common_trust()
                    await self._end_removed()
                    audience.everyone = True
                for change in changes:
                    audience_of(change, self._store, audience)
                self._wake(audience)
        finally:
            subscription.close()

    def _wake(self, audience: Audience) -> None:
        if audience.everyone:
            for session in self._sessions.values():
                session.dirty.set()
            return
        nodes = audience.nodes
        for network_id in audience.networks:
            nodes |= self._on_network.get(network_id, set())
        for node_id in nodes:
            if (found := self._sessions.get(node_id)) is not None:
                found.dirty.set()
        if audience.items:
            for session in self._sessions.values():
                if session.sent is not None and not audience.items.isdisjoint(session.sent):
                    session.dirty.set()

    def _common_trust(self) -> dispatch.Trust | None:
        """What is the same for every node; made once a change, since it looks at all of them."""
        trust = trust_of(self._store)
        return trust and msgspec.structs.replace(trust, managers=self._manager_addresses())

    def _trust_for(self, node_id: NodeId) -> dispatch.Trust | None:
        trust, node = self._trust or self._common_trust(), self._store.nodes.get(node_id)
        if trust is None or node is None:
            return None
        return msgspec.structs.replace(trust, role=certified_role(node))

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
        session = _Session(
            id=self._new_session_id(),
            node_id=node_id,
            channel=channel,
            last_heard=self._clock.monotonic(),
            period_s=self.beat_period_s,
        )
        older = self._sessions.pop(node_id, None)
        self._sessions[node_id] = session
        self._silent.pop(node_id, None)
        self.images.set(node_id, hello.images)
        if older is not None:
            await older.channel.close("replaced by a newer session of this node")
        await self._register(node_id, hello)
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
                group.create_task(self._send_assignments(session))
                group.create_task(self._receive(session))
        except* ChannelClosed as closed:
            log.info("session closed", node=node_id, session=session.id, cause=str(closed.exceptions[0]))
        except* errors.FleetError as failed:
            log.warning("session ended", node=node_id, session=session.id, cause=str(failed.exceptions[0]))
            await channel.close(str(failed.exceptions[0]))
        finally:
            self._withdrawals.ended(session.id)
            present = self._sessions.get(node_id, session)
            self._leave_networks(
                session, session.networks - (present.networks if present is not session else frozenset())
            )
            if self._sessions.get(node_id) is session:
                del self._sessions[node_id]
                self._silent[node_id] = _Silence(
                    since=self._clock.monotonic(), tolerance_s=self._tolerances.daemon_grace_s
                )

    async def _register(self, node_id: NodeId, hello: dispatch.Hello) -> None:
        description = with_own_key(self._store, node_id, hello.description)

        def registered(node: Node) -> Node:
            return msgspec.structs.replace(
                node,
                description=description,
                status=NodeStatus(state=NodeState.READY, addr=hello.address),
                cluster_addr=f"{hello.address}:{hello.cluster_port}",
                down_since=None,
            )

        await self._change_node(node_id, registered)

    async def _redescribe(self, node_id: NodeId, description: NodeDescription) -> None:
        description = with_own_key(self._store, node_id, description)

        def described(node: Node) -> Node:
            return msgspec.structs.replace(node, description=description)

        await self._change_node(node_id, described)

    async def _change_node(self, node_id: NodeId, change: Callable[[Node], Node]) -> None:
        before = await change_node(self._store, self._clock, node_id, change)
        if before is None:
            return
        after = change(before)
        if after.status.state is not before.status.state:
            self._figures.node_states.inc(after.status.state.value)
            log.info(
                "node changed",
                node=node_id,
                hostname=after.description.hostname,
                state=f"{before.status.state} -> {after.status.state}",
                cause=after.status.message,
            )

    async def _receive(self, session: _Session) -> None:
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
                        session.last_reply, session.period_s = session.last_heard, self.beat_period_s
                        await session.channel.send(dispatch.encode(dispatch.BeatReply(beat_period_s=session.period_s)))
                case dispatch.Report():
                    self._figures.reports.inc(by=len(message.tasks))
                    await self._reports_room.wait()
                    self._reports.append((session, message))
                    self._reports_ready.set()
                    if len(self._reports) >= _REPORTS_MAX:
                        self._reports_room.clear()
                case dispatch.Applied():
                    self._withdrawals.confirmed(session.id, message.number)
                case dispatch.Usage():
                    self.loads.note(session.node_id, message)
                    self.hosts.note(session.node_id, message)
                case dispatch.Describe():
                    self.images.set(session.node_id, message.images)
                    await self._redescribe(session.node_id, message.description)
                case dispatch.Hello():
                    raise errors.UserError(f"session of node {session.node_id}: a second Hello")
            node = self._store.nodes.get(session.node_id)
            if node is not None and node.status.state is not NodeState.READY:
                await self._set_state(session.node_id, NodeState.READY, "")

    async def _send_assignments(self, session: _Session) -> None:
        while True:
            await session.dirty.wait()
            await self._clock.sleep(_COALESCE_S)
            session.dirty.clear()
            trust = self._trust_for(session.node_id)
            if trust is not None and trust != session.trust:
                session.trust = trust
                await session.channel.send(dispatch.encode(trust))
            wanted = self._items_for(session)
            await self._measure(session, wanted)
            message: dispatch.Assign | None
            if session.sent is None:
                message = dispatch.Assign(complete=True, results_in=session.sequence + 1, items=tuple(wanted.values()))
            else:
                sent = session.sent
                self._withdrawals.hold_back(sent=sent, wanted=wanted, all_sent=self._all_sent)
                message = difference(session.sent, wanted, applies_to=session.sequence)
                if message is not None:
                    message = self._withdrawals.about_to_send(session.id, message, sent=session.sent)
            if message is None:
                continue
            self._tell_assigned(session.node_id, message)
            session.sequence = message.results_in
            session.sent = wanted
            await session.channel.send(dispatch.encode(message))

    async def _measure(self, session: _Session, items: dict[str, dispatch.Item]) -> None:
        """Ask the node for figures, if that is something else than before."""
        asked = self.loads.wanted(i.task.service_id for i in items.values() if isinstance(i, dispatch.TaskItem))
        period_s = self.hosts.period_s(len(self._sessions))
        if not asked.is_nothing:
            period_s = min(asked.period_s, period_s)
        measure = msgspec.structs.replace(asked, host=True, period_s=period_s)
        if measure != session.measure:
            session.measure = measure
            await session.channel.send(dispatch.encode(measure))

    async def _watch_looks(self) -> None:
        while True:
            await self.loads.watch_turned()
            for session in list(self._sessions.values()):
                if session.sent is not None:
                    with contextlib.suppress(ChannelClosed):
                        await self._measure(session, session.sent)

    @staticmethod
    def _tell_assigned(node_id: NodeId, message: dispatch.Assign) -> None:
        """Of tasks that their node has not taken up yet."""
        tasks = [item.task for item in message.items if isinstance(item, dispatch.TaskItem)]
        new = [task for task in tasks if task.status.state is TaskState.ASSIGNED]
        if new:
            requests = about_requests(task.request for task in new)
            log.info("assigned", node=node_id, tasks=[task.id for task in new[:_TOLD_MAX]], count=len(new), **requests)

    async def _watch_withdrawals(self) -> None:
        while True:
            await self._withdrawals.held.wait()
            await self._clock.sleep(LINGER_S / 4)
            for node_id in self._withdrawals.due():
                if (session := self._sessions.get(node_id)) is not None:
                    session.dirty.set()

    def _all_sent(self) -> dict[str, dict[str, dispatch.Item]]:
        return {session.id: session.sent for session in self._sessions.values() if session.sent is not None}

    def _items_for(self, session: _Session) -> dict[str, dispatch.Item]:
        """The node's set, and which networks have to wake it from now on."""
        if self._assembler is None:
            port = next((cluster.data_path_port for cluster in self._store.clusters.all()), 4789)
            self._assembler = Assembler(self._store, vxlan_port=port)
        wanted, networks = self._assembler.set_for(session.node_id)
        if networks != session.networks and self._sessions.get(session.node_id) is session:
            self._leave_networks(session, session.networks - networks)
            for network_id in networks:
                self._on_network.setdefault(network_id, set()).add(session.node_id)
            session.networks = networks
        return wanted

    def _leave_networks(self, session: _Session, networks: frozenset[str]) -> None:
        for network_id in networks:
            nodes = self._on_network.get(network_id, set())
            nodes.discard(session.node_id)
            if not nodes:
                self._on_network.pop(network_id, None)

    # Reports --------------------------------------------------------------------------------------------------

    async def _write_reports(self) -> None:
        while True:
            await self._reports_ready.wait()
            self._reports_ready.clear()
            batch, self._reports = self._reports, []
            self._reports_room.set()
            newest: dict[TaskId, tuple[NodeId, TaskStatus]] = {}
            for session, report in batch:
                for item in report.tasks:
                    known = newest.get(item.task_id)
                    if known is None or later(known[1].state, item.status.state) is item.status.state:
                        newest[item.task_id] = (session.node_id, item.status)
            try:
                await self._commit_statuses(newest)
            except errors.UnavailableError as cause:
                # Unacknowledged, so every agent says it again after it has reconnected.
                log.warning("task statuses not written", tasks=len(newest), cause=str(cause))
                for session, _ in batch:
                    await session.channel.close("the manager could not store the report")
                continue
            for session, report in batch:
                with contextlib.suppress(ChannelClosed):
                    await session.channel.send(dispatch.encode(dispatch.Reported(number=report.number)))

    async def _commit_statuses(self, newest: dict[TaskId, tuple[NodeId, TaskStatus]]) -> None:
        for _ in range(_COMMIT_TRIES):
            changed = {
                task_id: task
                for task_id, (node_id, status) in newest.items()
                if (task := self._with_status(task_id, node_id, status)) is not None
            }
            if not changed:
                return
            results = await self._store.commit_all(Transaction().replace(task) for task in changed.values())
            again: dict[TaskId, tuple[NodeId, TaskStatus]] = {}
            for task_id, result in zip(changed, results, strict=True):
                if isinstance(result, errors.ConflictError):
                    again[task_id] = newest[task_id]
                elif isinstance(result, errors.FleetError) and not isinstance(result, errors.NotFoundError):
                    raise result
            newest = again
        raise errors.UnavailableError(f"{len(newest)} tasks kept changing while their status was written")

    def _with_status(self, task_id: TaskId, node_id: NodeId, status: TaskStatus) -> Task | None:
        task = self._store.tasks.get(task_id)
        if task is None or task.node_id != node_id:
            return None
        old = task.status
        if status.state.rank < old.state.rank or old.state is TaskState.ORPHANED:
            return None
        now = self._clock.now()
        new = msgspec.structs.replace(
            status, applied_by=old.applied_by, applied_at=old.applied_at, running_since=old.running_since
        )
        if new == old:
            return None
        running_since = old.running_since or (now if status.state is TaskState.RUNNING else None)
        new = msgspec.structs.replace(new, applied_by=node_id, applied_at=now, running_since=running_since)
        return msgspec.structs.replace(task, status=new, updated_at=now)

    # Leases ---------------------------------------------------------------------------------------------------

    async def _watch_leases(self) -> None:
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
                    await self._set_state(session.node_id, NodeState.DISCONNECTED, f"silent for {silence:.1f} s")
            for node_id, gone in list(self._silent.items()):
                silence = now - gone.since
                if silence > gone.tolerance_s:
                    self._silent.pop(node_id, None)
                    await self._set_state(node_id, NodeState.DOWN, f"no session for {silence:.1f} s")
                elif silence > self._tolerances.daemon_suspect_s:
                    await self._set_state(node_id, NodeState.DISCONNECTED, "its daemon closed the session")

    def _grant(self, lateness_s: float) -> None:
        for session in self._sessions.values():
            session.last_heard += lateness_s
        for gone in self._silent.values():
            gone.since += lateness_s

    async def _give_up(self, session: _Session, silence_s: float) -> None:
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]
        try:
            await self._set_state(session.node_id, NodeState.DOWN, f"heartbeat failure: silent for {silence_s:.1f} s")
        finally:  # written or not: nobody looks after this session any more
            with contextlib.suppress(ChannelClosed):
                await session.channel.close("no heartbeat")

    async def _set_state(self, node_id: NodeId, state: NodeState, message: str) -> None:
        now = self._clock.now()

        def changed(node: Node) -> Node:
            if node.status.state is state:
                return node
            if state is NodeState.DISCONNECTED and node.status.state is not NodeState.READY:
                return node
            return msgspec.structs.replace(
                node,
                status=msgspec.structs.replace(node.status, state=state, message=message),
                down_since=now if state is NodeState.DOWN else None,
            )

        await self._change_node(node_id, changed)

    async def disconnect(self, node_id: NodeId, reason: str) -> None:
        """End a node's session, if it has one (it was removed, or left)."""
        session = self._sessions.pop(node_id, None)
        self._silent.pop(node_id, None)
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
