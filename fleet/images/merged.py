"""The layer being unpacked, seen together with the layers below it.

A layer's tar speaks about the file system as it looks with all lower layers in place: ``lib/x`` may go through a
symbolic link an earlier layer made, a directory may be missing from the tar because it is there already, a whiteout
names something below. This module answers such questions and finds the directory to work in - in the upper layer only,
where it makes copies of lower directories (with their owner, mode and times) as overlayfs itself would.

Symbolic links are resolved here, in Python, inside the image's root (``..`` stops there), and the kernel is only ever
asked for names without any, by openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: a link can move an entry within
the image, never out of it.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import RejectedFault
from fleet.images.beneath import is_opaque, is_whiteout, make_opaque, open_beneath, open_directory

__all__ = ["MergedTree", "Directory", "Components", "KEPT_XATTRS", "keeps_xattr"]

Components = tuple[bytes, ...]
_OPEN_DIRECTORIES_MAX = 200  # open descriptors; the usual soft limit is 1,024 a process
_SYMLINK_HOPS_MAX = 40  # as in the kernel, path_resolution(7)
KEPT_XATTRS = ("security.capability",)


def keeps_xattr(name: str) -> bool:
    """Which extended attributes an image may set: file capabilities and plain user ones, never overlayfs's own."""
    return name in KEPT_XATTRS or (name.startswith("user.") and not name.startswith("user.overlay."))


@dataclass(slots=True, kw_only=True)
class Directory:
    """A directory of the upper layer, open. ``lowers``: indexes of the lower layers merged into it, topmost first."""

    path: Components
    fd: int
    lowers: tuple[int, ...]


