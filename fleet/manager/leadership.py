"""Which of the managers leads: the one that holds the leader's key in the state engine, by a lease it keeps alive.

All managers read and write; only the loops and the dispatcher are the leader's alone. What they write carries the *fence*:
the condition that the leader's key is as this term wrote it. So a leader that was paused, cut off or replaced can believe
what it likes: nothing it writes counts. That makes taking over safe at any time, and the rest is about being quick:

* a leader that stops hands over: it gives its lease up;
* a leader whose process is dead is replaced as soon as its host refuses connections, which a follower looks at once its
  own session with it has ended;
* a leader that is silent (power loss, partition, pause) is replaced when its lease has ended;
* a manager that finds its own key from a former life takes it over at once: its engine has fenced that life off already;
* a leader that stands still is as good as silent, and one whose work does not end with its term says so and fails, so that its
  daemon starts again: its writes would be refused for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from fleet import errors
from fleet.cancellation import cancel_and_wait
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.model.ids import NodeId
from fleet.store import ROOT, Store
from fleet.store.engine import CompactedError, Compare, CompareFailed, Deleted, Engine, Entry, LeaseLostError, Put, Txn

__all__ = ["LEADER_KEY", "Leader", "Leadership", "is_refused"]

log = get_logger("leadership")

LEADER_KEY: Final = f"{ROOT}leader"
LEASE_S: Final = 2.0
"""etcd's shortest is 3/2 of its election timeout; a stall of this process for so long costs the leadership, and no more (where
a file keeps the state not even that: nobody else could lead)."""
_KEEP_ALIVE_S: Final = LEASE_S / 5
_LOOK_S: Final = 0.2
_END_S: Final = 30.0
"""For the work of a term to end after it was cancelled; it waits for nothing but what it has in hand."""
_AGAIN_S: Final = 5.0
"""A follower asks the engine this often whatever the watch says."""
_PROBE_S: Final = 1.0


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """The leader's key: ``address`` is host:port of its cluster listener."""

    node_id: NodeId
    address: str


