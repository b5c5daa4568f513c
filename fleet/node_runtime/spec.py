"""What a container is, as plain values: everything the supervisor needs to know, and nothing about images or services.

Standard library only. Values are checked when they are turned into a start plan (`fleet.node_runtime.plan`), not
here, so that a spec can be built in steps. ``to_json``/``from_json`` round-trip; unknown keys are refused, missing
ones take the default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fleet.errors import UserError
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES

__all__ = [
    "DEFAULT_MASKED_PATHS",
    "DEFAULT_PATH",
    "DEFAULT_READ_ONLY_PATHS",
    "ContainerSpec",
    "DeviceRate",
    "DeviceSpec",
    "LogSpec",
    "MountSpec",
    "ProcessSpec",
    "ResourceLimits",
    "Rlimit",
    "UserNamespace",
    "RootFs",
    "from_json",
    "to_json",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""Docker's list; per-cpu thermal throttle directories are added where the host has them."""

DEFAULT_READ_ONLY_PATHS: tuple[str, ...] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFs:
    """Either an overlay (``lower_dirs`` topmost first, ``upper_dir``, ``work_dir``) or one ``plain_dir`` used as it
    is.
    """

    lower_dirs: tuple[str, ...] = ()
    upper_dir: str = ""
    work_dir: str = ""
    read_only: bool = False
    plain_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """A directory, file or tmpfs in the container. ``target`` is absolute and is resolved inside the container's root
    only.
    """

    kind: Literal["bind", "tmpfs"]
    target: str
    source: str = ""
    """Absolute host path that must exist; binds only."""
    read_only: bool = False
    propagation: Literal["rprivate", "private", "rslave", "slave", "rshared", "shared"] = "rprivate"
    size_bytes: int = 0
    """tmpfs only; 0 leaves the kernel's default of half the memory."""
    mode: int | None = None
    """tmpfs only; permission bits of its root, 0o1777 when None."""
    recursive: bool = True
    """Bind the mounts below the source as well."""
    options: tuple[str, ...] = ()
    """Of noexec, nosuid, nodev, exec, suid, dev. A tmpfs is noexec,nosuid,nodev unless these say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRate:
    """A limit (bytes or operations a second) or, for ``ResourceLimits.blkio_weight_devices``, a weight of one block
    device.
    """

    path: str
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Limits of the container as a whole; 0 and '' mean unlimited. ``memory_swap_bytes`` is memory plus swap, -1
    unlimited swap.
    """

    nano_cpus: int = 0
    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    memory_reservation_bytes: int = 0
    pids_limit: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cpu_period_us: int = 0
    """With ``cpu_quota_us`` the same limit as ``nano_cpus``, in the kernel's words; not both."""
    cpu_quota_us: int = 0
    memory_swappiness: int = -1
    """0..100; -1 leaves the host's. cgroup v1 only: v2 has nothing like it."""
    oom_kill_disable: bool = False
    """cgroup v1 only."""
    blkio_weight: int = 0
    """10..1000; needs an I/O scheduler with weights (bfq) or v2's io.weight."""
    blkio_weight_devices: tuple[DeviceRate, ...] = ()
    device_read_bps: tuple[DeviceRate, ...] = ()
    device_write_bps: tuple[DeviceRate, ...] = ()
    device_read_iops: tuple[DeviceRate, ...] = ()
    device_write_iops: tuple[DeviceRate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    """A limit of getrlimit(2) by its short name (``nofile``); -1 is unlimited. Clamped to the host's hard limit,
    never an error.
    """

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: the container's first, or one joined by exec."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    """``user[:group]``, names from the container's /etc/passwd and /etc/group or numbers; '' is root."""
    additional_groups: tuple[str, ...] = ()
    tty: bool = False
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    no_new_privileges: bool = True
    apparmor: str = ""
    """The AppArmor profile it is executed under, ``unconfined`` for none; '' stays under what the supervisor runs under."""
    rlimits: tuple[Rlimit, ...] = (Rlimit(name="nofile", soft=1024, hard=524288),)
    oom_score_adj: int = 0
    """Lower than the supervisor's own is raised to it: lowering needs a capability the host may lack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSpec:
    """Where standard output and error go: Docker's json-file lines, rotated to ``path.1`` ... ``path.(max_files-1)``."""

    path: str
    max_size_bytes: int = 10 << 20
    max_files: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A host device made available: the node is created at ``target`` and the cgroup lets it be opened with
    ``permissions``.
    """

    source: str
    target: str = ""
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespace:
    """The container's ids 0..count-1 are the host's ``first_id``..``first_id + count - 1``, users and groups alike."""

    first_id: int
    count: int = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A whole container. ``network='fd'`` means a network namespace handed to `RuntimeClient.start`.

    ``container:ID`` in ``network``, ``pid`` and ``ipc`` joins the namespace of a container that this supervisor runs.
    """

    id: str
    root: RootFs
    process: ProcessSpec
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[MountSpec, ...] = ()
    resources: ResourceLimits = field(default_factory=ResourceLimits)
    network: str = "none"
    """``none``, ``host``, ``fd`` or ``container:ID``."""
    pid: str = "private"
    """``private``, ``host`` or ``container:ID``. Not private: when the first process ends, the others of the container's
    cgroup are killed, as the kernel does for a namespace of its own.
    """
    ipc: str = "private"
    """``private``, ``host``, ``container:ID`` (with its /dev/shm) or ``none`` (private, without /dev/shm)."""
    uts: Literal["private", "host"] = "private"
    cgroup_namespace: Literal["private", "host"] = "private"
    user_namespace: UserNamespace | None = None
    """None: the host's ids. Needs Linux 6.13, and no namespace may be the host's. It is the user namespace that the network
    (``fd``) belongs to, or that of the containers whose namespaces are shared, else a new one.
    """
    cgroup_path: str = ""
    """Below the client's cgroup parent; the id when empty."""
    log: LogSpec | None = None
    """None throws output away (after giving it to whoever is attached)."""
    seccomp: str = "default"
    """``default``, ``unconfined``, a profile in Docker's JSON form, or the path of one."""
    masked_paths: tuple[str, ...] = DEFAULT_MASKED_PATHS
    read_only_paths: tuple[str, ...] = DEFAULT_READ_ONLY_PATHS
    devices: tuple[DeviceSpec, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    """``c 1:3 rwm``: what may be opened beside ``devices``; ``*`` for a number is any."""
    sysctls: dict[str, str] = field(default_factory=dict)
    init: bool = False
    privileged: bool = False
    shm_size_bytes: int = 64 << 20


_Spec = TypeVar("_Spec")


def to_json(spec: Any) -> dict[str, Any]:
    """A spec as what ``json.dumps`` takes."""
    return dataclasses.asdict(spec)


def from_json(kind: type[_Spec], data: dict[str, Any]) -> _Spec:
    """The inverse of `to_json`. Raises `UserError` naming an unknown key or a value of the wrong kind."""
    if not isinstance(data, dict):
        raise UserError(f"{kind.__name__}: expected an object, found {type(data).__name__}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in hints:
            raise UserError(f"{kind.__name__}: unknown key {key!r}")
        values[key] = _value(hints[key], value, f"{kind.__name__}.{key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{kind.__name__}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list")
        return tuple(_value(get_args(hint)[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
            raise UserError(f"{where}: expected an object of strings")
        return dict(value)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"{where}: expected one of {', '.join(get_args(hint))}, found {value!r}")
        return value
    choices = get_args(hint)
    if choices:  # X | None
        return None if value is None else _value(choices[0], value, where)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {hint.__name__}, found {type(value).__name__}")
    return value
