"""What a container changed in its image's files: ``docker diff``, read from the writable layer without mounting anything.

The writable layer is hostile: every step goes through a directory descriptor, and no link is followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from fleet.containers.layerview import _DIRECTORY, _is_opaque, _is_whiteout, _Merged, _root
from fleet.errors import RejectedFault

__all__ = ["Change", "Kind", "changes_of"]

_DEPTH_MAX: Final = 256
_CHANGES_MAX: Final = 1_000_000
_ENGINE_FILES: Final = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"})
_ENGINE_DIRECTORIES: Final = frozenset({"/dev", "/proc", "/sys"})
"""Mount points the engine makes: empty in the writable layer, and no doing of the container."""


class Kind(IntEnum):
    """Docker's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Change(NamedTuple):
    path: str
    kind: Kind


def changes_of(upper: Path, layer_dirs: Sequence[Path], *, owners_comparable: bool = True) -> list[Change]:
    """Changes sorted by path; a directory is modified when something in it changed.

    ``owners_comparable`` is False when the layer's owners are shifted by a user namespace. Blocks. Raises ``RejectedFault``
    beyond the bounds on depth and number.
    """
    walk = _Walk(owners_comparable)
    with contextlib.ExitStack() as stack:
        fd = os.open(upper, _DIRECTORY)
        stack.callback(os.close, fd)
        below = _root(layer_dirs)
        stack.callback(below.close)
        walk.directory(fd, below, "", 0)
    return sorted(walk.changes)


class _Walk:
    def __init__(self, owners_comparable: bool) -> None:
        self._owners_comparable = owners_comparable
        self.changes: list[Change] = []

    def _add(self, path: str, kind: Kind) -> None:
        if len(self.changes) >= _CHANGES_MAX:
            raise RejectedFault(f"the container changed more than {_CHANGES_MAX} files: look into it instead")
        self.changes.append(Change(path, kind))

    def directory(self, fd: int, below: _Merged | None, path: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise RejectedFault(f"{path}: nested deeper than {_DEPTH_MAX} directories")
        names = os.listdir(fd)
        if below is not None and path and _is_opaque(fd):
            for name in below.names().keys() - set(names):
                self._add(f"{path}/{name}", Kind.DELETED)
        for name in names:
            self._entry(fd, below, name, f"{path}/{name}", depth)

    def _entry(self, fd: int, below: _Merged | None, name: str, path: str, depth: int) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        found = below.find(name) if below is not None else None
        old = found[1] if found else None
        if _is_whiteout(status):
            if old:
                self._add(path, Kind.DELETED)
            return
        if not stat.S_ISDIR(status.st_mode):
            if not (path in _ENGINE_FILES and status.st_size == 0 and stat.S_ISREG(status.st_mode)):
                self._add(path, Kind.MODIFIED if old else Kind.ADDED)
            return
        before = len(self.changes)
        with contextlib.ExitStack() as stack:
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
            stack.callback(os.close, inner)
            lower = None
            if below is not None and old and stat.S_ISDIR(old.st_mode):
                lower = below.enter(name)
                stack.callback(lower.close)
            self.directory(inner, lower, path, depth + 1)
        changed = len(self.changes) > before
        if old is None:
            if changed or path not in _ENGINE_DIRECTORIES:
                self._add(path, Kind.ADDED)
        elif changed or self._differs(status, old):
            self._add(path, Kind.MODIFIED)

    def _differs(self, new: os.stat_result, old: os.stat_result) -> bool:
        owner = self._owners_comparable and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid)
        return owner or new.st_mode != old.st_mode
