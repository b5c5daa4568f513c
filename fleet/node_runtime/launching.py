"""Reaching the supervisor of a run directory: its socket, or a new one where none listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from fleet.errors import RuntimeFault

__all__ = ["START_TIMEOUT_S", "open_socket", "wait_gone"]

START_TIMEOUT_S = 60.0
_LOCK_HELD_STATUS = 75


async def open_socket(*, state_dir: Path, run_dir: Path, cgroup_parent: str) -> socket.socket:
    """A connection to it. Raises `RuntimeFault` with what a new one said when it cannot start."""
    path = str(run_dir / "supervisor.sock")
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
        except OSError:
            sock.close()
            raise
        else:
            return sock
        if not await _start_supervisor(state_dir=state_dir, run_dir=run_dir, cgroup_parent=cgroup_parent):
            if time.monotonic() > deadline:
                raise RuntimeFault(f"another supervisor holds {run_dir}/lock but does not listen")
            await asyncio.sleep(0.02)  # somebody else is starting one


async def wait_gone(pid: int) -> None:
    """Until the process has ended; ten seconds at most. Raises TimeoutError."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        async with asyncio.timeout(10):
            await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _start_supervisor(*, state_dir: Path, run_dir: Path, cgroup_parent: str) -> bool:
    """Start one; False when another is already at work (or just starting)."""
    process = await asyncio.create_subprocess_exec(
        *_command(state_dir, run_dir),
        cgroup_parent,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            _, errors = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and what it started holds the pipe
            process.kill()
        raise RuntimeFault(f"the supervisor did not come up within {START_TIMEOUT_S:.0f} s") from None
    if process.returncode == _LOCK_HELD_STATUS:
        return False
    if process.returncode:
        text = errors.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeFault(f"start the supervisor: {text[-1] if text else f'exit status {process.returncode}'}")
    return True


def _command(state_dir: Path, run_dir: Path) -> list[str]:
    """The program with its two directories, which are made."""
    for directory in (run_dir, state_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    program = Path(__file__).with_name("supervisor_main.py")
    return [_system_python(), "-I", "-S", str(program), str(state_dir.absolute()), str(run_dir.absolute())]


def _system_python() -> str:
    """The interpreter to run the supervisor with: the system's if it is new enough (it starts faster than a venv's
    and nothing is installed into it).
    """
    for candidate in ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11"):
        if os.access(candidate, os.X_OK):
            return candidate
    return str(getattr(sys, "_base_executable", sys.executable))