class MergedTree:
    """An upper directory being written over read-only lower ones. Single-threaded; ``close`` releases its
    descriptors.
    """

    def __init__(self, upper: Path, lowers: Sequence[Path], *, depth_max: int) -> None:
        self._depth_max = depth_max
        self._lower_fds: list[int] = []
        self._open: dict[Components, Directory] = {}
        self._aliases: dict[Components, Directory] = {}
        self._links_followed: set[Components] = set()
        self.created = 0
        """Directories made on the way to an entry, counted against the limit on entries."""
        self.implied: set[Components] = set()
        """Upper directories that no entry named: made only because something below them was."""
        self.directory_times: dict[Components, int] = {}
        """mtime in nanoseconds to set when everything else is done: making a child changes its directory's."""
        root_fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root = Directory(path=(), fd=root_fd, lowers=())
        try:
            for lower in lowers:
                self._lower_fds.append(os.open(lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                if is_opaque(self._lower_fds[-1]):
                    break
        except OSError:
            self.close()
            raise
        self.root.lowers = tuple(range(len(self._lower_fds)))

    def close(self) -> None:
        """Close every descriptor; the tree is unusable afterwards."""
        self.forget()
        for fd in (*self._lower_fds, self.root.fd):
            os.close(fd)
        self._lower_fds.clear()

    def forget(self, *, keep: Sequence[Directory] = ()) -> None:
        """Close what is remembered but for ``keep``: called when a directory was removed, replaced or made opaque."""
        kept = {directory.path: directory for directory in keep if directory is not self.root}
        for directory in self._open.values():
            if kept.get(directory.path) is not directory:
                os.close(directory.fd)
        self._open = kept
        self._forget_aliases()

    def touch(self, path: Components) -> None:
        """Something is about to be put at ``path``: what was found through a link there must be found anew."""
        if path in self._links_followed:
            self._forget_aliases()

    def _forget_aliases(self) -> None:
        self._aliases.clear()
        self._links_followed.clear()

    def find(self, components: Components, *, create: bool) -> Directory | None:
        """The upper directory at a path, through symbolic links of any layer; lower directories on the way are copied
        up.

        With ``create`` a missing directory is made (root:root 0755), and ``RejectedFault`` says that something else
        stands in its place; without, the answer is None. Links that go round are ``RejectedFault`` either way.
        """
        if not components:
            return self.root
        if (known := self._aliases.get(components)) is not None:
            return known
        at = [self.root]
        todo = deque(components)
        hops = 0
        while todo:
            name = todo.popleft()
            if name in {b"", b"."}:
                continue
            if name == b"..":
                if len(at) > 1:
                    at.pop()
                continue
            if name.startswith(b".wh."):
                raise RejectedFault(f"leads through {name[:200]!r}, which is a whiteout's name")
            status, lower = self.look(at[-1], name)
            if status is not None and stat.S_ISLNK(status.st_mode):
                hops += 1
                self._links_followed.add((*at[-1].path, name))
                if hops > _SYMLINK_HOPS_MAX:
                    raise RejectedFault("too many symbolic links on the way")
                target = self._read_link(at[-1], name, lower)
                if target.startswith(b"/"):
                    del at[1:]
                todo.extendleft(reversed(target.split(b"/")))
            elif not create and (status is None or not stat.S_ISDIR(status.st_mode)):
                return None
            elif status is not None and not stat.S_ISDIR(status.st_mode):
                raise RejectedFault(f"{b'/'.join((*at[-1].path, name))[:200]!r} on the way is not a directory")
            else:
                at.append(self.enter(at[-1], name))
            if len(at) > self._depth_max:
                raise RejectedFault(f"deeper than {self._depth_max} directories (limit depth_max)")
        self._aliases[components] = at[-1]
        return at[-1]

    def trim(self) -> None:
        """Between entries: close descriptors when there are many. Directories handed out earlier are invalid
        afterwards.
        """
        if len(self._open) > _OPEN_DIRECTORIES_MAX or len(self._aliases) > 4 * _OPEN_DIRECTORIES_MAX:
            self.forget()

    def look(self, parent: Directory, name: bytes) -> tuple[os.stat_result | None, int | None]:
        """(status, lower index) of what shows at a name: index None means the upper layer, status None that nothing
        shows.
        """
        status = self.look_upper(parent, name)
        if status is not None:
            return (None if is_whiteout(status) else status), None
        return self.look_lower(parent, name)

    @staticmethod
    def look_upper(parent: Directory, name: bytes) -> os.stat_result | None:
        """lstat in the upper layer alone, marks included."""
        try:
            return os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def look_lower(self, parent: Directory, name: bytes) -> tuple[os.stat_result | None, int | None]:
        """What the lower layers show at a name, and which of them."""
        for index in parent.lowers:
            status = self._lower_status(index, (*parent.path, name))
            if status is not None:
                return (None, None) if is_whiteout(status) else (status, index)
        return None, None

    def enter(self, parent: Directory, name: bytes) -> Directory:
        """The upper directory ``name`` in ``parent``, made (as a copy of the lower one, if there is one) when it is
        missing.
        """
        path = (*parent.path, name)
        if (known := self._open.get(path)) is not None:
            return known
        self.touch(path)
        status = self.look_upper(parent, name)
        fresh_over_whiteout = False
        if status is not None and is_whiteout(status):
            os.unlink(name, dir_fd=parent.fd)
            status, fresh_over_whiteout = None, True
        lowers = () if fresh_over_whiteout else self._merged_lowers(parent, name)
        if status is None:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
            self.created += 1
            self.implied.add(path)
        fd = open_directory(parent.fd, name)
        try:
            if fresh_over_whiteout:
                make_opaque(fd)
            if status is None:
                self._dress_new_directory(fd, path, lowers)
            elif lowers and is_opaque(fd):
                lowers = ()
        except BaseException:
            os.close(fd)
            raise
        directory = Directory(path=path, fd=fd, lowers=lowers)
        self._open[path] = directory
        return directory

    def open_lower(self, index: int, path: Components) -> int:
        """Open a lower layer's regular file for reading."""
        return open_beneath(self._lower_fds[index], b"/".join(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def _read_link(self, parent: Directory, name: bytes, lower: int | None) -> bytes:
        if lower is None:
            return os.readlink(name, dir_fd=parent.fd)
        return self.read_lower_link(lower, (*parent.path, name))

    def read_lower_link(self, index: int, path: Components) -> bytes:
        """Where a lower layer's symbolic link points."""
        fd = open_beneath(self._lower_fds[index], b"/".join(path), os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=fd)  # an empty name reads the descriptor's own link, readlinkat(2)
        finally:
            os.close(fd)

    def _merged_lowers(self, parent: Directory, name: bytes) -> tuple[int, ...]:
        """The lower layers whose directory of that name shows through: down to the first that is no directory, or
        opaque.
        """
        found = []
        for index in parent.lowers:
            path = b"/".join((*parent.path, name))
            status = self._lower_status(index, (*parent.path, name))
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                break
            found.append(index)
            fd = open_beneath(self._lower_fds[index], path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if is_opaque(fd):
                    break
            finally:
                os.close(fd)
        return tuple(found)

    def _lower_status(self, index: int, path: Components) -> os.stat_result | None:
        try:
            fd = open_beneath(self._lower_fds[index], b"/".join(path), os.O_PATH | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _dress_new_directory(self, fd: int, path: Components, lowers: tuple[int, ...]) -> None:
        if not lowers:
            os.fchmod(fd, 0o755)
            return
        below = open_beneath(self._lower_fds[lowers[0]], b"/".join(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            status = os.fstat(below)
            os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            for attribute in os.listxattr(below):
                if keeps_xattr(attribute):
                    os.setxattr(fd, attribute, os.getxattr(below, attribute))
            self.directory_times[path] = status.st_mtime_ns
        finally:
            os.close(below)
