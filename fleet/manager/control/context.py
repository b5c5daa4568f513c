"""What every part of the control API works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from fleet import errors
from fleet.clock import Clock
from fleet.model.common import Version
from fleet.model.ids import ID_ENTROPY_BYTES, encode_id
from fleet.store import Store, Transaction

__all__ = ["Context", "required_version"]

T = TypeVar("T")

_TRIES: Final = 8


@dataclass(frozen=True)
class Context:
    """``references`` is held from a check to the commit that depends on it, by everything that makes or breaks references
    between objects (a service to its networks, secrets, ports): conditions on versions alone cannot see that a *new*
    object began to refer to the one being removed, or took the same port. All such writes pass through the one leader.
    """

    store: Store
    clock: Clock
    entropy: Callable[[int], bytes]
    references: asyncio.Lock = field(default_factory=asyncio.Lock)

    def new_id(self) -> str:
        """A fresh identifier."""
        return encode_id(self.entropy(ID_ENTROPY_BYTES))

    def now(self) -> datetime:
        """For ``created_at`` and ``updated_at``."""
        return self.clock.now()

    async def retry(self, attempt: Callable[[], Transaction]) -> int:
        """Commit what ``attempt`` makes of the present state, again if it changed meanwhile: for requests without a version."""
        for _ in range(_TRIES - 1):
            try:
                return await self.store.commit(attempt())
            except errors.OutOfSequenceError:
                continue
        return await self.store.commit(attempt())


def required_version(version: int | None, *, what: str) -> Version:
    """The version an update names. Raises ``UserError`` if it names none."""
    if version is None or version <= 0:
        raise errors.UserError(f"updating a {what} needs the version it was read at: ?version=<Version.Index>")
    return Version(index=version)
