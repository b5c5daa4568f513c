"""The root rotation's loop: takes the next step when every node has reported that it took the one before."""

from __future__ import annotations

from fleet import errors
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.loops.waiting import changes_until
from fleet.manager.root_rotation import next_step, rotation_state
from fleet.model.cluster import ROOT_AUTHORITY
from fleet.store import Kind, Store

__all__ = ["RotationLoop"]

log = get_logger("rotation")


class RotationLoop:
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
        while True:
            cluster = next(iter(self._store.clusters.all()), None)
            authority = self._store.authorities.get(ROOT_AUTHORITY)
            if cluster is None or authority is None or authority.rotation is None:
                return
            step = next_step(cluster, authority, self._store.nodes.all(), self._clock.now())
            if step is None:
                log.debug("root rotation waits", state=str(rotation_state(authority, self._store.nodes.all())))
                return
            try:
                await self._store.commit(step)
            except errors.OutOfSequenceError:
                continue  # the cluster object was changed meanwhile; look again
            log.info("root rotated" if authority.rotation.is_signing else "the new root signs from now on")
