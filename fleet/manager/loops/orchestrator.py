"""The orchestrator's loop: services that something happened to are planned, until nothing is left to do for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from fleet import errors, traces
from fleet.clock import Clock
from fleet.logs import about_requests, get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.loops.writing import transactions_of, write_all
from fleet.manager.matching import satisfies_constraints
from fleet.model.ids import ID_ENTROPY_BYTES, NodeId, ServiceId, TaskId, encode_id
from fleet.model.node import Node
from fleet.model.service import Service
from fleet.model.task import Task, TaskState
from fleet.orchestrator.check_plan import check_plan
from fleet.orchestrator.plan import Plan
from fleet.orchestrator.service import plan_service
from fleet.orchestrator.view import ServiceView
from fleet.store import Change, Changes, Kind, Store, Transaction

__all__ = ["OrchestratorLoop"]

log = get_logger("orchestrator")

_ROUNDS_MAX: Final = 100
"""Plans of one burst. A service converges in a few; more means that others keep changing it, so let them."""


class OrchestratorLoop:
    """One a leader. ``entropy(n)`` gives n random bytes, for ids."""

    def __init__(self, store: Store, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._due: dict[ServiceId, datetime] = {}
        """When a service is to be planned again though nothing happens; only services that exist."""

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.SERVICE, Kind.TASK, Kind.NODE) as subscription:
            dirty = self._everything()
            while True:
                await self._settle(dirty)
                changes = await changes_until(subscription, self._clock, min(self._due.values(), default=None))
                now = self._clock.now()
                dirty = self._affected(changes)
                dirty.update(service_id for service_id, due in self._due.items() if due <= now)

    async def _settle(self, dirty: set[ServiceId]) -> None:
        for _ in range(_ROUNDS_MAX):
            if not dirty:
                return
            transactions: list[Transaction] = []
            unsettled: set[ServiceId] = set()
            nodes = {node.id: node for node in self._store.nodes.all()}
            for service_id in sorted(dirty):
                planned = self._plan(service_id, nodes)
                if planned:
                    transactions += planned
                    unsettled.add(service_id)
                await asyncio.sleep(0)
            dirty = unsettled
            refused = await write_all(self._store, transactions) if transactions else 0
            if refused:
                log.debug("planning again, tasks changed meanwhile", refused=refused)
        log.warning("services keep changing; going on with the next event", services=len(dirty))

    def _plan(self, service_id: ServiceId, nodes: Mapping[NodeId, Node]) -> list[Transaction]:
        """What to write for the service; notes when to look again. One service's bug must not stop the others."""
        service = self._store.services.get(service_id)
        self._due.pop(service_id, None)
        if service is None:
            return []
        view = ServiceView(
            service=service,
            tasks=self._store.tasks.by_service(service_id),
            nodes=nodes,
            fits=satisfies_constraints,
        )
        now = self._clock.now()
        plan = plan_service(view, now=now, new_id=self._new_id)
        if plan.is_empty:  # most are, and checking one that does nothing takes a third of the time
            if plan.wake_at is not None:
                self._due[service_id] = plan.wake_at
            return []
        try:
            check_plan(view, plan, now=now)
        except errors.InvariantError as error:
            log.error("plan refused, the service is left as it is", service=service.spec.name, cause=str(error))
            return []
        self._log(plan, service)
        traces.span(
            "orchestrate", request=service.request, began=now, ended=self._clock.now(),
            service=service.spec.name, did=plan.explain(),
        )  # fmt: skip
        return transactions_of(plan, service)

    def _log(self, plan: Plan, service: Service) -> None:
        log.info("orchestrated", service=service.spec.name, did=plan.explain(), **about_requests([service.request]))

    def _new_id(self) -> TaskId:
        return TaskId(encode_id(self._entropy(ID_ENTROPY_BYTES)))

    def _everything(self) -> set[ServiceId]:
        return {service.id for service in self._store.services.all()}

    def _affected(self, changes: Changes) -> set[ServiceId]:
        if changes.resync:
            return self._everything()
        affected: set[ServiceId] = set()
        for change in changes:
            affected.update(self._affected_by(change))
        return affected

    def _affected_by(self, change: Change) -> Iterable[ServiceId]:
        if change.kind is Kind.SERVICE:
            return (ServiceId(change.id),)
        latest = change.new or change.old
        if isinstance(latest, Task):
            return () if _only_gets_on(change.old, change.new) else (latest.service_id,)
        if isinstance(latest, Node) and _means_something(change.old, change.new):
            there = {task.service_id for task in self._store.tasks.by_node(latest.id)}
            return there | {
                service.id for service in self._store.services.all() if service.spec.is_global or service.spec.is_job
            }
        return ()


_STARTING: Final = frozenset(
    (TaskState.ASSIGNED, TaskState.ACCEPTED, TaskState.PREPARING, TaskState.READY, TaskState.STARTING)
)


def _only_gets_on(old: object, new: object) -> bool:
    """Whether a task went from one step of its start to the next, which no plan looks at: half of all that tasks report."""
    if not isinstance(old, Task) or not isinstance(new, Task):
        return False
    if old.status.state not in _STARTING or new.status.state not in _STARTING:
        return False
    if new.moved_from is not None:  # how far its data has come is what the task before it waits for
        return False
    was = (old.desired_state, old.node_id, old.hold, old.move, old.preempted)
    return was == (new.desired_state, new.node_id, new.hold, new.move, new.preempted)


def _means_something(old: object, new: object) -> bool:
    """Whether a node changed in what plans look at; its addresses and managers' standing they do not."""
    if not isinstance(old, Node) or not isinstance(new, Node):
        return True
    return (old.spec, old.description, old.status.state, old.status.addr, old.removed) != (
        new.spec,
        new.description,
        new.status.state,
        new.status.addr,
        new.removed,
    )
