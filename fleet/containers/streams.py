"""What belongs to a container's standard streams between start and exit."""

from __future__ import annotations

import os
import socket

__all__ = ["Streams"]


class Streams:
    """A container's standard input and those who attached before it was started; lives in its entry."""

    def __init__(self) -> None:
        self.waiting: list[socket.socket] = []
        self.stdin_fd: int | None = None
        self.attached = 0

    def close(self) -> None:
        """At the end of a run."""
        self.close_stdin()
        for end in self.waiting:
            end.close()
        self.waiting = []

    def close_stdin(self) -> None:
        """End of file for the container's standard input."""
        fd, self.stdin_fd = self.stdin_fd, None
        if fd is not None:
            os.close(fd)
