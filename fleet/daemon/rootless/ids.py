"""Which ids of the host an ordinary user may use in a user namespace: /etc/subuid and /etc/subgid, subuid(5). Pure but for
``read_maps``.
"""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["IdMaps", "parse_ranges", "plan_map", "read_maps"]

_FILE_BYTES_MAX: Final = 1 << 20
_IDS_WANTED: Final = 65536


@dataclass(frozen=True, slots=True)
class IdMaps:
    """Lines of uid_map and gid_map as (inside, outside, count); ``why_single`` says why there is but one id, if so."""

    users: tuple[tuple[int, int, int], ...]
    groups: tuple[tuple[int, int, int], ...]
    why_single: str = ""

    def warning(self) -> str:
        """What is limited by these; "" for nothing."""
        if self.why_single:
            return (
                f"containers have one user id, root, which is yours ({self.why_single}): files of images all belong to it, "
                "and no process in a container can become another user"
            )
        few = min(sum(count for _, _, count in lines) for lines in (self.users, self.groups))
        if few < _IDS_WANTED:
            return (
                f"containers have {few} ids, and many images need {_IDS_WANTED}: enlarge your range in /etc/subuid and "
                "/etc/subgid"
            )
        return ""


def parse_ranges(text: str, *, name: str, number: int) -> tuple[tuple[int, int], ...]:
    """Pure. ``(first, count)`` of every entry for the user, named or numbered; malformed lines are passed over."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if (
            len(fields) == 3
            and fields[0] in (name, str(number))
            and all(f.isascii() and f.isdigit() for f in fields[1:])
        ):
            first, count = int(fields[1]), int(fields[2])
            if first > 0 and count > 0:
                found.append((first, count))
    return tuple(found)


def plan_map(own: int, ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """Pure. 0 inside is the user; 1 and up are its subordinate ids in the order of the file."""
    lines, inside = [(0, own, 1)], 1
    for first, count in ranges:
        lines.append((inside, first, count))
        inside += count
    return tuple(lines)


def read_maps(root: Path = Path("/")) -> IdMaps:
    """Blocks. Of the user this process runs as."""
    uid, gid = os.getuid(), os.getgid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    users = parse_ranges(_read(root / "etc/subuid"), name=name, number=uid)
    groups = parse_ranges(_read(root / "etc/subgid"), name=name, number=uid)
    missing = [program for program in ("newuidmap", "newgidmap") if shutil.which(program) is None]
    if missing:
        return _single(uid, gid, f"{' and '.join(missing)} not found; install the package uidmap")
    for ranges, file in ((users, "subuid"), (groups, "subgid")):
        if not ranges:
            return _single(uid, gid, f"no range for {name} in /etc/{file}; give one, such as {name}:100000:65536")
    return IdMaps(plan_map(uid, users), plan_map(gid, groups))


def _single(uid: int, gid: int, why: str) -> IdMaps:
    return IdMaps(plan_map(uid, ()), plan_map(gid, ()), why)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_FILE_BYTES_MAX)
    except OSError:
        return ""
