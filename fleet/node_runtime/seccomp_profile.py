"""The default system call policy: what Docker's default profile (moby/profiles, 2026) lets a container with given
capabilities do.

A policy is data: names allowed outright, names allowed under conditions on arguments, names answered with another
error than EPERM. `fleet.node_runtime.seccomp` assembles it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fleet.errors import UserError
from fleet.node_runtime.syscall_tables import SYSCALLS

__all__ = ["ACTIONS", "ALLOW", "MaskedEqual", "Policy", "Ranges", "default_policy", "errno_action", "parse_profile"]

ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM = 1
_ENOSYS = 38
_U64 = (1 << 64) - 1
PROFILE_BYTES_MAX = 1 << 20


def errno_action(number: int) -> int:
    """The filter's verdict "fail with this errno" (SECCOMP_RET_ERRNO)."""
    return _ERRNO | (number & 0xFFFF)


@dataclass(frozen=True, slots=True)
class Ranges:
    """True when argument ``index`` lies in one of the inclusive, ascending, disjoint 64-bit ranges."""

    index: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class MaskedEqual:
    """True when ``argument & mask == value``."""

    index: int
    mask: int
    value: int


Condition = Ranges | MaskedEqual


@dataclass(slots=True)
class Policy:
    """Verdict by system call number; ``rules[nr]`` is tried in order, each a conjunction of conditions with its
    verdict.
    """

    machine: str
    default: int = _ERRNO | _EPERM
    unknown: int = _ERRNO | _ENOSYS
    """For numbers above every one known, and for foreign architectures' entry points."""
    plain: dict[int, int] = field(default_factory=dict)
    rules: dict[int, list[tuple[tuple[Condition, ...], int]]] = field(default_factory=dict)

    def add(self, name: str, action: int, conditions: tuple[Condition, ...] = ()) -> None:
        """Names this machine does not have are skipped, as in every other user of such profiles."""
        number = SYSCALLS[self.machine].get(name)
        if number is None:
            return
        if conditions:
            self.rules.setdefault(number, []).append((conditions, action))
        elif action == ALLOW or number not in self.plain:
            self.plain[number] = action


_ALWAYS = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime clock_getres
clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve
execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate
futex futex_requeue futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid geteuid
getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid
getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid
getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy
io_getevents io_pgetevents ioprio_get ioprio_set io_setup io_submit kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr
lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod
mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink
mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl
pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr
sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority
setregid setresgid setresuid setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address
setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat
statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill
truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev
"""

_BY_MACHINE = {"x86_64": "arch_prctl modify_ldt", "aarch64": "sync_file_range2"}

_BY_CAPABILITY = {
    "DAC_READ_SEARCH": "open_by_handle_at",
    "SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules"
    " lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname"
    " setns syslog umount2 unshare",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module init_module finit_module",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_RAWIO": "iopl ioperm",
    "SYS_TIME": "settimeofday clock_settime",
    "SYS_TTY_CONFIG": "vhangup",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYSLOG": "syslog",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
}

_SOCKET_FAMILIES = Ranges(0, ((0, 11), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 45)))
"""Left out: families nobody maintains or needs (DECnet, Econet, IrDA, CAIF and their like), AF_ALG (38), which exposes the
kernel's crypto, and AF_VSOCK (40), which reaches the hypervisor."""

