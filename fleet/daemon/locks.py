"""Autolock: the keys of a manager on disk, encrypted with the cluster's unlock key, and that key's changes.

    swarm/store.key                  what the state is sealed with
    swarm/etcd/tls/member.key        this host's etcd member
    swarm/identity/current/node.key  the node; its form tells the next start whether there is anything to unlock
    swarm/relocking                  while one unlock key replaces another: each of them, sealed with the other

Several files cannot change at one instant, so the order is such that a crash anywhere leaves what can be unlocked: locking
begins with the node's key and unlocking ends with it, and whoever knows one of two unlock keys finds the other. ``take_up``
then brings every file to one form again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from fleet import errors
from fleet.daemon.own_state import OwnState
from fleet.logs import get_logger
from fleet.store.sealing import AesSealer, load_or_create_key, save_key, write_secret

__all__ = ["Locks"]

log = get_logger("locks")

T = TypeVar("T")

_PLACE: Final = "relocking"


class Locks:
    """Of the ``swarm`` folder. ``passphrase`` is the 32 bytes of the unlock key, None while nothing is locked."""

    def __init__(self, folder: Path, own: OwnState) -> None:
        self._folder = folder
        self._own = own
        self.passphrase: bytes | None = None

    def other(self, passphrase: bytes) -> bytes | None:
        """The unlock key that ``passphrase`` was replacing, or was replaced by, when that was cut short. Blocks."""
        try:
            pair = msgspec.json.decode((self._folder / _PLACE).read_bytes(), type=tuple[bytes, bytes])
        except (OSError, msgspec.DecodeError):
            return None
        for sealed in pair:
            try:
                return AesSealer(passphrase).unseal(_PLACE, sealed)
            except errors.InvariantError:
                continue
        return None

    async def change(self, wanted: bytes | None, relock_identity: Callable[[bytes | None], Awaitable[None]]) -> None:
        """Lock everything with ``wanted``, or nothing any more."""
        before = self.passphrase
        if before is None:
            await relock_identity(wanted)
        elif wanted is not None:
            pair = (AesSealer(before).seal(_PLACE, wanted), AesSealer(wanted).seal(_PLACE, before))
            await asyncio.to_thread(write_secret, self._folder / _PLACE, msgspec.json.encode(pair))
        await asyncio.to_thread(self._rewrite, (before,), wanted)
        if before is not None:
            await relock_identity(wanted)
        (self._folder / _PLACE).unlink(missing_ok=True)
        self.passphrase = wanted
        log.info("keys on disk are locked" if wanted else "keys on disk are not locked any more")

    def take_up(self, passphrase: bytes, other: bytes | None) -> None:
        """The node's key opened with ``passphrase``: so shall the rest, whatever a crash has left. Blocks."""
        self._rewrite((passphrase, other), passphrase)
        (self._folder / _PLACE).unlink(missing_ok=True)
        self.passphrase = passphrase

    def forget(self) -> None:
        """Nothing is locked: this host manages no more. Blocks."""
        (self._folder / _PLACE).unlink(missing_ok=True)
        self.passphrase = self._own.passphrase = None

    def _rewrite(self, opens: tuple[bytes | None, ...], wanted: bytes | None) -> None:
        path = self._folder / "store.key"
        if path.exists():
            save_key(
                path,
                _first(opens, lambda one: load_or_create_key(path, is_new=False, passphrase=one)),
                passphrase=wanted,
            )
        _first(opens, lambda one: self._own.relock(one, wanted))


def _first(candidates: tuple[bytes | None, ...], attempt: Callable[[bytes | None], T]) -> T:
    """What the first candidate that fits makes. Raises what the last one raised."""
    *others, last = candidates
    for candidate in others:
        try:
            return attempt(candidate)
        except errors.FleetError:
            continue
    return attempt(last)
