"""What one end knows of another: its sessions, the handshake under way and the timers (WireGuard, section 6). Pure.

Differences from the kernel's WireGuard, none of which the other side can tell from a kernel's behaviour:

- the endpoint is what the cluster's state says; it does not follow the sender (no roaming);
- a handshake of ours goes on while one of the other side's is answered: when both ends learn of each other in the same moment,
  both handshakes complete instead of spoiling each other until the next attempt 5 s later;
- a new peer is greeted at once, not when there is data for it, and then every 25 s: whichever end learns of the other second
  finds it willing, so the first packet of a container waits for one round trip, and a peer that is gone shows in ``status``.

``emit`` is called with an endpoint and datagrams, in order. Times are seconds of one clock that only goes forward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.network.tunnel import noise, wire
from fleet.network.tunnel.noise import HandshakeError, Initiator, KeyPair, Responder
from fleet.network.tunnel.session import REJECT_AFTER_S, Session

__all__ = ["Endpoint", "Peer", "PeerStatus", "Surroundings"]

Endpoint = tuple[str, int]
"""IPv4 address and UDP port."""

REKEY_ATTEMPT_S: Final = 90.0
REKEY_TIMEOUT_S: Final = 5.0
KEEPALIVE_S: Final = 10.0
PERSISTENT_S: Final = 25.0
COOKIE_LIFE_S: Final = 120.0
JITTER_S: Final = 0.333
_INITIATIONS_APART_S: Final = 0.02  # of one peer; more often is replay or flood
_STAGED_MAX: Final = 128
"""Packets that wait for a handshake; the oldest gives way."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a peer needs of its tunnel. ``new_index`` gives an unused number and remembers whose it is, ``drop_index``
    forgets it."""

    static: KeyPair
    random: Callable[[int], bytes]
    timestamp: Callable[[], bytes]
    new_index: Callable[[Peer], int]
    drop_index: Callable[[int], None]
    emit: Callable[[Endpoint, list[bytes]], None]
    arm: Callable[[float], None]
    """Call ``tick`` not later than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """``last_handshake`` on the caller's clock; negative if there was none. Bytes are of messages with sealed packets."""

    last_handshake: float
    is_connected: bool
    sent_bytes: int
    received_bytes: int


@dataclass(slots=True)
class _Attempt:
    """A handshake of ours that was not answered yet."""

    handshake: Initiator
    index: int
    mac1: bytes


@dataclass(slots=True)
class _Timers:
    """When something is due; ``None``: it is not."""

    retry: float | None = None
    give_up: float | None = None
    expect_answer: float | None = None
    keepalive: float | None = None
    persistent: float | None = None
    forget: float | None = None

    def earliest(self) -> float:
        return min(
            (
                due
                for due in (self.retry, self.expect_answer, self.keepalive, self.persistent, self.forget)
                if due is not None
            ),
            default=float("inf"),
        )


@dataclass(slots=True)
class _Traffic:
    sent_bytes: int = 0
    received_bytes: int = 0
    last_handshake: float = -1.0
    staged: deque[bytes] = field(default_factory=lambda: deque(maxlen=_STAGED_MAX))


