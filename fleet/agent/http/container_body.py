"""The body of ``POST /containers/create`` as a ``ContainerConfig``. Pure but for choosing free ports.

What is understood and cannot be had is refused with a sentence; what has no meaning here (Windows, deprecated kernel
memory) is ignored, as
the Docker daemon does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from fleet.agent.http.networks import NetworkNames
from fleet.containers import ContainerConfig, NetworkMode, RestartName, RestartRule
from fleet.containers.config import normal_target
from fleet.containers.logs import log_config
from fleet.errors import NotFoundError, UnsupportedError, UserError
from fleet.model.service import BindOptions, HealthConfig, Mount, TmpfsOptions, Ulimit
from fleet.model.units import parse_bytes
from fleet.model.wire import Value
from fleet.network.topology import AttachmentSpec, HostPort
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES
from fleet.node_runtime.plan import plan_limits, read_host
from fleet.node_runtime.seccomp_profile import parse_profile
from fleet.node_runtime.spec import DeviceRate, DeviceSpec, ResourceLimits

__all__ = ["CreateBody", "HostSettings", "UpdateBody", "config_of", "limits_of", "restart_of", "words_of"]

_GPUS_MAX: Final = 64
_PREDEFINED: Final = {"": NetworkMode.BRIDGE, "default": NetworkMode.BRIDGE, "bridge": NetworkMode.BRIDGE}
_PREDEFINED_OTHERS: Final = {"host": NetworkMode.HOST, "none": NetworkMode.NONE}
_BIND_WORDS: Final = frozenset({"ro", "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated", "exec"})
_PROFILE: Final = re.compile(r"[^\x00-\x1f\x7f]{1,512}")
"""What the kernel is told in one line; names may hold spaces, slashes and ``//&`` of stacks."""
_PROPAGATIONS: Final = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})

Words = tuple[str, ...] | str
"""A command: a list of words, or one word."""


class PortBinding(Value, frozen=True, kw_only=True):
    host_ip: str = ""
    host_port: str = ""


class LogChoice(Value, frozen=True, kw_only=True):
    type: str = ""
    config: dict[str, str] = msgspec.field(default_factory=dict)


class RestartChoice(Value, frozen=True, kw_only=True):
    name: str = ""
    maximum_retry_count: int = 0


class DeviceChoice(Value, frozen=True, kw_only=True):
    path_on_host: str
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class BlockWeight(Value, frozen=True, kw_only=True):
    path: str
    weight: int = 0


class BlockRate(Value, frozen=True, kw_only=True):
    path: str
    rate: int = 0


class DeviceRequest(Value, frozen=True, kw_only=True):
    driver: str = ""
    count: int = 0
    device_ids: tuple[str, ...] = msgspec.field(default=(), name="DeviceIDs")
    capabilities: tuple[tuple[str, ...], ...] = ()


