"""The roles of the processes the supervisor forks, from clone to exec: a container's first process, and one that
joins a container.

`become_container` (a clone with new namespaces): enter the cgroups, then a cgroup namespace; network; session; mounts
(`fleet.node_runtime.rootfs`); identity; limits; capabilities; seccomp; exec. `become_exec` (a clone that is already
in the container's pid namespace): enter the cgroups; join the other namespaces by the first process's pidfd;
identity; limits; capabilities; seccomp; exec.

Both speak to the supervisor through one socket, closed by a successful exec: silence then means success. Otherwise
one message, `Report`, and exit. The terminal's master travels over the same socket. Until exec the process is not
dumpable, so a process of the container cannot reach the host's interpreter or descriptors through /proc/PID
(CVE-2019-5736, CVE-2024-21626), and it dies with the supervisor (PR_SET_PDEATHSIG), so a crash leaves no half-made
container.

After the clone only system calls and code loaded before: an import now might read the image.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import os
import resource
import signal
import stat
import struct
from _socket import AF_INET, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812 - the C class itself: the module around it costs memory in every child

from fleet.node_runtime import apparmor, rootfs
from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.users import UnknownUserError, resolve_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = [
    "DEFAULT_PATH",
    "MASTER",
    "CommandError",
    "Streams",
    "become_container",
    "become_exec",
    "container_terminal",
    "loopback_up",
    "move_streams",
    "new_namespaces",
    "open_user_namespace",
    "parse_report",
    "permitted_at_start",
    "remember_permitted",
    "report_failure",
    "send_report",
    "set_oom_score",
    "user_namespace_of",
]

MASTER = b"M"
"""Message that carries a terminal's master descriptor."""

_JOINED = sys_.CLONE_NEWNS | sys_.CLONE_NEWUTS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWNET | sys_.CLONE_NEWCGROUP
_TIOCSCTTY = 0x540E
_NS_GET_USERNS = 0xB701
_PIDFD_GET_USER_NAMESPACE = 0xFF09
_CAP_LAST = 63
_ALL_SIGNALS = signal.valid_signals()
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Streams:
    """Standard descriptors; -1 is the null device. With a terminal they are not used."""

    __slots__ = ("stderr", "stdin", "stdout")

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr


