"""What every part of the control API works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.model.cluster import Guard
from fleet.model.common import Version
from fleet.model.ids import ID_ENTROPY_BYTES, encode_id
from fleet.store import Store, Transaction

__all__ = ["Context", "required_version"]

GUARD: Final = Guard().id
_TRIES: Final = 32
"""Each lost round is one that another manager's write won."""


@dataclass(frozen=True)
class Context:
    """``entropy(n)`` gives n random bytes."""

    store: Store
    clock: Clock
    entropy: Callable[[int], bytes]
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    def new_id(self) -> str:
        """A fresh identifier."""
        return encode_id(self.entropy(ID_ENTROPY_BYTES))

    def now(self) -> datetime:
        """For ``created_at`` and ``updated_at``."""
        return self.clock.now()

    async def guarded(self, attempt: Callable[[], Transaction]) -> int:
        """Commit what ``attempt`` makes of the present state, again if it changed meanwhile.

        For everything that makes or breaks references between objects (a service to its networks, secrets, ports), or relies on
        how many there are: conditions on versions alone cannot see that a *new* object began to refer to the one being removed,
        or took the same port. So all such writes, of all managers, write the ``Guard`` as well, on which only one of two wins.
        """
        async with self._one_at_a_time:
            for tries_left in reversed(range(_TRIES)):
                tx = attempt()
                guard = self.store.guards.get(GUARD)
                if guard is None:
                    tx.create(Guard())
                else:
                    tx.replace(msgspec.structs.replace(guard, count=guard.count + 1))
                try:
                    return await self.store.commit(tx)
                except errors.OutOfSequenceError:
                    if not tries_left:
                        raise
                except errors.ConflictError:
                    if guard is not None or self.store.guards.get(GUARD) is None:
                        raise
            raise AssertionError("unreachable")


def required_version(version: int | None, *, what: str) -> Version:
    """The version an update names. Raises ``UserError`` if it names none."""
    if version is None or version <= 0:
        raise errors.UserError(f"updating a {what} needs the version it was read at: ?version=<Version.Index>")
    return Version(index=version)