class UpdateBody(Value, frozen=True, kw_only=True):
    """Resources, as in ``HostConfig`` and in ``POST /containers/{id}/update``; 0 = unlimited or unchanged."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    blkio_weight: int = 0
    blkio_weight_device: tuple[BlockWeight, ...] = ()
    blkio_device_read_bps: tuple[BlockRate, ...] = ()
    blkio_device_write_bps: tuple[BlockRate, ...] = ()
    blkio_device_read_iops: tuple[BlockRate, ...] = msgspec.field(default=(), name="BlkioDeviceReadIOps")
    blkio_device_write_iops: tuple[BlockRate, ...] = msgspec.field(default=(), name="BlkioDeviceWriteIOps")
    pids_limit: int = 0
    restart_policy: RestartChoice | None = None


class HostSettings(UpdateBody, frozen=True, kw_only=True):
    """``HostConfig``."""

    binds: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    tmpfs: dict[str, str] = msgspec.field(default_factory=dict)
    network_mode: str = ""
    port_bindings: dict[str, tuple[PortBinding, ...]] = msgspec.field(default_factory=dict)
    publish_all_ports: bool = False
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = msgspec.field(default=(), name="DnsSearch")
    dns_options: tuple[str, ...] = msgspec.field(default=(), name="DnsOptions")
    extra_hosts: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    readonly_rootfs: bool = False
    init: bool = False
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    shm_size: int = 0
    oom_score_adj: int = 0
    log_config: LogChoice = LogChoice()
    auto_remove: bool = False
    group_add: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    devices: tuple[DeviceChoice, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    device_requests: tuple[DeviceRequest, ...] = ()
    pid_mode: str = ""
    ipc_mode: str = ""
    uts_mode: str = msgspec.field(default="", name="UTSMode")
    userns_mode: str = ""
    cgroupns_mode: str = ""
    cgroup_parent: str = ""
    runtime: str = ""
    volumes_from: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    volume_driver: str = ""


class EndpointIpam(Value, frozen=True, kw_only=True):
    ipv4_address: str = msgspec.field(default="", name="IPv4Address")
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")
    link_local_ips: tuple[str, ...] = msgspec.field(default=(), name="LinkLocalIPs")


class EndpointChoice(Value, frozen=True, kw_only=True):
    aliases: tuple[str, ...] = ()
    mac_address: str = ""
    ipam_config: EndpointIpam | None = msgspec.field(default=None, name="IPAMConfig")
    links: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The IPv4 address that is asked for, or nothing."""
        return self.ipam_config.ipv4_address if self.ipam_config else ""

    @property
    def address6(self) -> str:
        """The IPv6 address that is asked for, in its canonical form, or nothing. Raises ``UserError``."""
        text = self.ipam_config.ipv6_address if self.ipam_config else ""
        try:
            return str(ipaddress.IPv6Address(text)) if text else ""
        except ValueError as cause:
            raise UserError(f"{text!r} is not an IPv6 address") from cause

    def check(self, network: str) -> None:
        """Raises ``UnsupportedError`` for what no network of this host gives."""
        if self.links:
            raise UnsupportedError(f"network {network}: links are not supported; containers find each other by name")
        if self.ipam_config is not None and self.ipam_config.link_local_ips:
            raise UnsupportedError(f"network {network}: link-local addresses are not supported")


class NetworkingChoice(Value, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointChoice] = msgspec.field(default_factory=dict)


class CreateBody(Value, frozen=True, kw_only=True):
    """The body, as clients send it."""

    image: str = ""
    entrypoint: Words | None = None
    cmd: Words | None = None
    env: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    working_dir: str = ""
    user: str = ""
    hostname: str = ""
    domainname: str = ""
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    stop_signal: str = ""
    stop_timeout: int | None = None
    healthcheck: HealthConfig | None = None
    exposed_ports: dict[str, object] = msgspec.field(default_factory=dict)
    volumes: dict[str, object] = msgspec.field(default_factory=dict)
    host_config: HostSettings = HostSettings()
    networking_config: NetworkingChoice = NetworkingChoice()


async def config_of(
    body: CreateBody, *, name: str, networks: NetworkNames, free_port: Callable[[str], int]
) -> ContainerConfig:
    """Translate. ``free_port(protocol)`` gives a port of this host that nobody uses. Raises ``UserError``,
    ``UnsupportedError``.
    """
    settings = body.host_config
    _refuse(settings)
    mounts = _mounts(settings)
    mode, attachments, guest_of = await _networks(body, networks)
    no_new_privileges, seccomp, apparmor = _security(settings.security_opt)
    return ContainerConfig(
        name=name.removeprefix("/"),
        image=body.image,
        entrypoint=_entrypoint(body.entrypoint),
        command=words_of(body.cmd) or None,
        env=body.env,
        labels=body.labels,
        working_dir=body.working_dir,
        user=body.user,
        groups=settings.group_add,
        hostname=body.hostname,
        domainname=body.domainname,
        mounts=mounts,
        volume_targets=_volume_targets(body, settings, mounts),
        network_mode=mode,
        networks=attachments,
        guest_of=guest_of,
        host_ports=_host_ports(body, free_port),
        dns_servers=settings.dns,
        dns_search=settings.dns_search,
        dns_options=settings.dns_options,
        extra_hosts=settings.extra_hosts,
        resources=limits_of(settings),
        ulimits=settings.ulimits,
        capabilities_add=settings.cap_add,
        capabilities_drop=settings.cap_drop,
        no_new_privileges=no_new_privileges,
        privileged=settings.privileged,
        seccomp=seccomp,
        apparmor=apparmor,
        network_container=settings.network_mode.partition(":")[2] if mode is NetworkMode.CONTAINER else "",
        cdi_devices=tuple(name for request in settings.device_requests for name in _cdi_names(request)),
        device_cgroup_rules=settings.device_cgroup_rules,
        cgroup_parent=settings.cgroup_parent,
        pid_mode=settings.pid_mode,
        ipc_mode=settings.ipc_mode,
        uts_mode=settings.uts_mode,
        cgroupns_mode=settings.cgroupns_mode,
        userns_mode=settings.userns_mode,
        volumes_from=settings.volumes_from,
        devices=tuple(
            DeviceSpec(source=d.path_on_host, target=d.path_in_container, permissions=d.cgroup_permissions or "rwm")
            for d in settings.devices
        ),
        read_only=settings.readonly_rootfs,
        init=settings.init,
        tty=body.tty,
        open_stdin=body.open_stdin,
        stdin_once=body.stdin_once,
        stop_signal=body.stop_signal,
        stop_grace_s=None if body.stop_timeout is None else float(body.stop_timeout),
        healthcheck=body.healthcheck,
        sysctls=settings.sysctls,
        shm_size_bytes=settings.shm_size or 64 << 20,
        oom_score_adj=settings.oom_score_adj,
        log=log_config(settings.log_config.type, settings.log_config.config),
        restart=restart_of(settings.restart_policy, auto_remove=settings.auto_remove),
        auto_remove=settings.auto_remove,
        exposed_ports=tuple(sorted({*map(_port_name, body.exposed_ports), *map(_port_name, settings.port_bindings)})),
    )


