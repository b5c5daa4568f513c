"""AppArmor at the edge of the kernel: whether it is there, and how a process comes under a profile. Standard library only, for
the supervisor loads it.

A profile is taken at exec (``attr/exec``): what prepares a container until then stays as free as the supervisor is. The wish is
written, or at least its file opened, while /proc is still the host's, so nothing a container was given can stand in its place
(CVE-2025-52881); and before no_new_privs, under which the kernel would refuse some changes. The kernel takes a write only from
the address space that opened the file, so a descriptor is of no use to anybody else.
"""

from __future__ import annotations

import errno
import os

from fleet.node_runtime.rootfs import RefusedError

__all__ = ["AT_EXEC", "NOW", "is_enabled", "open_attribute", "write_profile"]

AT_EXEC = "exec"
"""The file, and the word to write there, for the next exec."""
NOW = "current"
"""The file for this process as it is."""
_WORDS = {AT_EXEC: "exec", NOW: "changeprofile"}


def is_enabled(root: str = "/") -> bool:
    """Whether the kernel has AppArmor and it was not switched off when it booted."""
    try:
        with open(f"{root}/sys/module/apparmor/parameters/enabled", encoding="ascii") as switch:
            return switch.read().strip() == "Y"
    except OSError:
        return False


def open_attribute(kind: str) -> int:
    """A descriptor of this process's ``AT_EXEC`` or ``NOW``. Raises `RefusedError` when there is no AppArmor."""
    for directory in ("/proc/self/attr/apparmor", "/proc/self/attr"):  # the first is there from Linux 5.8 on
        try:
            return os.open(f"{directory}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    raise RefusedError("AppArmor profiles: this kernel has no AppArmor")


def write_profile(fd: int, kind: str, profile: str) -> None:
    """Ask for the profile, through a descriptor of `open_attribute`. Raises `RefusedError` for one that is not loaded."""
    try:
        os.write(fd, f"{_WORDS[kind]} {profile}".encode())
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise RefusedError(
                f"AppArmor profile {profile!r} is not loaded on this host: apparmor_parser -r FILE loads one"
            ) from error
        raise OSError(error.errno, f"AppArmor profile {profile!r}: {error.strerror}") from error
