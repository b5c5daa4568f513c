"""The edge to the kernel: system calls Python has no function for, by ctypes, under their own names.

Three rules, each learned the hard way. `PyDLL`, not `CDLL`: the interpreter lock stays held across the call, so the
child of a raw clone3 owns it. ``use_errno`` with declared argument types: without them 64-bit values are cut. Nothing
here is looked up lazily: after a child has entered a container's root, an import would read the image's files
(CVE-2019-14271).

Every function raises `OSError` whose text names the call; ``filename`` is the path, where there is one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

_MACHINE = os.uname().machine
# name: (x86_64, aarch64); numbers from 424 on are the same everywhere
_NUMBERS: dict[str, tuple[int, int]] = {
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "unshare": (272, 97),
    "seccomp": (317, 277),
    "capset": (126, 91),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "personality": (135, 92),
    "ioprio_set": (251, 30),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "io_getevents": (208, 4),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
}
_NR = {name: pair[1] if _MACHINE == "aarch64" else pair[0] for name, pair in _NUMBERS.items()}

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_STRICTATIME = 0x20

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_NAME = 15

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 6
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_umount2 = _libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_sethostname = _libc.sethostname
_sethostname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_setdomainname = _libc.setdomainname
_setdomainname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]

_get_errno = ctypes.get_errno
_strerror = os.strerror


def _failed(call: str, path: str | None = None) -> OSError:
    number = _get_errno()
    text = f"{call}: {_strerror(number)}"
    return OSError(number, text) if path is None else OSError(number, text, path)


def _call(name: str, *arguments: int | bytes | None, path: str | None = None) -> int:
    padded = arguments + (0,) * (6 - len(arguments))
    result: int = _syscall(_NR[name], *padded)
    if result < 0:
        raise _failed(name, path)
    return result


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    if _mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        raise _failed("mount", target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    if _umount2(target.encode(), flags):
        raise _failed("umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); with both ``"."`` the old root ends up on top of the new one and is detached by umount2(".")."""
    _call("pivot_root", new_root.encode() + b"\0", put_old.encode() + b"\0")


def setns(fd: int, kind: int) -> None:
    """setns(2); ``fd`` may be a pidfd, then ``kind`` names several namespaces at once (Linux 5.8)."""
    _call("setns", fd, kind)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _call("unshare", flags)


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """prctl(2)."""
    if _prctl(option, value, third, 0, 0) < 0:
        raise _failed("prctl")


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    if _sethostname(name, len(name)):
        raise _failed("sethostname")


def setdomainname(name: bytes) -> None:
    """setdomainname(2)."""
    if _setdomainname(name, len(name)):
        raise _failed("setdomainname")


_clone_args = ctypes.create_string_buffer(88)
_clone_pidfd = ctypes.c_int()
_clone_args_address = ctypes.addressof(_clone_args)


def clone3(flags: int, *, cgroup_fd: int = 0) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child. The child has its own copy of everything, like fork, but no
    hook has run in it.

    ``cgroup_fd`` needs CLONE_INTO_CGROUP (Linux 5.7, cgroup v2). With CLONE_PARENT the signal at its end is the caller's own.
    """
    struct.pack_into(
        "=11Q", _clone_args, 0,
        flags | CLONE_PIDFD, ctypes.addressof(_clone_pidfd), 0, 0, 0 if flags & CLONE_PARENT else 17, 0, 0, 0, 0, 0, cgroup_fd,
    )  # fmt: skip
    pid = _call("clone3", _clone_args_address, 88)
    return (pid, _clone_pidfd.value) if pid else (0, -1)


def openat2(directory: int, path: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """openat2(2) (Linux 5.6), close-on-exec."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _call("openat2", directory, path.encode() + b"\0", how, 24, path=path)


def open_tree(directory: int, path: str, flags: int) -> int:
    """open_tree(2) (Linux 5.2), close-on-exec. With OPEN_TREE_CLONE: a detached copy of the mount found there."""
    return _call("open_tree", directory, path.encode() + b"\0", flags | OPEN_TREE_CLOEXEC, path=path or None)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount exactly at what ``target_fd`` (O_PATH) refers to: no path is looked up, so none can be
    swapped.
    """
    _call("move_mount", mount_fd, b"\0", target_fd, b"\0", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def fsopen(kind: str) -> int:
    """fsopen(2): a new instance of a file system under construction."""
    return _call("fsopen", kind.encode() + b"\0", 1, path=kind)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """Set one option; the kernel takes at most 255 bytes of value."""
    _call("fsconfig", fd, 1, key.encode() + b"\0", value.encode() + b"\0", 0, path=f"{key}={value}")


def fsconfig_flag(fd: int, key: str) -> None:
    """Set an option without value."""
    _call("fsconfig", fd, 0, key.encode() + b"\0", None, 0, path=key)


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    """Set an option to a file descriptor (overlayfs: Linux 6.13)."""
    _call("fsconfig", fd, 5, key.encode() + b"\0", None, value, path=key)


def fsconfig_create(fd: int) -> None:
    """Make the superblock."""
    _call("fsconfig", fd, 6, None, None, 0)


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2): a detached mount of it."""
    return _call("fsmount", fd, 1, attributes)


