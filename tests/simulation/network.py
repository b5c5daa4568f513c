"""Wires between hosts: connections whose bytes are delayed, held up by partitions, and cut when a process or a host dies."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fleet.agent.dialer import OPEN_TIMEOUT_S
from fleet.manager.sessions import ChannelClosed
from simulation.loop import Process, SimLoop

__all__ = ["Listener", "Network"]

_AGAIN_S = 0.2
_GIVE_UP_S = 20.0


class End:
    """One end of a connection."""

    def __init__(self, network: Network, host: str, process: Process) -> None:
        self.network = network
        self.host = host
        self.process = process
        self.peer: End
        self.is_open = True
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._on_the_way: deque[tuple[bytes | None, float, float]] = deque()
        self._arrives_at = 0.0

    async def write(self, frame: bytes) -> bool:
        """False once the connection is closed here."""
        await asyncio.sleep(0)
        if not self.is_open:
            return False
        self._post(frame)
        return True

    async def read(self) -> bytes | None:
        """None at the end."""
        if not self.is_open and self._inbox.empty():
            return None
        return await self._inbox.get()

    def shut(self) -> None:
        """Close from here; the other end hears of it if it can."""
        if self.is_open:
            self.is_open = False
            self._inbox.put_nowait(None)
            self._post(None)

    def vanish(self) -> None:
        """The host lost power: nobody tells the other end, whose next sending will be answered with a reset when it is back."""
        self.is_open = False

    def _post(self, frame: bytes | None) -> None:
        loop = self.network.loop
        self._arrives_at = max(self._arrives_at, loop.time() + self.network.delay())
        self._on_the_way.append((frame, loop.time(), self._arrives_at))
        if len(self._on_the_way) == 1:
            loop.later(self._arrives_at - loop.time(), self._pump)

    def _pump(self) -> None:
        """Deliver what has arrived, in order; what cannot pass is sent again and holds up the rest."""
        network, peer = self.network, self.peer
        while self._on_the_way:
            frame, sent_at, arrives_at = self._on_the_way[0]
            now = network.loop.time()
            if arrives_at > now:
                network.loop.later(arrives_at - now, self._pump)
                return
            if not (network.reaches(self.host, peer.host) and network.reaches(peer.host, self.host)):
                if now - sent_at > _GIVE_UP_S:
                    self._broken()
                    self._on_the_way.clear()
                else:
                    network.loop.later(_AGAIN_S, self._pump)
                return
            self._on_the_way.popleft()
            if not peer.is_open:
                self._broken()
            elif frame is None:
                peer._broken()
            else:
                peer._inbox.put_nowait(frame)

    def _broken(self) -> None:
        if self.is_open:
            self.is_open = False
            self._inbox.put_nowait(None)


class ManagerEnd:
    """``fleet.manager.sessions.Channel``."""

    def __init__(self, end: End) -> None:
        self._end = end

    async def send(self, frame: bytes) -> None:
        if not await self._end.write(frame):
            raise ChannelClosed("connection lost")

    async def receive(self) -> bytes:
        frame = await self._end.read()
        if frame is None:
            raise ChannelClosed("closed by the node")
        return frame

    async def close(self, reason: str) -> None:
        self._end.shut()


class AgentEnd:
    """``fleet.agent.dialer.Connection``."""

    def __init__(self, end: End) -> None:
        self._end = end

    async def send(self, message: bytes) -> None:
        if not await self._end.write(message):
            raise ConnectionResetError("connection lost")

    async def recv(self) -> bytes:
        frame = await self._end.read()
        if frame is None:
            raise ConnectionResetError("closed by the manager")
        return frame


class Listener:
    """A process that takes connections at ``host``: ``serve(channel, who)``."""

    def __init__(
        self, host: str, process: Process, serve: Callable[[ManagerEnd, str], Coroutine[Any, Any, None]]
    ) -> None:
        self.host = host
        self.process = process
        self.serve = serve


class Network:
    """``cuts``: (from, to) pairs of hosts between which nothing passes. ``off``: hosts without power."""

    def __init__(self, loop: SimLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.cuts: set[tuple[str, str]] = set()
        self.off: set[str] = set()
        self.listeners: dict[str, Listener] = {}
        self._ends: list[End] = []

    def reaches(self, source: str, target: str) -> bool:
        return source == target or not ((source, target) in self.cuts or source in self.off or target in self.off)

    def delay(self) -> float:
        chance = self.chance
        return chance.uniform(0.05, 0.5) if chance.random() < 0.02 else chance.uniform(0.0002, 0.004)

    def end_of_process(self, process: Process, *, silent: bool) -> None:
        """Its sockets are closed by its kernel, or (``silent``) vanish with it."""
        for end in [end for end in self._ends if end.process is process]:
            self._ends.remove(end)
            if silent:
                end.vanish()
            else:
                end.shut()

    async def refuses(self, source: str, address: str) -> bool:
        """``fleet.manager.leadership.is_refused``."""
        host = address.partition(":")[0]
        await asyncio.sleep(self.delay())
        if self.reaches(source, host) and self.reaches(host, source):
            return host not in self.listeners
        await asyncio.sleep(1.0)
        return False

    def dialer(self, source: str, process: Process, who: str) -> Callable[[str], Any]:
        """``fleet.agent.dialer.Dial`` of the node ``who`` at host ``source``."""

        @asynccontextmanager
        async def dial(address: str) -> AsyncIterator[AgentEnd]:
            host = address.partition(":")[0]
            await asyncio.sleep(self.delay())
            if not (self.reaches(source, host) and self.reaches(host, source)):
                await asyncio.sleep(OPEN_TIMEOUT_S)
                raise TimeoutError(f"{address} does not answer")
            listener = self.listeners.get(host)
            if listener is None:
                raise ConnectionRefusedError(f"{address} refuses connections")
            near, far = End(self, source, process), End(self, host, listener.process)
            near.peer, far.peer = far, near
            self._ends += [near, far]
            self.loop.spawn(listener.serve(ManagerEnd(far), who), listener.process)
            try:
                yield AgentEnd(near)
            finally:
                near.shut()
                for end in (near, far):
                    if end in self._ends and not end.is_open:
                        self._ends.remove(end)

        return dial
