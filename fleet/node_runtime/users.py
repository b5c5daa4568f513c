"""Who a process is to be: ``user[:group]`` looked up in the image's own files, as bytes, without the host's name
service.

Pure: the caller reads the files. Looking names up through libc inside a container would load the image's libraries
into a privileged process (CVE-2019-14271); a malformed user string must never fall back to root (CVE-2026-30892), so
anything not understood is an error.
"""

from __future__ import annotations

__all__ = ["Identity", "UnknownUserError", "resolve_identity"]

_ID_MAX = (1 << 31) - 1


class UnknownUserError(Exception):
    """The text says which name is not in which file."""


class Identity:
    """Numbers for setgroups, setgid, setuid, and the home directory for HOME."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def resolve_identity(user: str, additional_groups: list[str], *, passwd: bytes, group: bytes) -> Identity:
    """Docker's rules: a name must be in passwd; a number need not be; the group defaults to the user's own, 0 if the
    user has none.

    Supplementary groups are those of /etc/group that list the user, when no group was given, and the additional ones.
    Raises `UnknownUserError`.
    """
    name, colon, group_name = user.partition(":")
    if (colon and not group_name) or (colon and not name) or group_name.count(":"):
        raise UnknownUserError(f"user {user!r} is not of the form user[:group]")
    name = name or "0"
    number = _number(name)
    entry = None
    for fields in _entries(passwd, 7):
        if fields[0] == name.encode() or (number is not None and fields[2] == str(number).encode()):
            entry = fields
            break
    if entry is None and number is None:
        raise UnknownUserError(f"user {name!r} is not in the container's /etc/passwd")
    uid, gid, home, login = number or 0, 0, "/", None
    if entry is not None:
        entry_uid, entry_gid = (
            _number(entry[2].decode("utf-8", "replace")),
            _number(entry[3].decode("utf-8", "replace")),
        )
        if entry_uid is None or entry_gid is None:
            raise UnknownUserError(f"the container's /etc/passwd has a malformed line for {name!r}")
        uid, gid, login = entry_uid, entry_gid, entry[0]
        home = entry[5].decode("utf-8", "surrogateescape") or "/"
    groups: list[int] = []
    if group_name:
        gid = _group(group_name, group)
    elif login is not None:
        for fields in _entries(group, 4):
            member_gid = _number(fields[2].decode("utf-8", "replace"))
            if login in fields[3].split(b",") and member_gid is not None:
                groups.append(member_gid)
    groups += [_group(extra, group) for extra in additional_groups]
    return Identity(uid, gid, list(dict.fromkeys(groups)), home)


def _group(name: str, group: bytes) -> int:
    number = _number(name)
    if number is not None:
        return number
    for fields in _entries(group, 4):
        if fields[0] == name.encode():
            found = _number(fields[2].decode("utf-8", "replace"))
            if found is not None:
                return found
    raise UnknownUserError(f"group {name!r} is not in the container's /etc/group")


def _entries(data: bytes, fields: int) -> list[list[bytes]]:
    split = (line.split(b":") for line in data.splitlines() if line and not line.startswith(b"#"))
    return [entry + [b""] * (fields - len(entry)) for entry in split if len(entry) >= 3]


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    value = int(text)
    if value > _ID_MAX:
        raise UnknownUserError(f"id {text} is outside 0..{_ID_MAX}")
    return value
