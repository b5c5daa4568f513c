"""Two or more ends of the tunnel in simulated time, joined by a wire that loses, doubles, delays and remembers datagrams."""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Callable

from fleet.network.tunnel.engine import PeerSpec, TunnelEnd
from fleet.network.tunnel.peer import Endpoint

__all__ = ["PORT", "End", "World", "ipv4"]

PORT = 4790
LATENCY_S = 0.001


def ipv4(source: str, target: str, payload: bytes = b"") -> bytes:
    """An IPv4 packet with a UDP header's worth of nothing in particular."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0)
    return head + bytes(map(int, source.split("."))) + bytes(map(int, target.split("."))) + payload


class End:
    """One host."""

    def __init__(self, world: World, address: str) -> None:
        self.world = world
        self.address = address
        self.private = world.chance.randbytes(32)
        self.got: list[bytes] = []
        self.clock_ns = 1_700_000_000 * 10**9
        self.start()

    def start(self) -> None:
        """As a process that has just begun: nothing is remembered but the key."""
        world = self.world
        self.tunnel = TunnelEnd(
            self.private,
            mtu=1440,
            emit=self._emit,
            random=world.chance.randbytes,
            wall_ns=lambda: self.clock_ns + int(world.now * 1e9),
        )

    def _emit(self, to: Endpoint, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            self.world.carry((self.address, PORT), to, datagram)

    def know(self, *others: End) -> None:
        peers = {
            other.tunnel.public: PeerSpec((other.address, PORT), frozenset([bytes(map(int, other.address.split(".")))]))
            for other in others
        }
        self.tunnel.set_peers(peers, self.world.now)

    def send(self, to: End, payload: bytes) -> None:
        self.tunnel.send([ipv4(self.address, to.address, payload)], self.world.now)

    def payloads(self) -> list[bytes]:
        """What came since the last time."""
        got, self.got = self.got, []
        return [packet[20:] for packet in got]

    def is_connected(self, other: End) -> bool:
        return self.tunnel.status(self.world.now)[other.tunnel.public].is_connected


class World:
    """The clock and the wire. ``filter`` says what becomes of a datagram: how many times it arrives."""

    def __init__(self, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.ends: dict[str, End] = {}
        self.filter: Callable[[str, str, bytes], int] = lambda source, target, datagram: 1
        self.delay: Callable[[], float] = lambda: LATENCY_S
        self.sent: list[tuple[Endpoint, Endpoint, bytes]] = []
        self._flying: list[tuple[float, int, Endpoint, str, bytes]] = []
        self._number = 0

    def end(self, address: str) -> End:
        self.ends[address] = End(self, address)
        return self.ends[address]

    def carry(self, source: Endpoint, target: Endpoint, datagram: bytes) -> None:
        self.sent.append((source, target, datagram))
        for _ in range(self.filter(source[0], target[0], datagram)):
            self._number += 1
            heapq.heappush(self._flying, (self.now + self.delay(), self._number, source, target[0], datagram))

    def inject(self, source: Endpoint, to: End, datagram: bytes) -> None:
        """A datagram from nowhere arrives at once."""
        if datagram:
            to.got += to.tunnel.receive(memoryview(datagram), len(datagram), source, self.now)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while True:
            due = min((end.tunnel.deadline for end in self.ends.values()), default=float("inf"))
            arrives = self._flying[0][0] if self._flying else float("inf")
            moment = min(due, arrives)
            if moment > until:
                break
            self.now = max(self.now, moment)
            if arrives <= due:
                _, _, source, target, datagram = heapq.heappop(self._flying)
                if target in self.ends:
                    self.inject(source, self.ends[target], datagram)
            else:
                for end in self.ends.values():
                    end.tunnel.tick(self.now)
        self.now = until

    def pair(self) -> tuple[End, End]:
        """Two ends that know each other and have met."""
        one, two = self.end("10.0.0.1"), self.end("10.0.0.2")
        one.know(two)
        two.know(one)
        self.run(0.1)
        return one, two
