"""Transactions: what to write, under which conditions, as a value that can be built, merged and committed later.

Objects are written whole. The condition is the object's ``version`` as it was read, so a writer that did not see the
latest state is refused (``OutOfSequenceError``) instead of overwriting it. The store compiles a transaction into the
engine's terms, adding the keys that keep names unique.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fleet import errors
from fleet.model import wire
from fleet.model.common import Version
from fleet.store.engine import Compare, CompareFailed, Put, Txn
from fleet.store.kinds import KIND_OF, Kind, Stored, key_of, label_of, name_key, unique_name

if TYPE_CHECKING:
    from fleet.store.store import Store

__all__ = ["Compiled", "Op", "Step", "Transaction", "compile_transaction", "explain_conflict"]


class Step(enum.Enum):
    CREATE = "create"
    REPLACE = "replace"
    REPLACE_ANY = "replace_any"
    DELETE = "delete"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class Op:
    step: Step
    obj: Stored

    @property
    def kind(self) -> Kind:
        return KIND_OF[type(self.obj)]


class Transaction:
    """Steps on distinct objects; each method returns the transaction itself. Cheap, not reusable after commit."""

    def __init__(self) -> None:
        self._ops: dict[str, Op] = {}

    def __len__(self) -> int:
        return len(self._ops)

    def __iter__(self) -> Iterator[tuple[str, Op]]:
        return iter(self._ops.items())

    def create(self, obj: Stored) -> Transaction:
        """Write an object whose id and unique name are not taken. Fails with ``ConflictError`` otherwise."""
        return self._add(Step.CREATE, obj)

    def replace(self, obj: Stored) -> Transaction:
        """Write if the stored object still has ``obj.version``. Fails with ``OutOfSequenceError``."""
        return self._add(Step.REPLACE, obj)

    def replace_any(self, obj: Stored) -> Transaction:
        """Write over whatever version is there; fails with ``NotFoundError`` if the object is gone.

        For fields with one writer only: what others wrote to the object since ``obj`` was read is lost.
        """
        return self._add(Step.REPLACE_ANY, obj)

    def delete(self, obj: Stored) -> Transaction:
        """Remove if the stored object still has ``obj.version``. Fails with ``OutOfSequenceError``."""
        return self._add(Step.DELETE, obj)

    def require(self, obj: Stored) -> Transaction:
        """Write nothing, but only commit while the stored object still has ``obj.version``."""
        return self._add(Step.REQUIRE, obj)

    def merge(self, other: Transaction) -> Transaction:
        """Take over the steps of another one. Raises ``InvariantError`` if both touch one object."""
        for op in other._ops.values():
            self._add(op.step, op.obj)
        return self

    def _add(self, step: Step, obj: Stored) -> Transaction:
        key = key_of(obj)
        if key in self._ops:
            raise errors.InvariantError(f"a transaction touches {KIND_OF[type(obj)]} {label_of(obj)} twice")
        self._ops[key] = Op(step, obj)
        return self


@dataclass(frozen=True, slots=True)
class Compiled:
    """``written``: key -> (bytes, object without version), so that the feed need not decode our own writes."""

    txn: Txn
    written: Mapping[str, tuple[bytes, Stored]]


def compile_transaction(tx: Transaction, store: Store) -> Compiled:
    """The engine's terms. Raises what is already certain to fail by the tables as they are.

    The tables must have reached every version that ``tx`` names: then an object of another version has changed since.
    """
    compares: list[Compare] = []
    puts: list[Put] = []
    deletes: list[str] = []
    written: dict[str, tuple[bytes, Stored]] = {}
    sealing = store.sealing_condition()
    for key, op in tx:
        obj = op.obj
        old = store.table(op.kind).get(obj.id)
        if op.step is Step.CREATE:
            compares.append(Compare(key, 0))
        else:
            compares.append(Compare(key, _expected(op, old)))
        if op.step is Step.REQUIRE:
            continue
        _move_name(op, old, compares=compares, puts=puts, deletes=deletes)
        if op.step is Step.DELETE:
            deletes.append(key)
            continue
        plain = msgspec.structs.replace(obj, version=Version())
        value = store.seal(key, wire.encode(plain))
        puts.append(Put(key, value))
        written[key] = (value, plain)
    if sealing is not None and written and all(key != sealing.key for key, _ in tx):
        compares.append(sealing)
    return Compiled(Txn(compares=tuple(compares), puts=tuple(puts), deletes=tuple(deletes)), written)


def _expected(op: Op, old: Stored | None) -> int:
    """The revision the object must be at; it is where the tables have it, or it is too late already."""
    wanted = op.obj.version.index
    if op.step is Step.REPLACE_ANY:
        if old is None:
            raise errors.NotFoundError(f"{op.kind} {label_of(op.obj)} not found")
        return old.version.index
    if wanted == 0:
        raise errors.InvariantError(
            f"{op.step.value} of {op.kind} {label_of(op.obj)}, which was never read from the store"
        )
    now = old.version.index if old is not None else 0
    if now != wanted:
        raise _stale(op, now)
    return wanted


def _move_name(op: Op, old: Stored | None, *, compares: list[Compare], puts: list[Put], deletes: list[str]) -> None:
    """Keep the name key in step with the object: give up the old name, take the new one if it is free."""
    before = unique_name(old) if old is not None and op.step is not Step.CREATE else None
    after = unique_name(op.obj) if op.step is not Step.DELETE else None
    if before == after:
        return
    if before is not None:
        deletes.append(name_key(op.kind, before))
    if after is not None:
        compares.append(Compare(name_key(op.kind, after), 0))
        puts.append(Put(name_key(op.kind, after), op.obj.id.encode()))


def _stale(op: Op, now: int) -> errors.FleetError:
    label = f"{op.kind} {label_of(op.obj)}"
    wanted = op.obj.version.index
    if now == 0:
        return errors.OutOfSequenceError(
            f"update out of sequence: {label} was removed since it was read (version {wanted})"
        )
    return errors.OutOfSequenceError(
        f"update out of sequence: {label} changed since it was read (version {wanted}, now {now})"
    )


def explain_conflict(tx: Transaction, failed: CompareFailed) -> errors.FleetError:
    """The engine's refusal in the words of the objects."""
    taken: errors.FleetError | None = None
    for key, op in tx:
        name = unique_name(op.obj)
        if key in failed.actual:
            if op.step is Step.REPLACE_ANY and not failed.actual[key]:
                return errors.NotFoundError(f"{op.kind} {label_of(op.obj)} not found")
            if op.step is not Step.CREATE:
                return _stale(op, failed.actual[key])
            taken = errors.ConflictError(f"{op.kind} {op.obj.id} already exists")
        elif name is not None and name_key(op.kind, name) in failed.actual:
            taken = errors.ConflictError(
                f"name conflicts with an existing object: {op.kind} {label_of(op.obj)} already exists"
            )
    return taken or failed
