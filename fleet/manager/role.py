"""The manager role of one host: what every manager does, and what only the one that leads does.

Every manager has the whole state in its tables, answers reads from them and writes by itself. The leader also runs the loops
and the dispatcher, for as long as its term lasts. Loops do not call each other; each looks at the store and changes it. A
loop that fails with an error of the tree is logged and started again after a pause, because it begins by looking at
everything; an ``InvariantError`` or a failed state engine ends the role, and with it the daemon, which its supervisor starts
anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from fleet import errors
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.identity.keys import NodeIdentity
from fleet.logs import get_logger
from fleet.manager.admission import Admission
from fleet.manager.allocator import Allocator
from fleet.manager.control import ControlApi
from fleet.manager.dispatcher import Dispatcher
from fleet.manager.external_ca import ExternalAuthority
from fleet.manager.figures import ManagerFigures
from fleet.manager.guests import Guests
from fleet.manager.leadership import Leader, Leadership, is_refused
from fleet.manager.leases import Tolerances
from fleet.manager.loops import (
    ManagersLoop,
    OrchestratorLoop,
    ReaperLoop,
    RebalanceLoop,
    RotationLoop,
    SchedulerLoop,
    SealingLoop,
)
from fleet.manager.loops.autoscale import AutoscaleLoop
from fleet.manager.loops.schedule import ScheduleLoop
from fleet.manager.majority import Majority
from fleet.manager.managers import MANAGERS_MAX, manager_addresses
from fleet.manager.secret_drivers import SecretDrivers
from fleet.manager.signing import Signing
from fleet.model.ids import ID_ENTROPY_BYTES, NodeId, ServiceId, encode_id
from fleet.model.node import Node, NodeRole
from fleet.orchestrator.autoscale import Decision
from fleet.store import EngineFailedError, Store
from fleet.store.engine import Engine

__all__ = ["ManagerRole", "NotLeadingError", "new_id"]

log = get_logger("manager")

_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 5.0


class NotLeadingError(errors.UnavailableError):
    """Another manager leads, or none at the moment; ``leader`` is its cluster address or empty."""

    def __init__(self, leader: Leader | None) -> None:
        who = f"node {leader.node_id} at {leader.address} does" if leader else "no manager does at the moment"
        super().__init__(f"this manager does not lead, {who}", retry_after_s=1.0)
        self.leader = leader.address if leader else ""


def new_id(entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A fresh identifier, from the kernel's randomness unless told."""
    return encode_id(entropy(ID_ENTROPY_BYTES))


