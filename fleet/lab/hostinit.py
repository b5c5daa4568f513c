"""Process 1 of a lab host: makes the host's namespaces, starts its daemon, reaps, and is the power switch.

Run as ``python3 -I -S hostinit.py LAB/HOST TOKEN`` with a JSON boot order on standard input; standard library only, because one
lives in every host. Roles:

1. *outer* (this process) unshares mount, uts, ipc, network and pid namespaces, forks, writes ``{"pid": N}`` and exits;
2. *init* (the fork) is process 1 of the new pid namespace. It mounts what a host of its own needs, listens on the control socket,
   writes ``{"ready": true}`` and then serves requests until it is killed.

Why process 1: the kernel kills every process of a pid namespace with its first one, and ``pidfd`` polling of that one returns
only when all others are gone (pid_namespaces(7)). So SIGKILL here *is* the loss of power: nothing of the host runs a moment
longer, its mounts and its network vanish with the namespaces. LAB/HOST and TOKEN are in the arguments so that a process of a
lab can be recognised although the lab crashed before writing its pid down.

Control protocol: one JSON line a connection, one JSON line back; ``{"op": "spawn" | "signal" | "status" | "shutdown", ...}``.
An answer with ``error`` is a refusal. Crash of the lab command at any point: the host lives on and is found by its token.
"""

# Plain system calls: pathlib would be memory in every host for nothing.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH108, PTH110, PTH120, PTH123
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

# <linux/sched.h>
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
# <sys/mount.h>
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000

REQUEST_BYTES_MAX: Final = 64 * 1024
REQUEST_TIMEOUT_S: Final = 5.0
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def unshare(flags: int) -> None:
    """unshare(2); raises ``OSError``."""
    if _libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2); raises ``OSError`` that names source and target."""
    if _libc.mount(source.encode(), target.encode(), fstype.encode(), flags, data.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {fstype or source} on {target}: {os.strerror(code)}")


def mount_points_below(prefix: str, mountinfo: str) -> list[str]:
    """The outermost mount points strictly below ``prefix``, in order of mounting, from the text of /proc/PID/mountinfo."""
    found: list[str] = []
    for line in mountinfo.splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")  # octal escapes, proc(5)
        if point.startswith(prefix + "/") and not any(point == f or point.startswith(f + "/") for f in found):
            found.append(point)
    return found


def cover_run(keep: list[str]) -> None:
    """Give the host an empty /run of its own, as after a boot, in which only the directories ``keep`` show through."""
    handles = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in keep]
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64m")
    for path, handle in handles:
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{handle}", path, "", MS_BIND)
        os.close(handle)


def cover_sys() -> None:
    """Mount a sysfs that shows this network namespace's links, with cgroups and everything else below /sys moved over.

    sysfs shows the links of the namespace it was mounted in (sysfs(5)), so the machine's would show the machine's.
    """
    with open("/proc/self/mountinfo", encoding="utf-8") as source:
        points = mount_points_below("/sys", source.read())
    parked = []
    for number, point in enumerate(points):
        park = f"/run/.sys{number}"
        os.mkdir(park)
        mount(point, park, "", MS_BIND | MS_REC)
        parked.append((park, point))
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for park, point in parked:
        mount(park, point, "", MS_MOVE)
        os.rmdir(park)


def cover_file(path: str, source: str) -> None:
    """Show ``source`` at ``path``. A ``path`` that does not exist here is left alone, unless it points into the new /run."""
    real = os.path.realpath(path)
    if real.startswith("/run/") and not os.path.exists(real):
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with open(real, "w", encoding="utf-8"):
            pass
    if os.path.exists(real):
        mount(source, real, "", MS_BIND)


def mount_disk(image: str, target: str) -> None:
    """Mount a file system image by the program, which finds a loop device; the kernel frees that with the mount."""
    pid = os.posix_spawnp("mount", ["mount", "-t", "ext4", "-o", "loop", image, target], os.environ)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(f"mount of the disk {image} failed with exit code {code}; see init.log")


def set_up(order: Mapping[str, Any]) -> None:
    """Make this process's fresh namespaces look like a host that has just booted."""
    # Slave: what the machine unmounts disappears here too, what is mounted here never shows on the machine.
    mount("none", "/", "", MS_SLAVE | MS_REC)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    cover_run(list(order["keep"]))
    cover_sys()
    for image, target in order["disks"].items():
        mount_disk(image, target)
    socket.sethostname(str(order["hostname"]))
    for path, source in order["files"].items():
        cover_file(path, source)


