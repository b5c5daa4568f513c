"""From a spec to the start request: every check that needs no kernel, every default, every name turned into a number.
Pure but for `read_host`.

The supervisor carries out plans and decides nothing, so what it does can be read (and tested) here. A plan is plain
JSON.
"""

from __future__ import annotations

import base64
import functools
import os
import posixpath
import re
import resource
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleet.errors import RejectedFault, UserError
from fleet.node_runtime import seccomp, seccomp_profile
from fleet.node_runtime.capabilities import ALL_CAPABILITIES, capability_mask, normalize_capability
from fleet.node_runtime.cgroups import DEFAULT_DEVICE_RULES
from fleet.node_runtime.spec import (
    ContainerSpec,
    DeviceRate,
    DeviceSpec,
    MountSpec,
    ProcessSpec,
    ResourceLimits,
    RootFs,
)
from fleet.privilege import has_single_id, in_initial_user_namespace, keeps_groups

__all__ = [
    "HostFacts",
    "HostDevice",
    "check_container_id",
    "plan_container",
    "plan_limits",
    "plan_process",
    "read_host",
]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ARGUMENTS_BYTES_MAX = 2 << 20  # a little above what the kernel takes for arguments and environment together by default
_MOUNTS_MAX = 512
_LAYERS_MAX = 500  # overlayfs's own limit
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_OPTION_BITS = {"nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC}
_CLEARING = {"suid": _NOSUID, "dev": _NODEV, "exec": _NOEXEC}
_PROPAGATIONS = ("rprivate", "private", "rslave", "slave", "rshared", "shared")
_SYSCTL_ALONE: tuple[str, ...] = (
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
)
_SYSCTL_ALONE += ("kernel.shm_rmid_forced",)
_RLIMITS = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device node of the host."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a plan depends on outside the spec."""

    machine: str
    thermal_throttle: tuple[str, ...] = ()
    """Per-cpu directories that Docker masks as well."""
    is_rootless: bool = False
    """Root is that of a user namespace: no device node can be made, and overlayfs keeps its marks in ``user.`` attributes."""
    keeps_groups: bool = False
    """setgroups(2) is forbidden."""
    has_single_id: bool = False
    """Root is the only user."""


@functools.lru_cache(maxsize=1)
def read_host() -> HostFacts:
    """Facts of this host; they do not change while it is up."""
    base = Path("/sys/devices/system/cpu")
    found = sorted(str(path) for path in base.glob("cpu[0-9]*/thermal_throttle"))
    return HostFacts(
        machine=os.uname().machine,
        thermal_throttle=tuple(found),
        is_rootless=not in_initial_user_namespace(),
        keeps_groups=keeps_groups(),
        has_single_id=has_single_id(),
    )


def check_container_id(container_id: str) -> str:
    """The id, if it can be a file name and a cgroup; raises `UserError` otherwise."""
    if not _ID.fullmatch(container_id):
        raise UserError(
            f"container id {container_id!r}: letters, digits, '_', '.', '-', at most 128, starting with a letter or digit"
        )
    return container_id


def plan_container(spec: ContainerSpec, *, host: HostFacts) -> dict[str, Any]:
    """The start request's plan. Raises `UserError` for a malformed spec, `RejectedFault` for a device or profile the
    host does not have.
    """
    container_id = check_container_id(spec.id)
    _check_namespaces(spec)
    devices = _host_devices() if spec.privileged else tuple(_device(entry) for entry in spec.devices)
    rules = [list(rule) for rule in DEFAULT_DEVICE_RULES]
    rules += [
        [device.kind, device.major, device.minor, entry.permissions]
        for device, entry in zip(devices, spec.devices, strict=False)
        if not spec.privileged
    ]
    rules += [_device_rule(text) for text in spec.device_cgroup_rules]
    masked = () if spec.privileged else (*spec.masked_paths, *host.thermal_throttle)
    return {
        "id": container_id,
        "hostname": _host_name(spec.hostname or container_id[:12], "host name"),
        "domainname": _host_name(spec.domainname, "domain name") if spec.domainname else "",
        "root": _plan_root(spec.root),
        "mounts": _plan_mounts(spec.mounts),
        "process": plan_process(spec.process, seccomp_choice=spec.seccomp, privileged=spec.privileged, host=host),
        "network": spec.network,
        "pid": spec.pid,
        "ipc": spec.ipc,
        "uts": spec.uts,
        "cgroup_namespace": spec.cgroup_namespace,
        "cgroup": _cgroup_path(spec.cgroup_path or container_id),
        "limits": plan_limits(spec.resources),
        # Without root no rules can be attached, and a device opens with the user's own rights in any case.
        "device_rules": None if spec.privileged or host.is_rootless else rules,
        "user_namespace": _plan_users(spec),
        "rootless": host.is_rootless,
        "terminal_group": not host.has_single_id,
        "device_sources": [device.path for device in devices],
        "device_nodes": [
            [_absolute(target, "device target"), d.kind, d.major, d.minor, d.mode, d.uid, d.gid]
            for d, target in zip(devices, _device_targets(spec, devices), strict=True)
        ],
        "sysctls": _plan_sysctls(spec),
        "masked_paths": [_absolute(path, "masked path") for path in masked],
        "read_only_paths": []
        if spec.privileged
        else [_absolute(path, "read-only path") for path in spec.read_only_paths],
        "sys_read_only": not spec.privileged,
        "init": spec.init,
        "shm_size": max(spec.shm_size_bytes, 0),
        "log": None if spec.log is None else {**asdict(spec.log), "path": _absolute(spec.log.path, "log path")},
    }


def _check_namespaces(spec: ContainerSpec) -> None:
    for what, mode, plain in (
        ("network", spec.network, ("none", "host", "fd")),
        ("pid", spec.pid, ("private", "host")),
        ("ipc", spec.ipc, ("private", "host", "none")),
    ):
        kind, colon, other = mode.partition(":")
        if colon and kind == "container":
            if check_container_id(other) == spec.id:
                raise UserError(f"{what} namespace: a container cannot join itself")
        else:
            _one_of(mode, plain, what)
    _one_of(spec.uts, ("private", "host"), "uts")
    _one_of(spec.cgroup_namespace, ("private", "host"), "cgroup namespace")
    if spec.uts == "host" and (spec.hostname or spec.domainname):
        raise UserError("a host name cannot be set in the host's UTS namespace")


def _plan_users(spec: ContainerSpec) -> list[int] | None:
    """Docker's rules of userns-remap: what shares the host cannot have ids of its own. What shares with containers has theirs."""
    wanted = spec.user_namespace
    if wanted is None:
        return None
    if wanted.first_id < 1 or wanted.count < 1 or wanted.first_id + wanted.count > (1 << 32) - 1:
        raise UserError(f"user namespace of {wanted.count} ids from {wanted.first_id}: not a range of ids above 0")
    if spec.privileged:
        raise UserError("privileged mode is incompatible with user namespaces: run it in the host's user namespace")
    if "host" in (spec.network, spec.pid, spec.ipc, spec.uts, spec.cgroup_namespace):
        raise UserError("cannot share a namespace with the host when user namespaces are enabled")
    if spec.network == "none" and ":" in f"{spec.pid}{spec.ipc}":
        raise UserError("no network, and namespaces of another container: not in a user namespace")
    return [wanted.first_id, wanted.count]


_DEVICE_RULE = re.compile(r"([abc]) (\d{1,10}|\*):(\d{1,10}|\*) ([rwm]{1,3})")


def _device_rule(text: str) -> list[Any]:
    found = _DEVICE_RULE.fullmatch(text)
    if not found:
        raise UserError(f"invalid device cgroup format '{text}': expected something like 'c 1:3 rwm'")
    kind, major, minor, access = found.groups()
    numbers = [-1 if number == "*" else int(number) for number in (major, minor)]
    if max(numbers) >= 1 << 31:
        raise UserError(f"invalid device cgroup format '{text}': a number is too large")
    return [kind, *numbers, "".join(sorted(set(access), key="rwm".index))]


def plan_limits(limits: ResourceLimits) -> dict[str, Any]:
    """Limits as the supervisor takes them. Raises `UserError` for one that makes no sense."""
    if min(limits.nano_cpus, limits.memory_bytes, limits.cpu_shares, limits.memory_reservation_bytes) < 0:
        raise UserError("resource limits cannot be negative")
    if 0 < limits.memory_bytes < 6 << 20:
        raise UserError(
            f"memory limit of {limits.memory_bytes} bytes: the minimum is 6 MiB, below it nothing can start"
        )
    if limits.memory_swap_bytes > 0 and not limits.memory_bytes:
        raise UserError("memory and swap limit without a memory limit")
    if 0 < limits.memory_swap_bytes < limits.memory_bytes:
        raise UserError("the memory and swap limit is the sum of both and cannot be below the memory limit")
    for text in (limits.cpuset_cpus, limits.cpuset_mems):
        if text and not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
            raise UserError(f"cpuset {text!r} is not a list like 0-2,4")
    if limits.nano_cpus and (limits.cpu_quota_us > 0 or limits.cpu_period_us):
        raise UserError("CPUs are limited either by nano_cpus or by period and quota")
    if limits.cpu_period_us and not 1000 <= limits.cpu_period_us <= 1_000_000:
        raise UserError("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < limits.cpu_quota_us < 1000:
        raise UserError("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if not -1 <= limits.memory_swappiness <= 100:
        raise UserError(f"invalid value: {limits.memory_swappiness}, valid memory swappiness range is 0-100")
    if limits.blkio_weight and not 10 <= limits.blkio_weight <= 1000:
        raise UserError("range of blkio weight is from 10 to 1000")
    planned = asdict(limits)
    for name in _DEVICE_RATES:
        planned[name] = [_device_rate(entry) for entry in getattr(limits, name)]
    return planned


_DEVICE_RATES = (
    "blkio_weight_devices",
    "device_read_bps",
    "device_write_bps",
    "device_read_iops",
    "device_write_iops",
)


def _device_rate(entry: DeviceRate) -> list[Any]:
    """``["major:minor", rate]`` of a block device of the host."""
    if entry.rate < 0:
        raise UserError(f"device {entry.path}: a rate cannot be negative")
    device = _device(DeviceSpec(source=entry.path))
    if device.kind != "b":
        raise RejectedFault(f"device {entry.path}: not a block device")
    return [f"{device.major}:{device.minor}", entry.rate]


def plan_process(
    process: ProcessSpec, *, seccomp_choice: str = "default", privileged: bool = False, host: HostFacts
) -> dict[str, Any]:
    """A process as the supervisor takes it, for a start or an exec. Raises `UserError`, `RejectedFault`."""
    if not process.args or not process.args[0]:
        raise UserError("no command: the spec has no args and an empty string cannot be executed")
    texts = (*process.args, *process.env, process.cwd, process.user, process.apparmor, *process.additional_groups)
    if any("\0" in text for text in texts):
        raise UserError("arguments, environment and paths cannot contain a NUL character")
    if sum(len(text) for text in texts) > _ARGUMENTS_BYTES_MAX:
        raise UserError(f"arguments and environment are larger than {_ARGUMENTS_BYTES_MAX} bytes")
    for pair in process.env:
        if pair.startswith("=") or not pair:
            raise UserError(f"environment entry {pair!r} has no name")
    names = ALL_CAPABILITIES if privileged else _expand(process.capabilities)
    program = b"" if privileged else _seccomp_program(seccomp_choice, names, host.machine)
    rlimits = []
    for limit in process.rlimits:
        if limit.name.lower() not in _RLIMITS:
            raise UserError(f"unknown limit {limit.name!r}; known are {', '.join(sorted(_RLIMITS))}")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise UserError(f"limit {limit.name}: soft {limit.soft} is above hard {limit.hard}")
        rlimits.append([_RLIMITS[limit.name.lower()], limit.soft, limit.hard])
    if not -1000 <= process.oom_score_adj <= 1000:
        raise UserError(f"oom score adjustment {process.oom_score_adj} is not within -1000..1000")
    return {
        "args": list(process.args),
        "env": list(process.env),
        "cwd": _absolute(process.cwd or "/", "working directory"),
        "user": process.user,
        "groups": list(process.additional_groups),
        "keeps_groups": host.keeps_groups,
        "tty": process.tty,
        "capabilities": capability_mask(names),
        "no_new_privileges": process.no_new_privileges and not privileged,
        "apparmor": process.apparmor,
        "rlimits": rlimits,
        "oom_score_adj": process.oom_score_adj,
        "seccomp": base64.b64encode(program).decode(),
    }


def _expand(names: Iterable[str]) -> tuple[str, ...]:
    listed = tuple(names)
    if any(name.upper().removeprefix("CAP_") == "ALL" for name in listed):
        return ALL_CAPABILITIES
    return tuple(sorted({normalize_capability(name) for name in listed}))


def _seccomp_program(choice: str, capabilities: tuple[str, ...], machine: str) -> bytes:
    if choice == "unconfined":
        return b""
    if choice == "default":
        return _default_program(capabilities, machine)
    if choice.lstrip().startswith("{"):
        return _profile_program(choice, capabilities, machine)
    try:
        text = Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RejectedFault(f"seccomp profile {choice}: {error}") from error
    return _profile_program(text, capabilities, machine)


@functools.lru_cache(maxsize=64)
def _default_program(capabilities: tuple[str, ...], machine: str) -> bytes:
    return seccomp.assemble(seccomp_profile.default_policy(capabilities, machine=machine))


@functools.lru_cache(maxsize=16)
def _profile_program(text: str, capabilities: tuple[str, ...], machine: str) -> bytes:
    return seccomp.assemble(seccomp_profile.parse_profile(text, capabilities, machine=machine))


def _plan_root(root: RootFs) -> dict[str, Any]:
    if bool(root.lower_dirs) == bool(root.plain_dir):
        raise UserError("a root is either an overlay (lower_dirs) or a plain_dir")
    if bool(root.upper_dir) != bool(root.work_dir):
        raise UserError("an overlay's upper_dir and work_dir come together")
    if len(root.lower_dirs) > _LAYERS_MAX:
        raise UserError(f"{len(root.lower_dirs)} layers: overlayfs takes at most {_LAYERS_MAX}")
    paths = [path for path in (*root.lower_dirs, root.upper_dir, root.work_dir, root.plain_dir) if path]
    for path in paths:
        _absolute(path, "root directory")
        if root.lower_dirs and any(character in path for character in ":,\\"):
            raise UserError(f"layer path {path!r} contains a character overlayfs uses for itself (: , backslash)")
    return {
        "lower": list(root.lower_dirs),
        "upper": root.upper_dir,
        "work": root.work_dir,
        "plain": root.plain_dir,
        "read_only": root.read_only or (bool(root.lower_dirs) and not root.upper_dir),
    }


def _plan_mounts(mounts: tuple[MountSpec, ...]) -> list[dict[str, Any]]:
    if len(mounts) > _MOUNTS_MAX:
        raise UserError(f"{len(mounts)} mounts, at most {_MOUNTS_MAX}")
    planned, seen = [], set()
    for mount in mounts:
        target = _absolute(mount.target, "mount target")
        if target in {"/", "/proc"} or target.startswith("/proc/"):
            raise UserError(f"mount target {mount.target}: nothing can be mounted on / or below /proc")
        if target in seen:
            raise UserError(f"duplicate mount point: {target}")
        seen.add(target)
        bits = _NOSUID | _NODEV | _NOEXEC if mount.kind == "tmpfs" else 0
        for option in mount.options:
            if option in _OPTION_BITS:
                bits |= _OPTION_BITS[option]
            elif option in _CLEARING:
                bits &= ~_CLEARING[option]
            else:
                raise UserError(f"mount {target}: unknown option {option!r}")
        if mount.read_only:
            bits |= _RDONLY
        options = []
        if _one_of(mount.kind, ("bind", "tmpfs"), f"mount {target}: kind") == "tmpfs":
            options.append(["mode", format(0o1777 if mount.mode is None else mount.mode, "o")])
            if mount.size_bytes > 0:
                options.append(["size", str(mount.size_bytes)])
        else:
            _absolute(mount.source, f"mount {target}: source")
        planned.append(
            {
                "kind": mount.kind,
                "target": target,
                "source": mount.source,
                "recursive": mount.recursive,
                "set": bits,
                "propagation": _one_of(mount.propagation, _PROPAGATIONS, f"mount {target}: propagation"),
                "options": options,
            }
        )
    return planned


def _plan_sysctls(spec: ContainerSpec) -> list[list[str]]:
    """Only what belongs to the container's own namespaces; anything else would change the host."""
    planned = []
    for name, value in sorted(spec.sysctls.items()):
        own = (
            (name in _SYSCTL_ALONE and spec.ipc in ("private", "none"))
            or (name.startswith("fs.mqueue.") and spec.ipc in ("private", "none"))
            or (name.startswith("net.") and spec.network in ("none", "fd"))
        )
        if not own or not re.fullmatch(r"[a-z0-9_./-]+", name) or ".." in name or "//" in name:
            raise UserError(f"sysctl {name}: not in a namespace of the container")
        planned.append([name, value])
    return planned


def _device(entry: DeviceSpec) -> HostDevice:
    if not entry.permissions or set(entry.permissions) - set("rwm"):
        raise UserError(f"device {entry.source}: permissions {entry.permissions!r} are not of r, w, m")
    try:
        found = os.stat(_absolute(entry.source, "device"))
    except OSError as error:
        raise RejectedFault(f"device {entry.source}: {error.strerror}") from error
    device = _as_device(entry.source, found)
    if device is None:
        raise RejectedFault(f"device {entry.source}: not a device node")
    return device


def _as_device(path: str, found: os.stat_result) -> HostDevice | None:
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return None
    return HostDevice(
        path=path,
        kind="b" if stat.S_ISBLK(found.st_mode) else "c",
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
    )


_OWN_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}


def _host_devices() -> tuple[HostDevice, ...]:
    """What a privileged container sees: the nodes directly in the host's /dev."""
    devices = []
    for entry in os.scandir("/dev"):
        if entry.name not in _OWN_DEVICES and not entry.is_symlink():
            device = _as_device(entry.path, entry.stat(follow_symlinks=False))
            if device is not None:
                devices.append(device)
    return tuple(sorted(devices, key=lambda device: device.path))


def _device_targets(spec: ContainerSpec, devices: tuple[HostDevice, ...]) -> list[str]:
    if spec.privileged:
        return [device.path for device in devices]
    return [entry.target or entry.source for entry in spec.devices]


def _cgroup_path(path: str) -> str:
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") or "\0" in part or len(part) > 255 for part in parts):
        raise UserError(f"cgroup path {path!r} is not a relative path of plain names")
    return "/".join(parts)


def _host_name(name: str, what: str) -> str:
    if len(name.encode()) > 64 or "\0" in name:
        raise UserError(f"{what} {name!r}: at most 64 bytes")
    return name


def _absolute(path: str, what: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise UserError(f"{what} {path!r} is not an absolute path")
    normal = posixpath.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _one_of(value: str, allowed: tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise UserError(f"{what} {value!r} is not one of {', '.join(allowed)}")
    return value
