"""Asking a host's process 1 (hostinit.py) over its control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from fleet import errors

__all__ = ["request"]

_ANSWER_BYTES_MAX: Final = 64 * 1024
_TIMEOUT_S: Final = 10.0


def request(path: Path, **fields: object) -> dict[str, Any]:
    """One question, one answer. Raises ``UnavailableError`` when nobody answers, ``RuntimeFault`` when it is refused."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(json.dumps(fields).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                piece = connection.recv(4096)
                if not piece or len(data) > _ANSWER_BYTES_MAX:
                    raise ConnectionError("the answer ended early")
                data += piece
    except OSError as cause:
        raise errors.UnavailableError(f"ask the host's process 1 at {path} to {fields['op']}: {cause}") from cause
    answer: dict[str, Any] = json.loads(data)
    if "error" in answer:
        raise errors.RuntimeFault(f"{fields['op']}: {answer['error']}")
    return answer
