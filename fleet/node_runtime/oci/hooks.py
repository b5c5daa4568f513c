"""Hooks of a bundle: programs that get the container's state on standard input."""

from __future__ import annotations

import os
import select
import signal

from fleet.errors import RejectedFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["run_hooks", "try_hooks"]

_SAID_MAX = 2000


def run_hooks(hooks: list[dict[str, Any]], state: bytes, *, name: str) -> None:
    """One after the other. Raises `RejectedFault` for the first that fails, cannot be started or takes too long."""
    for index, hook in enumerate(hooks):
        why = _run(hook, state)
        if why:
            raise RejectedFault(f"hooks.{name}[{index}], {hook['path']}: {why}")


def try_hooks(hooks: list[dict[str, Any]], state: bytes, *, name: str) -> None:
    """All of them; each that fails is a warning on standard error, as the specification has it after the start."""
    for index, hook in enumerate(hooks):
        why = _run(hook, state)
        if why:
            os.write(2, f"fleet-oci: warning: hooks.{name}[{index}], {hook['path']}: {why}\n".encode())


def _run(hook: dict[str, Any], state: bytes) -> str:
    given, said = os.memfd_create("state"), os.memfd_create("said")
    try:
        os.write(given, state)
        os.lseek(given, 0, os.SEEK_SET)
        environment = dict(pair.partition("=")[::2] for pair in hook["env"])
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
        try:
            pid = os.posix_spawn(hook["path"], hook["args"], environment, file_actions=actions, setsigmask=())
        except OSError as error:
            return error.strerror or str(error)
        status = _wait(pid, hook["timeout"])
        if status is None:
            return f"not done within {hook['timeout']} s; it was killed"
        if not status:
            return ""
        text = os.pread(said, _SAID_MAX, 0).decode("utf-8", "replace").strip()
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        return f"{how}{f': {text}' if text else ''}"
    finally:
        os.close(given)
        os.close(said)


def _wait(pid: int, timeout_s: int) -> int | None:
    """As `os.waitstatus_to_exitcode` gives it; None when it had to be killed."""
    in_time = True
    if timeout_s:
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        in_time = bool(poll.poll(timeout_s * 1000))
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if in_time else None
