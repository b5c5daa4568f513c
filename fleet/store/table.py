"""Tables in memory: the objects of one kind by id, name and, for tasks, by service, node and slot.

Only the store's feed changes a table (``put_row``/``drop_row``), on the event loop. Between two awaits a reader therefore sees
one revision of everything. Objects are immutable; keep them as long as you like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from fleet import errors
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import Node
from fleet.model.task import Task, task_name
from fleet.store.kinds import Kind, Stored, T, is_hidden, unique_name

__all__ = ["Table", "TaskTable"]

_NO_NODE: Final = NodeId("")
_EMPTY: Mapping[TaskId, Task] = MappingProxyType({})


def _names(obj: Stored) -> tuple[str, ...]:
    if isinstance(obj, Node):
        return () if obj.removed else tuple({obj.spec.name, obj.description.hostname} - {""})
    name = unique_name(obj)
    return (name,) if name else ()


class Table(Generic[T]):
    """Objects of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._rows: dict[str, T] = {}
        self._named: dict[str, dict[str, T]] = {}
        self._all: tuple[T, ...] | None = ()
        self.changes = 0
        """Grows with every change of the table: what was computed from it holds for as long as this stays."""

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[T]:
        return iter(self.all())

    def get(self, id_: str) -> T | None:
        """By full id, hidden ones included."""
        return self._rows.get(id_)

    def all(self) -> tuple[T, ...]:
        """Every object, hidden ones included; the same tuple until the table changes."""
        if self._all is None:
            self._all = tuple(self._rows.values())
        return self._all

    def by_name(self, name: str) -> T | None:
        """The visible object of that name. For nodes the name is the spec's or the host's; None if several share it."""
        found = self._named.get(name)
        return next(iter(found.values())) if found and len(found) == 1 else None

    def find(self, text: str, what: str = "") -> T:
        """By id, else by name, else by a prefix of the id that fits one object; hidden objects are not found.

        ``what`` is the word for the error text, the kind by default.
        Raises ``NotFoundError``, and ``UserError`` when several fit.
        """
        what = what or self.kind.value
        exact = self._rows.get(text)
        if exact is not None and not is_hidden(exact):
            return exact
        found = self._matching(text)
        if not found:
            raise errors.NotFoundError(f"{what} {text} not found")
        if len(found) > 1:
            raise errors.UserError(f"{what} {text} is ambiguous ({len(found)} matches found)")
        return found[0]

    def _matching(self, text: str) -> list[T]:
        named = self._named.get(text)
        if named:
            return list(named.values())
        if not text:
            return []
        return [row for id_, row in self._rows.items() if id_.startswith(text) and not is_hidden(row)]

    def put_row(self, obj: T) -> T | None:
        """Insert or replace; returns what was there."""
        old = self.drop_row(obj.id) if obj.id in self._rows else None
        self._rows[obj.id] = obj
        for name in _names(obj):
            self._named.setdefault(name, {})[obj.id] = obj
        self._all = None
        self.changes += 1
        return old

    def drop_row(self, id_: str) -> T | None:
        """Remove; returns what was there."""
        old = self._rows.pop(id_, None)
        if old is None:
            return None
        for name in _names(old):
            bucket = self._named[name]
            del bucket[id_]
            if not bucket:
                del self._named[name]
        self._all = None
        self.changes += 1
        return old


_Slot = tuple[ServiceId, int, NodeId]


def _slot(service_id: ServiceId, slot: int, node_id: NodeId) -> _Slot:
    """Replicated tasks are keyed by slot wherever they run; global ones (slot 0) by node."""
    return (service_id, slot, NodeId("") if slot else node_id)


class TaskTable(Table[Task]):
    """Tasks, with the indexes the loops need."""

    def __init__(self) -> None:
        super().__init__(Kind.TASK)
        self._by_service: dict[ServiceId, dict[TaskId, Task]] = {}
        self._by_node: dict[NodeId, dict[TaskId, Task]] = {}
        self._by_slot: dict[_Slot, dict[TaskId, Task]] = {}
        self._by_network: dict[str, dict[TaskId, Task]] = {}

    def by_service(self, service_id: ServiceId) -> tuple[Task, ...]:
        """All tasks of the service, old and new."""
        return tuple(self._by_service.get(service_id, _EMPTY).values())

    def by_node(self, node_id: NodeId) -> tuple[Task, ...]:
        """All tasks given to the node; ``NodeId("")`` gives the tasks without one."""
        return tuple(self._by_node.get(node_id, _EMPTY).values())

    def by_network(self, network_id: str) -> tuple[Task, ...]:
        """All tasks with an attachment to the network, whatever became of them."""
        return tuple(self._by_network.get(network_id, _EMPTY).values())

    def by_slot(self, service_id: ServiceId, slot: int, node_id: NodeId = _NO_NODE) -> tuple[Task, ...]:
        """All tasks of one slot; of a global service (``slot`` 0) those of one node."""
        return tuple(self._by_slot.get(_slot(service_id, slot, node_id), _EMPTY).values())

    def _matching(self, text: str) -> list[Task]:
        named = self._rows.get(text.rpartition(".")[2]) if "." in text else None
        if named is not None and task_name(named) == text:
            return [named]
        return super()._matching(text)

    def put_row(self, obj: Task) -> Task | None:
        old = super().put_row(obj)
        self._by_service.setdefault(obj.service_id, {})[obj.id] = obj
        self._by_node.setdefault(obj.node_id, {})[obj.id] = obj
        self._by_slot.setdefault(_slot(obj.service_id, obj.slot, obj.node_id), {})[obj.id] = obj
        for attachment in obj.network_attachments:
            self._by_network.setdefault(attachment.network_id, {})[obj.id] = obj
        return old

    def drop_row(self, id_: str) -> Task | None:
        old = super().drop_row(id_)
        if old is not None:
            _forget(self._by_service, old.service_id, old.id)
            _forget(self._by_node, old.node_id, old.id)
            _forget(self._by_slot, _slot(old.service_id, old.slot, old.node_id), old.id)
            for network_id in {attachment.network_id for attachment in old.network_attachments}:
                _forget(self._by_network, network_id, old.id)
        return old


_K = TypeVar("_K")


def _forget(index: dict[_K, dict[TaskId, Task]], key: _K, id_: TaskId) -> None:
    bucket = index[key]
    del bucket[id_]
    if not bucket:
        del index[key]
