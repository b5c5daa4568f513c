"""Control groups by writing their files: v1 (one directory per controller), v2 (one tree), and v1 beside an idle v2
(hybrid).

Which it is, is read from the mount table once (`cgroup_layout`); a controller is used where it is mounted, never where habit
puts it. What a limit or a figure is in either is told by `cgroup_limits` and `cgroup_figures`. Every container has the same
relative path in each hierarchy, below one configurable parent, so what a crash leaves behind is found by listing that parent.

Used by the supervisor (creates, limits, freezes, removes) and by its client (reads figures), so: standard library
only, and no state but paths.

Rules of the kernel that shape the code: v2 forbids processes in inner nodes and wants controllers switched on from the top
down; a group can be removed only some time after its last process was reaped (EBUSY until then).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

from fleet.node_runtime.cgroup_figures import figures_v1, figures_v2
from fleet.node_runtime.cgroup_files import field, read, write
from fleet.node_runtime.cgroup_layout import NO_CGROUPS, USED_V1, Layout
from fleet.node_runtime.cgroup_limits import limit_v1, limit_v2

__all__ = ["DEFAULT_DEVICE_RULES", "CgroupTree"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    DeviceRule = tuple[str, int, int, str]
    """('c' or 'b', major, minor, access); -1 is any."""

_FREEZE_TIMEOUT_S = 2.0
_KILL_ROUNDS = 64
_KEEPERS_TIMEOUT_S = 2.0
_USED_V2 = ("cpu", "memory", "pids", "io", "cpuset")

DEFAULT_DEVICE_RULES: tuple[tuple[str, int, int, str], ...] = (
    ("c", -1, -1, "m"),
    ("b", -1, -1, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, -1, "rwm"),  # pts/*
)
"""What runc and Docker let every container open; making any node is allowed, opening it is not."""


class CgroupTree:
    """The groups below one parent. ``path`` arguments are relative to it."""

    def __init__(self, layout: Layout, parent: str) -> None:
        self.layout = layout
        self.parent = "/" + parent.strip("/")
        self.is_v2 = layout.is_v2
        if self.is_v2:
            self._roots: tuple[str, ...] = (layout.unified,)
        else:
            self._roots = tuple(dict.fromkeys(layout.v1[name] for name in USED_V1 if name in layout.v1))

    # --- making -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the parent; on v2 hand the controllers down to it. Idempotent."""
        if self.is_v2:
            self._delegate(self.parent)
        else:
            for root in self._roots:
                os.makedirs(root + self.parent, exist_ok=True)

    def _delegate(self, inner: str) -> None:
        """v2: let children of ``inner`` have controllers, from the root down; above a group that a user was given that
        is its giver's.
        """
        wanted = " ".join(f"+{name}" for name in _USED_V2 if name in self.layout.unified_controllers)
        directory = self.layout.unified
        for part in ("", *inner.strip("/").split("/")):
            if part:
                directory = f"{directory}/{part}"
                os.makedirs(directory, exist_ok=True)
            control = f"{directory}/cgroup.subtree_control"
            if not os.access(control, os.W_OK):
                continue
            try:
                write(control, wanted)
            except OSError as error:
                if error.errno != errno.EBUSY or part:
                    raise
                _make_room(directory)  # the root of a container, in which this process runs
                write(control, wanted)

    def create(self, path: str, *, limits: Mapping[str, Any], devices: Sequence[DeviceRule] | None) -> None:
        """Make the group everywhere and set its limits; ``devices`` None allows all. Raises OSError with the file's
        name.
        """
        inner = os.path.dirname(path)
        if inner:
            if self.is_v2:
                self._delegate(f"{self.parent}/{inner}")
            else:
                for root in self._roots:
                    os.makedirs(f"{root}{self.parent}/{inner}", exist_ok=True)
        for root in self._roots:
            directory = f"{root}{self.parent}/{path}"
            try:
                os.mkdir(directory, 0o755)
            except FileExistsError:
                if not os.path.isdir(directory):
                    raise
            except FileNotFoundError:  # somebody tidied the empty parent away
                self.prepare()
                os.makedirs(directory, exist_ok=True)
        if devices is not None:
            self._restrict_devices(path, devices)
        self.apply_limits(path, limits, fresh=True)

    def _restrict_devices(self, path: str, devices: Sequence[DeviceRule]) -> None:
        if self.is_v2:
            from fleet.node_runtime import device_filter

            device_filter.attach(f"{self.layout.unified}{self.parent}/{path}", devices)
            return
        directory = self._v1("devices", path)
        if directory is None:
            return
        write(f"{directory}/devices.deny", "a")
        fd = os.open(f"{directory}/devices.allow", os.O_WRONLY | os.O_CLOEXEC)
        try:
            for kind, major, minor, access in devices:
                numbers = f"{'*' if major < 0 else major}:{'*' if minor < 0 else minor}"
                os.write(fd, f"{kind} {numbers} {access}".encode())
        finally:
            os.close(fd)

    def open_entrances(self, path: str, *, beside: int = 0) -> list[int]:
        """Descriptors into which a single-threaded process writes ``0`` to enter the group, or the one below it of the
        process ``beside`` where v2 lets nobody into the group itself: in a container that runs containers.

        v1 ``tasks`` instead of ``cgroup.procs``: moving one's only thread takes no global lock.
        """
        if self.is_v2:
            directory = f"{self.layout.unified}{self.parent}/{path}"
            if beside and read(f"{directory}/cgroup.subtree_control").strip():
                directory += _below(path, beside)
            return [os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)]
        fds = []
        try:
            for root in self._roots:
                fds.append(os.open(f"{root}{self.parent}/{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401 - closed one by one on failure
            if os.path.isdir(f"{self.layout.v1.get('cpuset', '/nonexistent')}{self.parent}/{path}"):
                fds.append(os.open(f"{self.layout.v1['cpuset']}{self.parent}/{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            systemd = self.layout.v1.get("name=systemd")
            if systemd and os.path.isdir(systemd + self.parent):
                fds.append(os.open(f"{systemd}{self.parent}/tasks", os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def shelter(self, pid: int) -> None:
        """Move a supervisor out of the group of whoever started it, so that a service manager's kill of that group
        spares it.

        Only the hierarchies service managers track are changed: v2, or v1's name=systemd, and with the latter a v2 that
        has no controllers of use (hybrid), for there systemd kills by that one.
        """
        if self.is_v2:
            directories = [f"{self.layout.unified}{self.parent}/supervisor"]
        elif self.parent.strip("/") == NO_CGROUPS:
            return
        else:
            directories = [root + self.parent for root in self._tracking_roots()]
        for directory in directories:
            os.makedirs(directory, exist_ok=True)
            write(f"{directory}/cgroup.procs", str(pid))

    def _tracking_roots(self) -> list[str]:
        """v1 and hybrid: hierarchies in which service managers keep their units apart, and nothing is limited."""
        roots = [self.layout.v1["name=systemd"]] if "name=systemd" in self.layout.v1 else []
        if self.layout.unified and not self.is_v2 and os.access(self.layout.unified, os.W_OK):
            roots.append(self.layout.unified)
        return roots

    # --- limits -------------------------------------------------------------------------------------------------

    def apply_limits(self, path: str, limits: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Set every limit the mapping names (the fields of `ResourceLimits`); 0 and '' lift a limit unless the group
        is fresh.
        """
        if self.is_v2:
            limit_v2(f"{self.layout.unified}{self.parent}/{path}", limits, fresh=fresh)
        else:
            limit_v1(self.layout, f"{self.parent}/{path}", limits, fresh=fresh)

    # --- freezing, killing, removing ----------------------------------------------------------------------------

    def freeze(self, path: str) -> None:
        """Stop every process of the group; returns when they are. Raises OSError(ETIMEDOUT) and thaws if that takes
        over two seconds.
        """
        if self.is_v2:
            directory = f"{self.layout.unified}{self.parent}/{path}"
            write(f"{directory}/cgroup.freeze", "1")
        else:
            directory = self._need_v1("freezer", path)
            write(f"{directory}/freezer.state", "FROZEN")
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        while not self._is_frozen(directory):
            if time.monotonic() > deadline:
                self.thaw(path)
                raise OSError(110, "processes did not freeze within two seconds", directory)
            time.sleep(0.001)
            if not self.is_v2:  # v1 gives up on processes that were forking; asking again carries on
                write(f"{directory}/freezer.state", "FROZEN")

    def _is_frozen(self, directory: str) -> bool:
        if self.is_v2:
            return "frozen 1" in read(f"{directory}/cgroup.events")
        return read(f"{directory}/freezer.state").strip() == "FROZEN"

    def is_frozen(self, path: str) -> bool:
        """Whether the group is frozen now; False when it is gone."""
        try:
            return self._is_frozen(
                f"{self.layout.unified}{self.parent}/{path}" if self.is_v2 else self._need_v1("freezer", path)
            )
        except OSError:
            return False

    def thaw(self, path: str) -> None:
        """Let the group run on. Idempotent."""
        if self.is_v2:
            write(f"{self.layout.unified}{self.parent}/{path}/cgroup.freeze", "0")
        else:
            write(f"{self._need_v1('freezer', path)}/freezer.state", "THAWED")

    def pids(self, path: str) -> list[int]:
        """Processes in the group and in those made below it, as this pid namespace numbers them; [] when it is gone."""
        root = self._roots[0] if self._roots else ""
        return _pids_from(f"{root}{self.parent}/{path}")

    def kill(self, path: str) -> None:
        """SIGKILL every process of the group and of those below; several rounds, for some may be forking."""
        for _ in range(_KILL_ROUNDS):
            pids = self.pids(path)
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self, path: str) -> bool:
        """Remove the group everywhere, with groups made below it; False if some are still busy. Absence is success."""
        gone = True
        for root in self._all_roots():
            gone &= _remove_tree(f"{root}{self.parent}/{path}")
            inner = os.path.dirname(path)
            while inner:  # made for it by `create`; others may live there
                try:
                    os.rmdir(f"{root}{self.parent}/{inner}")
                except OSError:
                    break
                inner = os.path.dirname(inner)
        return gone

    def remove_if_empty(self, path: str) -> bool:
        """Remove a group that holds neither processes nor groups, everywhere; False where that cannot be."""
        gone = True
        for root in self._all_roots():
            try:
                os.rmdir(f"{root}{self.parent}/{path}")
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone

    def remove_parent(self) -> None:
        """Remove the parent (and its own empty parents) where nothing is left in it. A keeper that is just ending is
        waited for, up to two seconds.
        """
        deadline = time.monotonic() + _KEEPERS_TIMEOUT_S
        for root in self._all_roots():
            while not _remove_own(root + self.parent) and time.monotonic() < deadline:
                time.sleep(0.01)
            directory = os.path.dirname(self.parent)
            while directory.strip("/"):
                try:
                    os.rmdir(root + directory)
                except OSError:
                    break
                directory = os.path.dirname(directory)

    def list_paths(self) -> list[str]:
        """Names directly below the parent, in any hierarchy."""
        names: set[str] = set()
        for root in self._all_roots():
            with contextlib.suppress(OSError), os.scandir(root + self.parent) as entries:
                names.update(entry.name for entry in entries if entry.is_dir() and entry.name != "supervisor")
        return sorted(names)

    def _all_roots(self) -> list[str]:
        roots = list(self._roots)
        for extra in (self.layout.v1.get("cpuset"), *self._tracking_roots()):
            if extra and extra not in roots:
                roots.append(extra)
        return roots

    # --- out of memory ------------------------------------------------------------------------------------------

    def oom_kills(self, path: str) -> int:
        """How many processes of the group the kernel has killed for want of memory; 0 when it cannot be read."""
        try:
            if self.is_v2:
                text = read(f"{self.layout.unified}{self.parent}/{path}/memory.events")
            else:
                text = read(f"{self._need_v1('memory', path)}/memory.oom_control")
        except OSError:
            return 0
        return field(text, "oom_kill")

    def watch_oom(self, path: str) -> int:
        """A descriptor that epoll reports when the group runs out of memory: an eventfd on v1, the events file itself
        (EPOLLPRI) on v2.
        """
        if self.is_v2:
            fd = os.open(f"{self.layout.unified}{self.parent}/{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            os.pread(fd, 4096, 0)
            return fd
        directory = self._need_v1("memory", path)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            write(f"{directory}/cgroup.event_control", f"{event} {control}")
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        return event

    # --- figures ------------------------------------------------------------------------------------------------

    def figures(self, path: str) -> dict[str, int]:
        """What the group uses now; see `ContainerStats` for names and units. Raises FileNotFoundError when the group
        is gone.
        """
        if self.is_v2:
            found = figures_v2(f"{self.layout.unified}{self.parent}/{path}")
        else:
            found = figures_v1(lambda controller: self._v1(controller, path))
        found["oom_kills"] = self.oom_kills(path)
        return found

    def _v1(self, controller: str, path: str) -> str | None:
        root = self.layout.v1.get(controller)
        return None if root is None else f"{root}{self.parent}/{path}"

    def _need_v1(self, controller: str, path: str) -> str:
        directory = self._v1(controller, path)
        if directory is None:
            if self.parent.strip("/") == NO_CGROUPS:
                raise OSError(95, "fleetd runs without root and without cgroups, so nothing can be paused", controller)
            raise OSError(95, f"the {controller} controller is not mounted on this host", controller)
        return directory


def _pids_from(directory: str) -> list[int]:
    found: list[int] = []
    try:
        found += map(int, read(f"{directory}/cgroup.procs").split())
        if os.stat(directory).st_nlink > 2:  # counts groups below
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found += _pids_from(entry.path)
    except OSError:
        pass
    return found


def _below(path: str, pid: int) -> str:
    """Where below the group ``path`` the process is, "" for in it; whatever part of the tree this namespace shows."""
    for line in read(f"/proc/{pid}/cgroup").splitlines():
        _, found, rest = line.partition(f"/{path}/")
        if line.startswith("0::") and found:
            return f"/{rest}"
    return ""


def _make_room(directory: str) -> None:
    """v2: move the processes of a group into a new one below it, for a group with processes may not hand controllers
    down.
    """
    os.makedirs(f"{directory}/init", exist_ok=True)
    for _ in range(_KILL_ROUNDS):  # they may be forking
        pids = read(f"{directory}/cgroup.procs").split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                write(f"{directory}/init/cgroup.procs", pid)
        if not pids:
            return


def _remove_own(parent: str) -> bool:
    """Remove a parent that holds no container; absence is success."""
    for directory in (f"{parent}/supervisor", parent):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True


def _remove_tree(directory: str) -> bool:
    for _ in range(2):
        try:
            os.rmdir(directory)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            _remove_tree(entry.path)
            except FileNotFoundError:
                return True
    return False
