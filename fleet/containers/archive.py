"""``docker cp`` and ``docker export``: a container's files as a tar stream, and a tar stream into a container.

A root is one descriptor: ``/proc/PID/root`` of a running container, or a detached overlay mount of a stopped one, which
the kernel dissolves with its last descriptor. Every path is resolved from there by openat2 with RESOLVE_IN_ROOT and
NO_MAGICLINKS, so a link to ``/etc/passwd`` means the container's.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from fleet.containers.layertar import pax_attributes
from fleet.containers.owners import owner_inside, owner_outside
from fleet.containers.record import Container
from fleet.containers.subids import IdRange
from fleet.errors import (
    ConflictError,
    FleetError,
    NotFoundError,
    RejectedFault,
    RuntimeFault,
    StorageFullError,
    UserError,
)
from fleet.images.tarstream import EntryKind, TarEntry, TarReader
from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.overlay import mount_mapped_overlay
from fleet.privilege import in_initial_user_namespace

__all__ = ["export_root", "open_root", "path_stat", "read_archive", "write_archive"]

_PATH: Final = os.O_PATH | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_ROOT: Final = sys_.RESOLVE_IN_ROOT | sys_.RESOLVE_NO_MAGICLINKS
_BENEATH: Final = sys_.RESOLVE_BENEATH | sys_.RESOLVE_NO_MAGICLINKS
_DEPTH_MAX: Final = 256
_ENTRIES_MAX: Final = 2_000_000
_OPTION_MAX: Final = 255
_SPACE: Final = (28, 122)
_GO_BITS: Final = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


@contextlib.contextmanager
def open_root(container: Container, directory: Path, layer_dirs: Sequence[Path], users: int = -1) -> Iterator[int]:
    """The container's root directory. Blocks. A stopped container's volumes are not in it. ``users``: a user namespace with its
    ids (`RuntimeClient.open_user_namespace`), which a stopped container that has ids of its own needs.
    """
    if container.is_up:
        try:
            root = os.open(f"/proc/{container.state.pid}/root", _PATH | os.O_DIRECTORY)
        except OSError as cause:
            raise ConflictError(f"container {container.id[:12]} ended just now: try again") from cause
    else:
        root = _overlay(directory, layer_dirs, container.ids, users)
    try:
        yield root
    finally:
        os.close(root)


def _overlay(directory: Path, layer_dirs: Sequence[Path], ids: IdRange | None, users: int) -> int:
    if ids is not None:
        lower, upper, work = [str(path) for path in layer_dirs], str(directory / "upper"), str(directory / "work")
        return mount_mapped_overlay(lower, upper=upper, work=work, users=users, first_id=ids.first_id)
    fd = sys_.fsopen("overlay")
    try:
        options = [("lowerdir+", str(path)) for path in layer_dirs]
        options += [("upperdir", str(directory / "upper")), ("workdir", str(directory / "work"))]
        for key, value in options:
            if len(os.fsencode(value)) < _OPTION_MAX:
                sys_.fsconfig_string(fd, key, value)
            else:
                layer = os.open(value, _PATH | os.O_DIRECTORY)
                try:
                    sys_.fsconfig_fd(fd, key, layer)
                finally:
                    os.close(layer)
        if not in_initial_user_namespace():
            sys_.fsconfig_flag(fd, "userxattr")
        sys_.fsconfig_create(fd)
        return sys_.fsmount(fd, 0)
    finally:
        os.close(fd)


def _find(root: int, container: Container, path: str, *, follow: bool) -> int:
    """An O_PATH descriptor of what ``path`` means inside; the caller closes it."""
    if "\0" in path or len(path) > 4095:
        raise UserError("path: too long, or with a NUL byte")
    must_be_directory = path.endswith(("/", "/."))
    flags = _PATH | (os.O_DIRECTORY if must_be_directory else 0)
    try:
        fd = sys_.openat2(
            root,
            path.lstrip("/") or ".",
            flags | (0 if follow or must_be_directory else os.O_NOFOLLOW),
            resolve=_IN_ROOT,
        )
    except FileNotFoundError:
        raise NotFoundError(f"Could not find the file {path} in container {container.name}") from None
    except NotADirectoryError:
        raise UserError(f"{path}: not a directory") from None
    except OSError as cause:
        raise UserError(f"{path} in container {container.name}: {os.strerror(cause.errno or 0)}") from None
    try:
        _check_place(root, fd, container, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_place(root: int, fd: int, container: Container, path: str) -> None:
    if not container.is_up:
        where = str(Path(f"/proc/self/fd/{fd}").readlink())
        for mount in container.mounts:
            if where == mount.target or where.startswith(mount.target.rstrip("/") + "/"):
                raise ConflictError(f"{path} is in the volume at {mount.target}: start the container to copy there")
        return
    device = os.fstat(fd).st_dev
    for name in ("proc", "sys", "sys/fs/cgroup"):
        with contextlib.suppress(OSError):
            special = sys_.openat2(root, name, _PATH | os.O_DIRECTORY, resolve=_IN_ROOT)
            own = os.fstat(special).st_dev
            os.close(special)
            if own == device and own != os.fstat(root).st_dev:
                raise UserError(f"{path}: files of the kernel (/{name}) cannot be copied")


def _base(path: str) -> str:
    if path.endswith("/."):
        return "."
    return path.rstrip("/").rpartition("/")[2] or "/"


def path_stat(root: int, container: Container, path: str) -> dict[str, Any]:
    """What ``X-Docker-Container-Path-Stat`` says."""
    fd = _find(root, container, path, follow=False)
    try:
        status = os.fstat(fd)
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
        if target and not target.startswith("/"):
            target = os.path.normpath("/" + path.rstrip("/").rpartition("/")[0].lstrip("/") + "/" + target)
    finally:
        os.close(fd)
    mode = stat.S_IMODE(status.st_mode) & 0o777 | _GO_BITS.get(stat.S_IFMT(status.st_mode), 0)
    for bit, go_bit in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        mode |= go_bit if status.st_mode & bit else 0
    moment = datetime.fromtimestamp(status.st_mtime_ns // 10**9, UTC)
    return {
        "name": _base(path),
        "size": status.st_size,
        "mode": mode,
        "mtime": f"{moment:%Y-%m-%dT%H:%M:%S}Z",
        "linkTarget": target,
    }


def read_archive(root: int, container: Container, path: str, sink: BinaryIO) -> None:
    """The file or tree at ``path`` as a tar whose names begin with its last part. Blocks."""
    fd = _find(root, container, path, follow=False)
    try:
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _Writer(tar, container).entry(fd, _base(path), 0)
    finally:
        os.close(fd)


def export_root(root: int, container: Container, sink: BinaryIO) -> None:
    """The whole root file system, without what is mounted in it. Blocks."""
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        writer = _Writer(tar, container, mount=_mount_id(root))
        fd = os.open(".", _DIRECTORY, dir_fd=root)
        try:
            writer.children(fd, "", 0)
        finally:
            os.close(fd)


def _mount_id(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line[7:])
    raise RuntimeFault("the kernel does not tell a descriptor's mount")


class _Writer:
    def __init__(self, tar: tarfile.TarFile, container: Container, mount: int | None = None) -> None:
        self._tar = tar
        self._ids = container.ids
        self._mount = mount
        self._links: dict[tuple[int, int], str] = {}

    def children(self, fd: int, path: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise RejectedFault(f"/{path}: nested deeper than {_DEPTH_MAX} directories")
        for name in sorted(os.listdir(fd)):
            try:
                child = os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=fd)
            except FileNotFoundError:
                continue  # removed meanwhile
            try:
                self.entry(child, f"{path.rstrip('/')}/{name}" if path else name, depth + 1)
            finally:
                os.close(child)

    def entry(self, fd: int, path: str, depth: int) -> None:
        """``fd`` is an O_PATH descriptor: nothing can be swapped behind it."""
        status = os.fstat(fd)
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        directory = stat.S_ISDIR(status.st_mode)
        mounted = self._mount is not None and _mount_id(fd) != self._mount
        if kind is None or (mounted and not directory):
            return  # a socket; or a mounted file, such as a secret
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.mtime = kind, stat.S_IMODE(status.st_mode), int(status.st_mtime)
        member.uid, member.gid = owner_inside(self._ids, status.st_uid), owner_inside(self._ids, status.st_gid)
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if stat.S_ISREG(status.st_mode):
            self._file(fd, member, status)
            return
        if stat.S_ISLNK(status.st_mode):
            member.linkname = os.readlink("", dir_fd=fd)
        self._tar.addfile(member)
        if directory and not mounted:
            inner = os.open(".", _DIRECTORY, dir_fd=fd)
            try:
                self.children(inner, path, depth)
            finally:
                os.close(inner)

    def _file(self, fd: int, member: tarfile.TarInfo, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            if (first := self._links.get(key)) is not None:
                member.type, member.linkname = tarfile.LNKTYPE, first
                self._tar.addfile(member)
                return
            self._links[key] = member.name
        with open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123 - a descriptor
            member.size = status.st_size
            member.pax_headers = pax_attributes(file.fileno(), self._ids)
            self._tar.addfile(member, file)


def write_archive(
    root: int, container: Container, path: str, source: BinaryIO, *, keep_kinds: bool, owner: tuple[int, int] | None
) -> None:
    """Unpack a stranger's tar into the directory ``path``. Blocks. ``keep_kinds``: a directory is not replaced by a file, nor
    the other way round. ``owner``: everybody's, instead of the archive's.
    """
    if container.config.read_only:
        raise UserError("container rootfs is marked read-only")
    found = _find(root, container, path, follow=True)
    try:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            raise UserError(f"extraction point is not a directory: {path}")
        target = os.open(".", _DIRECTORY, dir_fd=found)
    finally:
        os.close(found)
    try:
        _Extractor(target, container, keep_kinds=keep_kinds, owner=owner).run(TarReader(source))
    finally:
        os.close(target)


class _Extractor:
    def __init__(self, target: int, container: Container, *, keep_kinds: bool, owner: tuple[int, int] | None) -> None:
        self._target = target
        self._container_ids = container.ids
        self._keep_kinds = keep_kinds
        self._owner = owner

    def run(self, reader: TarReader) -> None:
        for count, entry in enumerate(reader):
            if count >= _ENTRIES_MAX:
                raise UserError(f"the archive has more than {_ENTRIES_MAX} entries")
            try:
                self._extract(entry, reader)
            except FleetError:
                raise
            except OSError as cause:
                text = f"entry {entry.label}: {os.strerror(cause.errno or 0)}"
                raise (StorageFullError(text) if cause.errno in _SPACE else UserError(text)) from cause

    def _parent(self, name: bytes) -> tuple[int, bytes]:
        parts = [part for part in os.fsdecode(name).split("/") if part not in ("", ".")]
        if ".." in parts or len(parts) > _DEPTH_MAX or len(name) > 4095:
            raise UserError(f"entry {name[:200]!r}: names with .. and very long ones are refused")
        parent = os.dup(self._target)
        try:
            for index, part in enumerate(parts[:-1]):
                inside = "/".join(parts[: index + 1])
                try:
                    inner = sys_.openat2(self._target, inside, os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=parent)
                    root = owner_outside(self._container_ids, 0)
                    os.chown(part, root, root, dir_fd=parent, follow_symlinks=False)
                    inner = os.open(part, _DIRECTORY, dir_fd=parent)
                os.close(parent)
                parent = inner
        except BaseException:
            os.close(parent)
            raise
        return parent, os.fsencode(parts[-1]) if parts else b"."

    def _extract(self, entry: TarEntry, reader: TarReader) -> None:
        if entry.kind in (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE):
            raise UserError(f"entry {entry.label}: device files are not copied into containers")
        parent, name = self._parent(entry.name)
        try:
            directory = entry.kind is EntryKind.DIRECTORY
            if name == b"." and not directory:
                raise UserError(f"entry {entry.label}: has no name")
            exists = self._make_room(parent, name, directory=directory)
            if directory:
                if not exists:
                    os.mkdir(name, 0o700, dir_fd=parent)
                fd = os.open(name, _DIRECTORY, dir_fd=parent)
                try:
                    if name != b".":
                        self._finish(fd, entry)
                finally:
                    os.close(fd)
            elif entry.kind is EntryKind.FILE:
                self._file(parent, name, entry, reader)
            elif entry.kind is EntryKind.HARDLINK:
                source, source_name = self._parent(entry.link_target)
                try:
                    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                finally:
                    os.close(source)
            else:
                if entry.kind is EntryKind.SYMLINK:
                    os.symlink(entry.link_target, name, dir_fd=parent)
                else:
                    os.mkfifo(name, entry.mode & 0o777, dir_fd=parent)
                os.chown(name, *self._ids(entry), dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _make_room(self, parent: int, name: bytes, *, directory: bool) -> bool:
        """Whether a directory is there to be used."""
        try:
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False
        if is_directory and directory:
            return True
        if self._keep_kinds and is_directory != directory:
            first, second = ("non-directory", "directory") if directory else ("directory", "non-directory")
            raise UserError(f"cannot overwrite {first} {os.fsdecode(name)!r} with {second}")
        if is_directory:
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
        return False

    def _file(self, parent: int, name: bytes, entry: TarEntry, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            for start, piece in reader.data():
                offset, view = start, memoryview(piece)
                while view:
                    done = os.pwrite(fd, view, offset)
                    view, offset = view[done:], offset + done
            os.ftruncate(fd, entry.size)
            self._finish(fd, entry)
        finally:
            os.close(fd)

    def _ids(self, entry: TarEntry) -> tuple[int, int]:
        uid, gid = self._owner or (entry.uid, entry.gid)
        if not (0 <= uid < 2**32 - 1 and 0 <= gid < 2**32 - 1):
            raise UserError(f"entry {entry.label}: owner {uid}:{gid} is none")
        return owner_outside(self._container_ids, uid), owner_outside(self._container_ids, gid)

    def _finish(self, fd: int, entry: TarEntry) -> None:
        os.fchown(fd, *self._ids(entry))
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
