"""What a container is asked to be: the caller's intent, kept as it came, apart from secret data, which is never written to disk.

Defaults that depend on the image are filled in by ``fleet.containers.assemble`` when the container is made, so that
``config`` in an
inspection shows what was asked and ``Container.args`` what it came to.
"""

from __future__ import annotations

import enum
import re
from typing import Final

import msgspec

from fleet.errors import UserError
from fleet.model.service import HealthConfig, Mount, Ulimit
from fleet.model.wire import Value
from fleet.network.topology import AttachmentSpec, HostPort
from fleet.node_runtime.spec import DeviceSpec, ResourceLimits

__all__ = [
    "ContainerConfig",
    "DEFAULT_STOP_GRACE_S",
    "FileMount",
    "LogConfig",
    "NetworkMode",
    "RestartName",
    "RestartRule",
    "check_config",
]

DEFAULT_STOP_GRACE_S: Final = 10.0
"""From the stop signal to SIGKILL when nobody says otherwise (Docker's default)."""

FILE_BYTES_MAX: Final = 1_000_000
"""Docker's bound on a config (1000 KiB, MaxConfigSize, rounded down); a secret may have 500 KiB."""

FILES_MAX: Final = 256
MOUNTS_MAX: Final = 256
ARGUMENTS_MAX: Final = 4096

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
"""Docker's rule for container and volume names; the length is what a file name may have."""


class NetworkMode(enum.StrEnum):
    """Where the container's network namespace comes from."""

    NONE = "none"
    """A namespace of its own with the loopback interface alone."""
    HOST = "host"
    """The host's."""
    BRIDGE = "bridge"
    """One interface on the host-local default network."""
    NETWORKS = "networks"
    """One interface per entry of ``ContainerConfig.networks``."""
    CONTAINER = "container"
    """That of ``ContainerConfig.network_container``, with its host name and name service."""

    @property
    def has_sandbox(self) -> bool:
        """Whether the network room makes a namespace for it."""
        return self in (NetworkMode.BRIDGE, NetworkMode.NETWORKS)


class RestartName(enum.StrEnum):
    NO = "no"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"
    ON_FAILURE = "on-failure"


class RestartRule(Value, frozen=True, kw_only=True):
    """When the engine itself starts the container again; tasks of services never use it (they are replaced instead).

    ``retries_max`` counts for *on-failure* only; 0 is without limit.
    """

    name: RestartName = RestartName.NO
    retries_max: int = 0


class FileMount(Value, frozen=True, kw_only=True):
    """A secret or config as a read-only file. ``data`` lives in memory and on a tmpfs only, and is masked in every repr."""

    target: str
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    mode: int = 0o444

    def __repr__(self) -> str:
        return f"FileMount(target={self.target!r}, data=<{len(self.data)} bytes>)"


class LogConfig(Value, frozen=True, kw_only=True):
    """``driver``: json-file, local, none, or syslog and journald, which are sent the lines beside the copy that is kept here.
    Sizes in bytes; rotated to ``max_files`` files in all."""

    driver: str = "json-file"
    max_size_bytes: int = 10 << 20
    max_files: int = 3
    labels: tuple[str, ...] = ()
    """Names of the container's labels that its lines are shown with when details are asked for."""
    env: tuple[str, ...] = ()
    """The same of its environment."""
    options: dict[str, str] = msgspec.field(default_factory=dict)
    """Of syslog and journald: see ``log_targets``."""


