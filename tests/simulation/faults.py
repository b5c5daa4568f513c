"""Mistakes one could make in fleet, put in on purpose: a simulation that does not find them proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleet.manager import allocator
from fleet.model.task import is_runnable
from fleet.orchestrator import job, restart, update
from fleet.store import store
from fleet.store.engine import Txn

__all__ = ["FAULTS"]


def _unfenced() -> None:
    """A leader that was deposed may go on writing."""
    store.Store.fence = property(lambda self: None, lambda self, value: None)  # type: ignore[assignment]


def _blind_writes() -> None:
    """Objects are written whether or not they changed since they were read."""
    compiled = store.compile_transaction

    def without_conditions(*arguments: Any) -> Any:
        result = compiled(*arguments)
        txn = Txn(puts=result.txn.puts, deletes=result.txn.deletes)
        return type(result)(txn, result.written)

    store.compile_transaction = without_conditions  # type: ignore[assignment]


def _impatient() -> None:
    """A successor does not wait until the task before it has stopped."""
    restart.hold_after = update.hold_after = lambda *_, **__: None  # type: ignore[assignment,attr-defined]


def _forgetful() -> None:
    """Restarts are not counted."""
    restart._has_attempts_left = lambda _slot: True


def _hasty_addresses() -> None:
    """The address of a task that is to stop is given away before it has stopped."""

    inner = allocator._used_addresses

    class Wanted:
        """The tables without tasks that are to stop."""

        def __init__(self, tables: Any) -> None:
            self._tables = tables
            self.tasks = self

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tables, name)

        def by_network(self, network_id: str) -> list[Any]:
            return [task for task in self._tables.tasks.by_network(network_id) if is_runnable(task)]

    def used(tables: Any, network: Any) -> set[str]:
        return inner(Wanted(tables), network)  # type: ignore[arg-type]

    allocator._used_addresses = used  # type: ignore[assignment]


def _left_over() -> None:
    """The successor that a job's task needs no more is not stopped."""
    job._stop_others = lambda *_, **__: None  # type: ignore[assignment]


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__.removeprefix("_").replace("_", "-"): fault
    for fault in (
        _unfenced,
        _blind_writes,
        _impatient,
        _forgetful,
        _hasty_addresses,
        _left_over,
    )
}
