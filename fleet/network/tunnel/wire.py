"""WireGuard's messages as bytes (WireGuard: Next Generation Kernel Network Tunnel, section 5.4). Pure.

    initiation  148 bytes  type 1, sender, ephemeral 32, static 48, timestamp 28, mac1 16, mac2 16
    response     92 bytes  type 2, sender, receiver, ephemeral 32, empty 16, mac1 16, mac2 16
    cookie       64 bytes  type 3, receiver, nonce 24, sealed cookie 32
    data    32.. bytes     type 4, receiver, counter 8, sealed packet

Numbers are little-endian; the type is followed by three zero bytes. ``mac1`` proves that a sender knows whom it writes to, so
that strangers cost one hash; ``mac2`` that it can receive at the address it writes from, asked for only under load.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

__all__ = [
    "COOKIE",
    "COOKIE_BYTES",
    "DATA",
    "DATA_HEADER",
    "DATA_MIN_BYTES",
    "INITIATION",
    "INITIATION_BYTES",
    "OVERHEAD_BYTES",
    "PROLOGUE",
    "RESPONSE",
    "RESPONSE_BYTES",
    "cookie_for",
    "cookie_key",
    "mac1_key",
    "mac1_of",
    "open_cookie",
    "seal_cookie",
    "tai64n",
    "with_macs",
]

PROLOGUE = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
INITIATION, RESPONSE, COOKIE, DATA = 1, 2, 3, 4
INITIATION_BYTES, RESPONSE_BYTES, COOKIE_BYTES, DATA_MIN_BYTES = 148, 92, 64, 32
DATA_HEADER = struct.Struct("<IIQ")
"""Type, receiver, counter."""
OVERHEAD_BYTES = 60
"""What a packet grows by: outer IPv4 20, UDP 8, header 16, tag 16."""

_MAC_BYTES = 16
_TAI64_BASE = (1 << 62) + 10  # cr.yp.to/libtai/tai64.html; the leap seconds since 1972 are left out, as by everybody


def mac1_key(public: bytes) -> bytes:
    """The key by which messages to the owner of ``public`` are marked."""
    return blake2s(b"mac1----" + public).digest()


def cookie_key(public: bytes) -> bytes:
    """The key by which the owner of ``public`` seals cookies."""
    return blake2s(b"cookie--" + public).digest()


def mac1_of(message: bytes, key: bytes) -> bool:
    """Whether the first mark of a handshake message is right."""
    return hmac.compare_digest(_mac(key, message[:-32]), message[-32:-16])


def with_macs(body: bytes, *, key: bytes, cookie: bytes) -> bytes:
    """A handshake message complete; ``cookie`` is empty while the other side has given none."""
    marked = body + _mac(key, body)
    return marked + (_mac(cookie, marked) if cookie else bytes(_MAC_BYTES))


def mac2_of(message: bytes, cookie: bytes) -> bool:
    """Whether the second mark was made with ``cookie``."""
    return hmac.compare_digest(_mac(cookie, message[:-16]), message[-16:])


def cookie_for(secret: bytes, source: bytes) -> bytes:
    """The cookie of whoever can receive at ``source`` (address and port)."""
    return _mac(secret, source)


def seal_cookie(cookie: bytes, *, key: bytes, nonce: bytes, mac1: bytes) -> bytes:
    """XChaCha20-Poly1305; ``mac1`` of the message that is answered is authenticated along with it."""
    return ChaCha20Poly1305(_hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], cookie, mac1)


def open_cookie(sealed: bytes, *, key: bytes, nonce: bytes, mac1: bytes) -> bytes | None:
    """The cookie; ``None`` if it was not sealed for us as the answer to the message with ``mac1``."""
    try:
        return ChaCha20Poly1305(_hchacha20(key, nonce[:16])).decrypt(bytes(4) + nonce[16:], sealed, mac1)
    except InvalidTag:
        return None


def tai64n(unix_ns: int) -> bytes:
    """A timestamp whose bytes are ordered as time is; 12 bytes."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return struct.pack("!QI", _TAI64_BASE + seconds, nanoseconds)


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=_MAC_BYTES).digest()


def _hchacha20(key: bytes, nonce: bytes) -> bytes:
    """A key for each nonce (draft-irtf-cfrg-xchacha-03, section 2.2), which ``cryptography`` does not offer. For cookies only."""
    state = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), *struct.unpack("<4I", nonce)]
    columns = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
    diagonals = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
    for _ in range(10):
        for a, b, c, d in columns + diagonals:
            _quarter(state, a, b, c, d)
    return struct.pack("<8I", *state[:4], *state[12:])


def _quarter(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[x] = (state[x] + state[y]) & 0xFFFFFFFF
        mixed = state[z] ^ state[x]
        state[z] = ((mixed << bits) | (mixed >> (32 - bits))) & 0xFFFFFFFF
