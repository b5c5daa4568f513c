"""A directory tree of a container (writable layer or volume) as a stream of frames, whole or what changed since the last pass.

A frame is four bytes of length and MessagePack. Tar cannot say what has to be said here: overlay's marks, holes, times in
nanoseconds, what is gone, and that the stream ended where it should::

    Item   a file, directory, link, pipe, hard link or whiteout at a path, with everything but its contents
    Data   bytes of the Item before it, at an offset; what no Data covers is a hole
    Gone   a path of an earlier pass that is there no longer
    End    the last frame, with the number of Items

*What changed* is told by the inode's ctime, which no program can set. That alone would miss a page that was dirty when it was
read and is written again through mmap(2) (the kernel takes the time at the first write of a clean page only). So a pass
begins with syncfs(2), and a file whose ctime is not older than that moment is sent again by the next pass; on a tmpfs all are.

Both sides are hostile to each other: the tree was written by a container, the stream may come from anybody who took a node
over. Everything goes through descriptors, no link is followed, everything has a bound.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from fleet.containers.owners import attribute_inside, attribute_outside, owner_inside, owner_outside
from fleet.containers.subids import IdRange
from fleet.errors import RejectedFault, RuntimeFault, StorageFullError, UserError
from fleet.images.beneath import is_whiteout, open_beneath, remove_tree, sync_filesystem

__all__ = ["Pass", "TreeReader", "TreeWriter"]

CHUNK: Final = 1 << 18
FRAME_MAX: Final = 2 << 20
_LENGTH: Final = struct.Struct(">I")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH_MAX: Final = 256
_ENTRIES_MAX: Final = 2_000_000
_PATH_MAX: Final = 4095
_XATTRS_BYTES_MAX: Final = 256 * 1024
_CLOCK_GRAIN_NS: Final = 1_000_000_000
"""Times of files are as coarse as the kernel's tick (at most 10 ms), and some file systems keep whole seconds."""
_SPACE: Final = (28, 122)
FILE, DIRECTORY, SYMLINK, FIFO, HARDLINK, WHITEOUT = range(6)


class Item(msgspec.Struct, array_like=True, tag="i"):
    """``size`` of files only; ``link``: a symbolic link's text, or the path of the file a hard link is to."""

    path: bytes
    kind: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    xattrs: dict[str, bytes] = msgspec.field(default_factory=dict)


class Data(msgspec.Struct, array_like=True, tag="d"):
    offset: int
    data: bytes


class Gone(msgspec.Struct, array_like=True, tag="x"):
    path: bytes


class End(msgspec.Struct, array_like=True, tag="e"):
    items: int


Frame = Item | Data | Gone | End


class Signature(NamedTuple):
    """An inode as it was sent. ``sure`` is False when it may have changed since without a trace."""

    inode: int
    ctime_ns: int
    sure: bool


class Pass:
    """What one pass sent; the next is given the last one that arrived."""

    def __init__(self) -> None:
        self.seen: dict[bytes, Signature] = {}
        self.bytes = 0
        self.items = 0
        self.skipped = 0
        """Sockets and device files, which are not carried."""


