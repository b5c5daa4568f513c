"""The way of fleetd into its namespaces: find them or have them made, join, start anew inside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from fleet import errors
from fleet.daemon.rootless import delegation
from fleet.daemon.rootless.records import ANCHOR, NAMESPACES, OUTSIDE, living, peer_pid
from fleet.node_runtime import syscalls

__all__ = ["ENTERED", "enter"]

ENTERED: Final = "--rootless-entered"
"""The flag that tells fleetd it is inside already."""
_END_TIMEOUT_S: Final = 10.0


def enter(exec_root: Path, arguments: Sequence[str]) -> NoReturn:
    """Become ``fleetd ARGUMENTS`` inside; blocks until the namespaces are ready. Raises ``UserError`` where there can be
    none, ``ConflictError`` when another fleetd is there.
    """
    folder = exec_root / "rootless"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise errors.UserError(f"folder {folder}: {cause.strerror}") from cause
    _take(lock, exec_root)
    os.set_inheritable(
        lock, True
    )  # by the daemon to come, and by nobody it starts: the namespaces are its own until it ends
    anchor = _anchor(exec_root, folder)
    outside = living(folder, OUTSIDE)
    if not anchor and outside:
        _wait_for_the_end(outside)
    group = delegation.noted(folder) if anchor else delegation.find()
    if anchor:
        _settle(group.base)
    else:
        delegation.note(folder, group)
    if not anchor or not outside:
        _start(folder, anchor, group.base)
        _settle(group.base)
        anchor = anchor or _anchor(exec_root, folder)
    here = Path.cwd()
    pidfd = os.pidfd_open(anchor)
    try:
        syscalls.setns(pidfd, NAMESPACES)
    except OSError as cause:
        raise errors.UserError(f"join the namespaces of process {anchor}: {cause.strerror}") from cause
    with contextlib.suppress(OSError):  # a directory that this user may not enter, but was started in
        os.chdir(here)
    # -P: whatever lies in the current directory is not imported.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "fleet.daemon.main", *arguments, ENTERED])  # noqa: S606 - becomes the daemon


def _take(lock: int, exec_root: Path) -> None:
    """Wait for a fleetd that is just ending; one that goes on is a ``ConflictError``."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            if time.monotonic() > deadline:
                raise errors.ConflictError(
                    f"another fleetd uses {exec_root}; stop it, or give this one other --data-root, --exec-root and --host"
                ) from cause
            time.sleep(0.05)
        else:
            return


def _anchor(exec_root: Path, folder: Path) -> int:
    """Whose namespaces to join: the anchor's, or those of containers that have outlived it; 0: there are none."""
    record = living(folder, ANCHOR)
    return int(record["pid"]) if record else peer_pid(exec_root / "runtime" / "supervisor.sock")


def _settle(base: str) -> None:
    try:
        if base:
            delegation.settle(base)
    except OSError as cause:
        raise errors.UserError(
            f"containers of this fleetd live in control group {base}, and it cannot go there from its own ({cause.strerror}): "
            f"start it as before, or have root write its process id to /sys/fs/cgroup{base}/{delegation.LEAF}/cgroup.procs"
        ) from cause


def _start(folder: Path, anchor: int, base: str) -> None:
    command = [sys.executable, "-P", "-m", "fleet.daemon.rootless.outside", str(folder), str(anchor), base]
    with (
        (folder / "rootless.log").open("ab") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd="/"
        ) as process,
    ):
        assert process.stdout is not None
        said = process.stdout.readline().decode(errors="replace").strip()
    if said == "ready":
        return
    raise errors.UserError(f"rootless: {said or f'the process for the outside ended; see {log.name}'}")


def _wait_for_the_end(outside: dict[str, Any]) -> None:
    """Of one whose anchor is gone: it ends by itself."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    pid = int(outside["pid"])
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
