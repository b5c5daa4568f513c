"""What the cloned process becomes: the container's first process, which waits for ``start``, or one that joins it.

Both speak to the command through one socket: `READY` when all namespaces are there (the command then runs its hooks and
answers), `MADE` when nothing can fail any more but the program itself, or one failure report and the end. Until `MADE`
the process dies with the command; it is never dumpable before exec, so nothing in the container reaches the host's
interpreter through /proc.

After the clone only system calls and code loaded before.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import struct
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812 - the C class itself, as in `fleet.node_runtime.process`
from _socket import socketpair as _socketpair

from fleet.node_runtime import apparmor, rootfs
from fleet.node_runtime import process as process_
from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.oci.hooks import run_hooks
from fleet.node_runtime.process import CommandError, Streams
from fleet.node_runtime.users import UnknownUserError, resolve_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from fleet.node_runtime.oci.bundle import Bundle, OciProcess
    from fleet.node_runtime.oci.mounts import BundleFileSystem

__all__ = ["MADE", "MAPPED", "READY", "Entry", "become_first", "become_joined"]

MAPPED, READY, MADE = b"M", b"R", b"D"
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT_RAISE = 8, 2
_CAP_LAST = 63
_TIOCSCTTY, _TIOCSWINSZ = 0x540E, 0x5414
_ANSWER_MAX = 1 << 20


class Entry:
    """How the process gets in: what the command opened for it before the clone."""

    def __init__(self, entrances: list[int], program: bytes) -> None:
        self.answers, self.report = _socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
        """The command's end and the process's."""
        self.entrances = entrances
        """Of control groups, as `CgroupTree.open_entrances` gives them."""
        self.program = program
        """Seccomp filter; empty is none."""
        self.joins: list[tuple[int, int]] = []
        """(descriptor, kind) of namespaces to join."""
        self.pids = -1
        """Pid namespace to be born in; -1 is the command's own or a new one."""
        self.mounts = -1
        """Mount namespace to be in; the container's own mounts are not part of it."""
        self.root = -1
        """Of a joined container whose mounts are in no namespace."""
        self.console = -1
        """Connected socket that a terminal's master is sent to."""
        self.kept = 0
        """Descriptors from 3 on that the program gets."""
        self.keyring = True
        self.profile = -1
        """Where the AppArmor profile of the program is written; see `fleet.node_runtime.apparmor`."""

    def open_profile(self, process: OciProcess) -> None:
        """Called in the new process while /proc is the host's. The profile is written after the hooks: it is not for them."""
        if process.apparmor:
            self.profile = apparmor.open_attribute(apparmor.AT_EXEC)


def become_first(bundle: Bundle, files: BundleFileSystem, entry: Entry, *, started: int) -> NoReturn:
    """The container's first process. ``started`` is the fifo (open for reading and writing) that brings the start."""
    try:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        files.at = "enter cgroups"
        for fd in entry.entrances:
            os.write(fd, b"0")
        entry.open_profile(bundle.process)
        if bundle.id_maps is None:
            files.at = "join namespaces"
            for fd, kind in entry.joins:
                sys_.setns(fd, kind)
        else:
            if entry.report.recv(8) != MAPPED:
                os._exit(70)
            process_.become_root()
        if bundle.new_namespaces() & sys_.CLONE_NEWCGROUP:
            sys_.unshare(sys_.CLONE_NEWCGROUP)
        if bundle.new_namespaces() & sys_.CLONE_NEWNET:
            process_.loopback_up()
        os.setsid()
        os.umask(0)
        files.take_sources()
        files.take_cgroups()
        if bundle.owns_mounts:
            files.make_slave()
        if bundle.process.oom_score_adj is not None and bundle.id_maps is None:
            process_.set_oom_score(
                os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC), bundle.process.oom_score_adj
            )
        files.at = "wait for the hooks"
        entry.report.send(READY)
        state = entry.report.recv(_ANSWER_MAX)
        if not state:
            os._exit(70)
        run_hooks(bundle.hooks["createContainer"], state, name="createContainer")
        if bundle.owns_mounts:
            files.enter_root()
        else:
            files.enter_root_alone()
        files.mount_bundle()
        files.write_sysctls()
        if bundle.hostname:
            sys_.sethostname(bundle.hostname.encode())
        if bundle.domainname:
            sys_.setdomainname(bundle.domainname.encode())
        streams = Streams(0, 1, 2)
        if bundle.process.terminal:
            master, terminal = files.open_terminal()
            files.bind_console(terminal)
            streams = Streams(terminal, terminal, terminal)
            _send_master(entry, bundle.process, master)
        files.write_protect()
        files.restrict_paths()
        if entry.mounts >= 0:
            files.join(entry.mounts)
        files.at = "prepare the process"

        def wait() -> None:
            sys_.prctl(sys_.PR_SET_PDEATHSIG, 0)
            entry.report.send(MADE)
            entry.report.close()
            os.read(started, 1)  # it stays open until exec, which `start` waits for before poststart hooks
            run_hooks(bundle.hooks["startContainer"], state.replace(b'"creating"', b'"created"'), name="startContainer")

        _finish(bundle.process, entry, files.root, streams, wait, personality=bundle.personality)
    except CommandError as error:
        _tell(entry, error.code, str(error))
    except BaseException as error:  # noqa: BLE001 - the last word of a process without a parent frame
        _tell_failure(entry, error, files.at)
    os._exit(70)


