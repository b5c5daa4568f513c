"""Who is there: pid and start time of the long-lived processes, and one-line JSON between them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

from fleet.node_runtime import syscalls
from fleet.node_runtime.state import start_ticks

__all__ = [
    "ANCHOR",
    "NAMESPACES",
    "OUTSIDE",
    "OUTSIDE_SOCKET",
    "PORTS_SOCKET",
    "RESOLV_CONF",
    "ask",
    "living",
    "peer_pid",
    "write_record",
]

ANCHOR: Final = "anchor.json"
OUTSIDE: Final = "outside.json"
OUTSIDE_SOCKET: Final = "outside.sock"
PORTS_SOCKET: Final = "ports.sock"
RESOLV_CONF: Final = "resolv.conf"
NAMESPACES: Final = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWCGROUP
)
"""The anchor's own. All that a container may be told to share with "the host" are among them: what belongs to the machine's user
namespace, root in another may not enter again, as an exec into such a container must. The pid namespace is the machine's.
"""
_ANSWER_BYTES_MAX: Final = 1 << 16
_TIMEOUT_S: Final = 20.0


def write_record(folder: Path, name: str, **more: Any) -> None:
    """This process is the one; whole or not at all."""
    aside = folder / f".{name}.{os.getpid()}"
    aside.write_text(json.dumps({"pid": os.getpid(), "ticks": start_ticks(os.getpid()), **more}) + "\n")
    aside.replace(folder / name)


def living(folder: Path, name: str) -> dict[str, Any] | None:
    """The record, if the process it tells of lives."""
    try:
        record = json.loads((folder / name).read_text())
        pid, ticks = int(record["pid"]), record["ticks"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if ticks is not None and start_ticks(pid) == ticks and not _is_dead(pid) else None


def _is_dead(pid: int) -> bool:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return text[text.rindex(")") + 2] in "ZX"
    return True


def peer_pid(path: Path) -> int:
    """The process listening at a unix socket; 0 for none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return 0
        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def ask(path: Path, question: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """One question, one answer, and the descriptors that came with it (the caller's). Blocks. Raises ``OSError``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(str(path))
        sock.sendall(json.dumps(question).encode() + b"\n")
        data, descriptors = b"", []
        while not data.endswith(b"\n"):
            piece, fds, _, _ = socket.recv_fds(sock, _ANSWER_BYTES_MAX, 4)
            descriptors += fds
            if not piece or len(data) > _ANSWER_BYTES_MAX:
                for fd in descriptors:
                    os.close(fd)
                raise ConnectionError(f"{path}: no answer")
            data += piece
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return json.loads(data), descriptors
