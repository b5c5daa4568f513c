"""A container's writable directory as an OCI layer: plain tar, names sorted, overlay's marks as ``.wh.`` entries.

The directory was written by a container, which is hostile: everything goes through directory descriptors, no link is followed.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, cast

from fleet.containers.layerview import _resolve
from fleet.containers.owners import attribute_inside, owner_inside
from fleet.containers.subids import IdRange
from fleet.errors import RejectedFault
from fleet.privilege import overlay_attribute

__all__ = ["has_directory", "member_of", "pax_attributes", "write_layer"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH_MAX: Final = 256
_HOST_FILES: Final = frozenset({"etc/hosts", "etc/hostname", "etc/resolv.conf"})
"""Mount points of the engine: empty in the writable layer, and nothing of the image."""
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def has_directory(layer_dirs: Sequence[Path], path: str) -> bool:
    """Whether the image has a directory (or a link to one) at ``path``."""
    view = _resolve(layer_dirs, path)
    if view is None:
        return False
    view.close()
    return True


def member_of(name: str, status: os.stat_result) -> tarfile.TarInfo | None:
    """The tar header for a file; None for what a layer cannot hold (sockets, devices)."""
    kind = _TYPES.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    member.mtime = int(status.st_mtime)
    member.size = status.st_size if kind == tarfile.REGTYPE else 0
    return member


def write_layer(upper: Path, sink: _Sink, ids: IdRange | None = None) -> int:
    """Write the layer; the number of entries. ``ids`` are those its container had. Blocks. Raises ``RejectedFault`` for what a
    layer cannot say.
    """
    root = os.open(upper, _DIRECTORY)
    try:
        with tarfile.open(fileobj=cast("tarfile._Fileobj", sink), mode="w|", format=tarfile.PAX_FORMAT) as tar:
            writer = _Writer(tar, ids)
            writer.directory(root, "", 0)
            return writer.entries
    finally:
        os.close(root)


class _Writer:
    def __init__(self, tar: tarfile.TarFile, ids: IdRange | None) -> None:
        self._tar = tar
        self._ids = ids
        self._links: dict[tuple[int, int], str] = {}
        self.entries = 0

    def directory(self, fd: int, path: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise RejectedFault(f"/{path}: nested deeper than {_DEPTH_MAX} directories")
        if _attribute(fd, overlay_attribute("redirect")):
            raise RejectedFault(
                f"/{path}: was renamed by overlayfs in place, which a layer cannot say; copy it instead"
            )
        if path and _attribute(fd, overlay_attribute("opaque")) == b"y":
            self._mark(f"{path}/.wh..wh..opq")
        for name in sorted(os.listdir(fd)):
            if name.startswith(".wh."):
                raise RejectedFault(f"/{path}/{name}: names that begin with .wh. mean deletion in a layer; rename it")
            self._entry(fd, name, f"{path}/{name}".lstrip("/"), depth)

    def _mark(self, name: str) -> None:
        member = tarfile.TarInfo(name)
        member.mode = 0
        self._tar.addfile(member)
        self.entries += 1

    def _entry(self, parent: int, name: str, path: str, depth: int) -> None:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            head, _, last = path.rpartition("/")
            self._mark(f"{head}/.wh.{last}".lstrip("/"))
            return
        member = member_of(path, status)
        if member is None or (path in _HOST_FILES and status.st_size == 0 and stat.S_ISREG(status.st_mode)):
            return
        member.uid, member.gid = owner_inside(self._ids, member.uid), owner_inside(self._ids, member.gid)
        self.entries += 1
        if stat.S_ISLNK(status.st_mode):
            member.linkname = os.readlink(name, dir_fd=parent)
            self._tar.addfile(member)
        elif stat.S_ISFIFO(status.st_mode):
            self._tar.addfile(member)
        elif stat.S_ISDIR(status.st_mode):
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                member.pax_headers = pax_attributes(fd, self._ids)
                self._tar.addfile(member)
                self.directory(fd, path, depth + 1)
            finally:
                os.close(fd)
        else:
            self._file(parent, name, member, status)

    def _file(self, parent: int, name: str, member: tarfile.TarInfo, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and (first := self._links.get(key)) is not None:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
            self._tar.addfile(member)
            return
        self._links[key] = member.name
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        with os.fdopen(fd, "rb") as file:
            member.pax_headers = pax_attributes(fd, self._ids)
            try:
                self._tar.addfile(member, file)
            except OSError as cause:
                raise RejectedFault(
                    f"/{member.name}: changed while it was read; pause or stop the container"
                ) from cause


def _attribute(fd: int, name: str) -> bytes:
    try:
        return os.getxattr(fd, name)
    except OSError:
        return b""


def pax_attributes(fd: int, ids: IdRange | None) -> dict[str, str]:
    """The attributes of a file that a layer or an archive carries, as PAX headers."""
    return {
        f"SCHILY.xattr.{name}": attribute_inside(ids, name, os.getxattr(fd, name)).decode("utf-8", "surrogateescape")
        for name in sorted(os.listxattr(fd))
        if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay."))
    }