class Peer:
    """See the module. ``public`` never changes; ``endpoint`` and ``addresses`` may."""

    def __init__(self, public: bytes, *, endpoint: Endpoint, addresses: frozenset[bytes], around: Surroundings) -> None:
        """``addresses`` (packed IPv4) are what may come from it, and what is sent to it."""
        self.public = public
        self.endpoint = endpoint
        self.addresses = addresses
        self._around = around
        self._mac1_key = wire.mac1_key(public)
        self._cookie_key = wire.cookie_key(public)
        self._cookie = b""
        self._cookie_until = 0.0
        self._current: Session | None = None
        self._previous: Session | None = None
        self._next: Session | None = None
        self._attempt: _Attempt | None = None
        self._newest_timestamp = b""
        self._last_consumed = float("-inf")
        self._last_initiation = float("-inf")
        self._timers = _Timers()
        self._traffic = _Traffic()

    # --- what the tunnel calls ----------------------------------------------------------------------------------------

    def greet(self, now: float) -> None:
        """Make contact without having anything to say."""
        self._arm("persistent", now + PERSISTENT_S)
        if self._current is None:
            self._initiate(now)

    def send(self, packets: Sequence[bytes], now: float) -> None:
        """Seal and emit packets, or keep them until there is a session."""
        session = self._current
        if session is None or not session.is_usable(now):
            self._traffic.staged.extend(packets)
            self._initiate(now)
            return
        self._emit_data(session, packets, now)
        timers = self._timers
        if timers.expect_answer is None:
            self._arm("expect_answer", now + KEEPALIVE_S + REKEY_TIMEOUT_S + self._jitter())
        if session.wants_successor(now):
            self._initiate(now)

    def session_of(self, index: int) -> Session | None:
        """The session by which the other side addresses us as ``index``."""
        for session in (self._current, self._next, self._previous):
            if session is not None and session.local == index:
                return session
        return None

    def received(self, session: Session, size: int, *, is_empty: bool, now: float) -> None:
        """Authentic messages of ``size`` bytes came by ``session``; ``is_empty``: no packet was in them."""
        self._traffic.received_bytes += size
        if session is self._next:  # the other side has the keys for sure: now we may use them
            self._retire(self._previous)
            self._previous, self._current, self._next = self._current, session, None
            self._finished(now)
            self._flush(now)
        timers = self._timers
        timers.expect_answer = None
        timers.persistent = now + PERSISTENT_S
        if not is_empty and timers.keepalive is None:
            self._arm("keepalive", now + KEEPALIVE_S)
        if session.is_initiator and now - session.born >= REJECT_AFTER_S - KEEPALIVE_S - REKEY_TIMEOUT_S:
            self._initiate(now)  # we send little, so nothing else would renew it before it ends

    def accept(self, request: Responder, remote: int, now: float) -> bool:
        """Answer a handshake that is ``remote`` to the other side, unless it is old or comes too soon after another."""
        if request.payload <= self._newest_timestamp or now - self._last_consumed < _INITIATIONS_APART_S:
            return False
        around = self._around
        try:
            body, keys = request.answer(ephemeral=KeyPair(around.random(noise.KEY_BYTES)))
        except HandshakeError:
            return False
        self._newest_timestamp, self._last_consumed = request.payload, now
        index = around.new_index(self)
        self._retire(self._next)
        self._next = Session(keys, local=index, remote=remote, is_initiator=False, born=now)
        head = wire.RESPONSE.to_bytes(4, "little") + index.to_bytes(4, "little") + remote.to_bytes(4, "little")
        self._emit_handshake(head + body, now)
        self._arm("forget", now + 3 * REJECT_AFTER_S)
        return True

    def complete(self, index: int, remote: int, body: bytes, now: float) -> bool:
        """Take the answer to our handshake ``index``; whether it was one."""
        attempt = self._attempt
        if attempt is None or attempt.index != index:
            return False
        try:
            keys, payload = attempt.handshake.finish(body)
        except HandshakeError:
            return False
        if payload:
            return False
        self._attempt = None
        session = Session(keys, local=index, remote=remote, is_initiator=True, born=now)
        self._retire(self._previous)
        if self._next is not None:
            self._retire(self._current)
            self._previous, self._next = self._next, None
        else:
            self._previous = self._current
        self._current = session
        self._finished(now)
        self._arm("forget", now + 3 * REJECT_AFTER_S)
        if not self._flush(now):
            self._emit_data(session, [b""], now)  # the other side may use the keys only when it sees us use them
        return True

    def take_cookie(self, index: int, nonce: bytes, sealed: bytes, now: float) -> None:
        """The other side is under load and wants proof of our address with the next attempt."""
        attempt = self._attempt
        if attempt is None or attempt.index != index:
            return
        cookie = wire.open_cookie(sealed, key=self._cookie_key, nonce=nonce, mac1=attempt.mac1)
        if cookie is not None:
            self._cookie, self._cookie_until = cookie, now + COOKIE_LIFE_S

    def tick(self, now: float) -> None:
        """Do what is due."""
        timers = self._timers
        if timers.retry is not None and now >= timers.retry:
            timers.retry = None
            if timers.give_up is not None and now >= timers.give_up:
                self._give_up()
            else:
                self._initiate(now)
        if timers.expect_answer is not None and now >= timers.expect_answer:
            timers.expect_answer = None
            self._initiate(now)
        if timers.keepalive is not None and now >= timers.keepalive:
            timers.keepalive = None
            self._keepalive(now)
        if timers.persistent is not None and now >= timers.persistent:
            self._arm("persistent", now + PERSISTENT_S)
            self._keepalive(now)
        if timers.forget is not None and now >= timers.forget:
            timers.forget = None
            self._drop_sessions()

    def due(self) -> float:
        """When ``tick`` has something to do."""
        return self._timers.earliest()

    def close(self) -> None:
        """Forget everything; the peer is no more."""
        self._drop_sessions()
        self._give_up()

    def status(self, now: float) -> PeerStatus:
        """For people."""
        session = self._current
        return PeerStatus(
            last_handshake=self._traffic.last_handshake,
            is_connected=session is not None and session.is_usable(now),
            sent_bytes=self._traffic.sent_bytes,
            received_bytes=self._traffic.received_bytes,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _initiate(self, now: float) -> None:
        """Begin a handshake, or another attempt; not sooner after the last than it may take to be answered."""
        timers = self._timers
        if timers.give_up is None:
            timers.give_up = now + REKEY_ATTEMPT_S
        if now - self._last_initiation < REKEY_TIMEOUT_S:
            if timers.retry is None:
                self._arm("retry", self._last_initiation + REKEY_TIMEOUT_S + self._jitter())
            return
        around = self._around
        self._end_attempt()
        try:
            handshake = Initiator(
                static=around.static,
                remote=self.public,
                ephemeral=KeyPair(around.random(noise.KEY_BYTES)),
                prologue=wire.PROLOGUE,
                payload=around.timestamp(),
            )
        except HandshakeError:
            return  # a public key of small order: nobody has it
        index = around.new_index(self)
        message = self._emit_handshake(
            wire.INITIATION.to_bytes(4, "little") + index.to_bytes(4, "little") + handshake.first, now
        )
        self._attempt = _Attempt(handshake, index, mac1=message[-32:-16])
        self._last_initiation = now
        self._arm("retry", now + REKEY_TIMEOUT_S + self._jitter())

    def _finished(self, now: float) -> None:
        """There is a new session to send by."""
        self._traffic.last_handshake = now
        self._timers.retry = self._timers.give_up = self._timers.expect_answer = None

    def _give_up(self) -> None:
        self._timers.retry = self._timers.give_up = None
        self._traffic.staged.clear()
        self._end_attempt()

    def _end_attempt(self) -> None:
        if self._attempt is not None:
            self._around.drop_index(self._attempt.index)
            self._attempt = None

    def _drop_sessions(self) -> None:
        for session in (self._current, self._previous, self._next):
            self._retire(session)
        self._current = self._previous = self._next = None

    def _retire(self, session: Session | None) -> None:
        if session is not None:
            self._around.drop_index(session.local)

    def _keepalive(self, now: float) -> None:
        session = self._current
        if session is not None and session.is_usable(now):
            self._emit_data(session, [b""], now)
            if session.wants_successor(now):
                self._initiate(now)
        else:
            self._initiate(now)

    def _flush(self, now: float) -> bool:
        """Send what waited for a session; whether there was anything."""
        staged = list(self._traffic.staged)
        self._traffic.staged.clear()
        if staged:
            self.send(staged, now)
        return bool(staged)

    def _emit_data(self, session: Session, packets: Sequence[bytes], now: float) -> None:
        messages = session.seal(packets)
        self._traffic.sent_bytes += sum(map(len, messages))
        timers = self._timers
        timers.keepalive = None
        timers.persistent = now + PERSISTENT_S  # later than it was: nobody has to be told
        self._around.emit(self.endpoint, messages)

    def _emit_handshake(self, body: bytes, now: float) -> bytes:
        cookie = self._cookie if now < self._cookie_until else b""
        message = wire.with_macs(body, key=self._mac1_key, cookie=cookie)
        self._timers.persistent = now + PERSISTENT_S
        self._around.emit(self.endpoint, [message])
        return message

    def _arm(self, name: str, due: float) -> None:
        setattr(self._timers, name, due)
        self._around.arm(due)

    def _jitter(self) -> float:
        return JITTER_S * self._around.random(1)[0] / 255