class ContainerConfig(Value, frozen=True, kw_only=True):
    """A container's complete description. ``None`` for ``entrypoint`` and ``command`` means the image's own; ``()`` clears it."""

    image: str
    name: str = ""
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    """``KEY=value``; a bare ``KEY`` removes what the image sets (Docker's rule)."""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    working_dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    volume_targets: tuple[str, ...] = ()
    """Container paths that get an anonymous volume, beside the image's VOLUMEs."""
    files: tuple[FileMount, ...] = ()
    network_mode: NetworkMode = NetworkMode.BRIDGE
    networks: tuple[AttachmentSpec, ...] = ()
    guest_of: tuple[str, ...] = ()
    """Those of ``networks`` (ids) that are the cluster's: it is no task, and managers give it an address at each start."""
    network_container: str = ""
    """Whose network is shared: a name when asked for, the full id once the container is made."""
    network_names: tuple[str, ...] = ()
    """Further names under which the container's DNS knows itself, such as ``web.1``."""
    host_ports: tuple[HostPort, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    """``name:address``, written to /etc/hosts."""
    resources: ResourceLimits = ResourceLimits()
    ulimits: tuple[Ulimit, ...] = ()
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    no_new_privileges: bool = True
    privileged: bool = False
    seccomp: str = "default"
    apparmor: str = ""
    """The AppArmor profile; ``unconfined`` for none, '' is this host's choice. See ``fleet.containers.apparmor``."""
    devices: tuple[DeviceSpec, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    """``vendor.com/class=name``, see ``fleet.containers.cdi``."""
    device_cgroup_rules: tuple[str, ...] = ()
    cgroup_parent: str = ""
    """A path below fleet's own cgroup."""
    pid_mode: str = ""
    """'' and ``private`` are its own; ``host``; ``container:ID``."""
    ipc_mode: str = ""
    """'' is ``private``; ``shareable`` may be joined; ``host``; ``none``; ``container:ID``."""
    uts_mode: str = ""
    cgroupns_mode: str = ""
    userns_mode: str = ""
    """'' is this host's choice; ``host``: the host's ids; ``remap``: ids of its own. See ``fleet.containers.user_namespaces``."""
    volumes_from: tuple[str, ...] = ()
    """``container[:ro|rw]``: its volumes and binds are mounted here as well."""
    read_only: bool = False
    init: bool = False
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    """The end of the first attached client's input is the end of the container's."""
    stop_signal: str = ""
    stop_grace_s: float | None = None
    healthcheck: HealthConfig | None = None
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    shm_size_bytes: int = 64 << 20
    oom_score_adj: int = 0
    log: LogConfig = LogConfig()
    restart: RestartRule = RestartRule()
    auto_remove: bool = False
    exposed_ports: tuple[str, ...] = ()

    def without_data(self) -> ContainerConfig:
        """The same with the contents of its files left out: what may be written to disk and shown."""
        if not any(file.data for file in self.files):
            return self
        return msgspec.structs.replace(self, files=tuple(msgspec.structs.replace(f, data=b"") for f in self.files))


def check_config(config: ContainerConfig) -> None:
    """Refuse, with a sentence, what can be seen to be wrong without looking at the host. Raises ``UserError``."""
    if not config.image:
        raise UserError("container: no image was named")
    if config.name and not is_name(config.name):
        raise UserError(
            f"invalid container name ({config.name}): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, 2 to 255 characters"
        )
    _check_size("mounts", len(config.mounts) + len(config.volume_targets), MOUNTS_MAX)
    _check_size("secrets and configs", len(config.files), FILES_MAX)
    _check_size("arguments", len(config.entrypoint or ()) + len(config.command or ()), ARGUMENTS_MAX)
    _check_size("environment variables", len(config.env), ARGUMENTS_MAX)
    for text in (*config.env, *(config.entrypoint or ()), *(config.command or ())):
        if "\0" in text:
            raise UserError("container: arguments and environment cannot contain NUL characters")
    for variable in config.env:
        if not variable or variable.startswith("="):
            raise UserError(f"invalid environment variable: {variable!r}")
    if len(config.hostname) > 63:
        raise UserError(f"hostname {config.hostname!r} has {len(config.hostname)} characters; Linux allows 63")
    for file in config.files:
        if len(file.data) > FILE_BYTES_MAX:
            raise UserError(f"file {file.target}: {len(file.data)} bytes are more than the limit of {FILE_BYTES_MAX}")
    _check_targets(config)
    if config.log.driver not in ("json-file", "local", "none", "syslog", "journald"):
        raise UserError(
            f"log driver {config.log.driver!r} is not supported here: use json-file, local, syslog, journald or none"
        )
    if config.stop_grace_s is not None and config.stop_grace_s < 0:
        raise UserError("stop grace period cannot be negative")
    _check_modes(config)
    if config.network_mode is not NetworkMode.NETWORKS and config.networks:
        raise UserError(f"network mode {config.network_mode} cannot be combined with networks")


def _check_modes(config: ContainerConfig) -> None:
    """Docker's rules and words (moby ``runconfig``, ``api/types/container/hostconfig.go``)."""
    for what, mode, plain in (
        ("PID", config.pid_mode, ("", "private", "host")),
        ("IPC", config.ipc_mode, ("", "private", "shareable", "host", "none")),
        ("UTS", config.uts_mode, ("", "private", "host")),
        ("cgroup namespace", config.cgroupns_mode, ("", "private", "host")),
        ("USER", config.userns_mode, ("", "host", "remap")),
    ):
        joins = what in ("PID", "IPC") and mode.startswith("container:") and mode != "container:"
        if mode not in plain and not joins:
            raise UserError(f"invalid {what} mode: {mode}")
    if config.uts_mode == "host" and (config.hostname or config.domainname):
        raise UserError("conflicting options: hostname and the UTS mode")
    if any(part in (".", "..") for part in config.cgroup_parent.split("/")):
        raise UserError(f"invalid cgroup parent {config.cgroup_parent!r}: it must be a path of plain names")
    if config.userns_mode == "remap":
        _check_remapped(config)
    if config.network_mode is not NetworkMode.CONTAINER:
        return
    if not config.network_container:
        raise UserError("invalid network mode: container: needs a name or an id")
    for what, given in (
        ("hostname and the network mode", config.hostname),
        ("dns and the network mode", config.dns_servers or config.dns_search or config.dns_options),
        ("custom host-to-IP mapping and the network mode", config.extra_hosts),
        ("port publishing and the container type network mode", config.host_ports),
        ("port exposing and the container type network mode", config.exposed_ports),
    ):
        if given:
            raise UserError(f"conflicting options: {what}")


def _check_remapped(config: ContainerConfig) -> None:
    """What Docker's userns-remap excludes, in its words."""
    if config.privileged:
        raise UserError(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace "
            "when running privileged mode"
        )
    for what, shared in (
        ("network namespace", config.network_mode is NetworkMode.HOST),
        ("PID namespace", config.pid_mode == "host"),
        ("IPC namespace", config.ipc_mode == "host"),
        ("UTS namespace", config.uts_mode == "host"),
        ("cgroup namespace", config.cgroupns_mode == "host"),
    ):
        if shared:
            raise UserError(f"cannot share the host's {what} when user namespaces are enabled")


def is_name(text: str) -> bool:
    """Whether ``text`` may name a container: as Docker, at least two characters."""
    return len(text) > 1 and _NAME.fullmatch(text) is not None


def is_volume_name(text: str) -> bool:
    """Whether ``text`` may name a volume. Docker refuses a single letter; nothing speaks against it."""
    return _NAME.fullmatch(text) is not None


def _check_size(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise UserError(f"container: {count} {what} are more than the limit of {limit}")


def _check_targets(config: ContainerConfig) -> None:
    seen: set[str] = set()
    for target in (*(m.target for m in config.mounts), *config.volume_targets):
        if not target.startswith("/"):
            raise UserError(f"invalid mount target {target!r}: it must be an absolute path")
        clean = normal_target(target)
        if clean == "/":
            raise UserError("invalid mount target: the container's root cannot be mounted over")
        if clean in seen:
            raise UserError(f"duplicate mount point: {clean}")
        seen.add(clean)
    for mount in config.mounts:
        if mount.type not in ("bind", "volume", "tmpfs"):
            raise UserError(f"mount {mount.target}: type {mount.type!r} is not supported: use bind, volume or tmpfs")
        if mount.type == "bind" and not mount.source.startswith("/"):
            raise UserError(f"mount {mount.target}: bind source {mount.source!r} must be an absolute path")
        if mount.type == "tmpfs" and mount.source:
            raise UserError(f"mount {mount.target}: a tmpfs has no source")


def normal_target(path: str) -> str:
    """``/a/../b//c/`` as ``/b/c``: the name under which two targets are the same one."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