_PERSONALITIES = Ranges(0, ((0, 0), (8, 8), (0x20000, 0x20000), (0x20008, 0x20008), (0xFFFFFFFF, 0xFFFFFFFF)))
_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET."""


def default_policy(capabilities: Iterable[str], *, machine: str) -> Policy:
    """Docker's default for a container holding ``capabilities`` (short names). Raises `UserError` for an unknown
    machine.
    """
    if machine not in SYSCALLS:
        raise UserError(f"no system call table for {machine}; run with seccomp unconfined or add the table")
    held = set(capabilities)
    policy = Policy(machine)
    for name in (_ALWAYS + " " + _BY_MACHINE[machine]).split():
        policy.add(name, ALLOW)
    for capability, names in _BY_CAPABILITY.items():
        if capability in held:
            for name in names.split():
                policy.add(name, ALLOW)
    policy.add("socket", ALLOW, (_SOCKET_FAMILIES,))
    policy.add("personality", ALLOW, (_PERSONALITIES,))
    if "SYS_ADMIN" not in held:
        policy.add("clone", ALLOW, (MaskedEqual(0, _NAMESPACE_FLAGS, 0),))
        # The flags of clone3 lie in memory, where a filter cannot look; ENOSYS makes the C library use clone.
        policy.add("clone3", errno_action(_ENOSYS))
    return policy


ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_LOG": 0x7FFC0000,
}
_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def parse_profile(text: str, capabilities: Iterable[str], *, machine: str) -> Policy:
    """A profile in Docker's JSON form, resolved for these capabilities. Raises `UserError` saying what is wrong with
    it.
    """
    if len(text) > PROFILE_BYTES_MAX:
        raise UserError(f"seccomp profile: larger than {PROFILE_BYTES_MAX} bytes")
    if machine not in SYSCALLS:
        raise UserError(f"no system call table for {machine}; run with seccomp unconfined or add the table")
    try:
        profile = json.loads(text)
        held = set(capabilities)
        policy = Policy(machine, default=_action(profile, "defaultAction", "defaultErrnoRet"))
        if policy.default == ALLOW:
            policy.unknown = ALLOW
        for entry in profile.get("syscalls") or []:
            if _applies(entry, held, machine):
                conditions = tuple(_condition(argument) for argument in entry.get("args") or [])
                for name in entry.get("names") or [entry["name"]]:
                    policy.add(name, _action(entry, "action", "errnoRet"), conditions)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"seccomp profile: {type(error).__name__} {error}") from error
    return policy


def _action(entry: dict[str, Any], key: str, errno_key: str) -> int:
    name = entry[key]
    if name == "SCMP_ACT_ERRNO":
        number = entry.get(errno_key)
        return errno_action(_EPERM if number is None else int(number))
    if name not in ACTIONS:
        raise UserError(f"seccomp profile: action {name} is not supported")
    return ACTIONS[name]


def _applies(entry: dict[str, Any], held: set[str], machine: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    arch = _GO_ARCH[machine]
    wanted = {name.removeprefix("CAP_") for name in includes.get("caps") or []}
    unwanted = {name.removeprefix("CAP_") for name in excludes.get("caps") or []}
    return (
        (not includes.get("arches") or arch in includes["arches"])
        and arch not in (excludes.get("arches") or [])
        and wanted <= held
        and not unwanted & held
    )


def _condition(argument: dict[str, Any]) -> Condition:
    index, value = int(argument["index"]), int(argument["value"]) & _U64
    if not 0 <= index <= 5:
        raise UserError(f"seccomp profile: argument index {index} is not within 0..5")
    match argument["op"]:
        case "SCMP_CMP_EQ":
            return Ranges(index, ((value, value),))
        case "SCMP_CMP_NE":
            return Ranges(index, _ranges((0, value - 1), (value + 1, _U64)))
        case "SCMP_CMP_LT":
            return Ranges(index, _ranges((0, value - 1)))
        case "SCMP_CMP_LE":
            return Ranges(index, ((0, value),))
        case "SCMP_CMP_GE":
            return Ranges(index, ((value, _U64),))
        case "SCMP_CMP_GT":
            return Ranges(index, _ranges((value + 1, _U64)))
        case "SCMP_CMP_MASKED_EQ":
            return MaskedEqual(index, value, int(argument.get("valueTwo", 0)) & _U64)
        case other:
            raise UserError(f"seccomp profile: operator {other} is not known")


def _ranges(*pairs: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(pair for pair in pairs if pair[0] <= pair[1])