async def is_refused(address: str) -> bool:
    """Whether the host of ``host:port`` answers that nobody listens there. Silence is no answer."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


class Leadership:
    """``run`` until cancelled. ``suspects``: whether this manager's own session with the leader is broken; ``probe``: whether
    nobody listens at an address; ``is_eligible``: whether this manager may lead at all."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        clock: Clock,
        *,
        node_id: NodeId,
        address: str,
        suspects: Callable[[], bool] = lambda: False,
        is_eligible: Callable[[], bool] = lambda: True,
        probe: Callable[[str], Awaitable[bool]] = is_refused,
    ) -> None:
        self._engine = engine
        self._store = store
        self._clock = clock
        self._own = Leader(node_id=node_id, address=address)
        self._suspects = suspects
        self._is_eligible = is_eligible
        self._stepping_down = asyncio.Event()
        self._deposed = asyncio.Event()
        self._probe = probe
        self._changed = asyncio.Event()
        self.leader: Leader | None = None
        """Who leads, as far as is known here."""
        self.is_leading = False
        self.terms = 0
        """How often this manager has begun to lead."""

    def step_down(self) -> None:
        """End this term, if there is one."""
        self._stepping_down.set()

    async def run(self, term: Callable[[], Awaitable[None]]) -> None:
        """Follow and, whenever it is this manager's turn, run ``term``, which is cancelled when the lease is lost.

        Raises what ``term`` raises, ``EngineFailedError``, and ``InvariantError`` if a term's work does not end with it.
        """
        watcher = asyncio.create_task(self._watch(), name="leader watch")
        try:
            while True:
                try:
                    held = await self._win()
                    if held is not None:
                        await self._lead(*held, term)
                        continue
                    await self._follow()
                except errors.UnavailableError as cause:
                    log.warning("no leader can be found now", cause=str(cause))
                    await self._clock.sleep(_LOOK_S)
        finally:
            await cancel_and_wait(watcher)

    async def _win(self) -> tuple[int, int] | None:
        """The lease and the revision of the key, or None while another leads."""
        entry = await self._engine.get(LEADER_KEY)
        self._see(entry)
        if not self._is_eligible():
            return None
        if entry is not None and self.leader is not None and self.leader.node_id != self._own.node_id:
            return None
        return await self._take(entry)

    async def _take(self, entry: Entry | None) -> tuple[int, int] | None:
        lease = await self._engine.grant(LEASE_S)
        txn = Txn(
            compares=(Compare(LEADER_KEY, entry.mod_revision if entry else 0),),
            puts=(Put(LEADER_KEY, msgspec.json.encode(self._own), lease),),
        )
        try:
            return lease, await self._engine.commit(txn)
        except BaseException as cause:
            with contextlib.suppress(errors.FleetError):
                await self._engine.revoke(lease)
            if isinstance(cause, CompareFailed | LeaseLostError):
                return None
            raise

    async def _lead(self, lease: int, revision: int, term: Callable[[], Awaitable[None]]) -> None:
        self._store.fence = Compare(LEADER_KEY, revision)
        work: asyncio.Future[None] | None = None
        self._stepping_down.clear()
        self._deposed.clear()
        try:
            await self._store.wait_revision(revision)  # everything that former leaders wrote is seen
            self.leader, self.is_leading = self._own, True
            self.terms += 1
            log.info("leading", revision=revision)
            work = asyncio.ensure_future(term())
            keeper = asyncio.create_task(self._keep(lease), name="leader lease")
            stepping = asyncio.create_task(self._stepping_down.wait(), name="stepping down")
            deposed = asyncio.create_task(self._deposed.wait(), name="deposed")
            endings = {"the lease was lost": keeper, "asked to": stepping, "another has taken over": deposed}
            try:
                await asyncio.wait({work, *endings.values()}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                causes = [cause for cause, task in endings.items() if task.done()]
                await cancel_and_wait(*endings.values())
            if work.done():
                work.result()
                return
            log.warning("no longer leading", cause=", ".join(causes))
        finally:
            self.is_leading = False
            if work is not None:
                await self._end(work)
            self._store.fence = None  # only now: nothing of this term is left that could write
            self.leader = None
            with contextlib.suppress(errors.FleetError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._engine.revoke(lease)

    async def _end(self, work: asyncio.Future[None]) -> None:
        work.cancel()
        _, stuck = await asyncio.wait({work}, timeout=_END_S)
        if stuck:
            raise errors.InvariantError(f"the leader's work goes on {_END_S:g} s after its term has ended")
        if not work.cancelled():
            work.exception()  # seen: what ended the term has been told

    async def _keep(self, lease: int) -> None:
        """Returns when the lease is lost, or has not been confirmed for as long as it lasts. How long this process itself stood
        still does not count: the engine knows whether the lease has ended meanwhile, and is asked."""
        good_until = self._clock.monotonic() + LEASE_S
        while (now := self._clock.monotonic()) < good_until:
            began = now
            try:
                async with asyncio.timeout(good_until - now):
                    await self._engine.keep_alive(lease)
                good_until = began + LEASE_S
            except LeaseLostError:
                return
            except TimeoutError:
                return
            except errors.UnavailableError as cause:
                log.debug("lease not confirmed", cause=str(cause))
            asleep = self._clock.monotonic()
            await self._clock.sleep(_KEEP_ALIVE_S)
            good_until += max(0.0, self._clock.monotonic() - asleep - 2 * _KEEP_ALIVE_S)

    async def _follow(self) -> None:
        """Returns when there is reason to try: the key has gone, the leader's process has, or some time has passed."""
        since = self._clock.monotonic()
        self._changed.clear()
        while self._clock.monotonic() - since < _AGAIN_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            self._changed.clear()
            leader = self.leader
            if not self._is_eligible():
                continue
            if leader is None:
                return
            if self._suspects() and await self._probe(leader.address):
                await self._clock.sleep(_LOOK_S)
                if self._suspects() and await self._probe(leader.address):
                    await self._usurp(leader)
                    return

    async def _usurp(self, leader: Leader) -> None:
        """Remove the dead leader's key; whoever comes first then takes it."""
        entry = await self._engine.get(LEADER_KEY)
        if entry is None or entry.value != msgspec.json.encode(leader):
            return
        log.warning("the leader's process is gone; taking over", leader=leader.node_id, address=leader.address)
        with contextlib.suppress(CompareFailed):
            await self._engine.commit(Txn(compares=(Compare(LEADER_KEY, entry.mod_revision),), deletes=(LEADER_KEY,)))

    async def _watch(self) -> None:
        following = self._store.revision + 1
        while True:
            try:
                async for batch in self._engine.watch(LEADER_KEY, following):
                    following = batch.revision + 1
                    fence = self._store.fence
                    if fence is not None:
                        if batch.revision > fence.mod_revision:
                            self._deposed.set()
                        continue
                    for event in batch.events:
                        self._see(None if isinstance(event, Deleted) else event)
                    self._changed.set()
                return  # closed
            except CompactedError as cause:
                following = cause.oldest
            except errors.UnavailableError as cause:
                log.debug("leader watch broken", cause=str(cause))
                await self._clock.sleep(_LOOK_S)

    def _see(self, entry: Entry | None) -> None:
        if self.is_leading:
            return
        try:
            self.leader = msgspec.json.decode(entry.value, type=Leader) if entry is not None else None
        except msgspec.DecodeError:
            log.error("the leader's key does not decode; it is taken over", value=entry.value[:64] if entry else b"")
            self.leader = None
