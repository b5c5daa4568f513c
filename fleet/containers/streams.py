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
        self.runs = 0
        """How many runs have begun."""
        self._ended_before = 0
        """The run whose input was over before it began."""
        self.attached = 0

    def close(self) -> None:
        """At the end of a run."""
        self.close_stdin()
        for end in self.waiting:
            end.close()
        self.waiting = []

    def begin(self, *, stdin: bool) -> int | None:
        """A run begins: the reading end of its standard input, if it is to have one."""
        self.runs += 1
        if not stdin:
            return None
        reader, self.stdin_fd = os.pipe2(os.O_CLOEXEC)
        if self._ended_before == self.runs:
            self.close_stdin()
        return reader

    def end_input(self, *, run: int) -> None:
        """End of file for the standard input of that run, which may not have begun. Without effect when it is over."""
        if run > self.runs:
            self._ended_before = run
        elif run == self.runs:
            self.close_stdin()

    def close_stdin(self) -> None:
        """End of file for the container's standard input."""
        fd, self.stdin_fd = self.stdin_fd, None
        if fd is not None:
            os.close(fd)
