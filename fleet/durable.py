"""Files that are there after a crash: written, flushed and renamed in the order that takes (fsync(2), rename(2)). Blocks."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_directory", "write_durably", "write_through"]


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` so that after any crash it has the old content or ``data``, and ``data`` once this returned.

    A crash may leave ``path`` with ``.tmp`` behind it, which the next write overwrites. Raises ``OSError``.
    """
    temporary = path.with_name(path.name + ".tmp")
    write_through(temporary, data, mode=mode)
    temporary.replace(path)
    sync_directory(path.parent)


def write_through(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write the file itself, to the disk; its name is durable after ``sync_directory`` only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make what was made, renamed and removed in a directory durable. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
