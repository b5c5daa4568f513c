"""Control groups by writing their files: v1 (one directory per controller), v2 (one tree), and v1 beside an idle v2
(hybrid).

Which it is, is read from the mount table once; a controller is used where it is mounted, never where habit puts it.
Every container has the same relative path in each hierarchy, below one configurable parent, so what a crash leaves
behind is found by listing that parent.

Used by the supervisor (creates, limits, freezes, removes) and by its client (reads figures), so: standard library
only, and no state but paths.

Rules of the kernel that shape the code: cpuset v1 needs cpus and mems filled in before a task may enter; raising a v1
memory limit needs memsw raised first, lowering needs it lowered last; v2 forbids processes in inner nodes and wants
controllers switched on from the top down; a group can be removed only some time after its last process was reaped
(EBUSY until then).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

__all__ = ["DEFAULT_DEVICE_RULES", "NO_CGROUPS", "CgroupTree", "Layout", "detect_layout", "layout_for"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    DeviceRule = tuple[str, int, int, str]
    """('c' or 'b', major, minor, access); -1 is any."""

NO_CGROUPS = "none"
"""As a parent: make no groups, for whoever may not. Containers then have no limits and cannot be paused."""
_UNLIMITED = 0x7FFFFFFFFFFFF000  # v1's way of writing "none": LONG_MAX rounded down to a page
_FREEZE_TIMEOUT_S = 2.0
_KILL_ROUNDS = 64
_KEEPERS_TIMEOUT_S = 2.0
_USED = ("memory", "cpu", "cpuacct", "pids", "devices", "freezer", "blkio")
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


class Layout:
    """Where the hierarchies are mounted."""

    __slots__ = ("unified", "unified_controllers", "v1")

    def __init__(self, v1: dict[str, str], unified: str, unified_controllers: frozenset[str]) -> None:
        self.v1 = v1
        """Controller (or ``name=systemd``) to mount point."""
        self.unified = unified
        """Mount point of cgroup2, '' when there is none."""
        self.unified_controllers = unified_controllers

    @property
    def is_v2(self) -> bool:
        """True when the limits live on the unified hierarchy: all of them. A kernel without v1's memory (Linux 6.12 of
        Debian), booted for v1, has memory alone there.
        """
        return (
            bool(self.unified) and not any(name in self.v1 for name in _USED) and "memory" in self.unified_controllers
        )


def layout_for(parent: str) -> Layout:
    """Where ``parent`` may be made: nowhere for `NO_CGROUPS`. Controllers of v2 are those given to the topmost group on
    the way to it that is this process's to divide: the root's, or those an ordinary user was given.
    """
    layout = Layout({}, "", frozenset()) if parent == NO_CGROUPS else detect_layout()
    if layout.is_v2:
        directory = layout.unified
        for part in parent.strip("/").split("/"):
            if os.access(f"{directory}/cgroup.subtree_control", os.W_OK):
                return Layout(layout.v1, layout.unified, frozenset(_read(f"{directory}/cgroup.controllers").split()))
            directory = f"{directory}/{part}"
    return layout


def detect_layout(mountinfo: str | None = None) -> Layout:
    """Read /proc/self/mountinfo (or the given text of it)."""
    text = _read("/proc/self/mountinfo") if mountinfo is None else mountinfo
    v1: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, rest = tail.partition(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        mount_point = fields.split()[4]
        if kind == "cgroup2":
            unified = unified or mount_point
        else:
            for option in rest.split()[-1].split(","):
                if option in _USED or option in ("cpuset", "name=systemd"):
                    v1.setdefault(option, mount_point)
    controllers: frozenset[str] = frozenset()
    if unified:
        with contextlib.suppress(OSError):
            controllers = frozenset(_read(f"{unified}/cgroup.controllers").split())
    return Layout(v1, unified, controllers)


class CgroupTree:
    """The groups below one parent. ``path`` arguments are relative to it."""

    def __init__(self, layout: Layout, parent: str) -> None:
        self.layout = layout
        self.parent = "/" + parent.strip("/")
        self.is_v2 = layout.is_v2
        if self.is_v2:
            self._roots: tuple[str, ...] = (layout.unified,)
        else:
            self._roots = tuple(dict.fromkeys(layout.v1[name] for name in _USED if name in layout.v1))

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
                _write(control, wanted)
            except OSError as error:
                if error.errno != errno.EBUSY or part:
                    raise
                _make_room(directory)  # the root of a container, in which this process runs
                _write(control, wanted)

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
        _write(f"{directory}/devices.deny", "a")
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
            if beside and _read(f"{directory}/cgroup.subtree_control").strip():
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
            _write(f"{directory}/cgroup.procs", str(pid))

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
        (self._limits_v2 if self.is_v2 else self._limits_v1)(path, limits, fresh)

    def _limits_v1(self, path: str, limits: Mapping[str, Any], fresh: bool) -> None:
        cpu, memory = self._v1("cpu", path), self._v1("memory", path)
        shares = int(limits.get("cpu_shares", 0))
        period, quota = _period_and_quota(limits)
        if cpu and (quota > 0 or period or not fresh):
            if quota > 0:  # a shorter period first may be refused: quota over period must not exceed the parent's
                _write(f"{cpu}/cpu.cfs_quota_us", "-1")
            _write(f"{cpu}/cpu.cfs_period_us", str(period or _CPU_PERIOD_US))
            _write(f"{cpu}/cpu.cfs_quota_us", str(quota) if quota > 0 else "-1")
        if cpu and (shares or not fresh):
            _write(f"{cpu}/cpu.shares", str(max(2, min(shares, 262144))) if shares else "1024")
        bytes_max = int(limits.get("memory_bytes", 0))
        if bytes_max and memory is None and self.parent.strip("/") != NO_CGROUPS:
            raise OSError(
                95, "this host has cgroup v1, and its kernel no memory controller for it: boot with v2", "memory"
            )
        if memory and (bytes_max or not fresh):
            _set_memory_v1(memory, bytes_max, _memory_and_swap(bytes_max, int(limits.get("memory_swap_bytes", 0))))
        reservation = int(limits.get("memory_reservation_bytes", 0))
        if memory and (reservation or not fresh):
            _write(f"{memory}/memory.soft_limit_in_bytes", str(reservation or -1))
        pids, pids_max = self._v1("pids", path), int(limits.get("pids_limit", 0))
        if pids and (pids_max > 0 or not fresh):
            _write(f"{pids}/pids.max", str(pids_max) if pids_max > 0 else "max")
        cpus = str(limits.get("cpuset_cpus", ""))
        mems = str(limits.get("cpuset_mems", ""))
        swappiness = int(limits.get("memory_swappiness", -1))
        if memory and swappiness >= 0:
            _write(f"{memory}/memory.swappiness", str(swappiness))
        if memory and (limits.get("oom_kill_disable") or not fresh):
            _write(f"{memory}/memory.oom_control", "1" if limits.get("oom_kill_disable") else "0")
        self._limit_io_v1(path, limits)
        if cpus or mems:
            self._pin_v1(path, cpus, mems)
        elif not fresh and (directory := self._v1("cpuset", path)) and os.path.isdir(directory):
            _write(f"{directory}/cpuset.cpus", _read(f"{os.path.dirname(directory)}/cpuset.cpus").strip())

    def _limit_io_v1(self, path: str, limits: Mapping[str, Any]) -> None:
        blkio = self._v1("blkio", path)
        weight, weights = int(limits.get("blkio_weight", 0)), limits.get("blkio_weight_devices") or ()
        for name, device, value in (
            *([("weight", "", weight)] if weight else []),
            *(("weight_device", device, value) for device, value in weights),
            *((file, device, rate) for key, file in _THROTTLES_V1 for device, rate in limits.get(key) or ()),
        ):
            if blkio is None:
                raise OSError(95, "blkio controller is not mounted on this host", "blkio")
            files = [f"{blkio}/blkio.{name}", f"{blkio}/blkio.bfq.{name}"]
            found = next((file for file in files if os.path.exists(file)), "")
            if not found:
                raise OSError(95, "this kernel has no I/O scheduler with weights (bfq)", files[0])
            _write(found, f"{device} {value}".strip())

    def _pin_v1(self, path: str, cpus: str, mems: str) -> None:
        root = self.layout.v1.get("cpuset")
        if root is None:
            raise OSError(95, "cpuset controller is not mounted on this host", "cpuset")
        directory, parts = root, [*self.parent.strip("/").split("/"), *path.split("/")]
        for part in parts:
            above, directory = directory, f"{directory}/{part}"
            os.makedirs(directory, exist_ok=True)
            for name in ("cpuset.mems", "cpuset.cpus"):
                if not _read(f"{directory}/{name}").strip():
                    _write(f"{directory}/{name}", _read(f"{above}/{name}").strip())
        if mems:
            _write(f"{directory}/cpuset.mems", mems)
        if cpus:
            _write(f"{directory}/cpuset.cpus", cpus)

    def _limits_v2(self, path: str, limits: Mapping[str, Any], fresh: bool) -> None:
        directory = f"{self.layout.unified}{self.parent}/{path}"
        values: list[tuple[str, str, bool]] = []
        shares = int(limits.get("cpu_shares", 0))
        period, quota = _period_and_quota(limits)
        limited = str(quota) if quota > 0 else "max"
        values.append(("cpu.max", f"{limited} {period or _CPU_PERIOD_US}", quota > 0 or bool(period)))
        weight = 1 + ((max(2, min(shares, 262144)) - 2) * 9999) // 262142 if shares else 100
        values.append(("cpu.weight", str(weight), bool(shares)))
        bytes_max = int(limits.get("memory_bytes", 0))
        values.append(("memory.max", str(bytes_max) if bytes_max else "max", bool(bytes_max)))
        total = _memory_and_swap(bytes_max, int(limits.get("memory_swap_bytes", 0)))
        values.append(
            ("memory.swap.max", str(max(total - bytes_max, 0)) if bytes_max and total > 0 else "max", bool(bytes_max))
        )
        reservation = int(limits.get("memory_reservation_bytes", 0))
        values.append(("memory.low", str(reservation), bool(reservation)))
        pids_max = int(limits.get("pids_limit", 0))
        values.append(("pids.max", str(pids_max) if pids_max > 0 else "max", pids_max > 0))
        cpus = str(limits.get("cpuset_cpus", ""))
        if not (cpus or fresh) and _is_pinned(directory):  # with processes in it, it must not be emptied (ENOSPC)
            cpus = _read(f"{os.path.dirname(directory)}/cpuset.cpus.effective").strip()
        values.append(("cpuset.cpus", cpus, bool(cpus)))
        values.append(("cpuset.mems", str(limits.get("cpuset_mems", "")), bool(limits.get("cpuset_mems"))))
        if int(limits.get("memory_swappiness", -1)) >= 0 or limits.get("oom_kill_disable"):
            raise OSError(95, "cgroup v2 has neither swappiness nor a switch for the OOM killer", directory)
        values += [(name, value, True) for name, value in _io_v2(limits)]
        for name, value, wanted in values:
            if not wanted and (fresh or not value or not os.path.exists(f"{directory}/{name}")):
                continue
            try:
                _write(f"{directory}/{name}", value)
            except FileNotFoundError:
                if name != "memory.swap.max":  # a kernel without swap accounting has no such file, and no swap to limit
                    raise

    # --- freezing, killing, removing ----------------------------------------------------------------------------

    def freeze(self, path: str) -> None:
        """Stop every process of the group; returns when they are. Raises OSError(ETIMEDOUT) and thaws if that takes
        over two seconds.
        """
        if self.is_v2:
            directory = f"{self.layout.unified}{self.parent}/{path}"
            _write(f"{directory}/cgroup.freeze", "1")
        else:
            directory = self._need_v1("freezer", path)
            _write(f"{directory}/freezer.state", "FROZEN")
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        while not self._is_frozen(directory):
            if time.monotonic() > deadline:
                self.thaw(path)
                raise OSError(110, "processes did not freeze within two seconds", directory)
            time.sleep(0.001)
            if not self.is_v2:  # v1 gives up on processes that were forking; asking again carries on
                _write(f"{directory}/freezer.state", "FROZEN")

    def _is_frozen(self, directory: str) -> bool:
        if self.is_v2:
            return "frozen 1" in _read(f"{directory}/cgroup.events")
        return _read(f"{directory}/freezer.state").strip() == "FROZEN"

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
            _write(f"{self.layout.unified}{self.parent}/{path}/cgroup.freeze", "0")
        else:
            _write(f"{self._need_v1('freezer', path)}/freezer.state", "THAWED")

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
                text = _read(f"{self.layout.unified}{self.parent}/{path}/memory.events")
            else:
                text = _read(f"{self._need_v1('memory', path)}/memory.oom_control")
        except OSError:
            return 0
        return _field(text, "oom_kill")

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
            _write(f"{directory}/cgroup.event_control", f"{event} {control}")
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
        return self._figures_v2(path) if self.is_v2 else self._figures_v1(path)

    def _figures_v1(self, path: str) -> dict[str, int]:
        result: dict[str, int] = {}
        if (directory := self._v1("cpuacct", path)) is not None:
            result["cpu_usage_ns"] = int(_read(f"{directory}/cpuacct.usage"))
            with contextlib.suppress(OSError):
                result["cpu_user_ns"] = int(_read(f"{directory}/cpuacct.usage_user"))
                result["cpu_system_ns"] = int(_read(f"{directory}/cpuacct.usage_sys"))
        if (directory := self._v1("cpu", path)) is not None:
            text = _read(f"{directory}/cpu.stat")
            result["cpu_periods"], result["cpu_throttled_periods"] = (
                _field(text, "nr_periods"),
                _field(text, "nr_throttled"),
            )
            result["cpu_throttled_ns"] = _field(text, "throttled_time")
        if (directory := self._v1("memory", path)) is not None:
            result["memory_usage_bytes"] = int(_read(f"{directory}/memory.usage_in_bytes"))
            result["memory_peak_bytes"] = int(_read(f"{directory}/memory.max_usage_in_bytes"))
            limit = int(_read(f"{directory}/memory.limit_in_bytes"))
            result["memory_limit_bytes"] = 0 if limit >= _UNLIMITED else limit
            text = _read(f"{directory}/memory.stat")
            result["memory_inactive_file_bytes"] = _field(text, "total_inactive_file")
            result["memory_anonymous_bytes"] = _field(text, "total_rss")
            result["memory_file_bytes"] = _field(text, "total_cache")
        result["oom_kills"] = self.oom_kills(path)
        if (directory := self._v1("pids", path)) is not None:
            result["pids"] = int(_read(f"{directory}/pids.current"))
            text = _read(f"{directory}/pids.max").strip()
            result["pids_limit"] = 0 if text == "max" else int(text)
        if (directory := self._v1("blkio", path)) is not None:
            with contextlib.suppress(OSError):
                for line in _read(f"{directory}/blkio.throttle.io_service_bytes").splitlines():
                    _, _, tail = line.partition(" ")
                    kind, _, number = tail.partition(" ")
                    if kind in ("Read", "Write"):
                        key = f"block_{kind.lower()}_bytes"
                        result[key] = result.get(key, 0) + int(number)
        return result

    def _figures_v2(self, path: str) -> dict[str, int]:
        directory = f"{self.layout.unified}{self.parent}/{path}"
        text = _read(f"{directory}/cpu.stat")
        result = {
            "cpu_usage_ns": _field(text, "usage_usec") * 1000,
            "cpu_user_ns": _field(text, "user_usec") * 1000,
            "cpu_system_ns": _field(text, "system_usec") * 1000,
            "cpu_periods": _field(text, "nr_periods"),
            "cpu_throttled_periods": _field(text, "nr_throttled"),
            "cpu_throttled_ns": _field(text, "throttled_usec") * 1000,
            "oom_kills": self.oom_kills(path),
        }
        with contextlib.suppress(FileNotFoundError):
            result["memory_usage_bytes"] = int(_read(f"{directory}/memory.current"))
            limit = _read(f"{directory}/memory.max").strip()
            result["memory_limit_bytes"] = 0 if limit == "max" else int(limit)
            text = _read(f"{directory}/memory.stat")
            result["memory_inactive_file_bytes"] = _field(text, "inactive_file")
            result["memory_anonymous_bytes"] = _field(text, "anon")
            result["memory_file_bytes"] = _field(text, "file")
            result["memory_peak_bytes"] = int(_read(f"{directory}/memory.peak"))
        with contextlib.suppress(FileNotFoundError):
            result["pids"] = int(_read(f"{directory}/pids.current"))
            limit = _read(f"{directory}/pids.max").strip()
            result["pids_limit"] = 0 if limit == "max" else int(limit)
        with contextlib.suppress(FileNotFoundError):
            for line in _read(f"{directory}/io.stat").splitlines():
                for pair in line.split()[1:]:
                    key, _, number = pair.partition("=")
                    if key in ("rbytes", "wbytes"):
                        name = "block_read_bytes" if key == "rbytes" else "block_write_bytes"
                        result[name] = result.get(name, 0) + int(number)
        return result

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


def _is_pinned(directory: str) -> bool:
    try:
        return bool(_read(f"{directory}/cpuset.cpus").strip())
    except FileNotFoundError:
        return False


_CPU_PERIOD_US = 100_000
_THROTTLES_V1 = (
    ("device_read_bps", "throttle.read_bps_device"),
    ("device_write_bps", "throttle.write_bps_device"),
    ("device_read_iops", "throttle.read_iops_device"),
    ("device_write_iops", "throttle.write_iops_device"),
)
_THROTTLES_V2 = (
    ("device_read_bps", "rbps"),
    ("device_write_bps", "wbps"),
    ("device_read_iops", "riops"),
    ("device_write_iops", "wiops"),
)


def _period_and_quota(limits: Mapping[str, Any]) -> tuple[int, int]:
    """(period, quota) in microseconds; 0 is the kernel's own period and no limit."""
    nano_cpus = int(limits.get("nano_cpus", 0))
    if nano_cpus:
        return _CPU_PERIOD_US, max(nano_cpus // 10_000, 1000)
    return int(limits.get("cpu_period_us", 0)), int(limits.get("cpu_quota_us", 0))


def _io_v2(limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines for io.max and io.weight; v1's weight of 10..1000 becomes v2's 1..10000 as runc converts it."""
    lines = []
    weight = int(limits.get("blkio_weight", 0))
    if weight:
        lines.append(("io.weight", str(_io_weight(weight))))
    lines += [
        ("io.weight", f"{device} {_io_weight(value)}") for device, value in limits.get("blkio_weight_devices") or ()
    ]
    lines += [
        ("io.max", f"{device} {word}={rate or 'max'}")
        for key, word in _THROTTLES_V2
        for device, rate in limits.get(key) or ()
    ]
    return lines


def _io_weight(weight: int) -> int:
    return 1 + (weight - 10) * 9999 // 990


def _memory_and_swap(memory: int, total: int) -> int:
    """Docker's rule: unset means twice the memory, -1 means no limit."""
    return total or 2 * memory


def _set_memory_v1(directory: str, memory: int, total: int) -> None:
    limit, both = str(memory or -1), str(total if memory and total > 0 else -1)
    names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    values = dict(zip(names, (limit, both), strict=True))
    if not os.path.exists(f"{directory}/{names[1]}"):
        _write(f"{directory}/{names[0]}", limit)
        return
    current = int(_read(f"{directory}/{names[1]}"))
    if both == "-1" or int(both) > current:
        names.reverse()
    for name in names:
        _write(f"{directory}/{name}", values[name])


def _pids_from(directory: str) -> list[int]:
    found: list[int] = []
    try:
        found += map(int, _read(f"{directory}/cgroup.procs").split())
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
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
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
        pids = _read(f"{directory}/cgroup.procs").split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(f"{directory}/init/cgroup.procs", pid)
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


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {error.strerror}", path) from None
    finally:
        os.close(fd)
