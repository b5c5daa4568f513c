"""Capability names and sets (capabilities(7)), as bit masks, because that is what every consumer wants in the end."""

from __future__ import annotations

from collections.abc import Iterable

from fleet.errors import UserError

__all__ = ["ALL_CAPABILITIES", "CAPABILITIES", "DEFAULT_CAPABILITIES", "capability_mask", "normalize_capability"]

_IN_ORDER = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"""

CAPABILITIES: tuple[str, ...] = tuple(_IN_ORDER.split())
"""Position is the number of the capability (linux/capability.h)."""

DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)
"""The fourteen a Docker container gets."""

ALL_CAPABILITIES: tuple[str, ...] = CAPABILITIES

_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}


def normalize_capability(name: str) -> str:
    """``cap_net_raw``, ``CAP_NET_RAW`` and ``NET_RAW`` are the same; raises `UserError` for a name no kernel has."""
    short = name.upper().removeprefix("CAP_")
    if short not in _NUMBERS:
        raise UserError(f"unknown capability {name!r}; see capabilities(7) for the names")
    return short


def capability_mask(names: Iterable[str]) -> int:
    """The set as a mask; ``ALL`` stands for every capability. Raises `UserError` for an unknown name."""
    mask = 0
    for name in names:
        if name.upper().removeprefix("CAP_") == "ALL":
            return (1 << len(CAPABILITIES)) - 1
        mask |= 1 << _NUMBERS[normalize_capability(name)]
    return mask
