"""A command in a terminal of its own: what it writes is read, keys are typed, the size changes, and how it left the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any, Self

DEADLINE_S = 60.0


class Terminal:
    """``with Terminal("top", environment={...}, columns=80, lines=24) as term: term.wait("q quit")``."""

    def __init__(
        self, *arguments: str, environment: dict[str, str], columns: int = 80, lines: int = 24, program: str = ""
    ) -> None:
        self.output = b""
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.settings = termios.tcgetattr(self._slave)
        how = ["-c", program] if program else ["-m", "fleet.cli.main"]
        self.process = subprocess.Popen(
            [sys.executable, *how, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={"PATH": os.environ["PATH"], "TERM": "xterm", "HOME": "/nonexistent", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one call of the kernel
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self, wait_s: float = 0.1) -> bytes:
        """What came since, waiting up to ``wait_s`` for it."""
        new = b""
        with contextlib.suppress(OSError):
            while select.select([self._master], [], [], wait_s)[0]:
                new += os.read(self._master, 65536)
                wait_s = 0
        self.output += new
        return new

    def wait(self, text: str) -> str:
        """Reads until ``text`` was written since the last wait; returns what was."""
        seen, deadline = "", time.monotonic() + DEADLINE_S
        while text not in seen:
            assert time.monotonic() < deadline, f"{text!r} did not appear in {seen!r}"
            seen += self.read().decode(errors="replace")
            if self.process.poll() is not None and text not in seen:
                seen += self.read().decode(errors="replace")
                assert text in seen, f"the command ended without {text!r}: {seen!r}"
        return seen

    def wait_stopped(self) -> None:
        """Until a signal has stopped it: state T of proc_pid_stat(5)."""
        deadline = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "it does not stop"
            time.sleep(0.01)

    def end(self, number: signal.Signals | None = None) -> int:
        """Waits for the end, after the signal if there is one; returns the exit code."""
        if number is not None:
            self.process.send_signal(number)
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; it wrote {self.output!r}"
            self.read()
        self.read()
        return self.process.returncode

    def settings_now(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)
