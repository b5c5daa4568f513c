"""Whether the state engine still has a majority: without one, what this manager shows may be old, and nothing can be written.

Asked by a read that only a majority can answer, and answered from memory: so a request that cannot succeed is refused at
once instead of after the engine's deadline. Where a file of this process keeps the state nobody else has a part in it: then
what is shown is the newest, however slowly the machine answers.
"""

from __future__ import annotations

import asyncio
from typing import Final

from fleet import errors
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.leadership import LEADER_KEY
from fleet.store.engine import Engine

__all__ = ["Majority"]

log = get_logger("majority")

_PERIOD_S: Final = 1.0
_ANSWER_S: Final = 1.5
_LOST_S: Final = 2.5
"""An election among the engine's members takes one to two seconds, and is no loss."""


class Majority:
    """``run`` until cancelled."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._is_alone = not getattr(engine, "has_others", True)
        self._confirmed = clock.monotonic()
        self._stood_still_s = 0.0
        """Of the time since then: this process's own, in which no answer could be heard."""
        self.is_lost = False

    @property
    def age_s(self) -> float:
        """For how long nobody has confirmed that the state shown here is the newest."""
        return 0.0 if self._is_alone else self._clock.monotonic() - self._confirmed

    def require(self) -> None:
        """Raises ``UnavailableError`` for a write that cannot be made now."""
        if self.is_lost:
            raise errors.UnavailableError(
                f"the managers have had no majority for {self.age_s:.0f} s, so nothing can be changed; running tasks are not "
                "affected. Nothing was written: try again when more managers are up (fleet node ls), or begin anew with what "
                "is left: fleet swarm init --force-new-cluster",
                retry_after_s=2.0,
            )

    async def run(self) -> None:
        """Ask once a second."""
        while True:
            asked = self._clock.monotonic()
            try:
                async with asyncio.timeout(None if self._is_alone else _ANSWER_S):
                    await self._engine.get(LEADER_KEY)
            except (errors.UnavailableError, TimeoutError):
                self._stood_still_s += max(0.0, self._clock.monotonic() - asked - _ANSWER_S)
                if not self.is_lost and self.age_s - self._stood_still_s > _LOST_S:
                    self.is_lost = True
                    log.warning("no majority: reads may be old, writes are refused")
            else:
                self._confirmed, self._stood_still_s = asked, 0.0
                if self.is_lost:
                    self.is_lost = False
                    log.info("a majority is back")
            asleep = self._clock.monotonic()
            await self._clock.sleep(_PERIOD_S)
            self._stood_still_s += max(0.0, self._clock.monotonic() - asleep - _PERIOD_S)
