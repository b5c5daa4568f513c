"""The daemon's side of the DNS process: start it, find it again, talk to it. Blocking; used on the network thread only.

The daemon binds and listens on the control socket itself and lets the process inherit it, so that the socket's file exists
before the process runs and connecting needs no retries. A lock is not needed: the process that holds the listening
socket is the one people reach; an older one whose file was replaced is stopped by whoever replaced it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.errors import RuntimeFault
from fleet.network.dns.server import FRAME_BYTES_MAX, PROTOCOL

__all__ = ["DnsControl", "reap"]

_TIMEOUT_S = 3.0
"""An answer takes well under a millisecond, a table of 100,000 names 0.3 s; slower means stuck, and stuck is replaced."""
_LISTENER = 3
"""Descriptor of the listening socket in the process."""
_SOURCE_ROOT = Path(__file__).resolve().parents[3]


class DnsControl:
    """A connection to the running DNS process."""

    def __init__(self, connection: socket.socket, *, pid: int, hello: dict[str, Any]) -> None:
        self._socket = connection
        self._unanswered: list[str] = []  # at most one: each call first reads what is left of the one before
        self.pid = pid
        self.known_sandboxes: set[str] = set(hello.get("sandboxes", ()))
        """Sandboxes the process had when we connected."""
        self.known_networks: dict[str, int] = dict(hello.get("networks", {}))
        """Revision of each table it had when we connected."""

    @staticmethod
    def connect(path: Path) -> DnsControl | None:
        """Connect to the process behind ``path``; ``None`` if there is none, or one that does not answer or speaks
        another protocol.

        Such a process is killed first: it would hold the sandboxes' namespaces for ever and nobody could reach it again.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(os.fspath(path))
            hello, _ = _call(connection, {"op": "hello"}, ())
            if hello.get("protocol") == PROTOCOL:
                return DnsControl(connection, pid=int(hello["pid"]), hello=hello)
        except (OSError, RuntimeFault, ValueError, KeyError):
            pass  # whatever the reason, the remedy is the same
        connection.close()
        _kill_recorded(path)
        return None

    @staticmethod
    def start(path: Path, *, log: Path) -> DnsControl:
        """Start a process in the calling thread's network namespace and connect to it. Raises ``RuntimeFault``."""
        path.unlink(missing_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
            listener.bind(os.fspath(path))  # in a directory of mode 0700; the process checks its peers besides
            path.chmod(0o600)
            listener.listen(8)
            program = (
                f"import os, sys; os.chdir('/'); sys.path.insert(0, {os.fspath(_SOURCE_ROOT)!r}); "
                f"from fleet.network.dns.server import main; main({_LISTENER})"
            )
            # posix_spawn is vfork underneath, so the daemon's size does not matter. A session of its own, so that signals to the
            # daemon's group do not reach it. Not subprocess.Popen: that wants to be told when its child ends, and this one
            # is meant to outlive us.
            pid = os.posix_spawn(
                _interpreter(),
                [_interpreter(), "-I", "-S", "-c", program],
                {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                setsid=True,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), _LISTENER),
                ],
            )
        _record(path).write_text(f"{pid} {_start_time(pid)}")
        control = DnsControl.connect(path)
        if control is None:
            reap(pid)
            raise RuntimeFault(f"DNS process {pid} did not answer within {_TIMEOUT_S:.0f} s; see {log}")
        return control

    def close(self) -> None:
        """Leave the process running."""
        self._socket.close()

    def kill(self) -> None:
        """End the process the hard way; gone is fine."""
        self.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        reap(self.pid)

    def stop(self) -> None:
        """End the process in good order."""
        self._call({"op": "stop"})
        self.close()
        reap(self.pid)

    def put_network(self, table: dict[str, Any]) -> None:
        """Replace the table of a network."""
        self._post({"op": "network", "table": table})

    def drop_network(self, network_id: str) -> None:
        """Forget a network."""
        self._call({"op": "drop-network", "id": network_id})

    def put_sandbox(
        self,
        sandbox_id: str,
        *,
        networks: Sequence[str],
        forward: bool,
        servers: Sequence[str],
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """Set a sandbox's view; with ``sockets`` (udp, tcp[, upstream]) also where its questions arrive."""
        request = {
            "op": "sandbox",
            "id": sandbox_id,
            "networks": list(networks),
            "forward": forward,
            "servers": list(servers),
            "fds": len(sockets),
        }
        self._post(request, [sock.fileno() for sock in sockets])

    def borrow_sockets(self, sandbox_id: str) -> list[socket.socket]:
        """Duplicates of the sockets the process has for a sandbox; empty if it has none."""
        _, descriptors = self._call({"op": "sockets", "id": sandbox_id})
        return [socket.socket(fileno=descriptor) for descriptor in descriptors]

    def forget(self, sandbox_id: str) -> None:
        """Close the process's sockets of a sandbox (they would keep its namespace alive)."""
        self._post({"op": "forget", "id": sandbox_id})

    def set_upstream(self, servers: Sequence[str]) -> None:
        """Set the host's own resolvers."""
        self._call({"op": "upstream", "servers": list(servers)})

    def _call(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        self._collect()
        answer, received = _call(self._socket, request, descriptors)
        self._check(request["op"], answer)
        return answer, received

    def _post(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a request and leave its answer for the next call: the process handles requests in order anyway."""
        self._collect()
        _send(self._socket, request, descriptors)
        self._unanswered.append(request["op"])

    def _collect(self) -> None:
        while self._unanswered:
            operation = self._unanswered.pop(0)
            self._check(operation, _answer(self._socket, operation)[0])

    def _check(self, operation: str, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise RuntimeFault(f"DNS process {self.pid} refused {operation}: {answer['error']}")


def _call(
    connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    _send(connection, request, descriptors)
    return _answer(connection, request["op"])


def _send(connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int]) -> None:
    payload = json.dumps(request).encode()
    if len(payload) > FRAME_BYTES_MAX:
        raise RuntimeFault(f"DNS table of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}")
    frame = struct.pack("!I", len(payload)) + payload
    try:
        sent = socket.send_fds(connection, [frame], list(descriptors)) if descriptors else 0
        connection.sendall(frame[sent:])
    except OSError as error:
        raise RuntimeFault(f"DNS process: {request['op']}: {error}") from error


def _answer(connection: socket.socket, operation: str) -> tuple[dict[str, Any], list[int]]:
    received: list[int] = []
    try:
        header = _receive(connection, 4, received)
        body = _receive(connection, struct.unpack("!I", header)[0], received)
    except OSError as error:
        raise RuntimeFault(f"DNS process: {operation}: {error}") from error
    answer: dict[str, Any] = json.loads(body)
    return answer, received


def _receive(connection: socket.socket, length: int, descriptors: list[int]) -> bytes:
    data = bytearray()
    while len(data) < length:
        part, received, _, _ = socket.recv_fds(connection, length - len(data), 8)
        descriptors += received
        if not part:
            raise ConnectionResetError("connection closed")
        data += part
    return bytes(data)


def reap(pid: int) -> None:
    """Wait for a process that is about to end, if it is our child (one adopted from an earlier daemon is not)."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _record(path: Path) -> Path:
    return path.with_suffix(".pid")


def _start_time(pid: int) -> str:
    """Start time of a process in clock ticks (proc(5), field 22), so that a reused pid is not taken for it; empty if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _kill_recorded(path: Path) -> None:
    try:
        pid, _, started = _record(path).read_text().partition(" ")
    except OSError:
        return
    if started and pid.isdigit() and _start_time(int(pid)) == started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _record(path).unlink(missing_ok=True)


def _interpreter() -> str:
    """The system's Python if it is 3.11 or later (starts faster, survives the virtual environment's replacement), else ours."""
    system = Path("/usr/bin/python3")
    match = re.fullmatch(r"python3\.(\d+)", system.resolve().name)
    if match is not None and int(match[1]) >= 11:
        return os.fspath(system)
    return sys.executable