def _writes_back(device: int) -> bool:
    """Whether the file system notes a write through mmap(2) at all: one in memory has no page to clean, and does not."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split(" ", 3)[2] == wanted:
            return kind.split(" ", 1)[0] not in ("tmpfs", "ramfs")
    return True


def _xattr_allowed(name: str) -> bool:
    return (
        name in ("security.capability", "trusted.overlay.opaque")
        or name.startswith("system.posix_acl_")
        or (name.startswith("user.") and not name.startswith("user.overlay."))
    )


class TreeReader:
    """Iterate: bytes to send, about a MiB each. ``result`` is whole when the iteration is."""

    def __init__(
        self,
        root: Path,
        *,
        since: Pass | None = None,
        hidden: frozenset[bytes] = frozenset(),
        ids: IdRange | None = None,
    ) -> None:
        """``hidden`` paths (mount points of the engine) are passed over when they are empty files. ``ids``: those of the
        container that wrote the files; owners are sent as it sees them.
        """
        self._root = root
        self._ids = ids
        self._since = since.seen if since is not None else {}
        self._hidden = hidden
        self.result = Pass()
        self._links: dict[int, bytes] = {}
        self._out = bytearray()
        self._begun_ns = 0

    def __iter__(self) -> Iterator[bytes]:
        fd = os.open(self._root, _DIRECTORY)
        try:
            self._begun_ns = time.time_ns() - _CLOCK_GRAIN_NS if _writes_back(os.fstat(fd).st_dev) else 0
            sync_filesystem(fd)
            self._item(self._describe(b"", os.fstat(fd), fd))
            yield from self._children(fd, b"", 0)
        finally:
            os.close(fd)
        for path in self._since.keys() - self.result.seen.keys():
            self._put(Gone(path))
            if len(self._out) >= CHUNK:
                yield self._flush()
        self._put(End(self.result.items))
        yield self._flush()

    def _put(self, frame: Frame) -> None:
        body = msgspec.msgpack.encode(frame)
        self._out += _LENGTH.pack(len(body))
        self._out += body

    def _flush(self) -> bytes:
        out, self._out = bytes(self._out), bytearray()
        return out

    def _item(self, item: Item) -> None:
        self.result.items += 1
        self._put(item)

    def _describe(self, path: bytes, status: os.stat_result, fd: int | None) -> Item:
        kind = {stat.S_IFDIR: DIRECTORY, stat.S_IFREG: FILE, stat.S_IFLNK: SYMLINK, stat.S_IFIFO: FIFO}[
            stat.S_IFMT(status.st_mode)
        ]
        uid, gid = owner_inside(self._ids, status.st_uid), owner_inside(self._ids, status.st_gid)
        item = Item(path, kind, stat.S_IMODE(status.st_mode), uid, gid, status.st_mtime_ns)
        if fd is not None:
            item.xattrs = self._xattrs(fd, path)
        return item

    def _xattrs(self, fd: int, path: bytes) -> dict[str, bytes]:
        found = {}
        for name in os.listxattr(fd):
            if name in ("trusted.overlay.redirect", "trusted.overlay.metacopy"):
                raise RejectedFault(
                    f"/{os.fsdecode(path)}: was renamed by overlayfs in place, which cannot be carried; copy it instead"
                )
            if _xattr_allowed(name):
                with contextlib.suppress(OSError):  # removed meanwhile
                    found[name] = attribute_inside(self._ids, name, os.getxattr(fd, name))
        return found

    def _children(self, fd: int, path: bytes, depth: int) -> Iterator[bytes]:
        if depth > _DEPTH_MAX:
            raise RejectedFault(f"/{os.fsdecode(path)}: nested deeper than {_DEPTH_MAX} directories")
        for name in sorted(os.fsencode(n) for n in os.listdir(fd)):
            with contextlib.suppress(FileNotFoundError):  # a running container removes files while they are listed
                yield from self._entry(fd, name, path + b"/" + name if path else name, depth)

    def _entry(self, parent: int, name: bytes, path: bytes, depth: int) -> Iterator[bytes]:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if len(path) > _PATH_MAX or len(self.result.seen) >= _ENTRIES_MAX:
            raise RejectedFault(f"/{os.fsdecode(path[:200])}: a longer path, or more files, than a move carries")
        if path in self._hidden and stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return
        format_ = stat.S_IFMT(status.st_mode)
        if format_ == stat.S_IFSOCK or (format_ in (stat.S_IFCHR, stat.S_IFBLK) and not is_whiteout(status)):
            self.result.skipped += 1
            return
        known = self._since.get(path)
        same = known is not None and known.sure and known[:2] == (status.st_ino, status.st_ctime_ns)
        self.result.seen[path] = Signature(status.st_ino, status.st_ctime_ns, status.st_ctime_ns < self._begun_ns)
        if format_ == stat.S_IFDIR:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                self._item(self._describe(path, status, fd))  # always: what is written into it changes its times there
                yield from self._children(fd, path, depth + 1)
            finally:
                os.close(fd)
        elif same:
            if format_ == stat.S_IFREG and status.st_nlink > 1:
                self._links.setdefault(status.st_ino, path)
        elif is_whiteout(status):
            self._item(Item(path, WHITEOUT))
        elif format_ == stat.S_IFREG:
            yield from self._file(parent, name, path, status)
        else:
            item = self._describe(path, status, None)
            if format_ == stat.S_IFLNK:
                item.link = os.readlink(name, dir_fd=parent)
            self._item(item)
        if len(self._out) >= CHUNK:
            yield self._flush()

    def _file(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        if status.st_nlink > 1 and (first := self._links.get(status.st_ino)) is not None:
            self._item(Item(path, HARDLINK, link=first))
            return
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(path)  # swapped meanwhile: the next pass sees it
            self._links.setdefault(status.st_ino, path)
            item = self._describe(path, status, fd)
            item.size = status.st_size
            self._item(item)
            offset = 0
            while offset < item.size:
                try:
                    offset = os.lseek(fd, offset, os.SEEK_DATA)
                    hole = os.lseek(fd, offset, os.SEEK_HOLE)
                except OSError:
                    break  # ENXIO: a hole to the end, or it became shorter
                while offset < min(hole, item.size):
                    data = os.pread(fd, min(CHUNK, hole - offset, item.size - offset), offset)
                    if not data:
                        break
                    self.result.bytes += len(data)
                    self._put(Data(offset, data))
                    offset += len(data)
                    if len(self._out) >= CHUNK:
                        yield self._flush()
                else:
                    continue
                break
        finally:
            os.close(fd)


class TreeWriter:
    """``feed`` what arrives, then ``finish``; blocks. ``root`` is a directory nobody else writes to.

    ``room_bytes``: more file contents than that are refused. ``ids``: those of the container the files are for. Raises
    ``UserError`` for a stream that is none of ``TreeReader``'s, ``RejectedFault`` for owners the container cannot have,
    ``StorageFullError``.
    """

    def __init__(self, root: Path, *, room_bytes: int, ids: IdRange | None = None) -> None:
        self._root = os.open(root, _DIRECTORY)
        self._ids = ids
        self._room_bytes = room_bytes
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(Frame)
        self._file: tuple[int, Item] | None = None
        self._directories: dict[bytes, Item] = {}
        self._items = 0
        self._ended = False
        self.bytes = 0

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            os.close(self._file[0])
            self._file = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def feed(self, data: bytes) -> None:
        """The next piece of the stream."""
        self._buffer += data
        start, buffer = 0, self._buffer
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > FRAME_MAX:
                raise UserError(f"frame of {length} bytes; at most {FRAME_MAX} are possible")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                frame = self._decoder.decode(memoryview(buffer)[start + _LENGTH.size : end])
            except msgspec.DecodeError as cause:
                raise UserError(f"frame of a container's files: {cause}") from cause
            self._apply(frame)
            start = end
        if start:
            del buffer[:start]

    def finish(self) -> None:
        """Everything came, and is on the disk. Raises ``UserError`` when the stream broke off."""
        if not self._ended or self._buffer:
            raise UserError("the stream of a container's files broke off")
        self._settle_directories()
        sync_filesystem(self._root)

    def _apply(self, frame: Frame) -> None:
        if self._ended:
            raise UserError("frames after the end of the stream")
        label = ""
        try:
            match frame:
                case Data():
                    self._data(frame)
                    return
                case Item():
                    label = os.fsdecode(frame.path[:200])
                    self._close_file()
                    self._item(frame)
                case Gone():
                    label = os.fsdecode(frame.path[:200])
                    self._close_file()
                    self._gone(frame.path)
                case End():
                    self._close_file()
                    if frame.items != self._items:
                        raise UserError(f"{frame.items} files were sent and {self._items} came")
                    self._ended = True
        except OSError as cause:
            text = f"/{label}: {os.strerror(cause.errno or 0)}"
            if cause.errno in _SPACE:
                raise StorageFullError(f"{text}: free some space and try again") from cause
            raise RuntimeFault(text) from cause

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        parts = path.split(b"/")
        if len(path) > _PATH_MAX or len(parts) > _DEPTH_MAX + 2 or b"\0" in path or {b"", b".", b".."} & set(parts):
            raise UserError(f"path {path[:200]!r} is refused: it must lead down, by plain names")
        above = b"/".join(parts[:-1])
        if not above:
            return os.dup(self._root), parts[-1]
        return open_beneath(self._root, above, os.O_RDONLY | os.O_DIRECTORY), parts[-1]

    def _data(self, frame: Data) -> None:
        if self._file is None:
            raise UserError("contents of no file")
        fd, item = self._file
        size = len(frame.data)
        if not 0 <= frame.offset <= frame.offset + size <= item.size:
            raise UserError(f"/{os.fsdecode(item.path[:200])}: contents beyond its size")
        self.bytes += size
        if self.bytes > self._room_bytes:
            raise StorageFullError(f"more than the {self._room_bytes} bytes that there was room for: free some space")
        view, offset = memoryview(frame.data), frame.offset
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done

    def _close_file(self) -> None:
        if self._file is not None:
            fd, item = self._file
            self._file = None
            try:
                os.ftruncate(fd, item.size)
                _finish(fd, item)
            finally:
                os.close(fd)

    def _gone(self, path: bytes) -> None:
        try:
            parent, name = self._parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return  # it went with what it was in
        try:
            remove_tree(parent, name)
        except NotADirectoryError:
            os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)
        self._directories.pop(path, None)

    def _item(self, item: Item) -> None:
        self._items += 1
        if self._items > _ENTRIES_MAX:
            raise UserError(f"more than {_ENTRIES_MAX} files")
        if not 0 <= item.mode <= 0o7777 or not (0 <= item.uid < 2**32 - 1 and 0 <= item.gid < 2**32 - 1):
            raise UserError(f"{item.path[:200]!r}: mode {item.mode:o} or owner {item.uid}:{item.gid} is none")
        if not 0 <= item.size < 1 << 62 or sum(map(len, item.xattrs.values())) > _XATTRS_BYTES_MAX:
            raise UserError(f"{item.path[:200]!r}: its size or attributes are beyond bounds")
        if bad := [name for name in item.xattrs if not _xattr_allowed(name)]:
            raise UserError(f"{item.path[:200]!r}: attribute {bad[0][:80]!r} is refused")
        item.uid, item.gid = owner_outside(self._ids, item.uid), owner_outside(self._ids, item.gid)
        item.xattrs = {name: attribute_outside(self._ids, name, value) for name, value in item.xattrs.items()}
        if not item.path:
            if item.kind != DIRECTORY:
                raise UserError("the root is no directory")
            self._directories[b""] = item
            return
        parent, name = self._parent(item.path)
        try:
            self._make(parent, name, item)
        finally:
            os.close(parent)

    def _make(self, parent: int, name: bytes, item: Item) -> None:
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                if item.kind == DIRECTORY:
                    self._directories[item.path] = item
                    return
                remove_tree(parent, name)
            else:
                os.unlink(name, dir_fd=parent)
        match item.kind:
            case 0:  # FILE
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = (os.open(name, flags, 0o600, dir_fd=parent), item)
            case 1:  # DIRECTORY
                os.mkdir(name, 0o700, dir_fd=parent)
                self._directories[item.path] = item
            case 2:  # SYMLINK
                os.symlink(item.link, name, dir_fd=parent)
                _own(parent, name, item)
            case 3:  # FIFO
                os.mkfifo(name, 0o600, dir_fd=parent)
                os.chown(name, item.uid, item.gid, dir_fd=parent, follow_symlinks=False)
                os.chmod(name, item.mode, dir_fd=parent)
                os.utime(name, ns=(item.mtime_ns, item.mtime_ns), dir_fd=parent, follow_symlinks=False)
            case 4:  # HARDLINK
                source, source_name = self._parent(item.link)
                try:
                    status = os.stat(source_name, dir_fd=source, follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        raise UserError(f"{item.path[:200]!r}: a hard link to what is no file")
                    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                finally:
                    os.close(source)
            case 5:  # WHITEOUT
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
            case _:
                raise UserError(f"{item.path[:200]!r}: kind {item.kind} is not known")

    def _settle_directories(self) -> None:
        """Modes and times of directories last: making what is in them would change the times again."""
        for path in sorted(self._directories, reverse=True):
            try:
                fd = open_beneath(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                _finish(fd, self._directories[path])
            except OSError as cause:
                raise RuntimeFault(f"/{os.fsdecode(path[:200])}: {os.strerror(cause.errno or 0)}") from cause
            finally:
                os.close(fd)


def _own(parent: int, name: bytes, item: Item) -> None:
    os.chown(name, item.uid, item.gid, dir_fd=parent, follow_symlinks=False)
    os.utime(name, ns=(item.mtime_ns, item.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _finish(fd: int, item: Item) -> None:
    """Owner before mode and capabilities: chown(2) clears those."""
    os.fchown(fd, item.uid, item.gid)
    os.fchmod(fd, item.mode)
    for name in os.listxattr(fd):
        if _xattr_allowed(name) and name not in item.xattrs:
            os.removexattr(fd, name)
    for name, value in item.xattrs.items():
        os.setxattr(fd, name, value)
    os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))
