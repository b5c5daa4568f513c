"""Encryption of the state at rest: what a copy of the state file or a backup shows without the key, which is the keys' names
and how long each value is.

A sealed value names its key and a salt; what encrypts it is derived from both (HKDF-SHA256, RFC 5869), with AES-256-GCM (NIST
SP 800-38D) and a random 96-bit nonce. The salt is random and another one after a million values and in every process: so the
bound of 2^32 random nonces a key, which a busy cluster reaches within weeks, is never near, without a counter that a restored
disk would set back. The place in the store is authenticated with the value: moved to another one it does not open.
A key is 32 random bytes that live apart from the state: in a file only root reads, or derived by whoever unlocks it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fleet import errors
from fleet.durable import sync_directory

__all__ = ["KEY_BYTES", "AesSealer", "is_key", "key_digest", "load_or_create_key", "save_key", "write_secret"]

KEY_BYTES: Final = 32
_NAME_BYTES: Final = 8
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_VALUES_A_SALT: Final = 1 << 20
_DERIVED_MAX: Final = 4096
"""Derived keys kept; there is one for each million values, and for each process that ever wrote one that is still there."""

_LOCKED: Final = b"fleet-locked-1\n"
_LOCK_PLACE: Final = "store.key"
_FILE_MAX: Final = 256
_FORMAT: Final = b"\x02"
"""First byte of a sealed value; plain ones are JSON and begin with a brace."""

_NAME_AT: Final = slice(1, 1 + _NAME_BYTES)
_SALT_AT: Final = slice(_NAME_AT.stop, _NAME_AT.stop + _SALT_BYTES)
_NONCE_AT: Final = slice(_SALT_AT.stop, _SALT_AT.stop + _NONCE_BYTES)


def key_digest(key: bytes) -> str:
    """A name for the key that tells nothing of it."""
    return hashlib.sha256(b"fleet sealing key\n" + key).hexdigest()[: 2 * _NAME_BYTES]


@dataclass(slots=True)
class _Writing:
    """What one key seals with now."""

    head: bytes
    cipher: AESGCM
    left: int
    process: int


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
        self._keys = {bytes.fromhex(key_digest(key)): key for key in single}
        self._writing: dict[bytes, _Writing] = {}
        self._derived: dict[bytes, AESGCM] = {}

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the keys, in their order."""
        return tuple(name.hex() for name in self._keys)

    def only(self, digest: str) -> bytes:
        """That key alone, or the first one if ``digest`` is empty. Raises ``InvariantError`` if it is not here."""
        return self._key(bytes.fromhex(digest or self.digests[0]))

    def change(self, keys: bytes) -> None:
        """Open with these from now on."""
        self._set(keys)

    def seal(self, key: str, plain: bytes, digest: str = "") -> bytes:
        """Format byte, name of the key, salt, nonce, ciphertext with tag: 53 bytes more than ``plain``. With the first key unless
        ``digest`` names another. Raises ``InvariantError`` if that is not here."""
        name = bytes.fromhex(digest) if digest else next(iter(self._keys))
        writing = self._writing.get(name)
        if writing is None or not writing.left or writing.process != os.getpid():
            writing = self._writing[name] = self._begin(name)
        writing.left -= 1
        nonce = self._entropy(_NONCE_BYTES)
        return writing.head + nonce + writing.cipher.encrypt(nonce, plain, key.encode())

    def is_sealed_with(self, digest: str, sealed: bytes) -> bool:
        """Whether the value names that key (the first one if ``digest`` is empty); it may still not open."""
        name = bytes.fromhex(digest) if digest else next(iter(self._keys))
        return sealed.startswith(_FORMAT) and sealed[_NAME_AT] == name

    def unseal(self, key: str, sealed: bytes) -> bytes:
        """Raises ``InvariantError`` if the value was not sealed with one of these keys for this place."""
        if not sealed.startswith(_FORMAT):
            raise errors.InvariantError(f"{key} is stored without encryption or in another format than this fleet's")
        head = sealed[: _SALT_AT.stop]
        cipher = self._derived.get(head)
        if cipher is None and sealed[_NAME_AT] not in self._keys:
            raise errors.InvariantError(f"{key} does not open: this manager lacks the key {sealed[_NAME_AT].hex()}")
        try:
            if cipher is None:
                cipher = self._derive(self._key(sealed[_NAME_AT]), sealed[_SALT_AT])
            plain = cipher.decrypt(sealed[_NONCE_AT], sealed[_NONCE_AT.stop :], key.encode())
        except (InvalidTag, ValueError):
            raise errors.InvariantError(
                f"{key} does not open with this manager's key: wrong key, or changed on disk"
            ) from None
        if head not in self._derived:
            if len(self._derived) >= _DERIVED_MAX:
                del self._derived[next(iter(self._derived))]
            self._derived[head] = cipher
        return plain

    def _begin(self, name: bytes) -> _Writing:
        salt = self._entropy(_SALT_BYTES)
        cipher = self._derive(self._key(name), salt)
        return _Writing(head=_FORMAT + name + salt, cipher=cipher, left=_VALUES_A_SALT, process=os.getpid())

    def _key(self, name: bytes) -> bytes:
        key = self._keys.get(name)
        if key is None:
            raise errors.InvariantError(f"this manager lacks the key {name.hex()} that the state is sealed with")
        return key

    @staticmethod
    def _derive(key: bytes, salt: bytes) -> AESGCM:
        return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=b"fleet sealed value").derive(key))


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
    sync_directory(path.parent)
