"""Writing what the daemon sends into a file, whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from fleet import errors

__all__ = ["write_archive"]


def write_archive(path: str | None, chunks: Iterable[bytes], *, secret: bool = False) -> None:
    """To the file, all or nothing, or to standard output."""
    if path is not None:
        _write_file(Path(path), chunks, secret=secret)
        return
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _write_file(path: Path, chunks: Iterable[bytes], *, secret: bool = False) -> None:
    """All or nothing: a file beside ``path`` takes its name when it is whole. A ``secret`` one is its owner's alone, on disk when
    this returns, and replaces no other."""
    partial = path.with_name(f".{path.name}.part")
    try:
        if secret and path.exists():
            raise FileExistsError(errno.EEXIST, "it exists already")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if secret else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if secret:
                file.flush()
                os.fsync(descriptor)
        partial.replace(path)
    except OSError as cause:
        raise errors.UserError(f"cannot write {path}: {cause.strerror or cause}") from cause
    finally:
        partial.unlink(missing_ok=True)
