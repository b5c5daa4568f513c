"""A disk of its own for each host: an ext4 image beside its data, mounted over them in the host's mount namespace only.

So a host can be filled to the last block without harm to the machine or its neighbours, and its end unmounts it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from fleet import errors

__all__ = ["DISK_BYTES_MIN", "check_size", "make"]

DISK_BYTES_MIN: Final = 256 * 1024 * 1024
"""Room for a manager's state, an etcd with its logs, and small images."""


def check_size(size: int) -> int:
    """The size itself; raises ``UserError`` for a disk too small and ``UnsupportedError`` without mkfs.ext4. 0 is no disk."""
    if size and size < DISK_BYTES_MIN:
        raise errors.UserError(f"a disk of {size} bytes: a host needs at least {DISK_BYTES_MIN >> 20}m")
    if size and shutil.which("mkfs.ext4") is None:
        raise errors.UnsupportedError("disks for hosts need the program mkfs.ext4 (package e2fsprogs)")
    return size


def make(image: Path, size: int) -> None:
    """Make the file system, sparse, unless it is there. A crash leaves none or a whole one. Raises ``RuntimeFault``."""
    if image.exists():
        return
    draft = image.with_suffix(".new")
    with draft.open("wb") as made:
        made.truncate(size)
    done = subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", draft],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise errors.RuntimeFault(f"mkfs.ext4 {draft}: {done.stderr.strip()}")
    draft.rename(image)
