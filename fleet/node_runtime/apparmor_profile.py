"""fleet's own AppArmor profile: what containers get that name none. Pure.

It is the second wall behind capabilities, seccomp and mounts, for the day one of them has a hole, or is opened by an option
(``--cap-add SYS_ADMIN``, ``systempaths=unconfined``): files of the kernel that belong to the host stay closed, nothing is
mounted, nobody outside is traced, and signals come only from those who may send them. As docker-default intends it.

Rules can only say what is denied, not what is all that is allowed below a directory. So what "everything but ``cgroup``" is
in AppArmor's patterns is computed (`other_names`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["ABI", "DEFAULT_PROFILE", "other_names", "profile_text"]

DEFAULT_PROFILE: Final = "fleet-default"
ABI: Final = "abi/3.0"
"""Below /etc/apparmor.d. What the rules are about: newer ones would also want to be asked about user namespaces, message queues
and io_uring, which seccomp and capabilities decide here, and about unix sockets in other words. Where the file is missing the
parser is older, and knows no more than this."""

_OWN_PROC: Final = ("sys",)
_OWN_SYSCTLS: Final = ("fs", "kernel", "net")
_OWN_KERNEL_SYSCTLS: Final = ("domainname", "hostname", "msg*", "sem", "shm*")
"""Those of its UTS and IPC namespaces; all of ``net`` is the network namespace's."""
_OWN_FS_SYSCTLS: Final = ("mqueue",)
_CLOSED: Final = (
    "/proc/kcore",
    "/proc/kmem",
    "/proc/mem",
    "/proc/sysrq-trigger",
    "/sys/devices/virtual/powercap/**",
    "/sys/firmware/**",
    "/sys/kernel/security/**",
)
"""Neither read nor written."""


def profile_text(*, name: str = DEFAULT_PROFILE, daemon: str = "unconfined", has_abi: bool = True) -> str:
    """The profile as apparmor_parser(8) takes it. ``daemon`` is what fleetd itself runs under; ``has_abi`` whether the host has
    `ABI`.
    """
    senders = ["unconfined", *([_quoted(daemon)] if daemon != "unconfined" else [])]
    readers = [f"  ptrace (readby) peer={_quoted(daemon)}," for _ in senders[1:]]
    rules = [
        "  file,",
        "  capability,",
        "  network,",
        "  unix,",
        "  umount,",
        "",
        "  # Signals come from the host and from the container itself, and go nowhere else.",
        *(f"  signal (receive) peer={sender}," for sender in senders),
        f"  signal (send, receive) peer={name},",
        "  # Only each other are traced, and looked at as tracers look.",
        f"  ptrace (trace, read, tracedby, readby) peer={name},",
        *readers,
        "",
        "  deny mount,",
        "",
        "  # Of /proc: processes, and the settings of its own namespaces.",
        _deny("/proc", _OWN_PROC, "w", besides="0-9"),
        _deny("/proc/sys", _OWN_SYSCTLS, "w"),
        _deny("/proc/sys/kernel", _OWN_KERNEL_SYSCTLS, "w"),
        _deny("/proc/sys/fs", _OWN_FS_SYSCTLS, "w"),
        "  # Of /sys: control groups, where they are its own.",
        _deny("/sys", ("fs",), "wklx"),
        _deny("/sys/fs", ("cgroup",), "wklx"),
        "",
        *(f"  deny {path} rwklx," for path in _CLOSED),
    ]
    head = ["# Written by fleetd when it starts: what is changed here is lost then.", ""]
    return "\n".join(
        [
            *head,
            *([f"abi <{ABI}>,", ""] if has_abi else []),
            f"profile {name} flags=(attach_disconnected,mediate_deleted) {{",
            *rules,
            "}",
            "",
        ]
    )


def other_names(names: Iterable[str], *, besides: str = "") -> list[str]:
    """Patterns that match together every file name but these and what begins with a character of ``besides`` (as within
    brackets). A name is made of letters; with ``*`` at its end it stands for all that begin so.
    """
    patterns: list[str] = []
    known = sorted(set(names))

    def walk(prefix: str) -> None:
        rest = {name[len(prefix) :] for name in known if name.startswith(prefix)}
        if "*" in rest:
            return
        following = "".join(sorted({text[0] for text in rest if text}))
        excluded = f"{following}{'' if prefix else besides}"
        patterns.append(f"{prefix}[^{excluded}/]*")
        if prefix and "" not in rest:
            patterns.append(prefix)
        for letter in following:
            walk(prefix + letter)

    walk("")
    return patterns


def _deny(directory: str, names: Iterable[str], access: str, *, besides: str = "") -> str:
    """Closes everything in a directory, and below it, but for what has these names."""
    return f"  deny {directory}/{{{','.join(other_names(names, besides=besides))}}}{{,/**}} {access},"


def _quoted(label: str) -> str:
    return '"' + label.replace("\\", "\\\\").replace('"', '\\"') + '"'