def become_joined(process: OciProcess, entry: Entry) -> NoReturn:
    """A further process of a container; it was cloned into the container's pid namespace."""
    step = "enter cgroups"
    try:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        for fd in entry.entrances:
            os.write(fd, b"0")
        entry.open_profile(process)
        if process.oom_score_adj is not None:
            process_.set_oom_score(
                os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC), process.oom_score_adj
            )
        step = "join the container's namespaces"
        for fd, kind in entry.joins:
            sys_.setns(fd, kind)
        if any(kind == sys_.CLONE_NEWUSER for _, kind in entry.joins):
            process_.become_root()
        if entry.root >= 0:
            os.fchdir(entry.root)
            os.chroot(".")
        os.setsid()
        step = "prepare the process"
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        streams = Streams(0, 1, 2)
        if process.terminal:
            master, terminal = process_.container_terminal(root)
            streams = Streams(terminal, terminal, terminal)
            _send_master(entry, process, master)

        def wait() -> None:
            sys_.prctl(sys_.PR_SET_PDEATHSIG, 0)

        _finish(process, entry, root, streams, wait, personality=None)
    except CommandError as error:
        _tell(entry, error.code, str(error))
    except BaseException as error:  # noqa: BLE001 - as above
        _tell_failure(entry, error, step)
    os._exit(70)


def _tell(entry: Entry, code: int, text: str) -> None:
    """To the command, or, when it has gone, to where the program's own errors would go."""
    if entry.report.fileno() >= 0:
        process_.send_report(entry.report, "command", code, text)
    else:
        os.write(2, f"{text}\n".encode("utf-8", "replace"))
    os._exit(code)


def _tell_failure(entry: Entry, error: BaseException, at: str) -> None:
    if entry.report.fileno() >= 0:
        process_.report_failure(entry.report, error, at)
    else:
        os.write(2, f"{error}\n".encode("utf-8", "replace"))


