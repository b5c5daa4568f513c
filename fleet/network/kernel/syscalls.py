"""Namespaces and mounts by system call: thin, checked, header names.

``unshare`` and ``setns`` act on the calling *thread* (namespaces(7)); only ``thread.KernelThread`` may call them.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from fleet.errors import RuntimeFault

__all__ = ["is_namespace", "mount_bind", "setns_net", "thread_netns_path", "umount_detach", "unshare_net", "write_file"]

CLONE_NEWNET = 0x40000000  # linux/sched.h
MS_BIND = 4096  # linux/mount.h
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def thread_netns_path() -> str:
    """Path of the calling thread's network namespace (proc(5): ``/proc/self`` would be the main thread's)."""
    return "/proc/thread-self/ns/net"


def unshare_net() -> None:
    """Put the calling thread into a new, empty network namespace. Raises ``RuntimeFault``."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise _fault("unshare(CLONE_NEWNET)")


def setns_net(descriptor: int) -> None:
    """Move the calling thread into the network namespace behind ``descriptor``. Raises ``RuntimeFault``."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise _fault("setns(CLONE_NEWNET)")


def mount_bind(source: str, target: Path) -> None:
    """Bind ``source`` on the existing file ``target``. Raises ``RuntimeFault``."""
    if _libc.mount(source.encode(), os.fsencode(target), None, MS_BIND, None) != 0:
        raise _fault(f"bind {source} on {target}")


def umount_detach(target: Path) -> None:
    """Detach the topmost mount of ``target``; nothing mounted there is fine. Raises ``RuntimeFault``."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) != 0 and ctypes.get_errno() not in (22, 2):  # EINVAL, ENOENT
        raise _fault(f"unmount {target}")


def is_namespace(descriptor: int) -> bool:
    """Whether the open file is a namespace (on nsfs) rather than the empty file a namespace was once bound on."""
    return os.fstat(descriptor).st_dev == Path("/proc/self/ns/net").stat().st_dev


def write_file(path: Path, value: str) -> None:
    """Write a kernel file in one call (proc(5)); a missing one is passed over. Raises ``RuntimeFault``."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RuntimeFault(f"open {path}: {error.strerror}") from error
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise RuntimeFault(f"write {value!r} to {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _fault(what: str) -> RuntimeFault:
    number = ctypes.get_errno()
    error = RuntimeFault(f"{what}: {os.strerror(number)}")
    error.__cause__ = OSError(number, os.strerror(number))
    return error
