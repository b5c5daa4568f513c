"""Content by digest: every blob is a file named after the sha256 of its bytes, complete or absent.

    blobs/sha256/<hex>     visible content, never changed
    ingest/<random>        being written; removed when the store opens
    partial/<hex>          the beginning of a blob that is being fetched; continued by the next fetch of it

A blob is written to ``ingest/`` or ``partial/``, flushed, and only renamed into place after its digest was checked, so a
crash at any point leaves a file that is either invisible or right. Everything here blocks; callers use threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType

from fleet.durable import sync_directory
from fleet.errors import NotFoundError, RejectedFault, StorageFullError
from fleet.images.reference import check_digest

__all__ = ["BlobStore", "Ingest", "storage_errors", "write_atomically"]


_CHUNK = 1 << 20


class BlobStore:
    """The blobs below one directory. One process at a time (``ImageStore`` holds the lock)."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._ingest = root / "ingest"
        self._partial = root / "partial"

    def open(self) -> None:
        """Make the directories; drop half-written content of an earlier life."""
        for directory in (self._blobs.parent, self._blobs, self._ingest, self._partial):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._ingest.iterdir():
            leftover.unlink()

    def path(self, digest: str) -> Path:
        """Where the blob is; ``NotFoundError`` when it is not here."""
        path = self._path(digest)
        if not path.exists():
            raise NotFoundError(f"no such blob: {digest}")
        return path

    def has(self, digest: str) -> bool:
        """Whether the blob is complete and here."""
        return self._path(digest).exists()

    def size(self, digest: str) -> int:
        """Bytes of the blob; ``NotFoundError`` when it is not here."""
        return self.path(digest).stat().st_size

    def read(self, digest: str, *, bytes_max: int) -> bytes:
        """A small blob's bytes, checked again: manifests and configurations are trusted for what they say."""
        path = self.path(digest)
        if path.stat().st_size > bytes_max:
            raise RejectedFault(f"blob {digest}: larger than {bytes_max} bytes")
        body = path.read_bytes()
        if "sha256:" + hashlib.sha256(body).hexdigest() != digest:
            raise RejectedFault(f"blob {digest}: damaged on disk")
        return body

    def put(self, body: bytes) -> str:
        """Store some bytes; their digest. Idempotent."""
        with self.ingest() as ingest:
            ingest.write(body)
            return ingest.commit()

    def ingest(self) -> Ingest:
        """Start writing a blob whose digest may not be known yet; leave the context without ``commit`` to drop it."""
        return Ingest(self, self._ingest / secrets.token_hex(16))

    def resume(self, digest: str, size: int) -> Ingest:
        """Go on writing the blob of this digest and size where an earlier fetch stopped. Leaving the context without
        ``commit`` keeps what is there; reads it to continue its checksum.
        """
        return Ingest(self, self._partial / self._path(digest).name, size_max=size)

    def sweep_partial(self, keep: Collection[str]) -> None:
        """Remove beginnings of blobs that are not in ``keep``. The caller knows that none of them is being written."""
        for path in list(self._partial.iterdir()):
            if f"sha256:{path.name}" not in keep:
                path.unlink(missing_ok=True)

    def scratch_path(self) -> Path:
        """A fresh name for a spool file; the caller unlinks it, or the next opening does."""
        return self._ingest / secrets.token_hex(16)

    def remove(self, digest: str) -> int:
        """Remove a blob; the bytes it took, 0 if it was absent."""
        path = self._path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def digests(self) -> Iterator[str]:
        """Every blob's digest."""
        for path in self._blobs.iterdir():
            yield f"sha256:{path.name}"

    def _path(self, digest: str) -> Path:
        return self._blobs / check_digest(digest).removeprefix("sha256:")

    def publish(self, scratch: Path, digest: str) -> None:
        """Move a flushed file into place and make the move durable."""
        scratch.rename(self._path(digest))
        sync_directory(self._blobs)


class Ingest:
    """A blob being written. ``offset`` bytes are in; ``reset`` starts over, ``commit`` checks and publishes."""

    def __init__(self, store: BlobStore, scratch: Path, *, size_max: int | None = None) -> None:
        """``size_max``: the file may be there already, and is kept when the context is left."""
        self._store = store
        self._scratch = scratch
        self._is_kept = size_max is not None
        self._file = scratch.open("a+b" if self._is_kept else "xb", buffering=0)
        self._hash = hashlib.sha256()
        self.offset = 0
        if size_max is not None:
            self._read_again(size_max)
        self.resumed_bytes = self.offset
        """How much was there already: written by somebody else, or before a power failure."""

    def _read_again(self, size_max: int) -> None:
        self._file.seek(0)
        while data := self._file.read(_CHUNK):
            self._hash.update(data)
            self.offset += len(data)
        if self.offset > size_max:
            self.reset()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._is_kept or self.offset == 0:
            self._scratch.unlink(missing_ok=True)  # missing: committed

    def write(self, data: bytes) -> None:
        """Append; blocks."""
        view = memoryview(data)
        with storage_errors("write a blob"):
            while view:
                view = view[self._file.write(view) :]
        self._hash.update(data)
        self.offset += len(data)

    def reset(self) -> None:
        """Forget everything written."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = self.resumed_bytes = 0

    @property
    def digest(self) -> str:
        """sha256 of what was written so far."""
        return "sha256:" + self._hash.hexdigest()

    def commit(self, expected: str | None = None) -> str:
        """Flush, check and publish; the digest. ``RejectedFault`` if it is not the expected one; nothing is published
        then.
        """
        digest = self.digest
        if expected is not None and digest != expected:
            raise RejectedFault(f"blob {expected}: content has digest {digest} ({self.offset} bytes)")
        if not self._store.has(digest):
            with storage_errors("flush a blob"):
                os.fsync(self._file.fileno())
            self._store.publish(self._scratch, digest)
        self._is_kept = False
        return digest


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """A full disk is ``StorageFullError``; other errors of the system pass."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFullError(f"{what}: {error.strerror}") from error
        raise


def write_atomically(path: Path, body: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old or the new bytes, never a mixture."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with storage_errors(f"write {path.name}"), scratch.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_directory(path.parent)