def _send_master(entry: Entry, process: OciProcess, master: int) -> None:
    rows, columns = process.console_size
    if rows and columns:
        fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    console = Socket(fileno=entry.console)
    console.sendmsg([b"/dev/ptmx"], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", master))])
    console.close()
    os.close(master)


def _finish(
    process: OciProcess, entry: Entry, root: int, streams: Streams, wait: Callable[[], None], *, personality: int | None
) -> None:
    """From a ready file system to exec; ``wait`` is called when only exec is left."""
    try:
        directory = rootfs.ensure_target(root, process.cwd, directory=True)
        os.fchdir(directory)
    except OSError as error:
        raise CommandError(126, f"exec: working directory {process.cwd}: {error.strerror}") from error
    if not os.getcwd().startswith("/"):
        raise rootfs.RefusedError("the working directory is outside the container")
    environment = _environment(process, root)
    process_.move_streams(streams)
    if process.uid:
        for fd in (0, 1, 2):
            found = os.fstat(fd)
            if (not found.st_rdev and not stat.S_ISREG(found.st_mode)) or process.terminal:
                try:
                    os.fchown(fd, process.uid, -1)
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS):
                        raise
    for number, soft, hard in process.rlimits:
        _set_rlimit(number, soft, hard)
    if entry.keyring:
        try:
            sys_.join_new_session_keyring()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EDQUOT, errno.EPERM):
                raise
    if personality is not None:
        sys_.personality(personality)
    if process.io_priority is not None:
        sys_.ioprio_set(process.io_priority)
    if entry.profile >= 0:
        apparmor.write_profile(entry.profile, apparmor.AT_EXEC, process.apparmor)
        os.close(entry.profile)
    if process.terminal:
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    sys_.close_range_cloexec(3 + entry.kept)  # at exec; a filter may not know this call, so before it
    for fd in range(3, 3 + entry.kept):
        os.set_inheritable(fd, True)
    if process.no_new_privileges:
        sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
    elif entry.program:
        sys_.seccomp_set_filter(entry.program)  # needs a capability that may go next
    _set_identity(process)
    os.umask(process.umask)
    path = _find(process.args[0], environment)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    wait()
    if process.no_new_privileges and entry.program:
        sys_.seccomp_set_filter(entry.program)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execve(path, process.args, environment)  # noqa: S606 - this is what the process is for
    except OSError as error:
        raise CommandError(126, f"exec {process.args[0]}: {(error.strerror or '').lower()}") from error


def _environment(process: OciProcess, root: int) -> dict[str, str]:
    environment: dict[str, str] = {}
    for pair in process.env:
        name, _, value = pair.partition("=")
        environment[name] = value
    if "HOME" not in environment:
        try:
            accounts = rootfs.read_inside(root, "/etc/passwd")
            home = resolve_identity(str(process.uid), [], passwd=accounts, group=b"").home
        except (UnknownUserError, rootfs.RefusedError):
            home = "/"
        environment["HOME"] = home
    return environment


def _set_rlimit(number: int, soft: int, hard: int) -> None:
    infinity = resource.RLIM_INFINITY
    wanted = tuple(infinity if value >= (1 << 63) - 1 else value for value in (soft, hard))
    try:
        resource.setrlimit(number, (wanted[0], wanted[1]))
    except ValueError as error:  # how Python says EPERM
        raise rootfs.RefusedError(f"limit {number} cannot be raised to {hard}: {error}") from error


def _set_identity(process: OciProcess) -> None:
    """User, groups, and the five sets of capabilities, in the order in which each still may be set."""
    sets = process.capabilities
    for number in range(_CAP_LAST + 1):
        if not sets["bounding"] >> number & 1:
            try:
                sys_.prctl(sys_.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:  # past the last capability this kernel has
                    break
                raise
    sys_.prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups(process.additional_gids)
    os.setresgid(process.gid, process.gid, process.gid)
    os.setresuid(process.uid, process.uid, process.uid)
    sys_.prctl(_PR_SET_KEEPCAPS, 0)
    own = process_.permitted_at_start()
    permitted = sets["permitted"] & own
    sys_.capset(sets["effective"] & permitted, permitted, sets["inheritable"] & own)
    try:
        sys_.prctl(sys_.PR_CAP_AMBIENT, sys_.PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(_CAP_LAST + 1):
            if sets["ambient"] & permitted & sets["inheritable"] & own & 1 << number:
                sys_.prctl(sys_.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _find(name: str, environment: dict[str, str]) -> str:
    """The program's path. Raises `CommandError` while the command still listens: 127 not there, 126 not executable."""
    if "/" in name:
        candidates = [name]
    else:
        path = environment.get("PATH", process_.DEFAULT_PATH)
        candidates = [f"{directory}/{name}" for directory in path.split(":") if directory]
    denied = False
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            denied = denied or error.errno == errno.EACCES
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):  # not faccessat2: a filter may not know that
            return candidate
        denied = True
    if denied:
        raise CommandError(126, f"exec {name}: permission denied")
    if "/" in name:
        raise CommandError(127, f"exec {name}: no such file or directory")
    raise CommandError(127, f'exec: "{name}": executable file not found in $PATH')
