"""A backup: the whole state of one revision as a file whose keys can be read by eye, that can be checked, and put into an empty
engine.

    {"format": "fleet-backup", "version": 1, "cluster_id": ..., "revision": ..., "created_at": ..., "sealing_key": base64}
    {"key": "/fleet/service/...", "value": base64}          one line a key, as it is stored: sealed
    {"sha256": hex of all the bytes before this line, "keys": how many}

With the sealing key in it the file is as secret as everything the cluster knows; without it (``None``) it is of use only to
whoever has the key. What hangs on a lease is not in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Final

import msgspec

from fleet import errors
from fleet.model.ids import ClusterId, is_id
from fleet.store.engine import Engine, Put, Txn
from fleet.store.kinds import ROOT
from fleet.store.sealing import KEY_BYTES, is_key

__all__ = ["BackupHeader", "BackupReader", "backup_lines", "put_into"]

FORMAT: Final = "fleet-backup"
_VERSION: Final = 1
_LINE_MAX: Final = 4 << 20
_KEYS_MAX: Final = 5_000_000
_PACK_OPS: Final = 100
_PACK_BYTES: Final = 1_000_000


class BackupHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: str
    version: int
    cluster_id: ClusterId
    revision: int
    created_at: datetime
    sealing_key: bytes | None = None

    def __repr__(self) -> str:
        return f"BackupHeader(cluster_id={self.cluster_id!r}, revision={self.revision})"


class _Item(msgspec.Struct, frozen=True):
    key: str
    value: str


class _Trailer(msgspec.Struct, frozen=True):
    sha256: str
    keys: int


async def backup_lines(
    engine: Engine, *, cluster_id: ClusterId, created_at: datetime, sealing_key: bytes | None
) -> AsyncIterator[bytes]:
    """The file in pieces, all of one revision."""
    listing = await engine.list(ROOT)
    header = BackupHeader(
        format=FORMAT,
        version=_VERSION,
        cluster_id=cluster_id,
        revision=listing.revision,
        created_at=created_at,
        sealing_key=sealing_key,
    )
    digest, count = hashlib.sha256(), 0
    line = msgspec.json.encode(header) + b"\n"
    digest.update(line)
    yield line
    for entry in listing.entries:
        if entry.lease:
            continue
        line = msgspec.json.encode(_Item(entry.key, base64.b64encode(entry.value).decode())) + b"\n"
        digest.update(line)
        count += 1
        yield line
    yield msgspec.json.encode(_Trailer(digest.hexdigest(), count)) + b"\n"


class BackupReader:
    """Takes the file in pieces (``feed``), says what is in it when it is whole (``finish``). Raises ``UserError`` for
    anything else than a whole, unchanged backup."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._rest = b""
        self._trailer: _Trailer | None = None
        self._entries: dict[str, bytes] = {}
        self._header: BackupHeader | None = None

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LINE_MAX:
            raise errors.UserError(f"not a backup: a line is longer than {_LINE_MAX} bytes")
        for line in lines:
            self._take(line)

    def finish(self) -> tuple[BackupHeader, dict[str, bytes]]:
        """Header, and value by key."""
        if self._header is None or self._trailer is None or self._rest:
            raise errors.UserError("the backup is cut off: its last line is missing")
        return self._header, self._entries

    def _take(self, line: bytes) -> None:
        if self._trailer is not None:
            raise errors.UserError("not a backup: it goes on after its last line")
        if len(line) > _LINE_MAX:
            raise errors.UserError(f"not a backup: a line is longer than {_LINE_MAX} bytes")
        try:
            if self._header is None:
                self._header = self._checked(msgspec.json.decode(line, type=BackupHeader))
            elif line.startswith(b'{"sha256"'):
                trailer = msgspec.json.decode(line, type=_Trailer)
                if trailer.sha256 != self._digest.hexdigest() or trailer.keys != len(self._entries):
                    raise errors.UserError("the backup is damaged: its digest does not fit")
                self._trailer = trailer
            else:
                item = msgspec.json.decode(line, type=_Item)
                if not item.key.startswith(ROOT) or item.key in self._entries or len(self._entries) >= _KEYS_MAX:
                    raise errors.UserError(f"not a backup: the key {item.key[:80]!r} does not belong here")
                self._entries[item.key] = base64.b64decode(item.value, validate=True)
        except (msgspec.DecodeError, ValueError, RecursionError) as cause:
            raise errors.UserError(f"not a backup, or a damaged one: {cause}") from cause
        self._digest.update(line + b"\n")

    @staticmethod
    def _checked(header: BackupHeader) -> BackupHeader:
        if header.format != FORMAT:
            raise errors.UserError(f"not a backup of fleet: its format is {header.format[:40]!r}")
        if header.version != _VERSION:
            raise errors.UserError(f"the backup is of version {header.version}, this fleet reads {_VERSION}")
        if not is_id(header.cluster_id):
            raise errors.UserError("not a backup: its cluster id is malformed")
        if header.sealing_key is not None and not is_key(header.sealing_key):
            raise errors.UserError(f"not a backup: its key has {len(header.sealing_key)} bytes, expected {KEY_BYTES}")
        return header


async def put_into(engine: Engine, entries: dict[str, bytes]) -> None:
    """Write everything. Raises ``ConflictError`` if the engine is not empty."""
    if (await engine.list(ROOT)).entries:
        raise errors.ConflictError("there is state already; a backup is restored into an empty store only")
    for pack in _packs(entries):
        await engine.commit(Txn(puts=tuple(pack)))


def _packs(entries: dict[str, bytes]) -> Iterator[list[Put]]:
    pack: list[Put] = []
    size = 0
    for key, value in entries.items():
        if pack and (len(pack) >= _PACK_OPS or size + len(value) > _PACK_BYTES):
            yield pack
            pack, size = [], 0
        pack.append(Put(key, value))
        size += len(key) + len(value)
    if pack:
        yield pack