def mount_setattr(fd: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """mount_setattr(2) (Linux 5.12) on the mount ``fd`` refers to."""
    attributes = struct.pack("=QQQQ", set_, clear, propagation, 0)
    _call("mount_setattr", fd, b"\0", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0), attributes, 32)


def idmap_mount(fd: int, users: int, *, recursive: bool = False) -> None:
    """mount_setattr(2) with MOUNT_ATTR_IDMAP: owners on the detached mount ``fd`` are read and written as the user
    namespace ``users`` maps them. EINVAL: the file system cannot (tmpfs before Linux 6.3).
    """
    attributes = struct.pack("=QQQQ", 0x100000, 0, 0, users)
    _call("mount_setattr", fd, b"\0", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0), attributes, 32)


def close_range_cloexec(first: int) -> None:
    """Mark every descriptor from ``first`` up close-on-exec (Linux 5.11)."""
    _call("close_range", first, 0xFFFFFFFF, 4)


def close_range(first: int) -> None:
    """Close every descriptor from ``first`` up (Linux 5.9)."""
    _call("close_range", first, 0xFFFFFFFF, 0)


_name = ctypes.create_string_buffer(16)


def set_name(name: bytes) -> None:
    """The process's name in ps and /proc/PID/comm; 15 bytes count."""
    _name.value = name[:15]
    prctl(PR_SET_NAME, ctypes.addressof(_name))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread, by masks."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack(
        "=6I",
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    _call("capset", header, data)


def seccomp_set_filter(program: bytes) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER. Needs no_new_privs or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _call("seccomp", 1, 0, header)


def join_new_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING with an anonymous new one."""
    _call("keyctl", 1, None)


def personality(domain: int) -> None:
    """personality(2)."""
    _call("personality", domain)


def ioprio_set(priority: int) -> None:
    """ioprio_set(2) for the calling process; class in the bits from 13 on, level below."""
    _call("ioprio_set", 1, 0, priority)


_PIDFD_GET_INFO = 0xC0_00_FF_0B  # _IOWR(0xFF, 11, struct of the size put in below)
_PIDFD_INFO_EXIT = 1 << 3


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of a process somebody else has reaped; None while it is not, or where the kernel cannot tell
    (before 6.15).
    """
    size = 64
    buffer = bytearray(size)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, (_PIDFD_GET_INFO | size << 16) & 0xFFFFFFFF, buffer)
    except OSError:
        return None
    if not struct.unpack_from("=Q", buffer, 0)[0] & _PIDFD_INFO_EXIT:
        return None
    # mask, cgroupid, then pid tgid ppid ruid rgid euid egid suid sgid fsuid fsgid, then exit_code
    return int(struct.unpack_from("=i", buffer, 16 + 11 * 4)[0])


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2)."""
    return _call("bpf", command, attributes, len(attributes))


class AsyncSync:
    """fdatasync without waiting: Linux AIO's IOCB_CMD_FDSYNC (Linux 4.18), completions counted by an eventfd for epoll.

    A single-threaded program can so make records durable while it goes on working. ``available`` is False where the
    kernel has no AIO; the caller then uses os.fdatasync.
    """

    QUEUE_MAX = 512

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._context = ctypes.c_ulong(0)
        self._pending: dict[int, ctypes.Array[ctypes.c_char]] = {}
        try:
            _call("io_setup", self.QUEUE_MAX, ctypes.addressof(self._context))
            self.available = True
        except OSError:
            self.available = False

    def submit(self, fd: int, tag: int) -> bool:
        """Start; the tag comes back from `completed`. False: not accepted now (queue full, file system without it)."""
        if not self.available or len(self._pending) >= self.QUEUE_MAX:
            return False
        # struct iocb: data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, reserved, flags, resfd
        block = ctypes.create_string_buffer(
            struct.pack("=QIIHhIQQqQII", tag, 0, 0, 3, 0, fd, 0, 0, 0, 0, 1, self.event_fd), 64
        )
        pointer = struct.pack("@P", ctypes.addressof(block))
        try:
            if _call("io_submit", self._context.value, 1, pointer) != 1:
                return False
        except OSError:
            return False
        self._pending[tag] = block
        return True

    def completed(self) -> list[tuple[int, int]]:
        """(tag, 0 or negative errno) of what has finished."""
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return []
        events = ctypes.create_string_buffer(32 * self.QUEUE_MAX)
        count = _call("io_getevents", self._context.value, 0, self.QUEUE_MAX, ctypes.addressof(events), None)
        done = []
        for index in range(count):
            tag, _, result, _ = struct.unpack_from("=QQqq", events, 32 * index)
            self._pending.pop(tag, None)
            done.append((tag, result))
        return done
