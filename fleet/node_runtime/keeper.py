"""The keeper: a process behind the supervisor that learns how containers end while no supervisor of theirs lives.

Only their parent learns the exit status of processes on kernels before Linux 6.15 (Debian 12: 6.1, Ubuntu 24.04: 6.8). The
supervisor is that parent; when it dies, the kernel hands its children to the nearest living ancestor that asked for
orphans (PR_SET_CHILD_SUBREAPER), which is the keeper. It writes the status down beside the container's other records,
as ``reaped``, before it reaps; the supervisor's successor reads it there.

A keeper has no state, no socket and no duty but this. Until its supervisor dies it sleeps in one system call; it ends
with its last child. Killing it costs exit codes only if the supervisor is killed too. Each supervisor has its own, so
containers of a dead supervisor stay with the keeper they were born under.
"""

from __future__ import annotations

import contextlib
import os
import signal

from fleet.node_runtime import syscalls
from fleet.node_runtime.state import StateDir, start_ticks

__all__ = ["kernel_tells_exits", "reaped_status", "stay_behind"]


def kernel_tells_exits() -> bool:
    """Whether a pidfd tells the exit status of a process that somebody else has reaped (Linux 6.15); tried out on a
    child.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    pidfd = os.pidfd_open(pid)
    try:
        os.waitpid(pid, 0)
        return syscalls.pidfd_exit_status(pidfd) == 3 << 8
    finally:
        os.close(pidfd)


def stay_behind(state_dir: str) -> None:
    """Fork; the child returns, to become the supervisor, and the caller stays behind as its keeper and never returns.

    Descriptors of the caller, standard ones included, are closed in the keeper.
    """
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.fork()
    if supervisor == 0:
        return
    code = 1
    try:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.set_name(b"fleet-keeper")
        os.closerange(0, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        _keep(StateDir(state_dir), supervisor)
        code = 0
    finally:
        os._exit(code)


def reaped_status(state: StateDir, container: str) -> int | None:
    """The wait status a keeper wrote down; None when there is none (yet)."""
    record = state.read(container, "reaped")
    return None if record is None else int(record["status"])


def _keep(state: StateDir, supervisor: int) -> None:
    """Reap children until none is left."""
    known: dict[tuple[int, int], str] | None = None
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            continue
        if ended.si_pid != supervisor:
            status = ended.si_status << 8 if ended.si_code == os.CLD_EXITED else ended.si_status & 0x7F
            with contextlib.suppress(
                OSError
            ):  # the disk is full, or it was removed meanwhile: lost, as without a keeper
                if known is None:  # the supervisor is dead, so no more records of its children are to come
                    known = _first_processes(state)
                container = known.get((ended.si_pid, start_ticks(ended.si_pid) or 0))
                if container is not None:  # processes of an exec are in no record
                    state.write_reaped(container, {"status": status})
        os.waitpid(ended.si_pid, 0)


def _first_processes(state: StateDir) -> dict[tuple[int, int], str]:
    """Pid and start time of each container's first process to the container."""
    found = {}
    for container in state.list():
        running = state.read(container, "running")
        if running is not None:
            found[running["pid"], running["ticks"] or 0] = container
    return found
