"""Replicated services: N slots, numbered from 1; growing fills the lowest free numbers (ORC-01, TSK-11)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from fleet.model.task import Task, TaskState
from fleet.orchestrator.carrying import is_carried
from fleet.orchestrator.eviction import Place, place_of
from fleet.orchestrator.plan import NewId, Plan, new_task
from fleet.orchestrator.slot import settle_slot
from fleet.orchestrator.update import is_paused, plan_update, update_config
from fleet.orchestrator.view import ServiceView, Slot, SlotKey

__all__ = ["choose_slots", "plan_replicated"]

CREATES_MAX: Final = 1000
"""New slots in one plan: a service of any size grows in steps that fit in memory and leave room for other services."""


def plan_replicated(view: ServiceView, *, now: datetime, new_id: NewId) -> Plan:
    """What the service needs now. Empty when it is as it should be, however often asked."""
    plan = Plan()
    service = view.service
    slots = view.slots()
    kept = choose_slots(view, slots, count=service.spec.replicas)
    for key in slots.keys() - kept.keys():
        for task in slots[key].tasks:
            plan.want_removal(task, now=now)
    start_first = update_config(service).order == "start-first"
    paused = is_paused(service)
    for slot in kept.values():
        settle_slot(view, slot, plan, now=now, new_id=new_id, start_first=start_first, is_paused=paused)
    if plan.move:
        return plan  # written first: an update must not take a slot whose move is just begun, or given up for it
    if any(is_carried(slot) for slot in kept.values()):
        return plan  # an update would make a task without the data; it begins, or goes on, when that has come
    free = (number for number in itertools.count(1) if number not in kept)
    for number in itertools.islice(free, min(service.spec.replicas - len(kept), CREATES_MAX)):
        plan.create.append(new_task(service, slot=number, now=now, new_id=new_id))
    plan_update(view, kept, plan, now=now, new_id=new_id)
    return plan


def choose_slots(view: ServiceView, slots: Mapping[SlotKey, Slot], *, count: int) -> dict[SlotKey, Slot]:
    """The slots to keep, ``count`` at most, in order of number (ORC-02; SwarmKit replicated/services.go).

    Each slot is the first, second, ... of the service on its node, running ones first; those that come last on their
    node go first, so what stays is balanced. Slots without a good task are given up before all others.
    """
    if len(slots) <= count:
        return dict(sorted(slots.items(), key=_by_key))
    best = {key: _best_task(view, slot) for key, slot in slots.items()}
    order = sorted(slots, key=lambda key: (_is_not_running(best[key]), str(key).zfill(12)))
    seen: Counter[str] = Counter()
    place: dict[SlotKey, tuple[bool, int]] = {}
    for key in order:
        task = best[key]
        node_id = task.node_id if task is not None else ""
        seen[node_id] += 1
        place[key] = (not node_id, seen[node_id])
    chosen = sorted(order, key=place.__getitem__)[:count]
    return dict(sorted(((key, slots[key]) for key in chosen), key=_by_key))


def _by_key(item: tuple[SlotKey, Slot]) -> str:
    return str(item[0]).zfill(12)


def _best_task(view: ServiceView, slot: Slot) -> Task | None:
    good = [task for task in slot.runnable if place_of(task, view) in (Place.GOOD, Place.MOVING)]
    return max(good, key=lambda task: task.status.state.rank, default=None)


def _is_not_running(task: Task | None) -> bool:
    return task is None or task.status.state is not TaskState.RUNNING
