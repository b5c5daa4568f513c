"""Encryption of secret values at rest: what a copy of the state file or a backup shows without the key.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce per value; the store's key path is authenticated with it, so a value
moved to another key does not open. 2^32 values a key is the bound of random nonces; a cluster writes thousands.
The key is 32 random bytes that live apart from the state: in a file only root reads, or derived by whoever unlocks it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fleet import errors

__all__ = ["KEY_BYTES", "AesSealer", "is_key", "key_digest", "load_or_create_key", "save_key", "write_secret"]

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_LOCKED: Final = b"fleet-locked-1\n"
_LOCK_PLACE: Final = "store.key"
_FILE_MAX: Final = 256
_FORMAT: Final = b"\x01"
"""First byte of a sealed value; plain ones are JSON and begin with a brace."""


def key_digest(key: bytes) -> str:
    """A name for the key that tells nothing of it."""
    return hashlib.sha256(b"fleet sealing key\n" + key).hexdigest()[:16]


class AesSealer:
    """``Sealer`` with one key, or several of which any opens a value. Values that are not sealed are refused: nobody can slip
    plain ones in. ``keys``: 32 bytes each, one after the other."""

    def __init__(self, keys: bytes, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy
        self._set(keys)

    def __repr__(self) -> str:
        return "AesSealer(<key>)"

    def _set(self, keys: bytes) -> None:
        _check_keys(keys)
        self.keys = keys
        """All there are, one after the other."""
        single = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
        self._ciphers = {key_digest(key): AESGCM(key) for key in single}

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the keys, in their order."""
        return tuple(self._ciphers)

    def with_also(self, key: bytes) -> bytes:
        """``keys`` as they are with one more at the end."""
        return self.keys if key_digest(key) in self._ciphers else self.keys + key

    def only(self, digest: str) -> bytes:
        """That key alone. Raises ``InvariantError`` if it is not here."""
        if digest not in self._ciphers:
            raise errors.InvariantError(f"this manager lacks the key {digest} that secrets are sealed with")
        at = self.digests.index(digest) * KEY_BYTES
        return self.keys[at : at + KEY_BYTES]

    def change(self, keys: bytes) -> None:
        """Open with these from now on."""
        self._set(keys)

    def seal(self, key: str, plain: bytes, digest: str = "") -> bytes:
        """Format byte, nonce, ciphertext with tag: 29 bytes more than ``plain``. With the first key unless ``digest`` names
        another. Raises ``InvariantError`` if that is not here."""
        cipher = self._ciphers.get(digest or self.digests[0])
        if cipher is None:
            raise errors.InvariantError(f"this manager lacks the key {digest} that secrets are sealed with")
        nonce = self._entropy(_NONCE_BYTES)
        return _FORMAT + nonce + cipher.encrypt(nonce, plain, key.encode())

    def is_sealed_with(self, digest: str, key: str, sealed: bytes) -> bool:
        """Whether the value at the place ``key`` opens with that key (the first one if ``digest`` is empty)."""
        return self._open(self._ciphers[digest or self.digests[0]], key, sealed) is not None

    def unseal(self, key: str, sealed: bytes) -> bytes:
        """Raises ``InvariantError`` if the value was not sealed with one of these keys for this place."""
        if not sealed.startswith(_FORMAT):
            raise errors.InvariantError(f"{key} is stored without encryption or in a newer format")
        for cipher in self._ciphers.values():
            if (plain := self._open(cipher, key, sealed)) is not None:
                return plain
        raise errors.InvariantError(f"{key} does not open with this manager's key: wrong key, or changed on disk")

    @staticmethod
    def _open(cipher: AESGCM, key: str, sealed: bytes) -> bytes | None:
        nonce, data = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, data, key.encode())
        except (InvalidTag, ValueError):
            return None


def _check_keys(keys: bytes) -> None:
    if not is_key(keys):
        raise errors.InvariantError(f"sealing keys have {KEY_BYTES} bytes each, not {len(keys)} in all")


def is_key(keys: bytes) -> bool:
    """Whether this can be a sealing key, or two of them during a rotation."""
    return len(keys) in (KEY_BYTES, 2 * KEY_BYTES)


def load_or_create_key(path: Path, *, is_new: bool, passphrase: bytes | None = None) -> bytes:
    """The key in ``path``, or both keys during a rotation.

    With ``is_new`` (there is no state yet) a missing file is created, durably, mode 0600.
    Without it a missing file is an error: a new key would not open what is stored. ``passphrase`` opens a locked one.
    Raises ``UserError``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        if not is_new:
            raise errors.UserError(
                f"{path} is missing: restore the key that belongs to this state from a backup"
            ) from None
        return _create_key(path)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            raise errors.UserError(f"{path} may be read by others than its owner: make it mode 0600")
        key = file.read(_FILE_MAX)
    if key.startswith(_LOCKED):
        key = _unlocked(key, passphrase, path)
    if not is_key(key):
        raise errors.UserError(f"{path} is not a key of {KEY_BYTES} bytes: restore it from a backup")
    return key


def save_key(path: Path, key: bytes, *, passphrase: bytes | None = None) -> None:
    """Keep a key, encrypted by ``passphrase`` (32 random bytes) if there is one. Raises ``UserError`` if it is none."""
    if not is_key(key):
        raise errors.UserError(f"a sealing key has {KEY_BYTES} bytes, not {len(key)}")
    if passphrase is None:
        write_secret(path, key)
        return
    write_secret(path, _LOCKED + AesSealer(passphrase).seal(_LOCK_PLACE, key))


def _unlocked(data: bytes, passphrase: bytes | None, path: Path) -> bytes:
    if passphrase is None:
        raise errors.UserError(f"{path} is locked: fleet swarm unlock")
    try:
        return AesSealer(passphrase).unseal(_LOCK_PLACE, data.removeprefix(_LOCKED))
    except errors.InvariantError as cause:
        raise errors.UserError(f"{path} was locked with another key") from cause


def _create_key(path: Path) -> bytes:
    key = os.urandom(KEY_BYTES)
    write_secret(path, key)
    return key


def write_secret(path: Path, data: bytes) -> None:
    """A file of mode 0600, durable; aside and renamed, so that a crash leaves all of it or what was there. Blocks."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    aside.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
