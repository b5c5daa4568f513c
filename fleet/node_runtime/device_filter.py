"""The device allow-list on cgroup v2: a BPF program of type CGROUP_DEVICE, assembled here and attached to the
container's group.

v1 has files for it (``devices.allow``); v2 has nothing but this hook (Linux 4.15). The program receives the access
(create, read, write), the kind and the numbers, walks the rules, and answers 1 for allowed. The kernel keeps it as
long as the group exists; detaching is by removing the group.
"""

from __future__ import annotations

import ctypes
import os
import struct

from fleet.node_runtime import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["assemble", "attach"]

_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KIND = {"b": 1, "c": 2, "a": 0}


def _op(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, destination | source << 4, offset, value)


def assemble(rules: Sequence[tuple[str, int, int, str]]) -> bytes:
    """eBPF for: allow when some rule matches kind and numbers and covers all of the asked access; otherwise deny."""
    out = [
        _op(0x61, 2, 1, 0),  # r2 = ctx->access_type
        _op(0xBC, 3, 2),  # w3 = w2
        _op(0x54, 2, 0, 0, 0xFFFF),  # w2 &= 0xffff: kind
        _op(0x74, 3, 0, 0, 16),  # w3 >>= 16: access
        _op(0x61, 4, 1, 4),  # r4 = ctx->major
        _op(0x61, 5, 1, 8),  # r5 = ctx->minor
    ]
    for kind, major, minor, access in rules:
        allowed = sum(_ACCESS[letter] for letter in set(access))
        checks: list[tuple[int, int, int]] = [(0x55, 2, _KIND[kind])] if kind != "a" else []  # jne
        if major >= 0:
            checks.append((0x55, 4, major))
        if minor >= 0:
            checks.append((0x55, 5, minor))
        if allowed != 7:
            checks.append((0x45, 3, 7 & ~allowed))  # jset: an access bit not allowed
        remaining = len(checks) + 2
        for code, register, value in checks:
            remaining -= 1
            out.append(_op(code, register, 0, remaining, value))
        out += [_op(0xB7, 0, 0, 0, 1), _op(0x95)]  # r0 = 1; exit
    out += [_op(0xB7, 0, 0, 0, 0), _op(0x95)]
    return b"".join(out)


def load(program: bytes) -> int:
    """Have the kernel verify the program; its descriptor. Raises OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    text = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQIIII",
        _TYPE_CGROUP_DEVICE,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(text),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    return syscalls.bpf(_PROG_LOAD, attributes)


def attach(directory: str, rules: Sequence[tuple[str, int, int, str]]) -> None:
    """Attach the rules to a cgroup v2 directory. Raises OSError (EPERM without CAP_BPF, ENOSYS or EINVAL without
    CONFIG_CGROUP_BPF).
    """
    program = load(assemble(rules))
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.bpf(_PROG_ATTACH, struct.pack("=IIII", group, program, _ATTACH_CGROUP_DEVICE, 0))
    finally:
        os.close(group)
        os.close(program)