class Init:
    """Starts named programs, reaps whatever is orphaned to it, answers the control socket. Single-threaded."""

    def __init__(self, control_path: str) -> None:
        self.programs: dict[str, int] = {}
        """name -> pid, while it runs."""
        self.ended: dict[str, int] = {}
        """name -> wait status of its last run; at most one entry a name, and names are few."""
        self.halt_at: float | None = None
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(control_path)
        self.listener.bind(control_path)
        os.chmod(control_path, 0o600)
        self.listener.listen(16)
        read_end, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wakeups = read_end
        signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.shut_down(10.0))

    def run(self) -> None:
        """Serve until shut down; returning ends the host."""
        while True:
            timeout = None if self.halt_at is None else max(0.0, self.halt_at - time.monotonic())
            ready, _, _ = select.select([self.listener.fileno(), self.wakeups], [], [], timeout)
            if self.wakeups in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wakeups, 4096)
            alone = self.reap()
            if self.halt_at is not None and (alone or time.monotonic() >= self.halt_at):
                return
            if self.listener.fileno() in ready:
                self.serve()

    def reap(self) -> bool:
        """Collect every dead child; returns whether no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            for name, running in list(self.programs.items()):
                if running == pid:
                    del self.programs[name]
                    self.ended[name] = status
                    if self.halt_at is not None:
                        self.terminate_rest()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(REQUEST_TIMEOUT_S)
            data = b""
            try:
                while not data.endswith(b"\n"):
                    piece = connection.recv(REQUEST_BYTES_MAX)
                    if not piece or len(data) + len(piece) > REQUEST_BYTES_MAX:
                        return
                    data += piece
                try:
                    answer = self.answer(json.loads(data))
                except (OSError, ValueError, KeyError, TypeError) as cause:
                    answer = {"error": f"{type(cause).__name__}: {cause}"}
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                return  # the asker is gone or stuck: its own time limit tells it

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "spawn":
                return self.spawn(
                    str(request["name"]), list(request["argv"]), dict(request["env"]), str(request["log"])
                )
            case "signal":
                pid = self.programs.get(str(request["name"]))
                if pid is None:
                    return {"error": f"{request['name']} is not running"}
                os.kill(pid, int(request["signal"]))
                return {"pid": pid}
            case "status":
                return {"running": self.programs, "ended": self.ended}
            case "shutdown":
                self.shut_down(float(request["grace_s"]))
                return {}
            case other:
                return {"error": f"unknown request {other!r}"}

    def spawn(self, name: str, argv: list[str], env: dict[str, str], log: str) -> dict[str, Any]:
        if name in self.programs:
            return {"error": f"{name} is running already, as process {self.programs[name]}"}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.programs[name] = os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o640),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
        )
        self.ended.pop(name, None)
        return {"pid": self.programs[name]}

    def shut_down(self, grace_s: float) -> None:
        """Begin an orderly end: the programs first, then everybody else, then us - at the latest after ``grace_s``."""
        if self.halt_at is not None:
            return
        self.halt_at = time.monotonic() + grace_s
        for pid in self.programs.values():
            os.kill(pid, signal.SIGTERM)
        if not self.programs:
            self.terminate_rest()

    @staticmethod
    def terminate_rest() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGTERM)  # every process of this pid namespace but us, kill(2)


def say(message: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    order = json.loads(sys.stdin.buffer.read(REQUEST_BYTES_MAX))
    os.umask(0o022)
    os.chdir("/")
    try:
        unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID)
        pid = os.fork()
        if pid:
            say({"pid": pid})
            os._exit(0)
        os.setsid()
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        set_up(order)
        init = Init(str(order["control"]))
    except OSError as cause:
        say({"error": str(cause)})
        os._exit(1)
    say({"ready": True})
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    init.run()


if __name__ == "__main__":
    main()
