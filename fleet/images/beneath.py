"""Directory-relative system calls that never follow a symbolic link and never leave the tree they start in.

The only door through which an image's names reach the file system. openat2(2) needs Linux 5.6; its number is 437 on
every architecture. Names are bytes, as in the archive.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from fleet.privilege import overlay_attribute

__all__ = [
    "open_beneath",
    "open_directory",
    "is_whiteout",
    "is_opaque",
    "make_opaque",
    "remove_tree",
    "sync_filesystem",
]

_SYS_OPENAT2 = 437
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syncfs.argtypes = (ctypes.c_int,)


def open_beneath(directory_fd: int, path: bytes, flags: int) -> int:
    """openat2 with RESOLVE_BENEATH, NO_SYMLINKS, NO_MAGICLINKS and NO_XDEV; the caller closes the descriptor.

    Raises ``OSError``: ELOOP if any component is a symbolic link (the last too, unless ``O_PATH|O_NOFOLLOW``), EXDEV
    if the path leads out.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    while True:
        fd = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory_fd),
            ctypes.c_char_p(path),
            how,
            ctypes.c_size_t(len(how)),
        )
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number not in {errno.EINTR, errno.EAGAIN}:  # EAGAIN: a rename raced with the walk, openat2(2)
            raise OSError(number, os.strerror(number), os.fsdecode(path))


def open_directory(directory_fd: int, name: bytes) -> int:
    """Open one child directory for reading; a symbolic link in its place is ENOTDIR or ELOOP."""
    return os.open(name, _OPEN_DIRECTORY, dir_fd=directory_fd)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark for "deleted below": a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory_fd: int) -> bool:
    """Whether overlayfs shows nothing of lower layers in this directory."""
    try:
        return os.getxattr(directory_fd, overlay_attribute("opaque")) == b"y"
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP}:
            return False
        raise


def make_opaque(directory_fd: int) -> None:
    """Hide everything of lower layers in this directory. Needs CAP_SYS_ADMIN where root is the machine's."""
    os.setxattr(directory_fd, overlay_attribute("opaque"), b"y")


def remove_tree(directory_fd: int, name: bytes) -> None:
    """Remove a file or a whole tree without following links; absence is fine. Depth is bounded by the heap, not the
    stack.
    """
    stack: list[tuple[int, bytes, int, list[bytes]]] = []
    pending: list[tuple[int, bytes]] = [(directory_fd, name)]
    try:
        while pending or stack:
            if pending:
                parent, child = pending.pop()
                try:
                    os.unlink(child, dir_fd=parent)
                except FileNotFoundError:
                    pass
                except (IsADirectoryError, PermissionError):
                    fd = open_directory(parent, child)
                    stack.append((parent, child, fd, [os.fsencode(entry) for entry in os.listdir(fd)]))  # noqa: PTH208 - a descriptor
            while stack and not pending:
                parent, child, own_fd, children = stack[-1]
                if children:
                    pending.append((own_fd, children.pop()))
                else:
                    stack.pop()
                    os.close(own_fd)
                    os.rmdir(child, dir_fd=parent)
    finally:
        for _, _, fd_left, _ in stack:
            os.close(fd_left)


def sync_filesystem(directory_fd: int) -> None:
    """syncfs(2): everything written to this file system so far is on the disk when this returns. Blocks."""
    if _libc.syncfs(directory_fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syncfs")
