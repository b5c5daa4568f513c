"""Processes of ours that outlive the daemon, from its side: start one, find it again, talk to it. Blocking.

The daemon binds and listens on the control socket itself and lets the process inherit it, so that the socket's file exists
before the process runs and connecting needs no retries. A lock is not needed: the process that holds the listening
socket is the one people reach; an older one whose file was replaced is stopped by whoever replaced it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.errors import RuntimeFault
from fleet.network.channel import FRAME_BYTES_MAX

__all__ = [
    "TIMEOUT_S",
    "answer_to",
    "ask",
    "connect",
    "kill",
    "kill_recorded",
    "reap",
    "start",
    "system_interpreter",
    "tell",
]

TIMEOUT_S = 3.0
"""An answer takes well under a millisecond, a table of 100,000 names 0.3 s; slower means stuck, and stuck is replaced."""
_LISTENER = 3
"""Descriptor of the listening socket in the process."""
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


def connect(path: Path, *, protocol: int, what: str) -> tuple[socket.socket, dict[str, Any]] | None:
    """Connect to the process behind ``path``; ``None`` if there is none, or one that does not answer or speaks another
    ``protocol``. Gives the connection and what the process said of itself.

    Such a process is killed first: it would hold what it was given for ever and nobody could reach it again.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    try:
        connection.connect(os.fspath(path))
        hello, _ = ask(connection, {"op": "hello"}, (), what=what)
        if hello.get("protocol") == protocol and isinstance(hello["pid"], int):
            return connection, hello
    except (OSError, RuntimeFault, ValueError, KeyError):
        pass  # whatever the reason, the remedy is the same
    connection.close()
    kill_recorded(path)
    return None


def start(path: Path, *, log: Path, module: str, interpreter: Sequence[str]) -> int:
    """Start ``main`` of ``module`` in the calling thread's network namespace, listening at ``path``; returns its pid."""
    path.unlink(missing_ok=True)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(os.fspath(path))  # in a directory of mode 0700; the process checks its peers besides
        path.chmod(0o600)
        listener.listen(8)
        program = (
            f"import os, sys; os.chdir('/'); sys.path.insert(0, {os.fspath(_SOURCE_ROOT)!r}); "
            f"from {module} import main; main({_LISTENER})"
        )
        # posix_spawn is vfork underneath, so the daemon's size does not matter. A session of its own, so that signals to the
        # daemon's group do not reach it. Not subprocess.Popen: that wants to be told when its child ends, and this one
        # is meant to outlive us.
        pid = os.posix_spawn(
            interpreter[0],
            [*interpreter, "-c", program],
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
    return pid


def ask(
    connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int], *, what: str
) -> tuple[dict[str, Any], list[int]]:
    """Send a request and wait for its answer. ``what`` is the process's name in errors. Raises ``RuntimeFault``."""
    tell(connection, request, descriptors, what=what)
    return answer_to(connection, request["op"], what=what)


def tell(connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int], *, what: str) -> None:
    """Send a request."""
    payload = json.dumps(request).encode()
    if len(payload) > FRAME_BYTES_MAX:
        raise RuntimeFault(f"{what}: message of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}")
    frame = struct.pack("!I", len(payload)) + payload
    try:
        sent = socket.send_fds(connection, [frame], list(descriptors)) if descriptors else 0
        connection.sendall(frame[sent:])
    except OSError as error:
        raise RuntimeFault(f"{what}: {request['op']}: {error}") from error


def answer_to(connection: socket.socket, operation: str, *, what: str) -> tuple[dict[str, Any], list[int]]:
    """Receive the answer to what was told."""
    received: list[int] = []
    try:
        header = _receive(connection, 4, received)
        body = _receive(connection, struct.unpack("!I", header)[0], received)
    except OSError as error:
        raise RuntimeFault(f"{what}: {operation}: {error}") from error
    answer: dict[str, Any] = json.loads(body)
    return answer, received


def kill(pid: int) -> None:
    """End a process the hard way and wait until it has, so that what it held is free; gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            ended.poll(TIMEOUT_S * 1000)
        finally:
            os.close(descriptor)
    reap(pid)


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


def kill_recorded(path: Path) -> None:
    """End the process that was started for ``path``, if it still is that one."""
    try:
        pid, _, started = _record(path).read_text().partition(" ")
    except OSError:
        return
    if started and pid.isdigit() and _start_time(int(pid)) == started:
        kill(int(pid))
    _record(path).unlink(missing_ok=True)


def system_interpreter() -> str:
    """The system's Python if it is 3.11 or later (starts faster, survives the virtual environment's replacement), else ours."""
    system = Path("/usr/bin/python3")
    match = re.fullmatch(r"python3\.(\d+)", system.resolve().name)
    if match is not None and int(match[1]) >= 11:
        return os.fspath(system)
    return sys.executable