class CommandError(Exception):
    """The command cannot be executed; ``code`` is the exit status that tells a shell's user why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def parse_report(data: bytes) -> tuple[str, int, str]:
    """(kind, code, text) of a failure message: kind is ``rejected``, ``command`` (code 126..128) or ``fault`` (code
    is an errno).
    """
    kind, code, text = data.decode("utf-8", "replace").split("\n", 2)
    return kind, int(code), text


def report_failure(report: Socket, error: BaseException, at: str) -> None:
    """Whose fault it was, and at which step."""
    if isinstance(error, (rootfs.RefusedError, UnknownUserError)):
        send_report(report, "rejected", 0, str(error))
    elif isinstance(error, OSError):
        where = "" if not error.filename else f" ({error.filename})"
        send_report(report, "fault", error.errno or 0, f"{at}: {error.strerror}{where}")
    else:
        send_report(report, "fault", 0, f"{at}: {type(error).__name__}: {error}")


def send_report(report: Socket, kind: str, code: int, text: str) -> None:
    """One message as `parse_report` reads it; ends the process when nobody is there to read it."""
    try:
        report.send(f"{kind}\n{code}\n{text}"[:4000].encode("utf-8", "replace"))
    except OSError:
        os._exit(70)  # nobody is left to tell


def become_container(
    plan: dict[str, Any],
    *,
    report: Socket,
    entrances: list[int],
    netns: int,
    users: int,
    joins: dict[str, int],
    streams: Streams,
    staging: str,
) -> NoReturn:
    """Turn this freshly cloned process into the container's first; never returns. ``joins``: pidfds of the containers
    whose ``network`` and ``ipc`` namespaces it shares; ``netns`` and ``users``: descriptors of namespaces it enters, or -1.
    """
    files = rootfs.FileSystem(plan, staging)
    try:
        _contain(plan, files, report, entrances=entrances, netns=netns, users=users, joins=joins, streams=streams)
    except CommandError as error:
        send_report(report, "command", error.code, str(error))
    except BaseException as error:  # noqa: BLE001 - the last word of a process without a parent frame
        report_failure(report, error, files.at)
    os._exit(70)


def _contain(
    plan: dict[str, Any],
    files: rootfs.FileSystem,
    report: Socket,
    *,
    entrances: list[int],
    netns: int,
    users: int,
    joins: dict[str, int],
    streams: Streams,
) -> None:
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
    process = plan["process"]
    files.at = "enter cgroups"
    for fd in entrances:
        os.write(fd, b"0")
    _leave_keyring()
    files.at = "choose the AppArmor profile"
    own_profile = _confine(process, stays=plan["init"])
    files.at = "set up the network namespace"
    if netns >= 0:
        sys_.setns(netns, sys_.CLONE_NEWNET)
    elif "network" in joins:
        sys_.setns(joins["network"], sys_.CLONE_NEWNET)
    if plan["network"] == "none":
        loopback_up()
    os.setsid()
    os.umask(0)
    if users >= 0:
        _enter_users(plan, files, users)
    else:
        files.take_sources()
    if plan["cgroup_namespace"] == "private":
        sys_.unshare(sys_.CLONE_NEWCGROUP)
    if "ipc" in joins:
        files.at = "join the other container's IPC namespace"
        sys_.setns(joins["ipc"], sys_.CLONE_NEWIPC)
        files.take_shared_memory(joins["ipc"])
    files.enter_root()
    if users >= 0:
        become_root()
    files.mount_proc()
    files.mount_dev()
    files.mount_sys()
    if process["tty"]:
        master, terminal = files.open_terminal()
        files.bind_console(terminal)
        report.sendmsg([MASTER], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", master))])
        streams = Streams(terminal, terminal, terminal)
    files.mount_all()
    files.write_sysctls()
    files.at = "set the host name"
    if plan["uts"] == "private":
        sys_.sethostname(plan["hostname"].encode())
    if plan["domainname"]:
        sys_.setdomainname(plan["domainname"].encode())
    files.at = "prepare the process"
    working_directory = rootfs.ensure_target(files.root, process["cwd"], directory=True)
    if streams.stdin < 0:
        streams.stdin = files.open_null()
    for name in ("stdout", "stderr"):
        if getattr(streams, name) < 0:
            setattr(streams, name, files.open_null())
    resolve = sys_.RESOLVE_BENEATH | sys_.RESOLVE_NO_XDEV | sys_.RESOLVE_NO_SYMLINKS
    if users < 0:
        score = sys_.openat2(files.proc, f"{os.getpid()}/oom_score_adj", os.O_WRONLY, resolve=resolve)
        set_oom_score(score, process["oom_score_adj"])
    files.restrict_paths()
    files.at = "prepare the process"
    _finish(process, files.root, working_directory, report, streams, own_init=plan["init"], own_profile=own_profile)


def new_namespaces(plan: dict[str, Any]) -> int:
    """Those the container has for itself, as flags; but for its user namespace, which is there before it."""
    flags = sys_.CLONE_NEWNS
    if plan["network"] == "none":
        flags |= sys_.CLONE_NEWNET
    if plan["pid"] == "private":
        flags |= sys_.CLONE_NEWPID
    if plan["ipc"] in ("private", "none"):
        flags |= sys_.CLONE_NEWIPC
    if plan["uts"] == "private":
        flags |= sys_.CLONE_NEWUTS
    return flags


def _enter_users(plan: dict[str, Any], files: rootfs.FileSystem, users: int) -> None:
    """Do what only the host's root may, then give that up for the user namespace and make the other namespaces in it. The pid
    namespace is the host's: this process had to be born into it, and a procfs of it can be mounted only from outside, for
    inside the kernel allows one only where the host's own can be seen whole.
    """
    files.at = "adjust the OOM score"
    set_oom_score(os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC), plan["process"]["oom_score_adj"])
    for name, value in plan["sysctls"]:
        if name.startswith("net."):
            files.at = f"sysctl {name}={value}"
            _put("/proc/sys/" + name.replace(".", "/"), value)
    files.prepare_for(users, plan["user_namespace"][0])
    files.at = "enter the user namespace"
    sys_.setns(users, sys_.CLONE_NEWUSER)
    sys_.unshare(new_namespaces(plan) & ~(sys_.CLONE_NEWPID | sys_.CLONE_NEWNET))


def open_user_namespace(first_id: int, count: int, *, network: bool = False) -> int:
    """A descriptor of a new user namespace whose ids 0..count-1 are the host's from ``first_id`` on, or of a new network
    namespace that belongs to such a one. Nobody is in it: it is for mounts, or for containers to come. Raises `OSError`.
    """
    try:
        pid, pidfd = sys_.clone3(sys_.CLONE_NEWUSER | (sys_.CLONE_NEWNET if network else 0))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            text = "too many namespaces: raise the sysctls user.max_user_namespaces and user.max_net_namespaces"
            raise OSError(error.errno, text) from error
        raise
    if not pid:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()
    try:
        _map_ids(pid, first_id, count)
        return os.open(f"/proc/{pid}/ns/{'net' if network else 'user'}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)


def user_namespace_of(fd: int, *, is_process: bool) -> int:
    """A descriptor of the user namespace that a namespace belongs to (ioctl_nsfs(2)) or that a pidfd's process is in (Linux
    6.11); -1 when it is our own.
    """
    users = fcntl.ioctl(fd, _PIDFD_GET_USER_NAMESPACE if is_process else _NS_GET_USERNS)
    if os.fstat(users).st_ino != os.stat("/proc/self/ns/user").st_ino:
        return users
    os.close(users)
    return -1


def _map_ids(pid: int, first_id: int, count: int) -> None:
    for name in ("uid_map", "gid_map"):
        _put(f"/proc/{pid}/{name}", f"0 {first_id} {count}")


def _put(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def become_root() -> None:
    """Root of the user namespace this process is in; the id it came with has no name there."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of identity has cleared it