def limits_of(body: UpdateBody, *, base: ResourceLimits | None = None) -> ResourceLimits:
    """Limits; what the body leaves at 0 stays as in ``base``. Raises ``UserError`` for what Docker refuses too."""
    if 0 < body.memory < 6 << 20:
        raise UserError("Minimum memory limit allowed is 6MB")
    if body.memory and 0 < body.memory_swap < body.memory:
        raise UserError("Minimum memoryswap limit should be larger than memory limit, see usage")
    if body.nano_cpus and body.cpu_quota > 0:
        raise UserError("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if body.nano_cpus and body.cpu_period > 0:
        raise UserError("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    base = base or ResourceLimits()
    if body.nano_cpus:
        base = replace(base, cpu_period_us=0, cpu_quota_us=0)
    elif body.cpu_period or body.cpu_quota:
        base = replace(base, nano_cpus=0)
    if body.memory_swappiness is not None and body.memory_swappiness >= 0:
        base = replace(base, memory_swappiness=body.memory_swappiness)
    if body.oom_kill_disable is not None:
        base = replace(base, oom_kill_disable=body.oom_kill_disable)
    wanted = {
        "nano_cpus": body.nano_cpus,
        "cpu_period_us": max(0, body.cpu_period),
        "cpu_quota_us": body.cpu_quota,
        "cpuset_mems": body.cpuset_mems,
        "blkio_weight": body.blkio_weight,
        "blkio_weight_devices": tuple(DeviceRate(path=e.path, rate=e.weight) for e in body.blkio_weight_device),
        "device_read_bps": _rates(body.blkio_device_read_bps),
        "device_write_bps": _rates(body.blkio_device_write_bps),
        "device_read_iops": _rates(body.blkio_device_read_iops),
        "device_write_iops": _rates(body.blkio_device_write_iops),
        "memory_bytes": body.memory,
        "memory_swap_bytes": body.memory_swap,
        "memory_reservation_bytes": body.memory_reservation,
        "pids_limit": max(0, body.pids_limit),
        "cpu_shares": body.cpu_shares,
        "cpuset_cpus": body.cpuset_cpus,
    }
    limits = replace(base, **{key: value for key, value in wanted.items() if value})  # type: ignore[arg-type]
    plan_limits(limits)  # so that what cannot be is refused now, not at the start
    return limits


def _rates(entries: tuple[BlockRate, ...]) -> tuple[DeviceRate, ...]:
    return tuple(DeviceRate(path=entry.path, rate=entry.rate) for entry in entries)


def restart_of(choice: RestartChoice | None, *, auto_remove: bool = False) -> RestartRule:
    """Raises ``UserError`` for an unknown rule, and for one that cannot go with automatic removal."""
    if choice is None or choice.name in ("", "no"):
        return RestartRule()
    try:
        rule = RestartRule(name=RestartName(choice.name), retries_max=choice.maximum_retry_count)
    except ValueError:
        raise UserError(f"invalid restart policy: unknown policy '{choice.name}'") from None
    if auto_remove:
        raise UserError("can't create 'AutoRemove' container with restart policy")
    if rule.retries_max and rule.name is not RestartName.ON_FAILURE:
        raise UserError("maximum retry count can only be used with 'on-failure'")
    return rule


def _refuse(settings: HostSettings) -> None:
    """What cannot be had, one sentence each."""
    for what, text, allowed in (
        ("Runtime", settings.runtime, ("", "runc", "io.containerd.runc.v2", "fleet")),
        ("VolumeDriver", settings.volume_driver, ("", "local")),
    ):
        if text not in allowed:
            raise UnsupportedError(f"{what}={text} is not supported by fleet")
    if settings.links:
        raise UnsupportedError("--link is not supported: containers find each other by name on a shared network")


def _cdi_names(request: DeviceRequest) -> tuple[str, ...]:
    """``--device vendor.com/class=name`` as it is; ``--gpus`` as devices of the kind nvidia.com/gpu, as Docker maps it
    where that kind is specified.
    """
    if request.driver == "cdi":
        return request.device_ids
    if request.driver not in ("", "nvidia") or not any("gpu" in words for words in request.capabilities):
        wanted = " ".join(f"[{' '.join(words)}]" for words in request.capabilities)
        raise UserError(f'could not select device driver "{request.driver}" with capabilities: [{wanted}]')
    if request.device_ids:
        return tuple(f"nvidia.com/gpu={device}" for device in request.device_ids)
    if request.count > _GPUS_MAX:
        raise UserError(f"{request.count} GPUs are more than the limit of {_GPUS_MAX}")
    names = ["all"] if request.count < 0 else list(map(str, range(request.count)))
    return tuple(f"nvidia.com/gpu={name}" for name in names)


def words_of(words: Words | None) -> tuple[str, ...]:
    """A command as clients spell it: a list, or one string for one word."""
    return (words,) if isinstance(words, str) else tuple(words or ())


def _entrypoint(words: Words | None) -> tuple[str, ...] | None:
    found = words_of(words)
    if found == ("",):  # what ``--entrypoint ""`` sends: none at all
        return ()
    return found or None


async def _networks(
    body: CreateBody, networks: NetworkNames
) -> tuple[NetworkMode, tuple[AttachmentSpec, ...], tuple[str, ...]]:
    """Mode, places, and ids of those networks that are the cluster's."""
    mode = body.host_config.network_mode
    if mode.startswith("container:"):
        return NetworkMode.CONTAINER, (), ()
    endpoints = dict(body.networking_config.endpoints_config)
    if mode in _PREDEFINED_OTHERS:
        return _PREDEFINED_OTHERS[mode], (), ()
    if mode in _PREDEFINED:
        for network, choice in endpoints.items():
            if network in ("bridge", "default"):  # says what that one does not give
                choice.check(network)
                await networks.attach(
                    network,
                    address=choice.address or None,
                    address6=choice.address6 or None,
                    mac=None,
                    aliases=choice.aliases,
                )
        endpoints.pop("bridge", None)
        endpoints.pop("default", None)
        if not endpoints:
            return NetworkMode.BRIDGE, (), ()
        endpoints = {"bridge": EndpointChoice(), **endpoints}
    elif mode not in endpoints:
        endpoints = {mode: EndpointChoice(), **endpoints}
    attachments: list[AttachmentSpec] = []
    guest_of: list[str] = []
    for network, choice in endpoints.items():
        choice.check(network)
        try:
            place = await networks.attach(
                network,
                address=choice.address or None,
                address6=choice.address6 or None,
                mac=choice.mac_address or None,
                aliases=choice.aliases,
            )
        except NotFoundError as cause:  # docker's client takes a 404 here for a missing image, and pulls that
            raise UserError(str(cause)) from cause
        attachments.append(place.attachment)
        guest_of += [place.attachment.network_id] if place.is_overlay else []
    return NetworkMode.NETWORKS, tuple(attachments), tuple(guest_of)


def _security(options: tuple[str, ...]) -> tuple[bool, str, str]:
    """(no new privileges, seccomp profile, AppArmor profile) of ``--security-opt``."""
    no_new_privileges, seccomp, apparmor = True, "default", ""
    for option in options:
        key, _, value = option.partition("=") if "=" in option else option.partition(":")
        if key == "no-new-privileges":
            no_new_privileges = value.lower() not in ("false", "0")
        elif key == "seccomp" and value in ("unconfined", "builtin"):
            seccomp = "unconfined" if value == "unconfined" else "default"
        elif key == "seccomp":
            if not value.lstrip().startswith("{"):  # the client reads the file and sends what is in it
                raise UserError("Decoding seccomp profile failed: expected a JSON object")
            parse_profile(value, DEFAULT_CAPABILITIES, machine=read_host().machine)
            seccomp = value
        elif key == "apparmor":
            if not _PROFILE.fullmatch(value):
                raise UserError(
                    f"invalid --security-opt: {option!r}: expected the name of an AppArmor profile, or unconfined"
                )
            apparmor = value
        elif (key, value) != ("label", "disable"):
            raise UnsupportedError(f"security option {option!r} is not supported by fleet")
    return no_new_privileges, seccomp, apparmor


def _mounts(settings: HostSettings) -> tuple[Mount, ...]:
    mounts = [_bind(text) for text in settings.binds if ":" in text]
    mounts += settings.mounts
    mounts += [_tmpfs(target, options) for target, options in settings.tmpfs.items()]
    return tuple(mounts)


def _volume_targets(body: CreateBody, settings: HostSettings, mounts: tuple[Mount, ...]) -> tuple[str, ...]:
    """docker-py names the target of each bind among the volumes as well; as in Docker, the bind wins."""
    bound = {normal_target(mount.target) for mount in mounts}
    named = (target for target in body.volumes if normal_target(target) not in bound)
    return (*named, *(text for text in settings.binds if ":" not in text))


def _bind(text: str) -> Mount:
    """``source:target[:options]``; a source that is no path names a volume. The host path is made when missing, as
    ``-v`` does.
    """
    source, target, *rest = text.split(":")
    words = [word for word in (rest[0].split(",") if rest else []) if word]
    if len(rest) > 1 or not source or not target:
        raise UserError(f"invalid volume specification: '{text}'")
    unknown = [word for word in words if word not in _BIND_WORDS | _PROPAGATIONS]
    if unknown:
        raise UserError(f"invalid mode: {unknown[0]} in volume specification '{text}'")
    propagation = next((word for word in words if word in _PROPAGATIONS), "")
    is_path = source.startswith("/")
    return Mount(
        type="bind" if is_path else "volume",
        source=source,
        target=target,
        read_only="ro" in words,
        bind_options=BindOptions(propagation=propagation, create_mountpoint=True) if is_path else None,
    )


def _tmpfs(target: str, options: str) -> Mount:
    size_bytes, mode, flags = 0, 0, []
    for word in filter(None, options.split(",")):
        key, _, value = word.partition("=")
        if key == "size":
            size_bytes = parse_bytes(value, what=f"tmpfs {target}: size")
        elif key == "mode":
            if not value or set(value) - set("01234567"):
                raise UserError(f"tmpfs {target}: mode {value!r} is not an octal number")
            mode = int(value, 8)
        elif key != "rw":
            flags.append((word,))
    return Mount(
        type="tmpfs", target=target, tmpfs_options=TmpfsOptions(size_bytes=size_bytes, mode=mode, options=tuple(flags))
    )


def _port_name(text: str) -> str:
    """``80`` as ``80/tcp``. Raises ``UserError``."""
    number, _, protocol = text.partition("/")
    if not number.isdigit() or not 0 < int(number) < 65536 or protocol not in ("", "tcp", "udp", "sctp"):
        raise UserError(f"invalid port specification: {text!r}")
    return f"{int(number)}/{protocol or 'tcp'}"


def _host_address(text: str) -> str:
    """Empty for every address of either family. Raises ``UserError``."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError as cause:
        raise UserError(f"invalid IP address: {text}") from cause


def _host_ports(body: CreateBody, free_port: Callable[[str], int]) -> tuple[HostPort, ...]:
    bindings = {_port_name(port): found for port, found in body.host_config.port_bindings.items()}
    if body.host_config.publish_all_ports:
        for port in map(_port_name, body.exposed_ports):
            bindings.setdefault(port, (PortBinding(),))
    result = []
    for port, wanted in bindings.items():
        number, _, protocol = port.partition("/")
        everywhere = {binding.host_port for binding in wanted if not binding.host_ip}
        for binding in wanted or (PortBinding(),):
            if binding.host_port and not binding.host_port.isdigit():
                raise UnsupportedError(f"port {port}: host port {binding.host_port!r} must be one number")
            address = _host_address(binding.host_ip)
            if address == "::" and binding.host_port in everywhere:
                continue  # some clients send this twin of the one that stands for every address of either family
            result.append(
                HostPort(
                    protocol=protocol,  # type: ignore[arg-type]  # checked by _port_name
                    host_port=int(binding.host_port or 0) or free_port(protocol),
                    target_port=int(number),
                    host_address=address,
                )
            )
    return tuple(result)