class ManagerRole:
    """Built on an open store; ``run`` until cancelled. ``suspects_leader``: whether this host's own session is broken;
    ``release``: frees the state engine of a node that is to manage no more; ``probe``: as for ``Leadership``; ``entropy(n)``:
    n random bytes; ``identity``: this node's, shown to an external certificate authority."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        clock: Clock,
        *,
        node_id: NodeId,
        cluster_addr: str,
        has_external_store: bool,
        suspects_leader: Callable[[], bool] = lambda: False,
        release: Callable[[Node], Awaitable[None]] | None = None,
        tolerances: Tolerances | None = None,
        probe: Callable[[str], Awaitable[bool]] = is_refused,
        entropy: Callable[[int], bytes] = os.urandom,
        identity: Callable[[], NodeIdentity | None] = lambda: None,
    ) -> None:
        self.store = store
        self.node_id = node_id
        self._address = cluster_addr
        self._clock = clock
        self._tolerances = tolerances
        self._release = release
        self._entropy = entropy
        self._dispatcher: Dispatcher | None = None
        self._autoscale: AutoscaleLoop | None = None
        self.leadership = Leadership(
            engine,
            store,
            clock,
            node_id=node_id,
            address=cluster_addr,
            suspects=suspects_leader,
            is_eligible=self._is_eligible,
            probe=probe,
        )
        self.majority = Majority(engine, clock)
        self.figures = ManagerFigures()
        signing = Signing(clock, ExternalAuthority(clock, identity=identity))
        self.admission = Admission(
            store,
            clock,
            self._new_id,
            signing=signing,
            managers=self.addresses,
            has_external_store=has_external_store,
        )
        self.guests = Guests(store, clock, entropy)
        self.secret_drivers = SecretDrivers(store)
        self.control = ControlApi(
            store,
            clock,
            entropy,
            rotate_token=self.admission.rotate_token,
            signing=signing,
            managers_max=MANAGERS_MAX,
            holders=self._holders,
            scaling=self._scaling,
        )

    def _new_id(self) -> str:
        return new_id(self._entropy)

    def _holders(self, image: str) -> frozenset[NodeId]:
        """None where another manager leads: agents tell it."""
        return self._dispatcher.images.holders(image) if self._dispatcher is not None else frozenset()

    def _scaling(self, service_id: ServiceId) -> Decision | None:
        """The last one; None where another manager leads."""
        return self._autoscale.last(service_id) if self._autoscale is not None else None

    def _is_eligible(self) -> bool:
        node = self.store.nodes.get(self.node_id)
        return node is None or (node.spec.role is NodeRole.MANAGER and not node.removed)

    @property
    def dispatcher(self) -> Dispatcher:
        """The sessions. Raises ``NotLeadingError`` where another manager has them."""
        if self._dispatcher is None:
            raise NotLeadingError(self.leadership.leader)
        return self._dispatcher

    def addresses(self) -> tuple[str, ...]:
        """Cluster addresses of all managers, the leader's first."""
        return manager_addresses(self.store, self.leadership.leader)

    async def run(self) -> None:
        """Until cancelled. Raises what ended the role."""
        async with TaskGroup() as group:
            group.create_task(self._keep("registration", self._register), name="registration")
            group.create_task(self.leadership.run(self._lead), name="leadership")
            group.create_task(self.majority.run(), name="majority")
            failed: BaseException = await self.store.failed()
            raise failed

    async def _register(self) -> None:
        await self.admission.register(self.node_id, self._address)
        await asyncio.get_running_loop().create_future()  # done, for as long as this role lasts

    async def _lead(self) -> None:
        """One term: everything that only one manager may do."""
        store, clock = self.store, self._clock
        dispatcher = Dispatcher(
            store,
            clock,
            new_session_id=self._new_id,
            manager_addresses=self.addresses,
            tolerances=self._tolerances,
            figures=self.figures,
        )
        autoscale = AutoscaleLoop(store, clock, loads=dispatcher.loads, figures=self.figures)
        loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "dispatcher": dispatcher.run,
            "allocator": Allocator(store, clock).run,
            "orchestrator": OrchestratorLoop(store, clock, self._entropy).run,
            "scheduler": SchedulerLoop(
                store,
                clock,
                is_connected=dispatcher.is_connected,
                holders=dispatcher.images.holders,
                figures=self.figures,
            ).run,
            "reaper": ReaperLoop(store, clock).run,
            "rebalancer": RebalanceLoop(store, clock).run,
            "schedules": ScheduleLoop(store, clock).run,
            "autoscale": autoscale.run,
            "root rotation": RotationLoop(store, clock).run,
            "sealing key": SealingLoop(store, clock).run,
            "managers": ManagersLoop(
                store, clock, node_id=self.node_id, release=self._release, step_down=self.leadership.step_down
            ).run,
        }
        self._dispatcher, self._autoscale = dispatcher, autoscale
        try:
            async with TaskGroup() as group:
                for name, loop in loops.items():
                    group.create_task(self._keep(name, loop), name=name)
        finally:
            self._dispatcher = self._autoscale = None

    async def _keep(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause_s = _RETRY_FIRST_S
        while True:
            began = self._clock.monotonic()
            try:
                await loop()
            except (errors.FleetError, BaseExceptionGroup) as cause:
                first = _first(cause)
                if isinstance(first, EngineFailedError | errors.InvariantError) or not isinstance(
                    first, errors.FleetError
                ):
                    raise first from cause
                log.warning("loop failed; starting it again", loop=name, cause=str(first))
            if self._clock.monotonic() - began > 60:
                pause_s = _RETRY_FIRST_S
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)


def _first(cause: BaseException) -> BaseException:
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
