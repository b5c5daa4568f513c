"""What is known about a lab on disk: written before a thing is made, so that whoever comes after a crash knows where to look.

The record names hosts, subnet and token; whether a thing exists is always asked of the kernel, never of the record. Writers
hold the lab's lock (an advisory lock on its folder, released by the kernel when the holder dies); readers need none, because
the record is replaced in one step. ``owner.json`` below /run makes the name unique on the machine and vanishes with a reboot.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from fleet import errors
from fleet.durable import sync_directory
from fleet.lab.names import RUN_ROOT, Layout

__all__ = ["HostRecord", "LabRecord", "Owner", "load", "locked", "locked_folder", "owners", "save"]


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One host. ``(pid, started_ticks)`` identifies its process 1; ``pid == 0`` means none was noted."""

    name: str
    address: str
    pid: int = 0
    started_ticks: int = 0
    off: Literal["", "killed", "stopped"] = ""
    """Why it is off on purpose; empty when it should be on."""


class LabRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One lab; see names.py for what token and subnet mean."""

    format: Literal[1] = 1
    name: str
    token: str
    subnet: str
    daemon: tuple[str, ...]
    """Program and first arguments that start the daemon; the lab appends its own."""
    daemon_args: tuple[str, ...] = ()
    disk_bytes: int = 0
    """Size of each host's own disk; 0: their data are in folders of the machine."""
    hosts: tuple[HostRecord, ...] = ()
    cuts: tuple[tuple[str, str], ...] = ()
    """Directed: what the first sends does not reach the second."""

    def host(self, name: str) -> HostRecord:
        """Raises ``NotFoundError`` that lists the hosts there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise errors.NotFoundError(f"lab {self.name} has no host {name!r}; it has {known}")

    def with_host(self, changed: HostRecord) -> LabRecord:
        """The record with that host replaced, or added at the end."""
        if any(host.name == changed.name for host in self.hosts):
            hosts = tuple(changed if host.name == changed.name else host for host in self.hosts)
        else:
            hosts = (*self.hosts, changed)
        return msgspec.structs.replace(self, hosts=hosts)


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lab's name on this machine."""

    root: str
    token: str
    subnet: str


def load(layout: Layout) -> LabRecord | None:
    """The record, or ``None`` when there is no such lab. Raises ``RuntimeFault`` when it cannot be understood."""
    try:
        return msgspec.json.decode(layout.record.read_bytes(), type=LabRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as cause:
        raise errors.RuntimeFault(
            f"read {layout.record}: {cause}; was it written by another version of fleet?"
        ) from cause


def save(layout: Layout, record: LabRecord) -> None:
    """Replace the record durably; the caller holds the lock."""
    write_durably(layout.record, msgspec.json.format(msgspec.json.encode(record), indent=1))


def write_durably(path: Path, data: bytes) -> None:
    """Write, fsync, rename, fsync the folder: after a crash the old or the new content is there, whole."""
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def owners() -> dict[str, Owner]:
    """Every lab name held on this machine, whatever its root."""
    found = {}
    for path in sorted(RUN_ROOT.glob("[!.]*/owner.json")):  # with a dot: the draft of one that is just being claimed
        try:
            found[path.parent.name] = msgspec.json.decode(path.read_bytes(), type=Owner)
        except FileNotFoundError:
            continue  # taken down between the listing and the reading
        except msgspec.DecodeError as cause:
            raise errors.RuntimeFault(f"read {path}: {cause}") from cause
    return found


@contextmanager
def locked_folder(folder: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the exclusive lock of an existing folder; calls ``waiting`` once when somebody else holds it.

    Raises ``FileNotFoundError`` when the folder is gone, also when it went away while we waited.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_ino != folder.stat().st_ino:
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(handle)


@contextmanager
def locked(layout: Layout, *, say: Callable[[str], None]) -> Iterator[LabRecord]:
    """Hold the lab's lock and get its record. Raises ``NotFoundError`` when there is no such lab."""
    try:
        with locked_folder(
            layout.folder, waiting=lambda: say(f"waiting for another command at work on lab {layout.name}")
        ):
            record = load(layout)
            if record is not None:
                yield record
                return
    except FileNotFoundError as cause:
        if cause.filename != str(layout.folder):
            raise
    raise errors.NotFoundError(f"no lab is called {layout.name!r} below {layout.root}; 'fleet lab up' makes one")
