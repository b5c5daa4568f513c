"""The process in the host's namespaces: makes those of the anchor, binds ports for it, keeps its network running.

Run as ``python -m fleet.daemon.rootless.outside FOLDER PID BASE``; PID is the anchor's, or 0 to make namespaces and an anchor, in
the control group BASE if that is not empty. Prints ``ready``, or one sentence that says why not, and closes its standard output.
Ends on SIGTERM, when it is told to (``end``), and when the anchor is gone. The anchor goes on if this one is killed: then
published ports cannot be added and the way out is closed until the next start of fleetd starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from fleet.daemon.rootless import delegation
from fleet.daemon.rootless.ids import IdMaps, read_maps
from fleet.daemon.rootless.records import (
    ANCHOR,
    NAMESPACES,
    OUTSIDE,
    OUTSIDE_SOCKET,
    PORTS_SOCKET,
    RESOLV_CONF,
    write_record,
)
from fleet.daemon.rootless.ways_out import Network, choose_network
from fleet.node_runtime import syscalls

__all__ = ["RefusedError", "main", "why_forbidden"]

_REQUEST_BYTES_MAX: Final = 4096
_REQUEST_TIMEOUT_S: Final = 5.0
_BACKLOG: Final = 128


class RefusedError(Exception):
    """Why there can be no namespaces; the text is for the user."""


def main(arguments: list[str]) -> int:
    """See the module."""
    folder, anchor_pid, base = Path(arguments[0]), int(arguments[1]), arguments[2]
    if os.fork():  # nobody's child from here on: whoever started us is to be fleetd, and may end at any time
        os._exit(0)
    syscalls.set_name(b"fleet-outside")
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        network, why_no_network = choose_network(folder)
        maps = read_maps()
        if anchor_pid:
            anchor = os.pidfd_open(anchor_pid)
        else:
            (folder / RESOLV_CONF).unlink(missing_ok=True)
            if network is not None:
                (folder / RESOLV_CONF).write_text(network.resolv_conf())
            anchor_pid, anchor = make_namespaces(folder, maps, base)
        outside = Outside(folder, anchor_pid, anchor, network)
        outside.listen()
        why = outside.start_network() if network is not None else why_no_network
        write_record(
            folder,
            OUTSIDE,
            network="" if why else getattr(network, "name", ""),
            why_no_network=why,
            limits=[text for text in (maps.warning(),) if text],
        )
    except RefusedError as cause:
        print(cause, flush=True)
        return 1
    print("ready", flush=True)
    os.dup2(2, 1)
    outside.serve()
    return 0


def make_namespaces(folder: Path, maps: IdMaps, base: str) -> tuple[int, int]:
    """Pid and pidfd of a new anchor, in namespaces of its own. Raises ``RefusedError``."""
    with _refusing(f"enter control group {base}"):
        if base:
            delegation.move_to_base(base)
    says, tell = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(says[0])
        os.close(tell[1])
        _become_anchor(folder, says[1], tell[0])
    os.close(says[1])
    os.close(tell[0])
    pidfd = os.pidfd_open(pid)
    try:
        answer = os.read(says[0], 4096)
        if answer != b"made":
            raise RefusedError(f"make namespaces: {answer.decode(errors='replace')}; {why_forbidden()}")
        with _refusing(f"leave control group {base} for one below it"):
            for number in (pid, os.getpid()) if base else ():
                delegation.settle(base, number)
        _write_maps(pid, maps)
        os.write(tell[1], b"go")
        answer = os.read(says[0], 4096)
        if answer != b"here":
            raise RefusedError(
                f"the namespaces are made, but not usable: {answer.decode(errors='replace') or 'see the log'}"
            )
    except BaseException:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        raise
    finally:
        os.close(says[0])
        os.close(tell[1])
    return pid, pidfd


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise RefusedError(f"{what}: {cause.strerror}") from cause


def _become_anchor(folder: Path, say: int, told: int) -> NoReturn:
    try:
        syscalls.unshare(NAMESPACES)
        os.write(say, b"made")
        if os.read(told, 2) != b"go":
            os._exit(1)
        os.setsid()
        os.set_inheritable(say, True)
        # Started anew: only then it has root's capabilities there, and may be looked at by those who join.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "fleet.daemon.rootless.anchor", str(folder), str(say)])  # noqa: S606
    except OSError as cause:
        with contextlib.suppress(OSError):
            os.write(say, str(cause.strerror).encode())
    os._exit(1)


def _write_maps(pid: int, maps: IdMaps) -> None:
    if maps.why_single:
        try:
            Path(f"/proc/{pid}/setgroups").write_text("deny")  # the kernel's condition for a map without CAP_SETGID
            for name, lines in (("uid_map", maps.users), ("gid_map", maps.groups)):
                Path(f"/proc/{pid}/{name}").write_text("".join(f"{i} {o} {n}\n" for i, o, n in lines))
        except OSError as cause:
            raise RefusedError(f"map your own id: {cause.strerror}; {why_forbidden()}") from cause
        return
    for program, lines in (("newuidmap", maps.users), ("newgidmap", maps.groups)):
        numbers = [str(number) for line in lines for number in line]
        done = subprocess.run([program, str(pid), *numbers], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise RefusedError(
                f"{program}: {said}; look at your ranges in /etc/subuid and /etc/subgid, and that {program} is set-uid root"
            )


def why_forbidden(root: Path = Path("/proc/sys")) -> str:
    """What on this host forbids user namespaces to ordinary users, and what an administrator can do."""
    known = (
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "an AppArmor profile with 'userns,' for python3, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    )
    for name, forbidding, remedy in known:
        with contextlib.suppress(OSError):
            if (root / name).read_text().strip() == forbidding:
                return f"{name.replace('/', '.')} is {forbidding} on this host; root can change that: {remedy}"
    return "this host does not let ordinary users make user namespaces (a container around fleetd, or its seccomp profile?)"


class Outside:
    """The loop."""

    def __init__(self, folder: Path, anchor_pid: int, anchor: int, network: Network | None) -> None:
        self._folder = folder
        self._anchor_pid = anchor_pid
        self._anchor = anchor
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ending = False
        wake, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._woken = wake

    def _stop(self, _number: int, _frame: object) -> None:
        self._ending = True

    def listen(self) -> None:
        """Take requests from now on."""
        path = self._folder / OUTSIDE_SOCKET
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(_BACKLOG)

    def start_network(self) -> str:
        """Start slirp4netns or pasta; returns why it does not work, "" when it does."""
        assert self._network is not None
        self._process, why = self._network.start(self._anchor_pid)
        return why

    def serve(self) -> None:
        """Until the end."""
        poll = select.poll()
        for fd in (self._listener.fileno(), self._anchor, self._woken):
            poll.register(fd, select.POLLIN)
        while not self._ending:
            ready = {fd for fd, _ in poll.poll()}
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._mind_network()
            if self._anchor in ready:
                break
            if self._listener.fileno() in ready:
                self._answer()
        self._take_down()

    def _mind_network(self) -> None:
        """The network's process has ended: once more."""
        if self._process is None or self._process.poll() is None or self._ending:
            return
        print(
            f"fleet-outside: {self._process.args!r} ended with {self._process.returncode}, started again",
            file=sys.stderr,
        )
        why = self.start_network()
        if why:
            print(f"fleet-outside: {why}", file=sys.stderr)

    def _answer(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_REQUEST_TIMEOUT_S)
            _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != os.getuid():  # the directory is 0700 already; this is the second lock
                return
            try:
                request = json.loads(connection.makefile("rb").readline(_REQUEST_BYTES_MAX))
                answer, sock = self._handle(request)
            except (OSError, ValueError, KeyError, TypeError) as cause:
                answer, sock = {"error": 22, "text": str(cause)}, None
            with contextlib.suppress(OSError):
                socket.send_fds(connection, [json.dumps(answer).encode() + b"\n"], [sock.fileno()] if sock else [])
            if sock is not None:
                sock.close()

    def _handle(self, request: dict[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        if request["op"] == "end":
            self._ending = True
            return {}, None
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[request["protocol"]]
        sock = socket.socket(socket.AF_INET, kind)
        try:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(request["address"]), int(request["port"])))
            if kind == socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
        except OSError as cause:
            sock.close()
            return {"error": cause.errno, "text": cause.strerror}, None
        return {"port": sock.getsockname()[1]}, sock

    def _take_down(self) -> None:
        """The network's process, the anchor, and what tells of them."""
        self._ending = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._anchor, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(self._anchor, select.POLLIN)
        if not waiting.poll(5000):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._anchor, signal.SIGKILL)
        for name in (OUTSIDE, ANCHOR, OUTSIDE_SOCKET, PORTS_SOCKET, RESOLV_CONF):
            (self._folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
