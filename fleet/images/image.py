"""The value the rest of fleet sees: one image of this host, ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fleet.images.config import HistoryEntry, ImageConfig

__all__ = ["Image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An unpacked image. Stays usable as a value after the store changed; the directories stay while a record leads
    to them.
    """

    id: str
    """Digest of the configuration: the same on every node, whatever way the image came."""
    manifest_digest: str
    references: tuple[str, ...]
    """Familiar names (``busybox:latest``), sorted."""
    repo_digests: tuple[str, ...]
    """Familiar ``name@sha256:...`` of every digest it was fetched under."""
    config: ImageConfig
    created: datetime | None
    author: str
    comment: str
    history: tuple[HistoryEntry, ...]
    """Oldest first."""
    diff_ids: tuple[str, ...]
    """Lowest layer first."""
    layer_digests: tuple[str, ...]
    """The layers' blobs, lowest first."""
    layer_sizes: tuple[int, ...]
    """Unpacked bytes of each layer, lowest first."""
    layer_dirs: tuple[Path, ...]
    """Overlay lower directories, topmost first; at least one. Shared and read-only."""
    size_bytes: int
    """Unpacked bytes of all layers."""
