"""One end of the tunnel: packets in, datagrams out, and the reverse. Pure: the caller has the sockets and the clock.

A packet goes to the peer that has its destination address, sealed. A datagram is believed only if it is sealed by a peer, and
the packet in it is passed on only if its source address is that peer's (``addresses``). Everything else is dropped silently.

What a stranger can cost: a datagram that names no session or handshake of ours, one dictionary lookup; a handshake without the
right ``mac1``, one hash; with it (our public key is no secret), 0.3 ms, at most ``_FREE_HANDSHAKES`` times a second; above that a
cookie has to be fetched first, so senders who are not where they say cost a tenth of that, and only up to a bound. Nothing
is remembered of strangers but one number for each source that fetched a cookie, for a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fleet.network.tunnel import wire
from fleet.network.tunnel.noise import HandshakeError, KeyPair, Responder
from fleet.network.tunnel.peer import Endpoint, Peer, PeerStatus, Surroundings
from fleet.network.tunnel.session import REJECT_AFTER_S

__all__ = ["PEERS_MAX", "PeerSpec", "TunnelEnd"]

PEERS_MAX: Final = 10_000
_FREE_HANDSHAKES: Final = 50
_HANDSHAKES_MAX: Final = 200
_COOKIES_MAX: Final = 200
_PER_SOURCE_MAX: Final = 20
_SOURCES_MAX: Final = 1024
"""A second, all five."""
_COOKIE_SECRET_S: Final = 120.0
_PAD: Final = 16
_U32: Final = struct.Struct("<I")
_IPV4: Final = struct.Struct("!BxH8x4s")  # version, length, source address


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """``addresses`` are packed IPv4 addresses."""

    endpoint: Endpoint
    addresses: frozenset[bytes]


class _Load:
    """How many handshakes this second brought."""

    __slots__ = ("cookies", "handshakes", "sources", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.handshakes = 0
        self.cookies = 0
        self.sources: dict[bytes, int] = {}


class TunnelEnd:
    """``deadline`` is when ``tick`` must be called next, at the latest."""

    def __init__(
        self,
        private: bytes,
        *,
        mtu: int,
        emit: Callable[[Endpoint, list[bytes]], None],
        random: Callable[[int], bytes],
        wall_ns: Callable[[], int],
    ) -> None:
        """``mtu``: of packets, in bytes. ``emit`` sends datagrams, ``random`` gives so many bytes, ``wall_ns`` is the time of
        day (only its order matters)."""
        self._static = KeyPair(private)
        self.mtu = mtu
        self._random = random
        self._wall_ns = wall_ns
        self._last_stamp = 0
        self._emit = emit
        self._mac1_key = wire.mac1_key(self._static.public)
        self._cookie_key = wire.cookie_key(self._static.public)
        self._cookie_secret = b""
        self._cookie_secret_until = float("-inf")
        self._peers: dict[bytes, Peer] = {}
        self._by_address: dict[bytes, Peer] = {}
        self._by_index: dict[int, Peer] = {}
        self._load = _Load(float("-inf"))
        self.deadline = float("inf")
        self.unrouted = 0
        """Packets for an address that no peer has."""
        self._around = Surroundings(
            static=self._static,
            random=random,
            timestamp=self._timestamp,
            new_index=self._new_index,
            drop_index=self._drop_index,
            emit=emit,
            arm=self._arm,
        )

    @property
    def public(self) -> bytes:
        """Our public key."""
        return self._static.public

    def set_peers(self, wanted: Mapping[bytes, PeerSpec], now: float) -> None:
        """Have exactly these peers, by public key. Sessions with those that stay are kept. Raises ``ValueError`` for more than
        ``PEERS_MAX``, and for an address that two have."""
        owners: dict[bytes, bytes] = {}
        if len(wanted) > PEERS_MAX:
            raise ValueError(f"{len(wanted)} peers, at most {PEERS_MAX} are possible")
        for public, spec in wanted.items():
            for address in spec.addresses:
                if owners.setdefault(address, public) != public:
                    raise ValueError(f"address {address.hex()} given to two peers")
        for public in [public for public in self._peers if public not in wanted]:
            self._peers.pop(public).close()
        fresh: list[Peer] = []
        for public, spec in wanted.items():
            peer = self._peers.get(public)
            if peer is None:
                peer = Peer(public, endpoint=spec.endpoint, addresses=spec.addresses, around=self._around)
                self._peers[public] = peer
                fresh.append(peer)
            peer.endpoint, peer.addresses = spec.endpoint, spec.addresses
        self._by_address = {address: self._peers[public] for address, public in owners.items()}
        for peer in fresh:
            peer.greet(now)

    def send(self, packets: Sequence[bytes], now: float) -> None:
        """Seal IPv4 packets, of 20 bytes and more, each for the peer that has its destination address; without one it is
        dropped. Neighbours for one peer are emitted together."""
        whose: Peer | None = None
        run: list[bytes] = []
        for packet in packets:
            peer = self._by_address.get(packet[16:20])
            if peer is None or packet[0] >> 4 != 4:
                self.unrouted += 1
                continue
            if whose is not None and peer is not whose:
                whose.send(run, now)
                run = []
            whose = peer
            # hides the exact length, as WireGuard does
            run.append(packet.ljust(min(len(packet) + -len(packet) % _PAD, self.mtu), b"\0"))
        if whose is not None:
            whose.send(run, now)

    def receive(self, joined: memoryview, size: int, source: Endpoint, now: float) -> list[bytes]:
        """The packets that came from peers in these datagrams of one ``source``: each has ``size`` bytes, the last may have
        fewer. Everything else in them is dropped, or answered."""
        packets: list[bytes] = []
        whose = -1
        run: list[tuple[int, memoryview]] = []
        for start in range(0, len(joined) - wire.DATA_MIN_BYTES + 1, size):
            kind, index, counter = wire.DATA_HEADER.unpack_from(joined, start)
            if kind != wire.DATA:
                self._handshake(bytes(joined[start : start + size]), source, now)
                continue
            if index != whose and run:
                packets += self._open(whose, run, now)
                run = []
            whose = index
            run.append((counter, joined[start + wire.DATA_HEADER.size : start + size]))
        if run:
            packets += self._open(whose, run, now)
        return packets

    def _handshake(self, message: bytes, source: Endpoint, now: float) -> None:
        kind = _U32.unpack_from(message)[0]
        if kind == wire.INITIATION and len(message) == wire.INITIATION_BYTES:
            self._initiation(message, source, now)
        elif kind == wire.RESPONSE and len(message) == wire.RESPONSE_BYTES:
            self._response(message, now)
        elif kind == wire.COOKIE and len(message) == wire.COOKIE_BYTES:
            index = _U32.unpack_from(message, 4)[0]
            peer = self._by_index.get(index)
            if peer is not None:
                peer.take_cookie(index, message[8:32], message[32:], now)

    def tick(self, now: float) -> None:
        """Do what is due and say by ``deadline`` when it is worth calling again."""
        if now < self.deadline:
            return
        self.deadline = float("inf")
        for peer in list(self._peers.values()):
            peer.tick(now)
            self._arm(peer.due())

    def status(self, now: float) -> dict[bytes, PeerStatus]:
        """Of each peer by public key."""
        return {public: peer.status(now) for public, peer in self._peers.items()}

    # --- inside -------------------------------------------------------------------------------------------------------

    def _open(self, index: int, messages: Sequence[tuple[int, memoryview]], now: float) -> list[bytes]:
        """The packets in data messages (counter, sealed) for one of our sessions."""
        peer = self._by_index.get(index)
        session = peer.session_of(index) if peer is not None else None
        if peer is None or session is None or now - session.born >= REJECT_AFTER_S:
            return []
        opened = session.open(messages)
        if not opened:
            return []
        peer.received(
            session, sum(map(len, opened)) + len(opened) * wire.DATA_MIN_BYTES, is_empty=not any(opened), now=now
        )
        addresses = peer.addresses
        packets: list[bytes] = []
        for packet in opened:
            if len(packet) >= 20:
                version, length, address = _IPV4.unpack_from(packet)
                if version >> 4 == 4 and address in addresses and 20 <= length <= len(packet):
                    packets.append(packet[:length])
        return packets

    def _initiation(self, message: bytes, source: Endpoint, now: float) -> None:
        if not wire.mac1_of(message, self._mac1_key) or not self._may_handshake(message, source, now):
            return
        try:
            request = Responder(static=self._static, message=message[8:116], prologue=wire.PROLOGUE)
        except HandshakeError:
            return
        peer = self._peers.get(request.remote)
        if peer is not None:
            peer.accept(request, _U32.unpack_from(message, 4)[0], now)

    def _response(self, message: bytes, now: float) -> None:
        _, sender, receiver = struct.unpack_from("<III", message)
        peer = self._by_index.get(receiver)
        if peer is not None and wire.mac1_of(message, self._mac1_key):
            peer.complete(receiver, sender, message[12:60], now)

    def _may_handshake(self, message: bytes, source: Endpoint, now: float) -> bool:
        """Whether there is time for it; otherwise its sender is given a cookie to try again with, if there is time for that."""
        if not 0 <= now - self._load.started < 1.0:
            self._load = _Load(now)
        load = self._load
        if load.handshakes < _FREE_HANDSHAKES:
            load.handshakes += 1
            return True
        place = f"{source[0]} {source[1]}".encode()
        cookie = wire.cookie_for(self._secret(now), place)
        if wire.mac2_of(message, cookie):
            if place not in load.sources and len(load.sources) >= _SOURCES_MAX:
                return False
            load.sources[place] = load.sources.get(place, 0) + 1
            load.handshakes += 1
            return load.sources[place] <= _PER_SOURCE_MAX and load.handshakes <= _HANDSHAKES_MAX
        if load.cookies < _COOKIES_MAX:
            load.cookies += 1
            nonce = self._random(24)
            sealed = wire.seal_cookie(cookie, key=self._cookie_key, nonce=nonce, mac1=message[-32:-16])
            self._emit(source, [_U32.pack(wire.COOKIE) + message[4:8] + nonce + sealed])
        return False

    def _secret(self, now: float) -> bytes:
        if now >= self._cookie_secret_until:
            self._cookie_secret, self._cookie_secret_until = self._random(32), now + _COOKIE_SECRET_S
        return self._cookie_secret

    def _timestamp(self) -> bytes:
        """Always later than the one before, also when the clock of the host is set back."""
        self._last_stamp = max(self._wall_ns(), self._last_stamp + 1)
        return wire.tai64n(self._last_stamp)

    def _new_index(self, peer: Peer) -> int:
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index not in self._by_index:
                self._by_index[index] = peer
                return index

    def _drop_index(self, index: int) -> None:
        self._by_index.pop(index, None)

    def _arm(self, due: float) -> None:
        self.deadline = min(self.deadline, due)
