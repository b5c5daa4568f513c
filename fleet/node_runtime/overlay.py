"""Overlay mounts whose layers keep their owners on disk and are seen with others: for user namespaces.

Needs Linux 6.13 (layers by descriptor) and a file system that can be idmapped. Used by the supervisor, for a container's
root, and by the engine, to read and write a stopped container's files as it would see them.
"""

from __future__ import annotations

import os

from fleet.node_runtime import syscalls as sys_

__all__ = ["mount_mapped_overlay"]


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