def become_exec(
    process: dict[str, Any],
    *,
    report: Socket,
    entrances: list[int],
    target: int,
    streams: Streams,
    first_id: int = 0,
) -> NoReturn:
    """Turn this process, cloned into the container's pid namespace, into a member of the container; ``target`` is the
    first process's pidfd.
    """
    step = "enter cgroups"
    try:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        for fd in entrances:
            os.write(fd, b"0")
        _leave_keyring()
        set_oom_score(os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC), process["oom_score_adj"])
        step = "choose the AppArmor profile"
        _confine(process, stays=False)
        step = "join the container's namespaces"
        if first_id:
            for fd in (streams.stdin, streams.stdout, streams.stderr):
                if fd >= 0 and stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.fchown(fd, first_id, first_id)
            sys_.setns(target, _JOINED | sys_.CLONE_NEWUSER)
            become_root()
        else:
            sys_.setns(target, _JOINED)
        os.setsid()
        step = "prepare the process"
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            working_directory = rootfs.open_inside(root, process["cwd"])
        except OSError as error:
            raise CommandError(126, f"exec: working directory {process['cwd']}: {error.strerror}") from error
        if process["tty"]:
            master, terminal = container_terminal(root)
            report.sendmsg([MASTER], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", master))])
            streams = Streams(terminal, terminal, terminal)
        for name in ("stdin", "stdout", "stderr"):
            if getattr(streams, name) < 0:
                setattr(streams, name, _container_null(root))
        _finish(process, root, working_directory, report, streams, own_init=False)
    except CommandError as error:
        send_report(report, "command", error.code, str(error))
    except BaseException as error:  # noqa: BLE001 - the last word of a process without a parent frame
        report_failure(report, error, step)
    os._exit(70)


def _container_null(root: int) -> int:
    """The container's null device, if it still is one; the container may have replaced the file."""
    fd = rootfs.open_inside(root, "/dev/null", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    if os.fstat(fd).st_rdev != os.makedev(1, 3):
        raise rootfs.RefusedError("the container's /dev/null is not the null device")
    os.set_blocking(fd, True)
    return fd


def container_terminal(root: int) -> tuple[int, int]:
    """(master, terminal) from the devpts of a container whose root ``root`` is."""
    master = rootfs.open_inside(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    if os.major(os.fstat(master).st_rdev) != 5:
        raise rootfs.RefusedError("the container's /dev/pts/ptmx is not a terminal multiplexer")
    os.set_blocking(master, True)
    fcntl.ioctl(master, 0x40045431, b"\0\0\0\0")  # TIOCSPTLCK
    return master, fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)  # TIOCGPTPEER


def loopback_up() -> None:
    """Switch on ``lo`` of the network namespace this process is in."""
    probe = Socket(AF_INET, SOCK_DGRAM, 0)
    fcntl.ioctl(probe.fileno(), 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
    probe.close()


def _leave_keyring() -> None:
    """Have a session keyring of its own. As the host's root still, who may have many: all containers share the users they become,
    and an ordinary user has at most 200 (keyrings(7)).
    """
    try:
        sys_.join_new_session_keyring()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EDQUOT):
            raise


def _confine(process: dict[str, Any], *, stays: bool) -> int:
    """Have the next exec, of this process or of a child, happen under the AppArmor profile that was asked for. Called while /proc
    is the host's. ``stays``: this process will never execute anything; then a descriptor to come under the profile by, else -1.
    """
    if not process["apparmor"]:
        return -1
    fd = apparmor.open_attribute(apparmor.AT_EXEC)
    apparmor.write_profile(fd, apparmor.AT_EXEC, process["apparmor"])
    os.close(fd)
    return apparmor.open_attribute(apparmor.NOW) if stays else -1


def set_oom_score(fd: int, value: int) -> None:
    """Write and close. Zero is written too: inherited would be the daemon's own, which service managers lower so that
    memory is taken from containers first. Lowering needs CAP_SYS_RESOURCE, which the host may not have given us: then
    the score stays.
    """
    try:
        os.write(fd, str(value).encode())
    except PermissionError:
        if value > 0:
            raise
    finally:
        os.close(fd)


def _finish(
    process: dict[str, Any],
    root: int,
    working_directory: int,
    report: Socket,
    streams: Streams,
    *,
    own_init: bool,
    own_profile: int = -1,
) -> None:
    """Everything between a ready file system and exec, in the order that lets each step still do what it needs."""
    identity = resolve_identity(
        process["user"],
        process["groups"],
        passwd=rootfs.read_inside(root, "/etc/passwd"),
        group=rootfs.read_inside(root, "/etc/group"),
    )
    os.fchdir(working_directory)
    if not os.getcwd().startswith("/"):
        raise rootfs.RefusedError("the working directory is outside the container")
    move_streams(streams)
    if identity.uid:
        for fd in (0, 1, 2):
            # As runc does: else a program of this user could not reopen /dev/stdout. Not the null device, which all share.
            if not os.fstat(fd).st_rdev or process["tty"]:
                with contextlib.suppress(PermissionError):  # in a user namespace, a file that is not of its ids
                    os.fchown(fd, identity.uid, -1)
    if process["no_new_privileges"]:
        sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
    program = binascii.a2b_base64(process["seccomp"]) if process["seccomp"] else b""
    if program and not process["no_new_privileges"]:
        sys_.seccomp_set_filter(
            program
        )  # needs CAP_SYS_ADMIN, so before capabilities go; the profile allows what follows
    if process["keeps_groups"] and identity.groups:
        raise rootfs.RefusedError(
            "a user with supplementary groups needs ids of its own on the host: install newgidmap (package uidmap) and have a "
            "range in /etc/subgid"
        )
    groups = None if process["keeps_groups"] else identity.groups
    _set_identity_and_capabilities(identity.uid, identity.gid, groups, process["capabilities"])
    os.umask(0o022)
    # Late: the supervisor's descriptors are still open here, and may be more than the container is to have.
    for number, soft, hard in process["rlimits"]:
        _set_rlimit(number, soft, hard)
    if program and process["no_new_privileges"]:
        sys_.seccomp_set_filter(program)
    environment = _environment(process["env"], identity.home)
    if own_init:
        _split_off_init(report, own_profile, process["apparmor"])
        if process["tty"]:
            os.setsid()
    if process["tty"]:
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys_.close_range_cloexec(3)
    sys_.prctl(sys_.PR_SET_PDEATHSIG, 0)
    _execute(process["args"], environment)


def _set_rlimit(number: int, soft: int, hard: int) -> None:
    """Never above the own hard limit: raising it needs CAP_SYS_RESOURCE, and a container should start without."""
    own_hard = resource.getrlimit(number)[1]
    ceiling = own_hard if own_hard >= 0 else 1 << 64
    wanted_hard = min(hard if hard >= 0 else 1 << 64, ceiling)
    wanted_soft = min(soft if soft >= 0 else 1 << 64, wanted_hard)
    infinity = resource.RLIM_INFINITY
    resource.setrlimit(
        number,
        (infinity if wanted_soft >= 1 << 63 else wanted_soft, infinity if wanted_hard >= 1 << 63 else wanted_hard),
    )


def move_streams(streams: Streams) -> None:
    """To 0, 1 and 2. They are moved above 2 first, so that none is overwritten before it was copied."""
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (streams.stdin, streams.stdout, streams.stderr)]
    for position, fd in enumerate(lifted):
        os.dup2(fd, position, inheritable=True)
        os.close(fd)


def _set_identity_and_capabilities(uid: int, gid: int, groups: list[int] | None, mask: int) -> None:
    """``groups`` None: the kernel lets nobody change them here."""
    for number in range(_CAP_LAST + 1):
        if not mask >> number & 1:
            try:
                sys_.prctl(sys_.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:  # past the last capability this kernel has
                    break
                raise
    if groups is not None:
        os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    if uid:
        os.setresuid(uid, uid, uid)  # the kernel clears effective and permitted, as execve would
    else:
        held = mask & permitted_at_start()
        sys_.capset(held, held, 0)
    try:
        sys_.prctl(sys_.PR_CAP_AMBIENT, sys_.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


_permitted_at_start = 0


def remember_permitted() -> None:
    """Called once by the supervisor: what it may itself hand on (a host may lack some capability)."""
    global _permitted_at_start
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapPrm:"):
                _permitted_at_start = int(line.split()[1], 16)


def permitted_at_start() -> int:
    """Capabilities that this host lets the supervisor hand on, as a mask."""
    return _permitted_at_start


def _environment(pairs: list[str], home: str) -> dict[bytes, bytes]:
    environment: dict[bytes, bytes] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        environment[key.encode("utf-8", "surrogateescape")] = value.encode("utf-8", "surrogateescape")
    environment.setdefault(b"HOME", home.encode("utf-8", "surrogateescape"))
    environment.setdefault(b"PATH", DEFAULT_PATH.encode())
    return environment


def _execute(arguments: list[str], environment: dict[bytes, bytes]) -> None:
    """execve, searching the container's PATH for a bare name. Raises `CommandError`; status 127 not found, 126 not
    allowed, else 128.
    """
    name = arguments[0]
    vector = [argument.encode("utf-8", "surrogateescape") for argument in arguments]
    if "/" in name:
        candidates = [vector[0]]
    else:
        candidates = [directory + b"/" + vector[0] for directory in environment[b"PATH"].split(b":") if directory]
    denied: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, vector, environment)  # noqa: S606 - this is what the process is for
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error
        except OSError as error:
            raise CommandError(128, f"exec {name}: {os.strerror(error.errno or 0).lower()}") from error
    if denied is not None:
        raise CommandError(126, f"exec {name}: permission denied")
    if "/" in name:
        raise CommandError(127, f"exec {name}: no such file or directory")
    raise CommandError(127, f'exec: "{name}": executable file not found in $PATH')


def _split_off_init(report: Socket, own_profile: int, profile: str) -> None:
    """Return in a child; the parent stays as the container's pid 1, reaps orphans, forwards signals, and exits as the
    child does. It executes nothing, and comes under the AppArmor profile through ``own_profile``.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, _ALL_SIGNALS)
    child = os.fork()
    if not child:
        return
    if own_profile >= 0:
        try:
            apparmor.write_profile(own_profile, apparmor.NOW, profile)
        except (OSError, rootfs.RefusedError):
            os._exit(70)  # and the child with it: this is its pid 1
    report.close()
    sys_.close_range(0)
    sys_.set_name(b"fleet-init")
    while True:
        received = signal.sigwait(_ALL_SIGNALS)
        if received != signal.SIGCHLD:
            try:
                os.kill(child, received)
            except ProcessLookupError:
                continue
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(70)
            if not pid:
                break
            if pid == child:
                os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
