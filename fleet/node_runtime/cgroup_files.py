"""Files of control groups: small, whole, and an error names the file. Standard library only."""

from __future__ import annotations

import os

__all__ = ["field", "read", "write"]


def field(text: str, name: str) -> int:
    """The number behind ``name`` in a file of such lines; 0 without one."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def read(path: str) -> str:
    """All of it. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()
    finally:
        os.close(fd)


def write(path: str, value: str) -> None:
    """In one call, as the kernel wants it. Raises OSError with the file and what was to be written."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {error.strerror}", path) from None
    finally:
        os.close(fd)
