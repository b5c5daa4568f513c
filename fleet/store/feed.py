"""The change feed: what happened to the tables since a subscriber last looked, coalesced and bounded.

Loops are level-triggered: a change only says where to look. So several changes of one object become one (first ``old``,
last ``new``), and a subscriber that falls behind by more than its bound is told to look at everything (``resync``).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fleet import errors
from fleet.clock import Clock
from fleet.store.kinds import Kind, Stored

__all__ = ["PENDING_MAX", "Action", "Change", "Changes", "Subscription"]

PENDING_MAX: Final = 8192
"""Distinct objects a subscriber may lag behind before it is told to resync."""


class Action(enum.StrEnum):
    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """``old`` is None for *create*, ``new`` for *remove*. ``revision`` is the last one folded in."""

    kind: Kind
    action: Action
    id: str
    old: Stored | None
    new: Stored | None
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """In order of first change. ``resync``: changes were dropped or not seen, look at everything."""

    changes: tuple[Change, ...]
    resync: bool = False

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __bool__(self) -> bool:
        return self.resync or bool(self.changes)


def fold(earlier: Change, later: Change) -> Change | None:
    """Two changes of one object as one; None if the object came and went unseen."""
    old, new = earlier.old, later.new
    if old is None and new is None:
        return None
    action = Action.CREATE if old is None else Action.REMOVE if new is None else Action.UPDATE
    return Change(kind=later.kind, action=action, id=later.id, old=old, new=new, revision=later.revision)


class Subscription:
    """One subscriber's pending changes. Use as ``with store.subscribe(...) as changes`` or call ``close``."""

    def __init__(self, kinds: frozenset[Kind], *, pending_max: int, on_close: Callable[[Subscription], None]) -> None:
        self.kinds = kinds
        self._pending_max = pending_max
        self._on_close = on_close
        self._pending: dict[tuple[Kind, str], Change] = {}
        self._resync = False
        self._wake = asyncio.Event()
        self._closed = False
        self._failure: BaseException | None = None

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def wait(self) -> Changes:
        """The changes since the last call; waits until there are some. Cancels safely, nothing is lost by it.

        Raises ``UnavailableError`` once the subscription or the store is closed, ``EngineFailedError`` if it failed.
        """
        await self._wake.wait()
        if self._closed:
            raise self._failure or errors.UnavailableError("the store is closed")
        return self.take()

    async def wait_at_most(self, duration_s: float, clock: Clock) -> Changes:
        """The same; nothing when that time has passed without any. Cancels safely."""
        timer = clock.call_later(duration_s, self._wake.set)
        try:
            return await self.wait()
        finally:
            timer.cancel()

    def take(self) -> Changes:
        """What is pending now, perhaps nothing; does not wait."""
        result = Changes(tuple(self._pending.values()), self._resync)
        self._pending = {}
        self._resync = False
        self._wake.clear()
        return result

    async def __aiter__(self) -> AsyncIterator[Changes]:
        """``wait`` again and again; ends when the subscription or the store is closed."""
        while True:
            await self._wake.wait()
            if self._closed:
                if self._failure is not None:
                    raise self._failure
                return
            yield self.take()

    def close(self) -> None:
        """Stop receiving; idempotent. Waiters are released."""
        if not self._closed:
            self.fail(None)
            self._on_close(self)

    def fail(self, failure: BaseException | None) -> None:
        """The store's: end, because of ``failure`` if any."""
        self._closed = True
        self._failure = failure
        self._pending = {}
        self._wake.set()

    def add(self, change: Change) -> None:
        """The store's: one more change."""
        if self._resync or change.kind not in self.kinds:
            return
        key = (change.kind, change.id)
        earlier = self._pending.get(key)
        folded = fold(earlier, change) if earlier is not None else change
        if folded is None:
            del self._pending[key]
            if not self._pending:
                self._wake.clear()
            return
        self._pending[key] = folded
        if len(self._pending) > self._pending_max:
            self.lose_track()
        else:
            self._wake.set()

    def lose_track(self) -> None:
        """The store's: changes were missed."""
        self._pending = {}
        self._resync = True
        self._wake.set()
