"""Which images a host has, and under which names: one small JSON file, replaced atomically.

    images.json   {"version": 1, "images": [{manifest, media_type, references, repo_digests, indexes, added}]}

The file is the truth about what exists; blobs and layers that no record leads to are garbage.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fleet.errors import ConflictError, RuntimeFault
from fleet.images.blobs import write_atomically

__all__ = ["ImageRecord", "RecordFile", "lock_root"]

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image of this host's platform."""

    manifest_digest: str
    media_type: str
    references: tuple[str, ...] = ()
    """Complete names (``docker.io/library/busybox:latest``), sorted; a name belongs to at most one record."""
    repo_digests: tuple[str, ...] = ()
    """``docker.io/library/busybox@sha256:...`` for every digest it was fetched under, sorted."""
    indexes: dict[str, str] = field(default_factory=dict)
    """Indexes it was chosen from: digest to media type. Kept, so that peers can ask by the same digest."""
    added: str = ""
    """When, RFC 3339; orders images that share an id."""

    def merged_with(self, newer: ImageRecord) -> ImageRecord:
        """This record with what a later fetch or load of the same manifest adds."""
        return replace(
            self,
            references=tuple(sorted({*self.references, *newer.references})),
            repo_digests=tuple(sorted({*self.repo_digests, *newer.repo_digests})),
            indexes={**self.indexes, **newer.indexes},
        )


class RecordFile:
    """Reads and replaces ``images.json``. Blocks."""

    def __init__(self, root: Path) -> None:
        self._path = root / "images.json"

    def read(self) -> dict[str, ImageRecord]:
        """Every record by manifest digest; ``RuntimeFault`` if the file is not ours to understand."""
        try:
            raw: dict[str, Any] = json.loads(self._path.read_bytes())
            if raw["version"] != _VERSION:
                raise RuntimeFault(f"{self._path}: version {raw['version']}, this fleet understands {_VERSION}")
            records = [
                ImageRecord(
                    **{
                        **item,
                        "references": tuple(item["references"]),
                        "repo_digests": tuple(item["repo_digests"]),
                    }
                )
                for item in raw["images"]
            ]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeFault(
                f"{self._path}: damaged ({error}); move it away to start with no images, nothing else refers to it"
            ) from error
        return {record.manifest_digest: record for record in records}

    def write(self, records: dict[str, ImageRecord]) -> None:
        """Replace the file; durable when this returns."""
        body = {"version": _VERSION, "images": [asdict(record) for record in records.values()]}
        write_atomically(self._path, json.dumps(body, indent=1).encode())


def lock_root(root: Path) -> int:
    """Make a store's root private and hold it; the descriptor to close when done. Raises ``ConflictError``. Blocks."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConflictError(f"image store {root} is in use by another process") from error
    return fd
