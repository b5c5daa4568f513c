"""An image's files as a container would see them, read from its layer directories without mounting anything.

Used to fill a new volume with what the image has at its target. Layers are hostile data: every step goes through a directory
descriptor without following symbolic links; a link in the path is resolved by hand, inside the image. Overlay's own
marks are honoured: a
character device 0:0 hides a name, ``trusted.overlay.opaque=y`` hides everything in the layers below (kernel
Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fleet.containers.config import normal_target
from fleet.errors import RuntimeFault
from fleet.privilege import overlay_attribute

__all__ = ["copy_image_directory"]

_LINKS_MAX: Final = 40
"""As the kernel's MAXSYMLINKS."""
_DEPTH_MAX: Final = 1024
_CHUNK: Final = 1 << 20
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Merged:
    """One directory of the image: the same path in the layers that contribute to it, topmost first. Owns the descriptors."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def names(self) -> dict[str, tuple[int, os.stat_result]]:
        """Visible names with the layer descriptor they come from."""
        seen: dict[str, tuple[int, os.stat_result] | None] = {}
        for descriptor in self.descriptors:
            for name in os.listdir(descriptor):  # noqa: PTH208 - by descriptor
                if name not in seen:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    seen[name] = None if _is_whiteout(status) else (descriptor, status)
        return {name: found for name, found in seen.items() if found is not None}

    def find(self, name: str) -> tuple[int, os.stat_result] | None:
        """The visible entry called ``name``."""
        for descriptor in self.descriptors:
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            return None if _is_whiteout(status) else (descriptor, status)
        return None

    def enter(self, name: str) -> _Merged:
        """The directory ``name`` merged over all layers down to the first that is opaque or has something else there."""
        found: list[int] = []
        for descriptor in self.descriptors:
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except FileNotFoundError:
                continue
            except OSError as cause:
                if cause.errno in (errno.ENOTDIR, errno.ELOOP):
                    break  # a file, a link or a whiteout hides what is below
                raise
            found.append(inner)
            if _is_opaque(inner):
                break
        return _Merged(found)


@contextlib.contextmanager
def _closing(view: _Merged) -> Iterator[_Merged]:
    try:
        yield view
    finally:
        view.close()


def copy_image_directory(layer_dirs: Sequence[Path], source: str, destination: Path) -> bool:
    """Copy the image's directory ``source`` with owners, modes, times and attributes into the empty directory ``destination``.

    False, with nothing done, when the image has no directory there. Blocks. Raises ``RuntimeFault`` when a copy fails.
    """
    try:
        view = _resolve(layer_dirs, source)
        if view is None:
            return False
        with _closing(view):
            target = os.open(destination, _DIRECTORY)
            try:
                _copy_tree(view, target, 0)
                _copy_status(os.fstat(view.descriptors[0]), target)
            finally:
                os.close(target)
    except OSError as cause:
        raise RuntimeFault(f"copy {source} of the image into the volume at {destination}: {cause.strerror}") from cause
    return True


def _root(layer_dirs: Sequence[Path]) -> _Merged:
    return _Merged([os.open(directory, _DIRECTORY) for directory in layer_dirs])


def _resolve(layer_dirs: Sequence[Path], path: str) -> _Merged | None:
    """The directory at ``path``, symbolic links resolved within the image."""
    for _ in range(_LINKS_MAX):
        parts = [part for part in normal_target(path).split("/") if part]
        view = _root(layer_dirs)
        for index, part in enumerate(parts):
            found = view.find(part)
            if found is None:
                view.close()
                return None
            descriptor, status = found
            if stat.S_ISLNK(status.st_mode):
                link = os.readlink(part, dir_fd=descriptor)
                view.close()
                base = "/" if link.startswith("/") else "/" + "/".join(parts[:index])
                path = "/".join((base, link, *parts[index + 1 :]))
                break
            if not stat.S_ISDIR(status.st_mode):
                view.close()
                return None
            inner = view.enter(part)
            view.close()
            view = inner
        else:
            return view
    raise RuntimeFault(f"{path}: too many symbolic links in the image")


def _copy_tree(view: _Merged, target: int, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise RuntimeFault(f"the image has directories nested deeper than {_DEPTH_MAX}")
    for name, (descriptor, status) in view.names().items():
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner_target = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                with _closing(view.enter(name)) as inner:
                    _copy_tree(inner, inner_target, depth + 1)
                    _copy_status(status, inner_target)
                    _copy_attributes(inner.descriptors[0], inner_target)
            finally:
                os.close(inner_target)
        elif stat.S_ISREG(mode):
            _copy_file(name, descriptor, target, status)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=descriptor), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(name, 0o600, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(mode), dir_fd=target)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        # Devices and sockets are left out: neither means anything in a volume.


def _copy_file(name: str, layer: int, target: int, status: os.stat_result) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=layer)
    try:
        writer = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target
        )
        try:
            while chunk := os.read(reader, _CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(writer, view) :]
            _copy_status(status, writer)
            _copy_attributes(reader, writer)  # after chown, which clears file capabilities
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_status(status: os.stat_result, target: int) -> None:
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))  # after chown, which clears setuid
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_attributes(source: int, target: int) -> None:
    for attribute in os.listxattr(source):
        if attribute == "security.capability" or attribute.startswith("user."):
            with contextlib.suppress(OSError):  # the volume's file system may know no attributes; Docker goes on too
                os.setxattr(target, attribute, os.getxattr(source, attribute))


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(descriptor: int) -> bool:
    try:
        return os.getxattr(descriptor, overlay_attribute("opaque")) == b"y"
    except OSError:
        return False
