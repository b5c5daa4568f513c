"""The keys of one finished handshake, and the counters that go with them. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
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
_WINDOW: Final = 8192  # as the kernel's; packets of one sender overtake each other by less
_MASK: Final = _WINDOW - 1
_NONCE: Final = struct.Struct("<4xQ")


class ReplayWindow:
    """Which counters came: each is taken once, and none that is further back than the window is long."""

    __slots__ = ("_came", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._came = bytearray(_WINDOW)  # a ring: [n % _WINDOW] is 1 if n came, for newest - _WINDOW < n <= newest

    def is_new(self, counter: int) -> bool:
        """Whether a packet with this counter may still come. To be asked before it costs a decryption."""
        behind = self._newest - counter
        return behind < 0 or (behind < _WINDOW and not self._came[counter & _MASK])

    def take(self, counter: int) -> None:
        """It came, and was authentic."""
        ahead = counter - self._newest
        if ahead > 1:
            self._skip(counter, ahead)
        if ahead > 0:
            self._newest = counter
        self._came[counter & _MASK] = 1

    def _skip(self, counter: int, ahead: int) -> None:
        """The counters between the newest and this one have not come, and take the places of older ones."""
        came, start, stop = self._came, self._newest + 1 & _MASK, counter & _MASK
        if ahead > _WINDOW:
            came[:] = bytes(_WINDOW)
        elif start <= stop:
            came[start:stop] = bytes(stop - start)
        else:
            came[start:] = bytes(_WINDOW - start)
            came[:stop] = bytes(stop)


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

    def seal(self, packets: Sequence[bytes]) -> list[bytes]:
        """The next messages. Only while ``is_usable``, and fewer than 2**13 at once: a counter is never used twice."""
        first, remote, seal = self.sent, self.remote, self._seal
        self.sent = first + len(packets)
        return [
            DATA_HEADER.pack(DATA, remote, counter) + seal(_NONCE.pack(counter), packet, None)
            for counter, packet in enumerate(packets, first)
        ]

    def open(self, messages: Iterable[tuple[int, memoryview | bytes]]) -> list[bytes]:
        """The packets in messages (counter, sealed), without those that are forged, came before, are too late or too old."""
        window, decrypt = self._window, self._open
        packets: list[bytes] = []
        for counter, sealed in messages:
            if counter >= REJECT_AFTER_MESSAGES or not window.is_new(counter):
                continue
            try:
                packet = decrypt(_NONCE.pack(counter), sealed, None)
            except InvalidTag:
                continue
            window.take(counter)
            packets.append(packet)
        return packets
