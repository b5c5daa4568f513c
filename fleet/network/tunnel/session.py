"""The keys of one finished handshake, and the counters that go with them. Pure."""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fleet.network.tunnel.noise import TransportKeys
from fleet.network.tunnel.wire import DATA, DATA_HEADER

__all__ = ["REJECT_AFTER_MESSAGES", "REJECT_AFTER_S", "REKEY_AFTER_S", "ReplayWindow", "Session"]

REKEY_AFTER_S: Final = 120.0
REJECT_AFTER_S: Final = 180.0
REKEY_AFTER_MESSAGES: Final = 1 << 60
REJECT_AFTER_MESSAGES: Final = (1 << 64) - (1 << 13) - 1
_WINDOW_BITS: Final = 8192  # as the kernel's; packets of one sender overtake each other by less
_WINDOW_MASK: Final = (1 << _WINDOW_BITS) - 1
_NONCE: Final = struct.Struct("<4xQ")


class ReplayWindow:
    """Which counters came: each is taken once, and none that is further back than the window is long."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = 0  # bit n: newest - n came

    def is_new(self, counter: int) -> bool:
        """Whether a packet with this counter may still come. To be asked before it costs a decryption."""
        behind = self._newest - counter
        return behind < 0 or (behind < _WINDOW_BITS and not self._seen >> behind & 1)

    def take(self, counter: int) -> None:
        """It came, and was authentic."""
        behind = self._newest - counter
        if behind < 0:
            self._seen = (self._seen << min(-behind, _WINDOW_BITS) | 1) & _WINDOW_MASK
            self._newest = counter
        else:
            self._seen |= 1 << behind


class Session:
    """``local`` is the number by which the other side addresses us, ``remote`` ours for it; ``born`` in seconds of the
    caller's clock."""

    __slots__ = ("_open", "_seal", "_window", "born", "is_initiator", "local", "remote", "sent")

    def __init__(self, keys: TransportKeys, *, local: int, remote: int, is_initiator: bool, born: float) -> None:
        self._seal = ChaCha20Poly1305(keys.send).encrypt
        self._open = ChaCha20Poly1305(keys.receive).decrypt
        self._window = ReplayWindow()
        self.local = local
        self.remote = remote
        self.is_initiator = is_initiator
        self.born = born
        self.sent = 0

    def is_usable(self, now: float) -> bool:
        """Whether anything may still be sent by it."""
        return now - self.born < REJECT_AFTER_S and self.sent < REJECT_AFTER_MESSAGES

    def wants_successor(self, now: float) -> bool:
        """Whether its initiator should negotiate the next one, or either side after very many messages."""
        return (self.is_initiator and now - self.born >= REKEY_AFTER_S) or self.sent >= REKEY_AFTER_MESSAGES

    def seal(self, packet: bytes) -> tuple[bytes, bytes]:
        """Header and sealed packet of the next message. Only while ``is_usable``: a counter is never used twice."""
        counter = self.sent
        self.sent = counter + 1
        return DATA_HEADER.pack(DATA, self.remote, counter), self._seal(_NONCE.pack(counter), packet, None)

    def open(self, counter: int, sealed: memoryview | bytes) -> bytes | None:
        """The packet; ``None`` for what is forged, came before, is too late or too old."""
        if counter >= REJECT_AFTER_MESSAGES or not self._window.is_new(counter):
            return None
        try:
            packet = self._open(_NONCE.pack(counter), sealed, None)
        except InvalidTag:
            return None
        self._window.take(counter)
        return packet
