"""Secrets and configs as files in memory: one directory per container on a tmpfs that only root can enter.

A secret must never reach a disk. Where ``exec_root`` already lies on a tmpfs (``/run`` on a real host) a directory there is
enough; elsewhere a small tmpfs is mounted, once for all containers. The data is not in the container's record, so after
a reboot it is
gone, and a container that needs it cannot be started again until its task is made anew. After a restart of fleetd it is
still there.

tmpfs may be swapped out: it is mounted with ``noswap`` where the kernel knows that (6.4), and a host's swap should be encrypted
in any case, as with Docker.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fleet.containers.config import FileMount
from fleet.containers.record import remove_tree
from fleet.errors import RuntimeFault

__all__ = ["SecretFiles"]

_TMPFS_MAGIC: Final = 0x01021994
_RAMFS_MAGIC: Final = 0x858458F6
_MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8
_MNT_DETACH: Final = 2
_SIZE: Final = "64m"
"""Bound of the tmpfs: 128 secrets of the largest size; pages are taken when written only."""


class SecretFiles:
    """The tmpfs and the directories on it; all methods block."""

    def __init__(self, exec_root: Path) -> None:
        self._directory = exec_root / "files"

    def open(self) -> None:
        """Make sure there is a tmpfs. Idempotent."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_memory(self._directory):
            return
        for extra in (",noswap", ""):
            try:
                _mount_tmpfs(self._directory, f"size={_SIZE},mode=0700{extra}")
                return
            except OSError as cause:
                fault = cause
        raise RuntimeFault(f"mount a tmpfs for secrets on {self._directory}: {fault.strerror}") from fault

    def write(self, container_id: str, files: Sequence[FileMount]) -> None:
        """Lay the files down, replacing what was there. Raises ``RuntimeFault``."""
        directory = self._directory / container_id
        remove_tree(directory)
        try:
            directory.mkdir(mode=0o700)
            for number, file in enumerate(files):
                descriptor = os.open(
                    directory / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                )
                try:
                    view = memoryview(file.data)
                    while view:
                        view = view[os.write(descriptor, view) :]
                    os.fchown(descriptor, file.uid, file.gid)
                    os.fchmod(descriptor, file.mode & 0o7777)
                finally:
                    os.close(descriptor)
        except OSError as cause:
            raise RuntimeFault(f"write the secrets of container {container_id[:12]}: {cause.strerror}") from cause

    def sources(self, container_id: str, files: Sequence[FileMount]) -> list[tuple[str, Path]]:
        """(target in the container, path on the tmpfs) of each file. Raises ``RuntimeFault`` when they are not there any more."""
        directory = self._directory / container_id
        result = []
        for number, file in enumerate(files):
            path = directory / str(number)
            if not path.exists():
                raise RuntimeFault(
                    f"the secrets of container {container_id[:12]} were lost with the host's memory: create the container again"
                )
            result.append((file.target, path))
        return result

    def remove(self, container_id: str) -> None:
        """Forget a container's files; absence is fine."""
        remove_tree(self._directory / container_id)

    def known(self) -> set[str]:
        """Containers that have files here."""
        return {entry.name for entry in self._directory.iterdir()}

    def destroy(self) -> None:
        """Unmount and remove everything; used when fleet leaves the host."""
        if not self._directory.exists():
            return
        for name in self.known():
            self.remove(name)
        if os.path.ismount(self._directory):
            _check(_libc().umount2(os.fsencode(self._directory), _MNT_DETACH), self._directory)
        self._directory.rmdir()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def _mount_tmpfs(path: Path, options: str) -> None:
    mount = _libc().mount
    mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
    _check(mount(b"fleet-files", os.fsencode(path), b"tmpfs", _MS_NOSUID_NODEV_NOEXEC, options.encode()), path)


def _is_memory(path: Path) -> bool:
    """Whether the path lies on tmpfs or ramfs (statfs(2); ``f_type`` is the first long of ``struct statfs``)."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc().statfs(os.fsencode(path), buffer), path)
    return bool(struct.unpack_from("l", buffer)[0] in (_TMPFS_MAGIC, _RAMFS_MAGIC))
