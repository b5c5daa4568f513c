"""Overlay mounts: plain ones, and those whose layers keep their owners on disk and are seen with others, for user namespaces.

The latter need Linux 6.13 (layers by descriptor) and a file system that can be idmapped. Used by the supervisor, for a
container's root, and by the engine, to read and write a stopped container's files as it would see them.
"""

from __future__ import annotations

import errno
import os

from fleet.node_runtime import syscalls as sys_

__all__ = ["TooManyLayersError", "mount_mapped_overlay", "mount_overlay"]

_OPTIONS_MAX = 4000  # mount(2) copies one page of options


class TooManyLayersError(Exception):
    """This kernel takes no more."""


def mount_overlay(target: str, lower: list[str], *, upper: str, work: str, user_marks: bool) -> None:
    """Mount on the directory ``target``; ``lower`` topmost first, ``upper`` and ``work`` both or neither (""). ``user_marks``:
    keep whiteouts and the like in ``user.`` attributes (Linux 5.11), as root of a user namespace must. Raises `OSError`,
    `TooManyLayersError`.
    """
    options = "lowerdir=" + ":".join(lower)
    tail = f",upperdir={upper},workdir={work}" if upper else ""
    if user_marks:
        tail += ",userxattr"
    if len(options) + len(tail) < _OPTIONS_MAX:
        sys_.mount("overlay", target, "overlay", 0, options + tail)
        return
    # One page of options is not enough. Newer kernels take layers one by one (6.7 by path, 6.13 by descriptor).
    fd = sys_.fsopen("overlay")
    try:
        for key, path in [("lowerdir+", path) for path in lower] + (
            [("upperdir", upper), ("workdir", work)] if upper else []
        ):
            if len(path) < 255:
                sys_.fsconfig_string(fd, key, path)
            else:
                sys_.fsconfig_fd(fd, key, os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY))
        if user_marks:
            sys_.fsconfig_flag(fd, "userxattr")
        sys_.fsconfig_create(fd)
        mount = sys_.fsmount(fd, 0)
        sys_.move_mount(mount, os.open(target, os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount_relative(target, lower, tail)
    finally:
        os.close(fd)


def _mount_relative(target: str, lower: list[str], tail: str) -> None:
    """Before Linux 6.7: make the paths short by standing in the directory they share."""
    shared = os.path.commonpath(lower)
    options = "lowerdir=" + ":".join(os.path.relpath(path, shared) for path in lower) + tail
    if len(options) >= _OPTIONS_MAX:
        raise TooManyLayersError(
            f"{len(lower)} layers: their paths do not fit into one page of mount options on this kernel"
        )
    os.chdir(shared)
    sys_.mount("overlay", target, "overlay", 0, options)


def mount_mapped_overlay(lower: list[str], *, upper: str, work: str, users: int, first_id: int) -> int:
    """A descriptor of a detached overlay. ``lower`` (topmost first) is mapped by the user namespace ``users``, whose id 0 is
    ``first_id`` outside; ``upper`` and ``work`` (both or neither, "") hold shifted ids and belong to its root, for an overlay
    cannot write through a mapped mount. Raises `OSError`: EINVAL where the kernel or the file system cannot.
    """
    for path in (upper, work):
        if path and os.stat(path).st_uid != first_id:
            os.chown(path, first_id, first_id)
    layers: list[int] = []
    fd = sys_.fsopen("overlay")
    try:
        for path in lower:
            layers.append(sys_.open_tree(sys_.AT_FDCWD, path, sys_.OPEN_TREE_CLONE))
            sys_.idmap_mount(layers[-1], users)
            sys_.fsconfig_fd(fd, "lowerdir+", layers[-1])
        if upper:
            sys_.fsconfig_string(fd, "upperdir", upper)
            sys_.fsconfig_string(fd, "workdir", work)
        sys_.fsconfig_create(fd)
        return sys_.fsmount(fd, 0)
    finally:
        os.close(fd)
        for layer in layers:  # the overlay has its own hold on them
            os.close(layer)
