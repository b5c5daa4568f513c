"""What root is here: of the machine, or only of a user namespace, as when fleetd runs as an ordinary user (user_namespaces(7)).

Read once: a process cannot leave its user namespace unnoticed, and fleetd enters one only by starting anew.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

__all__ = [
    "become_nobody",
    "has_single_id",
    "highest_group",
    "in_initial_user_namespace",
    "keeps_groups",
    "may_own",
    "overlay_attribute",
    "parse_id_map",
]

_ALL_IDS = 0xFFFF_FFFF
_NOBODY = 65534


def parse_id_map(text: str) -> tuple[tuple[int, int], ...]:
    """Pure. ``(first, count)`` of the ids that exist, from the text of /proc/PID/uid_map."""
    lines = (line.split() for line in text.splitlines())
    return tuple((int(fields[0]), int(fields[2])) for fields in lines if len(fields) == 3)


@functools.lru_cache(maxsize=1)
def _own_ids() -> tuple[tuple[int, int], ...]:
    return parse_id_map(Path("/proc/self/uid_map").read_text(encoding="ascii"))


def in_initial_user_namespace() -> bool:
    """Whether root is root of the machine: may make device nodes, map mounts, and write trusted attributes."""
    return _own_ids() == ((0, _ALL_IDS),)


def may_own(number: int) -> bool:
    """Whether a file can belong to this user or group id."""
    return any(first <= number < first + count for first, count in _own_ids())


def has_single_id() -> bool:
    """Whether 0 is the only user id here: an ordinary user without a range of subordinate ids."""
    return _own_ids() == ((0, 1),)


def highest_group() -> int:
    """The last group id of those that exist from 0 on, at most 2147483647."""
    end = 0
    for first, count in sorted(parse_id_map(Path("/proc/self/gid_map").read_text(encoding="ascii"))):
        if first == end:
            end += count
    return min(end - 1, 0x7FFF_FFFF)


def overlay_attribute(name: str) -> str:
    """Where overlayfs keeps its mark ``name``; ``user.`` in a user namespace (Linux 5.11, ``userxattr``)."""
    return f"{'trusted' if in_initial_user_namespace() else 'user'}.overlay.{name}"


@functools.lru_cache(maxsize=1)
def keeps_groups() -> bool:
    """Whether the kernel forbids setgroups(2) here, as it does where an ordinary user mapped ids without newgidmap."""
    try:
        return Path("/proc/self/setgroups").read_text(encoding="ascii").strip() == "deny" or os.geteuid() != 0
    except FileNotFoundError:
        return False


def become_nobody() -> None:
    """Give up root's rights for good, for a process that reads what strangers send. Where nobody has no id here, or groups cannot
    be left, it stays who it is, which is no root of the machine."""
    if os.getuid() == 0 and may_own(_NOBODY) and not keeps_groups():
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
