"""Who yields to whom now: what the scheduler's loop marks, and what ``service explain`` shows.

Only tasks yield that would be replaced: of replicated services that are whole and not being updated, as many at a time as an
update (stop-first) would take; so none comes below its floor (``orchestrator.moves``). Not of services that update start-first,
have data on their host, or are not to be restarted. Tasks of jobs are done again, and have no floor. Global services have no
other place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from fleet.manager.matching import satisfies_constraints
from fleet.model.defaults import restart_condition
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.service import RestartCondition, Service
from fleet.model.task import Preempted, Task, TaskState, is_runnable
from fleet.orchestrator.job import current_tasks
from fleet.orchestrator.moves import mobility
from fleet.orchestrator.update import update_config
from fleet.orchestrator.view import ServiceView, wanted_spec
from fleet.scheduler.preempt import Preemption, Yielding
from fleet.scheduler.wishes import priority_of
from fleet.store import Store, Transaction

__all__ = ["marks", "may_preempt", "nominations", "yielding"]


def nominations(victims: Iterable[Task]) -> dict[TaskId, NodeId]:
    """Where tasks that wait have room made for them: task -> node, while those marked have not all ended."""
    return {
        victim.preempted.by: victim.node_id
        for victim in victims
        if victim.preempted is not None and not victim.status.state.is_terminal
    }


def may_preempt(store: Store, waiting: Iterable[Task]) -> list[Task]:
    """Those of ``waiting`` that have a higher priority than some service. O(services)."""
    lowest = min((priority_of(service.spec.labels) for service in store.services.all()), default=0)
    return [task for task in waiting if priority_of(task.service_labels) > lowest]


def yielding(store: Store, *, below: int, now: datetime) -> dict[ServiceId, Yielding]:
    """Services with a priority below that, some of whose tasks may be stopped now. O(nodes + their tasks)."""
    nodes = {node.id: node for node in store.nodes.all()}
    found: dict[ServiceId, Yielding] = {}
    for service in store.services.all():
        priority = priority_of(service.spec.labels)
        if priority >= below or service.pending_delete:
            continue
        view = ServiceView(
            service=service, tasks=store.tasks.by_service(service.id), nodes=nodes, fits=satisfies_constraints
        )
        tasks, at_once = _spare(view, service, now=now)
        if tasks and at_once > 0:
            found[service.id] = Yielding(priority=priority, tasks=tasks, at_once=at_once)
    return found


def _spare(view: ServiceView, service: Service, *, now: datetime) -> tuple[tuple[Task, ...], int]:
    if restart_condition(wanted_spec(service)) is RestartCondition.NONE:
        return (), 0
    if service.spec.mode.replicated_job is not None:
        running = tuple(
            task
            for task in current_tasks(service, view.tasks)
            if is_runnable(task) and task.status.state is TaskState.RUNNING and task.preempted is None
        )
        return running, len(running)
    if update_config(service).order == "start-first":
        return (), 0
    found = mobility(view, now=now)
    return found.tasks, found.at_once


def marks(store: Store, preemptions: Iterable[Preemption], *, now: datetime) -> list[Transaction]:
    """All victims of one task, or none, if they and their services are as they were."""
    result = []
    for each in preemptions:
        by = Preempted(by=each.task.id, service=each.task.service_name, since=now)
        transaction = Transaction()
        services: Mapping[ServiceId, Service | None] = {
            victim.service_id: store.services.get(victim.service_id) for victim in each.victims
        }
        for service in services.values():
            if service is not None:
                transaction.require(service)
        for victim in each.victims:
            transaction.replace(msgspec.structs.replace(victim, preempted=by, updated_at=now))
        result.append(transaction)
    return result
