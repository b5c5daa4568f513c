"""``fleet run``, ``exec``, ``attach`` as people use them: a real host, the command in a process of its own, a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host
from test_containers_docker_cli import served

pytestmark = pytest.mark.kernel

FLEET = (sys.executable, "-m", "fleet.cli.main")


async def fleet(path: str, *args: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run the command; (exit code, output, errors)."""
    process = await asyncio.create_subprocess_exec(
        *FLEET, "-H", f"unix://{path}", *args,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """A command on a pseudo-terminal; ``seen`` is what its screen got."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.master, self.process, self.seen = master, process, b""

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def poll(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 4096):
                self.seen += data

    async def until(self, pattern: bytes, again: Callable[[], None] | None = None) -> None:
        async with asyncio.timeout(30):
            while True:
                self.poll()
                if re.search(pattern, self.seen):
                    return
                assert self.process.returncode is None, self.seen
                if again:
                    again()
                await asyncio.sleep(0.1)

    async def code(self) -> int:
        async with asyncio.timeout(30):
            while self.process.returncode is None:
                self.poll()
                await asyncio.sleep(0.05)
        self.poll()
        return self.process.returncode


@contextlib.asynccontextmanager
async def terminal(path: str, *args: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(slave)
    process = await asyncio.create_subprocess_exec(
        *FLEET, "-H", f"unix://{path}", *args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    try:
        yield Terminal(master, process)
        assert termios.tcgetattr(slave) == before, "the terminal is left as it was"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(slave)
        os.close(master)


def test_a_terminal_types_resizes_detaches_attaches_again_and_ends_with_the_exit_code(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            async with terminal(path, "run", "-it", "--name", "talk", "--network", "none", "busybox", "sh") as screen:
                await screen.until(rb"[#$] ")
                screen.type(b"echo first-$((40+2))\r")
                await screen.until(rb"first-42")
                screen.resize(33, 99)
                await screen.until(rb"33 99", again=lambda: screen.type(b"stty size\r"))
                screen.type(b"\x10\x11")
                assert await screen.code() == 0
            async with terminal(path, "attach", "talk") as screen:
                screen.type(b"echo again-$((1+1))\r")
                await screen.until(rb"again-2")
                screen.type(b"exit 7\r")
                assert await screen.code() == 7
            assert (await fleet(path, "rm", "talk"))[0] == 0

    on_real_host(story, unique=unique)


def test_pipes_exit_codes_and_removal(unique: str, tmp_path: Path) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            base = ("run", "--rm", "--network", "none")
            ran = await fleet(path, *base, "-i", "busybox", "cat", stdin=b"piped\n")
            assert ran == (0, "piped\n", "")
            ran = await fleet(path, *base, "busybox", "sh", "-c", "echo out; echo bad >&2; exit 9")
            assert ran == (9, "out\n", "bad\n")
            assert (await fleet(path, *base, "busybox", "no-such-program"))[0] == 127
            assert (await fleet(path, *base, "busybox", "/tmp"))[0] == 126
            code, _, err = await fleet(path, *base, "--pull", "never", "nothere")
            assert code == 125 and "nothere" in err
            assert (await fleet(path, "ps", "-aq"))[1] == ""
            cidfile = tmp_path / "cid"
            code, out, _ = await fleet(
                path,
                "run",
                "-d",
                "--name",
                "bg",
                "--cidfile",
                str(cidfile),
                "--network",
                "none",
                "busybox",
                "sleep",
                "99",
            )
            assert code == 0 and cidfile.read_text() == out.strip()
            assert (await fleet(path, "exec", "bg", "sh", "-c", "echo in; exit 4"))[:2] == (4, "in\n")
            assert await fleet(path, "exec", "-i", "bg", "cat", stdin=b"x") == (0, "x", "")
            async with terminal(path, "exec", "-it", "bg", "sh") as screen:
                await screen.until(rb"24 80", again=lambda: screen.type(b"stty size\r"))
                screen.type(b"exit 3\r")
                assert await screen.code() == 3
            code, out, _ = await fleet(path, "stats", "--no-stream", "bg")
            assert code == 0 and "MEM USAGE / LIMIT" in out and "bg" in out
            assert "sleep 99" in (await fleet(path, "container", "top", "bg"))[1]
            assert (await fleet(path, "pause", "bg"))[0] == 0
            assert "(Paused)" in (await fleet(path, "ps"))[1]
            assert (await fleet(path, "unpause", "bg"))[0] == 0
            assert (await fleet(path, "rename", "bg", "fg"))[0] == 0
            assert (await fleet(path, "rm", "-f", "fg"))[:2] == (0, "fg\n")

    on_real_host(story, unique=unique)


def test_signals_reach_the_container(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
            process = await asyncio.create_subprocess_exec(
                *FLEET, "-H", f"unix://{path}", "run", "--rm", "--network", "none", "busybox", "sh", "-c", script,
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            async with asyncio.timeout(30):
                assert await process.stdout.readline() == b"ready\n"
                process.terminate()
                assert await process.wait() == 5

    on_real_host(story, unique=unique)


def test_start_attached_shows_output_and_ends_with_the_code(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            made = (
                "create",
                "-i",
                "--name",
                "again",
                "--network",
                "none",
                "busybox",
                "sh",
                "-c",
                "cat; echo end; exit 6",
            )
            assert (await fleet(path, *made))[0] == 0
            assert await fleet(path, "start", "-ai", "again", stdin=b"in\n") == (6, "in\nend\n", "")
            assert (await fleet(path, "attach", "again"))[::2] == (
                1,
                "Error: you cannot attach to a stopped container, start it first\n",
            )
            assert (await fleet(path, "logs", "again"))[1] == "in\nend\n"
            assert (await fleet(path, "container", "rm", "again"))[0] == 0

    on_real_host(story, unique=unique)
