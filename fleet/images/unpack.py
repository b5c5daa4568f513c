"""Unpacking a layer: a stranger's tar stream becomes an overlay directory, and nothing outside it is touched.

Rules, each with a test:

- names are cleaned; one that climbs above the root with ``..`` is refused, a leading ``/`` means the root of the image;
- parents are found by ``MergedTree``: no symbolic link is ever followed by the kernel;
- hard links are made with linkat without AT_SYMLINK_FOLLOW, from a target found the same way; a target of a lower
  layer is copied up first;
- whiteouts become character devices 0:0 or ``trusted.overlay.opaque``, and hide lower layers only (OCI image spec,
  layer.md);
- device nodes are refused, except below ``dev/`` where they are left out: a container gets its own ``/dev``;
- set-uid bits stay; of the extended attributes only ``security.capability`` and ``user.*`` (without
  ``user.overlay.*``);
- everything is bounded by ``UnpackLimits``.

A crash leaves a half-filled directory that ``LayerStore`` finds and removes, because it is renamed into place only
after the digest was checked.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fleet.errors import RejectedFault, StorageFullError
from fleet.images.beneath import is_whiteout, make_opaque, open_beneath, open_directory, remove_tree
from fleet.images.compression import PlainReader
from fleet.images.merged import Components, Directory, MergedTree, keeps_xattr
from fleet.images.tarstream import EntryKind, TarEntry, TarReader
from fleet.privilege import has_single_id, may_own

__all__ = ["UnpackLimits", "Unpacked", "Cancelled", "unpack_layer"]

_WHITEOUT = b".wh."
_WHITEOUT_META = b".wh..wh."
_WHITEOUT_OPAQUE = b".wh..wh..opq"
_NAME_BYTES_MAX = 255
_OWNER_MAX = 0xFFFF_FFFE  # 0xFFFFFFFF means "leave unchanged" to chown(2)
_DIRECTORY_NAME_BYTES_MAX = 128 << 20  # names remembered for setting times at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """Bounds on what an image may cost. Exceeding one is an error that names it."""

    bytes_max: int = 32 << 30
    """Plain bytes of one layer, tar headers included."""
    file_bytes_max: int = 16 << 30
    """Apparent size of one file, holes included."""
    entries_max: int = 2_000_000
    """Entries of one layer, with the directories made for them."""
    path_bytes_max: int = 4095
    """PATH_MAX without its NUL: longer paths cannot be opened by name."""
    depth_max: int = 256
    ratio_max: int = 200
    """Plain bytes per compressed byte, once there are 256 MiB of them."""
    archive_bytes_max: int = 64 << 30
    """A whole archive being loaded or imported, decompressed."""
    blob_bytes_max: int = 32 << 30
    """One compressed layer, as downloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What came out: the sha256 of the plain tar stream, bytes of file content, entries, and whether the root hides
    all below.
    """

    diff_id: str
    size_bytes: int
    entries: int
    opaque_root: bool


class Cancelled(Exception):
    """The caller set the event while the layer was being unpacked."""


def unpack_layer(
    blob: BinaryIO, *, into: Path, lowers: Sequence[Path], limits: UnpackLimits, cancel: threading.Event | None = None
) -> Unpacked:
    """Unpack a plain, gzip or zstd layer into an existing empty directory, as the layer above ``lowers`` (topmost
    first).

    Blocks; run it in a thread. The caller compares ``diff_id`` before it uses the directory. Raises ``RejectedFault``
    naming the entry, ``StorageFullError``, or ``Cancelled`` after ``cancel`` was set; the directory is then to be
    thrown away.
    """
    reader = PlainReader(blob, bytes_max=limits.bytes_max, ratio_max=limits.ratio_max)
    tree = MergedTree(into, lowers, depth_max=limits.depth_max)
    try:
        extractor = _Extractor(TarReader(reader), tree, limits, cancel)
        extractor.run()
        reader.drain()
        extractor.set_directory_times()
        return Unpacked(
            diff_id=reader.digest,
            size_bytes=extractor.size_bytes,
            entries=extractor.entries,
            opaque_root=extractor.opaque_root,
        )
    finally:
        tree.close()


class _Extractor:
    """One run over one tar stream. Every method works on the entry it is given, inside ``tree``."""

    def __init__(
        self, reader: TarReader, tree: MergedTree, limits: UnpackLimits, cancel: threading.Event | None
    ) -> None:
        self._reader = reader
        self._tree = tree
        self._limits = limits
        self._cancel = cancel
        self._directory_name_bytes = 0
        self.size_bytes = 0
        self.entries = 0
        self.opaque_root = False

    def run(self) -> None:
        for entry in self._reader:
            self._check_cancelled()
            self._tree.trim()
            self.entries += 1
            if self.entries + self._tree.created > self._limits.entries_max:
                raise RejectedFault(f"more than {self._limits.entries_max} entries (limit entries_max)")
            try:
                self._extract(entry)
            except RejectedFault as fault:
                raise RejectedFault(f"entry {entry.label} ({entry.kind.value}): {fault}") from fault
            except OSError as error:
                if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                    raise StorageFullError(f"unpack {entry.label}: {error.strerror}") from error
                raise RejectedFault(f"entry {entry.label} ({entry.kind.value}): {error.strerror}") from error

    def set_directory_times(self) -> None:
        for path, mtime_ns in self._tree.directory_times.items():
            try:
                fd = open_beneath(self._tree.root.fd, b"/".join(path) or b".", os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    continue  # replaced by a later entry
                raise
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled

    def _extract(self, entry: TarEntry) -> None:
        path = self._clean(entry.name)
        if any(part.startswith(_WHITEOUT_META) for part in path[:-1]):
            return  # AUFS bookkeeping, which no layer means to ship
        if any(part.startswith(_WHITEOUT) for part in path[:-1]):
            raise RejectedFault("a whiteout cannot be a directory")
        if path and path[-1].startswith(_WHITEOUT):
            self._whiteout(path)
            return
        if entry.uid > _OWNER_MAX or entry.gid > _OWNER_MAX:
            raise RejectedFault(f"owner {entry.uid}:{entry.gid} does not exist on Linux")
        if not path:
            if entry.kind is not EntryKind.DIRECTORY:
                raise RejectedFault("the root of an image must be a directory")
            self._dress(self._tree.root.fd, entry)
            self._remember_time(path, entry)
            return
        if entry.kind in {EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE}:
            if entry.device == (0, 0) or path[0] != b"dev" or len(path) == 1:
                raise RejectedFault(
                    f"device nodes ({entry.device[0]}:{entry.device[1]}) are not allowed in images outside dev/"
                )
            return
        parent = self._tree.find(path[:-1], create=True)
        assert parent is not None
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._directory(parent, path[-1], entry)
            case EntryKind.FILE:
                self._file(parent, path[-1], entry)
            case EntryKind.SYMLINK:
                self._symlink(parent, path[-1], entry)
            case EntryKind.HARDLINK:
                self._hard_link(parent, path[-1], entry)
            case EntryKind.FIFO:
                self._clear(parent, path[-1])
                os.mkfifo(path[-1], 0o600, dir_fd=parent.fd)
                self._dress_by_name(parent, path[-1], entry)
                os.chmod(path[-1], entry.mode, dir_fd=parent.fd)

    def _clean(self, name: bytes) -> Components:
        """Lexically: no empty, ``.`` or ``..`` parts left; climbing above the root is refused, too long or too deep as
        well.
        """
        if len(name) > self._limits.path_bytes_max:
            raise RejectedFault(f"path longer than {self._limits.path_bytes_max} bytes (limit path_bytes_max)")
        if b"\0" in name:
            raise RejectedFault("path holds a NUL")
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part in {b"", b"."}:
                continue
            if part == b"..":
                if not parts:
                    raise RejectedFault("path leads out of the image")
                parts.pop()
            elif len(part) > _NAME_BYTES_MAX:
                raise RejectedFault(f"path component longer than {_NAME_BYTES_MAX} bytes")
            else:
                parts.append(part)
        if len(parts) > self._limits.depth_max:
            raise RejectedFault(f"deeper than {self._limits.depth_max} directories (limit depth_max)")
        return tuple(parts)

    def _whiteout(self, path: Components) -> None:
        name = path[-1]
        if name == _WHITEOUT_OPAQUE:
            directory = self._tree.find(path[:-1], create=False)
            if directory is None:
                return  # nothing there to hide
            self._hide_lower(directory.fd, directory.path)
            if directory is self._tree.root:
                self._tree.root.lowers = ()
                self.opaque_root = True
            self._tree.forget()
            return
        if name.startswith(_WHITEOUT_META):
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in {b"", b".", b".."}:
            raise RejectedFault("whiteout of nothing, or of a directory as seen from within")
        parent = self._tree.find(path[:-1], create=False)
        if parent is None:
            return  # nothing there to hide
        above = self._tree.look_upper(parent, hidden)
        if above is None:
            self._hide(parent, hidden)
        elif stat.S_ISDIR(above.st_mode):
            fd = open_directory(parent.fd, hidden)
            try:
                self._hide_lower(fd, (*parent.path, hidden))
            finally:
                os.close(fd)
            self._tree.forget(keep=[parent])
            if self._remove_if_implied(parent.fd, (*parent.path, hidden)):
                self._hide(parent, hidden)

    def _hide(self, parent: Directory, name: bytes) -> None:
        """Put overlayfs's mark for "deleted" where a lower layer has something."""
        below, _ = self._tree.look_lower(parent, name)
        if below is not None:
            self._tree.touch((*parent.path, name))
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent.fd)

    def _hide_lower(self, directory_fd: int, path: Components) -> None:
        """Make opaque, and take away what was only there to reach whiteouts below."""
        make_opaque(directory_fd)
        self._remove_whiteouts(directory_fd, path)

    def _remove_whiteouts(self, directory_fd: int, path: Components) -> None:
        """Whiteouts inside an opaque directory hide nothing, and overlayfs would list them: they go, and so do
        directories that no entry named and that are empty then."""
        for child in [os.fsencode(name) for name in os.listdir(directory_fd)]:
            status = os.stat(child, dir_fd=directory_fd, follow_symlinks=False)
            if is_whiteout(status):
                os.unlink(child, dir_fd=directory_fd)
            elif stat.S_ISDIR(status.st_mode):
                fd = open_directory(directory_fd, child)
                try:
                    self._remove_whiteouts(fd, (*path, child))
                finally:
                    os.close(fd)
                self._remove_if_implied(directory_fd, (*path, child))

    def _remove_if_implied(self, parent_fd: int, path: Components) -> bool:
        """Remove an empty directory that no entry named; whether it is gone."""
        if path not in self._tree.implied:
            return False
        try:
            os.rmdir(path[-1], dir_fd=parent_fd)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return False
            raise
        self._tree.implied.discard(path)
        return True

    def _directory(self, parent: Directory, name: bytes, entry: TarEntry) -> None:
        above = self._tree.look_upper(parent, name)
        replaced = above is not None and not stat.S_ISDIR(above.st_mode) and not is_whiteout(above)
        if replaced:
            self._clear(parent, name)
        directory = self._tree.enter(parent, name)
        if replaced and directory.lowers:
            make_opaque(directory.fd)  # the file that stood here hid the lower directory
            directory.lowers = ()
        self._tree.implied.discard(directory.path)
        self._dress(directory.fd, entry)
        self._remember_time(directory.path, entry)

    def _file(self, parent: Directory, name: bytes, entry: TarEntry) -> None:
        if entry.size > self._limits.file_bytes_max:
            raise RejectedFault(f"larger than {self._limits.file_bytes_max} bytes (limit file_bytes_max)")
        self._account(entry.size)
        self._clear(parent, name)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent.fd)
        try:
            for offset, data in self._reader.data():
                _write_at(fd, data, offset)
                self._check_cancelled()
            if entry.regions is not None:
                os.ftruncate(fd, entry.size)
            self._dress(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _symlink(self, parent: Directory, name: bytes, entry: TarEntry) -> None:
        if not entry.link_target or b"\0" in entry.link_target:
            raise RejectedFault("symbolic link to nothing")
        self._clear(parent, name)
        os.symlink(entry.link_target, name, dir_fd=parent.fd)
        self._dress_by_name(parent, name, entry)

    def _hard_link(self, parent: Directory, name: bytes, entry: TarEntry) -> None:
        target = self._clean(entry.link_target)
        source = self._tree.find(target[:-1], create=False) if target else None
        if source is None:
            raise RejectedFault(f"target {entry.link_target[:200]!r} does not exist")
        status, lower = self._tree.look(source, target[-1])
        if status is None:
            raise RejectedFault(f"target {entry.link_target[:200]!r} does not exist")
        if stat.S_ISDIR(status.st_mode):
            raise RejectedFault(f"target {entry.link_target[:200]!r} is a directory")
        if lower is not None:
            self._copy_up(source, target[-1], status, lower)
        if (source.path, target[-1]) == (parent.path, name):
            return
        self._clear(parent, name, spare=source)
        os.link(target[-1], name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)

    def _copy_up(self, parent: Directory, name: bytes, status: os.stat_result, lower: int) -> None:
        path = (*parent.path, name)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(self._tree.read_lower_link(lower, path), name, dir_fd=parent.fd)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=parent.fd, follow_symlinks=False)
            return
        if not stat.S_ISREG(status.st_mode):
            raise RejectedFault("hard link to a special file of a lower layer")
        self._account(status.st_size)
        source = self._tree.open_lower(lower, path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent.fd)
            try:
                while os.sendfile(fd, source, None, 1 << 24):
                    self._check_cancelled()
                os.fchown(fd, status.st_uid, status.st_gid)
                os.fchmod(fd, stat.S_IMODE(status.st_mode))
                for attribute in os.listxattr(source):
                    if keeps_xattr(attribute):
                        os.setxattr(fd, attribute, os.getxattr(source, attribute))
                os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
            finally:
                os.close(fd)
        finally:
            os.close(source)

    def _clear(self, parent: Directory, name: bytes, *, spare: Directory | None = None) -> None:
        """Make room for a new thing: the upper layer's old one goes, trees and marks included."""
        path = (*parent.path, name)
        self._tree.touch(path)
        status = self._tree.look_upper(parent, name)
        if status is None:
            return
        if stat.S_ISDIR(status.st_mode):
            if spare is not None and spare.path[: len(path)] == path:
                raise RejectedFault("hard link in place of the directory that holds its target")
            remove_tree(parent.fd, name)
            self._tree.forget(keep=[parent] if spare is None else [parent, spare])
        else:
            os.unlink(name, dir_fd=parent.fd)

    def _dress(self, fd: int, entry: TarEntry) -> None:
        """Owner, then mode, then attributes: chown(2) clears set-uid bits and file capabilities."""
        os.fchown(fd, *_owner(entry))
        os.fchmod(fd, entry.mode)
        for raw_name, value in entry.xattrs.items():
            name = os.fsdecode(raw_name)
            if keeps_xattr(name):
                os.setxattr(fd, name, value)

    def _dress_by_name(self, parent: Directory, name: bytes, entry: TarEntry) -> None:
        os.chown(name, *_owner(entry), dir_fd=parent.fd, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _remember_time(self, path: Components, entry: TarEntry) -> None:
        self._directory_name_bytes += 100 + sum(map(len, path))
        if self._directory_name_bytes > _DIRECTORY_NAME_BYTES_MAX:
            raise RejectedFault(f"names of directories exceed {_DIRECTORY_NAME_BYTES_MAX} bytes in all")
        self._tree.directory_times[path] = entry.mtime_ns

    def _account(self, size: int) -> None:
        self.size_bytes += size
        if self.size_bytes > self._limits.bytes_max:
            raise RejectedFault(f"files of more than {self._limits.bytes_max} bytes in all (limit bytes_max)")


def _owner(entry: TarEntry) -> tuple[int, int]:
    """Of the file to be made. Raises ``RejectedFault`` for an id that the user namespace this process is in does not have;
    with one id there, everything is root's.
    """
    for number in (entry.uid, entry.gid):
        if may_own(number):
            continue
        if has_single_id():
            return 0, 0
        raise RejectedFault(
            f"owner {number} is not among the ids that fleetd may use: give the user more in /etc/subuid and /etc/subgid"
        )
    return entry.uid, entry.gid


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
