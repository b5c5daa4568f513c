"""The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (Noise Protocol Framework, revision 34), as WireGuard uses it. Pure.

    initiator -> responder    e, es, s, ss      payload: a timestamp
    initiator <- responder    e, ee, se, psk    payload: empty

Both then have two keys, one a direction. Prologue and payloads are arguments, so that the published vectors of the pattern test
the very code that is used. Anything wrong with a message is ``HandshakeError``; nothing is changed by a message that was refused.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

__all__ = ["NO_PSK", "HandshakeError", "Initiator", "KeyPair", "Responder", "TransportKeys"]

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
NO_PSK = bytes(32)
KEY_BYTES = 32
TAG_BYTES = 16
_NONCE_ZERO = bytes(12)


class HandshakeError(Exception):
    """A handshake message that is not from who it should be from, or not for us."""


class KeyPair:
    """An X25519 key pair (RFC 7748). Its repr shows the public half only."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        """``private`` is 32 random bytes; they are clamped as they are used."""
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()})"

    def exchange(self, public: bytes) -> bytes:
        """The shared secret. Raises ``HandshakeError`` for a public key of small order."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise HandshakeError("the public key is worthless") from error


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """What a finished handshake gives one of its ends."""

    send: bytes
    receive: bytes


class _Symmetric:
    """Noise's symmetric state: chaining key, hash of everything said, and the key of the next encryption."""

    __slots__ = ("_key", "chaining_key", "hash")

    def __init__(self, prologue: bytes) -> None:
        self.chaining_key = blake2s(CONSTRUCTION).digest()
        self.hash = self.chaining_key
        self._key = b""
        self.mix_hash(prologue)

    def copy(self) -> _Symmetric:
        other = object.__new__(_Symmetric)
        other.chaining_key, other.hash, other._key = self.chaining_key, self.hash, self._key
        return other

    def mix_hash(self, data: bytes) -> None:
        self.hash = blake2s(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self.chaining_key, self._key = _derive(self.chaining_key, secret, 2)

    def mix_ephemeral(self, public: bytes) -> None:
        """Token ``e`` in a pattern with a pre-shared key (section 9.2)."""
        self.mix_hash(public)
        self.mix_key(public)

    def mix_psk(self, psk: bytes) -> None:
        self.chaining_key, extra, self._key = _derive(self.chaining_key, psk, 3)
        self.mix_hash(extra)

    def encrypt(self, plain: bytes) -> bytes:
        # each key encrypts once here, so its counter is always 0
        sealed = ChaCha20Poly1305(self._key).encrypt(_NONCE_ZERO, plain, self.hash)
        self.mix_hash(sealed)
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        try:
            plain = ChaCha20Poly1305(self._key).decrypt(_NONCE_ZERO, sealed, self.hash)
        except InvalidTag:
            raise HandshakeError("not sealed with the expected key") from None
        self.mix_hash(sealed)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        first, second = _derive(self.chaining_key, b"", 2)
        return first, second


class Initiator:
    """The side that speaks first: ``first`` is its message; ``finish`` reads the answer."""

    def __init__(
        self,
        *,
        static: KeyPair,
        remote: bytes,
        ephemeral: KeyPair,
        prologue: bytes,
        payload: bytes,
        psk: bytes = NO_PSK,
    ) -> None:
        """``remote`` is the responder's public key. Raises ``HandshakeError`` if it is worthless."""
        state = _Symmetric(prologue)
        state.mix_hash(remote)
        state.mix_ephemeral(ephemeral.public)
        state.mix_key(ephemeral.exchange(remote))
        sealed_static = state.encrypt(static.public)
        state.mix_key(static.exchange(remote))
        sealed_payload = state.encrypt(payload)
        self.first = ephemeral.public + sealed_static + sealed_payload
        self._static, self._ephemeral, self._psk, self._state = static, ephemeral, psk, state

    def finish(self, answer: bytes) -> tuple[TransportKeys, bytes]:
        """The keys and the answer's payload. Raises ``HandshakeError``; may then be called again with another answer."""
        state, remote = self._state.copy(), answer[:KEY_BYTES]
        state.mix_ephemeral(remote)
        state.mix_key(self._ephemeral.exchange(remote))
        state.mix_key(self._static.exchange(remote))
        state.mix_psk(self._psk)
        payload = state.decrypt(answer[KEY_BYTES:])
        send, receive = state.split()
        return TransportKeys(send, receive), payload


class Responder:
    """The side that answers. Reading a message tells who sent it (``remote``) and the payload; ``answer`` ends the handshake."""

    def __init__(self, *, static: KeyPair, message: bytes, prologue: bytes) -> None:
        """Raises ``HandshakeError`` unless the message was made for us by the owner of ``remote``'s private key."""
        state = _Symmetric(prologue)
        state.mix_hash(static.public)
        self._ephemeral = message[:KEY_BYTES]
        state.mix_ephemeral(self._ephemeral)
        state.mix_key(static.exchange(self._ephemeral))
        end = 2 * KEY_BYTES + TAG_BYTES
        self.remote = state.decrypt(message[KEY_BYTES:end])
        state.mix_key(static.exchange(self.remote))
        self.payload = state.decrypt(message[end:])
        self._state = state

    def answer(self, *, ephemeral: KeyPair, payload: bytes = b"", psk: bytes = NO_PSK) -> tuple[bytes, TransportKeys]:
        """The second message and the keys. Raises ``HandshakeError`` for a worthless ephemeral key of the other side."""
        state = self._state.copy()
        state.mix_ephemeral(ephemeral.public)
        state.mix_key(ephemeral.exchange(self._ephemeral))
        state.mix_key(ephemeral.exchange(self.remote))
        state.mix_psk(psk)
        message = ephemeral.public + state.encrypt(payload)
        receive, send = state.split()
        return message, TransportKeys(send, receive)


def _derive(key: bytes, data: bytes, count: int) -> list[bytes]:
    """HKDF with BLAKE2s (section 4.3): ``count`` keys of 32 bytes."""
    secret = hmac.digest(key, data, "blake2s")
    found: list[bytes] = []
    last = b""
    for number in range(1, count + 1):
        last = hmac.digest(secret, last + bytes([number]), "blake2s")
        found.append(last)
    return found
