"""Global services: one task on each node that is ready, active, tolerated and satisfies the constraints (ORC-03, ORC-04).

The node is the slot: tasks are made with it, and the scheduler only checks whether they fit. A paused or silent node
keeps what it has and gets nothing new, as does one with a taint *no-schedule*; a taint *no-execute* takes it away. A drained
or lost node is emptied, so that updates do not wait for it, and filled again when it comes back.
"""

from __future__ import annotations

from datetime import datetime

from fleet.model.node import Availability, Node, NodeState
from fleet.model.taints import keeps_away, service_tolerations
from fleet.orchestrator.eviction import is_lost
from fleet.orchestrator.plan import NewId, Plan, new_task
from fleet.orchestrator.restart import plan_release
from fleet.orchestrator.slot import keep_one, settle_slot
from fleet.orchestrator.update import is_paused, plan_update, update_config
from fleet.orchestrator.view import ServiceView, Slot, SlotKey, wanted_spec

__all__ = ["is_eligible", "plan_global", "plan_ineligible"]


def plan_global(view: ServiceView, *, now: datetime, new_id: NewId) -> Plan:
    """What the service needs now. Empty when it is as it should be, however often asked."""
    plan = Plan()
    service = view.service
    slots = view.slots()
    eligible = {node.id for node in view.nodes.values() if is_eligible(view, node)}
    start_first = update_config(service).order == "start-first"
    paused = is_paused(service)
    served: dict[SlotKey, Slot] = {}
    for key, slot in slots.items():
        if key in eligible:
            served[key] = slot
            settle_slot(view, slot, plan, now=now, new_id=new_id, start_first=start_first, is_paused=paused)
        else:
            plan_ineligible(view, slot, plan, now=now, start_first=start_first)
    for node_id in sorted(eligible - slots.keys()):
        plan.create.append(new_task(service, slot=node_id, now=now, new_id=new_id))
    plan_update(view, served, plan, now=now, new_id=new_id)
    return plan


def is_eligible(view: ServiceView, node: Node) -> bool:
    """Whether the node gets a task of a service with one on each node."""
    return (
        not node.removed
        and node.status.state is NodeState.READY
        and node.spec.availability is Availability.ACTIVE
        and view.fits(wanted_spec(view.service), node)
        and not keeps_away(node.spec.labels, service_tolerations(view.service.spec.labels))
    )


def plan_ineligible(view: ServiceView, slot: Slot, plan: Plan, *, now: datetime, start_first: bool) -> None:
    """What becomes of the tasks on a node that gets none: gone for good, or stopped until it is eligible again."""
    node = view.nodes.get(slot.tasks[0].node_id)
    if (
        node is None
        or node.removed
        or not view.fits(wanted_spec(view.service), node)
        or keeps_away(node.spec.labels, service_tolerations(view.service.spec.labels), is_running=True)
    ):
        for task in slot.tasks:
            plan.want_removal(task, now=now)
        return
    runnable = list(slot.runnable)
    if is_lost(node) or node.spec.availability is Availability.DRAIN:
        for task in runnable:
            plan.want_shutdown(task, now=now)
    elif runnable:
        for task in keep_one(view, runnable, plan, now=now, start_first=start_first):
            plan_release(view, slot, task, plan, now=now)
