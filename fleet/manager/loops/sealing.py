"""The sealing key's rotation: takes the next step when every manager keeps the new key."""

from __future__ import annotations

from fleet import errors
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.sealing_rotation import next_sealing_steps
from fleet.store import Kind, Store

__all__ = ["SealingLoop"]

log = get_logger("sealing")


class SealingLoop:
    """One a leader."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled. Raises ``UnavailableError`` when the store is closed or this manager leads no more."""
        with self._store.subscribe(Kind.NODE, Kind.AUTHORITY) as subscription:
            while True:
                await self._advance()
                await changes_until(subscription, self._clock, None)

    async def _advance(self) -> None:
        while await self._round():
            pass

    async def _round(self) -> bool:
        wrote = False
        async for steps in next_sealing_steps(self._store, self._clock.now()):
            wrote = True
            results = await self._store.commit_all(steps)
            log.info("sealing key: a step of its rotation", written=len(steps))
            for result in results:
                if isinstance(result, errors.FleetError) and not isinstance(result, errors.ConflictError):
                    raise result
        return wrote
