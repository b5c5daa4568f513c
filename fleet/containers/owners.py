"""Owners of files in a writable layer: on disk the host's ids, for everybody else the container's own.

Two attributes hold ids as well: a file's capabilities (of one user namespace's root, when that namespace gave them) and its
access control lists. Both are hostile: a container wrote them. Forms: linux/capability.h, linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from fleet.containers.subids import IdRange

__all__ = ["attribute_inside", "attribute_outside", "owner_inside", "owner_outside"]

_CAPABILITY: Final = "security.capability"
_ACL: Final = "system.posix_acl_"
_OF_NAMESPACE: Final = struct.Struct("<I4II")
"""Revision 3: magic and flags, permitted and inheritable twice, the root that gave them."""
_PLAIN: Final = struct.Struct("<I4I")
_REVISION_2, _REVISION_3, _REVISION_MASK = 0x02000000, 0x03000000, 0xFF000000
_ENTRY: Final = struct.Struct("<HHI")
_ACL_VERSION: Final = 2
_NAMED: Final = frozenset({0x02, 0x08})
"""ACL_USER and ACL_GROUP; of the others the id means nothing."""


def owner_inside(ids: IdRange | None, host_id: int) -> int:
    """The container's id of a file's owner; ``ids`` None: the same."""
    return host_id if ids is None else ids.container_id(host_id)


def owner_outside(ids: IdRange | None, container_id: int) -> int:
    """The owner on disk. Raises ``RejectedFault`` for an id the container does not have."""
    return container_id if ids is None else ids.host_id(container_id)


def attribute_inside(ids: IdRange | None, name: str, value: bytes) -> bytes:
    """An extended attribute of a file on disk, as it is in an image or in any other host's container."""
    if ids is None:
        return value
    if name == _CAPABILITY and len(value) == _OF_NAMESPACE.size:
        magic, *sets, root = _OF_NAMESPACE.unpack(value)
        if magic & _REVISION_MASK == _REVISION_3 and root == ids.first_id:
            return _PLAIN.pack(magic & ~_REVISION_MASK | _REVISION_2, *sets)
    if name.startswith(_ACL):
        return _with_ids(value, ids.container_id)
    return value


def attribute_outside(ids: IdRange | None, name: str, value: bytes) -> bytes:
    """The other way round. Raises ``RejectedFault`` for an id the container does not have."""
    if ids is None:
        return value
    if name == _CAPABILITY and len(value) == _PLAIN.size:
        magic, *sets = _PLAIN.unpack(value)
        if magic & _REVISION_MASK == _REVISION_2:
            return _OF_NAMESPACE.pack(magic & ~_REVISION_MASK | _REVISION_3, *sets, ids.first_id)
    if name.startswith(_ACL):
        return _with_ids(value, ids.host_id)
    return value


def _with_ids(acl: bytes, change: Callable[[int], int]) -> bytes:
    """A list with other ids; what is none stays as it is, for the kernel to refuse."""
    if len(acl) < 4 or (len(acl) - 4) % _ENTRY.size or int.from_bytes(acl[:4], "little") != _ACL_VERSION:
        return acl
    entries = [
        _ENTRY.pack(tag, permissions, change(holder) if tag in _NAMED else holder)
        for tag, permissions, holder in _ENTRY.iter_unpack(acl[4:])
    ]
    return acl[:4] + b"".join(entries)
