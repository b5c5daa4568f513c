"""What each session is told: the root that it is to trust, the figures that it is asked for, and its node's assignments.

A change of the tables wakes the senders of the sessions that it concerns (``audience``), which compute their nodes' sets once
more and send the difference. Senders coalesce: while one computes and sends, further changes only leave it marked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import msgspec

from fleet.api import dispatch
from fleet.clock import Clock
from fleet.logs import about_requests, get_logger
from fleet.manager.assignments import Assembler, difference
from fleet.manager.audience import Audience
from fleet.manager.host_loads import HostLoads
from fleet.manager.managers import certified_role
from fleet.manager.root_rotation import trust_of
from fleet.manager.sessions import ChannelClosed, Session, Sessions
from fleet.manager.usage import TaskLoads
from fleet.manager.withdrawals import LINGER_S, Withdrawals
from fleet.model.ids import NodeId
from fleet.model.task import TaskState
from fleet.store import Store

__all__ = ["Senders"]

log = get_logger("dispatcher")

_TOLD_MAX: Final = 16

_COALESCE_S: Final = 0.005
"""How long a sender lets changes gather; a burst of 100 tasks then leaves in a few frames."""


class Senders:
    """Over the dispatcher's ``sessions``. ``send`` is one session's sender; ``watch_withdrawals`` and ``watch_looks`` are theirs
    together.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        sessions: Sessions,
        loads: TaskLoads,
        hosts: HostLoads,
        manager_addresses: Callable[[], tuple[str, ...]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._sessions = sessions
        self._loads = loads
        self._hosts = hosts
        self._manager_addresses = manager_addresses
        self._trust: dispatch.Trust | None = None
        self._withdrawals = Withdrawals(clock)
        self._assembler: Assembler | None = None
        self._on_network: dict[str, set[NodeId]] = {}
        """Nodes whose sets have the network."""

    async def send(self, session: Session) -> None:
        """Until cancelled, or ``ChannelClosed`` is raised: what the session lacks, as often as it is woken."""
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
            _tell_assigned(session.node_id, message)
            session.sequence = message.results_in
            session.sent = wanted
            await session.channel.send(dispatch.encode(message))

    def wake(self, audience: Audience) -> None:
        """The senders of those whom a change concerns."""
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

    def trust_changed(self) -> None:
        """Look again at what nodes are to trust; ``wake`` them afterwards."""
        self._trust = self._common_trust()

    def confirmed(self, session: Session, number: int) -> None:
        """The session's host leads nobody any more to what was gone from set ``number``."""
        self._withdrawals.confirmed(session.id, number)

    def ended(self, session: Session) -> None:
        """It is told nothing any more. Networks that a newer session of its node has wake that one as before."""
        self._withdrawals.ended(session.id)
        present = self._sessions.get(session.node_id, session)
        self._leave_networks(session, session.networks - (present.networks if present is not session else frozenset()))

    async def watch_withdrawals(self) -> None:
        """Until cancelled: wake the nodes that can have the stop of a task now."""
        while True:
            await self._withdrawals.held.wait()
            await self._clock.sleep(LINGER_S / 4)
            for node_id in self._withdrawals.due():
                if (session := self._sessions.get(node_id)) is not None:
                    session.dirty.set()

    async def watch_looks(self) -> None:
        """Until cancelled: ask all nodes anew whenever somebody begins to look at what tasks use, or nobody does any more."""
        while True:
            await self._loads.watch_turned()
            for session in list(self._sessions.values()):
                if session.sent is not None:
                    with contextlib.suppress(ChannelClosed):
                        await self._measure(session, session.sent)

    async def _measure(self, session: Session, items: dict[str, dispatch.Item]) -> None:
        """Ask the node for figures, if that is something else than before."""
        asked = self._loads.wanted(i.task.service_id for i in items.values() if isinstance(i, dispatch.TaskItem))
        period_s = self._hosts.period_s(len(self._sessions))
        if not asked.is_nothing:
            period_s = min(asked.period_s, period_s)
        measure = msgspec.structs.replace(asked, host=True, period_s=period_s)
        if measure != session.measure:
            session.measure = measure
            await session.channel.send(dispatch.encode(measure))

    def _common_trust(self) -> dispatch.Trust | None:
        """What is the same for every node; made once a change, since it looks at all of them."""
        trust = trust_of(self._store)
        return trust and msgspec.structs.replace(trust, managers=self._manager_addresses())

    def _trust_for(self, node_id: NodeId) -> dispatch.Trust | None:
        trust, node = self._trust or self._common_trust(), self._store.nodes.get(node_id)
        if trust is None or node is None:
            return None
        return msgspec.structs.replace(trust, role=certified_role(node))

    def _all_sent(self) -> dict[str, dict[str, dispatch.Item]]:
        return {session.id: session.sent for session in self._sessions.values() if session.sent is not None}

    def _items_for(self, session: Session) -> dict[str, dispatch.Item]:
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

    def _leave_networks(self, session: Session, networks: frozenset[str]) -> None:
        for network_id in networks:
            nodes = self._on_network.get(network_id, set())
            nodes.discard(session.node_id)
            if not nodes:
                self._on_network.pop(network_id, None)


def _tell_assigned(node_id: NodeId, message: dispatch.Assign) -> None:
    """Of tasks that their node has not taken up yet."""
    tasks = [item.task for item in message.items if isinstance(item, dispatch.TaskItem)]
    new = [task for task in tasks if task.status.state is TaskState.ASSIGNED]
    if new:
        requests = about_requests(task.request for task in new)
        log.info("assigned", node=node_id, tasks=[task.id for task in new[:_TOLD_MAX]], count=len(new), **requests)
