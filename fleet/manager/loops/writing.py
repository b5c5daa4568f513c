"""A plan as transactions. What belongs together is written together; what does not can be refused apart.

- A change of the service comes alone and first, since everything else follows from it: the service is then planned again.
- New tasks in slots where nothing else happens go many to a transaction, which stands only if the service is still as
  it was planned for: so a service that was scaled down or removed meanwhile gets no tasks any more.
- Where a task is followed by another, both are in one transaction; so is a move given up with what was made for it.
- All else are single steps: a task that changed since it was read is refused alone and planned again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from fleet import errors
from fleet.model.secret import Login
from fleet.model.service import Service
from fleet.model.task import Task
from fleet.orchestrator.plan import Plan
from fleet.orchestrator.view import SlotKey, slot_key
from fleet.store import Store, Transaction

__all__ = ["transactions_of", "write_all"]

_CREATES_MAX: Final = 100
"""New tasks in one transaction; engines take 128 steps and conditions, of which two are the service and the fence."""


def transactions_of(plan: Plan, service: Service | None, *, logins: Iterable[Login] = ()) -> list[Transaction]:
    """Independent transactions, in the order they should be tried. ``service`` is the one that was planned. ``logins`` go with
    the services that are deleted.
    """
    if plan.changed_services:
        return [Transaction().replace(changed) for changed in plan.changed_services]
    changed: dict[SlotKey, list[Task]] = {}
    for bucket in (plan.release, plan.move, plan.shut_down, plan.remove, plan.orphan):
        for task in bucket:
            changed.setdefault(slot_key(task), []).append(task)
    alone: list[Task] = []
    result: list[Transaction] = []
    for task in plan.create:
        others = changed.pop(slot_key(task), None)
        if others is None:
            alone.append(task)
            continue
        transaction = Transaction().create(task)
        for other in others:
            transaction.replace(other)
        result.append(transaction)
    moving = {slot_key(task) for task in plan.move}
    for key, tasks in changed.items():
        if key in moving:  # a move that is given up, and what was to take its place
            together = Transaction()
            for task in tasks:
                together.replace(task)
            result.append(together)
        else:
            result += [Transaction().replace(task) for task in tasks]
    result += [Transaction().delete(task) for task in plan.delete_tasks]
    result += [_deletion(gone, logins) for gone in plan.delete_services]
    for start in range(0, len(alone), _CREATES_MAX):
        transaction = Transaction()
        if service is not None:
            transaction.require(service)
        for task in alone[start : start + _CREATES_MAX]:
            transaction.create(task)
        result.append(transaction)
    return result


def _deletion(service: Service, logins: Iterable[Login]) -> Transaction:
    transaction = Transaction().delete(service)
    for login in logins:
        if login.service_id == service.id:
            transaction.delete(login)
    return transaction


async def write_all(store: Store, transactions: Sequence[Transaction]) -> int:
    """Commit them; returns how many were refused because something changed since it was read. Raises other errors."""
    refused = 0
    for outcome in await store.commit_all(transactions):
        if isinstance(outcome, errors.ConflictError | errors.NotFoundError):
            refused += 1
        elif isinstance(outcome, errors.FleetError):
            raise outcome
    return refused
