"""Process 1 of each host, seen from the machine: identified by pid *and* start time, ended through a pidfd, so never mistaken."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet import errors

__all__ = ["HOSTINIT", "Identity", "end_all", "end_found", "find", "identify", "is_alive"]

HOSTINIT: Final = str(Path(__file__).with_name("hostinit.py"))


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that no later one can be: pid and start time in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    started_ticks: int


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time, or ``None`` when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def identify(pid: int) -> Identity | None:
    """The process that has this pid now, unless it is dead and merely not collected."""
    stat = _stat(pid)
    return None if stat is None or stat[0] in "ZX" else Identity(pid, stat[1])


def is_alive(identity: Identity) -> bool:
    """Whether that very process still runs."""
    return identity.pid > 0 and identify(identity.pid) == identity


def find(token: str, *, label: str | None = None) -> list[Identity]:
    """Every hostinit of the lab with this token; with ``label`` (``LAB/HOST``) only that host's.

    The whole argument vector is compared, so that a ``grep`` for the token is not taken for a host.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(argv) != 6 or argv[1:4] != ["-I", "-S", HOSTINIT] or argv[5] != token:
            continue
        if label is None or argv[4] == label:
            identity = identify(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


def end_all(identities: Iterable[Identity], *, timeout_s: float, signum: int = signal.SIGKILL) -> None:
    """Signal each and wait until all are gone; those gone already are fine.

    For a process 1 of a pid namespace, gone means that the namespace has no process left. Raises ``RuntimeFault`` naming those
    still there after ``timeout_s``.
    """
    with contextlib.ExitStack() as stack:
        waiting: dict[int, int] = {}
        poll = select.poll()
        for identity in identities:
            try:
                handle = os.pidfd_open(identity.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, handle)
            if not is_alive(identity):  # looked at after opening: the handle can now be no other process
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signum)
            waiting[handle] = identity.pid
            poll.register(handle, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while waiting:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                pids = ", ".join(map(str, sorted(waiting.values())))
                raise errors.RuntimeFault(f"processes {pids} are still there {timeout_s:g} s after signal {signum}")
            for handle, _ in poll.poll(left_s * 1000):
                poll.unregister(handle)
                del waiting[handle]


def end_found(token: str, *, label: str | None = None, timeout_s: float) -> None:
    """End every process ``find`` finds, looking again until there is none: an outer one may have forked while we looked."""
    while found := find(token, label=label):
        end_all(found, timeout_s=timeout_s)
