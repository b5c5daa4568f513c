"""What fetches that have not ended yet need: so that one that is killed, or loses its registry, is continued and not begun anew.

    pulls/<sha256 of the reference>.json   {"reference": ..., "digests": [...]}   written before the first blob is fetched

A blob listed here, whole or half (``partial/``), is not swept for a day although no image leads to it. The file goes when the
image is there or can never be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fleet.images.blobs import write_atomically
from fleet.images.reference import is_digest

__all__ = ["InterruptedPulls"]

_KEEP_S: Final = 24 * 3600
_PULLS_MAX: Final = 64
"""Fetches remembered; the oldest are forgotten first."""


class InterruptedPulls:
    """The files below ``pulls/``. Blocks; one process at a time (``ImageStore`` holds the lock)."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "pulls"

    def open(self) -> None:
        """Make the folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, reference: str, digests: Iterable[str]) -> None:
        """Keep these blobs. Idempotent."""
        body = {"reference": reference, "digests": sorted(set(digests))}
        write_atomically(self._path(reference), json.dumps(body).encode())

    def end(self, reference: str) -> None:
        """Keep them no longer. Idempotent."""
        self._path(reference).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all of them."""
        for path in list(self._folder.iterdir()):
            path.unlink(missing_ok=True)

    def digests(self, now_s: float) -> set[str]:
        """The blobs to keep at this moment (seconds since 1970); forgets what is older than a day, or damaged."""
        found: set[str] = set()
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for number, path in enumerate(files):
            try:
                listed = json.loads(path.read_bytes())["digests"]
                wanted = {str(digest) for digest in listed if is_digest(str(digest))}
            except (ValueError, KeyError, TypeError):
                wanted = set()
            if not wanted or number >= _PULLS_MAX or abs(now_s - path.stat().st_mtime) > _KEEP_S:
                path.unlink(missing_ok=True)
            else:
                found |= wanted
        return found

    def _path(self, reference: str) -> Path:
        return self._folder / f"{hashlib.sha256(reference.encode()).hexdigest()}.json"
