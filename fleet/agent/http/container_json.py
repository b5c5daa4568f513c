"""Containers in the shapes of the engine API: ``ContainerSummary`` (ps) and ``ContainerInspectResponse``. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fleet.containers import Container, MountPoint, NetworkMode, Status
from fleet.containers.config import ContainerConfig, LogConfig
from fleet.network.topology import AttachmentSpec
from fleet.node_runtime.spec import DeviceRate

__all__ = [
    "container_inspect",
    "container_summary",
    "endpoint_id",
    "human_duration",
    "status_text",
    "time_text",
]

_NO_TIME: Final = "0001-01-01T00:00:00Z"
_SHORT_ID: Final = 12
_NEVER_LIMITED: Final = (
    "CpuCount",
    "CpuPercent",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "IOMaximumBandwidth",
    "IOMaximumIOps",
)
"""Limits of Windows and of a real-time scheduler; clients expect the fields."""


def container_summary(
    container: Container, *, now: datetime, network_name: Callable[[str], str], image_name: str
) -> dict[str, Any]:
    """One element of ``GET /containers/json``. ``image_name`` is what ps shows: the reference, or an id when it has none."""
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": image_name,
        "ImageID": container.image_id,
        "Command": _command_text(container.args),
        "Created": int(container.created_at.timestamp()),
        "Ports": _ports(container),
        "Labels": container.labels,
        "State": str(container.state.status),
        "Status": status_text(container, now=now),
        "HostConfig": {"NetworkMode": _network_mode(container.config, network_name)},
        "NetworkSettings": {"Networks": _networks(container, network_name)},
        "Mounts": [_mount(point) for point in container.mounts],
    }


def container_inspect(
    container: Container, *, directory: Path, network_name: Callable[[str], str], layer_dirs: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The answer of ``GET /containers/{id}/json``."""
    return {
        "Id": container.id,
        "Created": time_text(container.created_at),
        "Path": container.args[0] if container.args else "",
        "Args": list(container.args[1:]),
        "State": _state(container),
        "Image": container.image_id,
        "ResolvConfPath": str(directory / "resolv.conf"),
        "HostnamePath": str(directory / "hostname"),
        "HostsPath": str(directory / "hosts"),
        "LogPath": ""
        if container.config.log.driver not in ("json-file", "local")
        else str(directory / "log" / "json.log"),
        "Name": f"/{container.name}",
        "RestartCount": container.state.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": container.apparmor,
        "ExecIDs": None,
        "HostConfig": _host_config(container, network_name),
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {
                "LowerDir": ":".join(map(str, layer_dirs)),
                "UpperDir": str(directory / "upper"),
                "WorkDir": str(directory / "work"),
            },
        },
        "Mounts": [_mount(point) for point in container.mounts],
        "Config": _config(container),
        "NetworkSettings": _network_settings(container, network_name),
    }


def status_text(container: Container, *, now: datetime) -> str:
    """What ps shows: ``Up 5 minutes (healthy)``, ``Exited (0) 3 hours ago``."""
    state = container.state
    up = human_duration((now - state.started_at).total_seconds()) if state.started_at else ""
    ended = state.exit.finished_at if state.exit else None
    ago = f"{human_duration((now - ended).total_seconds())} ago" if ended else ""
    code = state.exit.code if state.exit else 0
    match state.status:
        case Status.RUNNING:
            health = state.health
            if health is None:
                return f"Up {up}"
            return f"Up {up} ({'health: starting' if health.status == 'starting' else health.status})"
        case Status.PAUSED:
            return f"Up {up} (Paused)"
        case Status.RESTARTING:
            return f"Restarting ({code}) {ago}"
        case Status.EXITED:
            return f"Exited ({code}) {ago}"
        case Status.REMOVING:
            return "Removal In Progress"
        case Status.DEAD:
            return "Dead"
        case Status.CREATED:
            return "Created"


def human_duration(seconds: float) -> str:
    """Docker's words for how long: ``Less than a second``, ``About an hour``, ``3 days``."""
    for limit, unit, one in (
        (1, 0, "Less than a second"),
        (2, 0, "1 second"),
        (60, 1, "seconds"),
        (120, 0, "About a minute"),
        (46 * 60, 60, "minutes"),
        (90 * 60, 0, "About an hour"),
        (48 * 3600, 3600, "hours"),
        (14 * 86400, 86400, "days"),
        (60 * 86400, 7 * 86400, "weeks"),
        (730 * 86400, 30 * 86400, "months"),
        (float("inf"), 365 * 86400, "years"),
    ):
        if seconds < limit:
            return f"{int(seconds // unit)} {one}" if unit else one
    return ""


def time_text(moment: datetime | None) -> str:
    """RFC 3339 with a Z; Docker's zero time for None."""
    return _NO_TIME if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _state(container: Container) -> dict[str, Any]:
    state = container.state
    end = state.exit
    result = {
        "Status": str(state.status),
        "Running": container.is_up or state.status is Status.RESTARTING,
        "Paused": state.status is Status.PAUSED,
        "Restarting": state.status is Status.RESTARTING,
        "OOMKilled": bool(end and end.oom_killed),
        "Dead": state.status is Status.DEAD,
        "Pid": state.pid,
        "ExitCode": end.code if end else 0,
        "Error": state.error,
        "StartedAt": time_text(state.started_at),
        "FinishedAt": time_text(end.finished_at if end else None),
    }
    if state.health is not None:
        result["Health"] = {
            "Status": state.health.status,
            "FailingStreak": state.health.failing_streak,
            "Log": [
                {
                    "Start": time_text(item.start),
                    "End": time_text(item.end),
                    "ExitCode": item.exit_code,
                    "Output": item.output,
                }
                for item in state.health.log
            ],
        }
    return result


def _config(container: Container) -> dict[str, Any]:
    config = container.config
    result: dict[str, Any] = {
        "Hostname": container.hostname,
        "Domainname": config.domainname,
        "User": container.user,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "ExposedPorts": {port: {} for port in container.exposed_ports},
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": False,
        "Env": list(container.env),
        "Cmd": list(config.command) if config.command else list(container.args) if not config.entrypoint else None,
        "Image": config.image,
        "Volumes": {point.target: {} for point in container.mounts if point.anonymous} or None,
        "WorkingDir": container.working_dir,
        "Entrypoint": list(config.entrypoint) if config.entrypoint else None,
        "OnBuild": None,
        "Labels": container.labels,
        "StopSignal": container.stop_signal,
    }
    if config.stop_grace_s is not None:
        result["StopTimeout"] = int(config.stop_grace_s)
    check = container.healthcheck
    if check is not None:
        result["Healthcheck"] = {
            "Test": list(check.test),
            "Interval": check.interval_ns,
            "Timeout": check.timeout_ns,
            "StartPeriod": check.start_period_ns,
            "StartInterval": check.start_interval_ns,
            "Retries": check.retries,
        }
    return result


def _log_options(log: LogConfig) -> dict[str, str]:
    if log.driver == "none":
        return {}
    if log.driver in ("json-file", "local"):
        return {"max-size": str(log.max_size_bytes), "max-file": str(log.max_files)}
    named = {"labels": ",".join(log.labels), "env": ",".join(log.env)}
    return {**log.options, **{key: value for key, value in named.items() if value}}


def _host_config(container: Container, network_name: Callable[[str], str]) -> dict[str, Any]:
    config = container.config
    limits = config.resources
    tmpfs = {p.target: ",".join(p.options) for p in container.mounts if p.kind == "tmpfs"}
    left_out_when_empty = {"Tmpfs": tmpfs, "Sysctls": config.sysctls, "Init": config.init}
    return {
        **{key: value for key, value in left_out_when_empty.items() if value},
        "Binds": [_bind_text(p) for p in container.mounts if p.kind == "bind" or (p.name and not p.anonymous)] or None,
        "ContainerIDFile": "",
        "LogConfig": {
            "Type": config.log.driver,
            "Config": _log_options(config.log),
        },
        "NetworkMode": _network_mode(config, network_name),
        "PortBindings": _bindings(container),
        "RestartPolicy": {"Name": str(config.restart.name), "MaximumRetryCount": config.restart.retries_max},
        "AutoRemove": config.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": list(config.volumes_from) or None,
        "CapAdd": list(config.capabilities_add) or None,
        "CapDrop": list(config.capabilities_drop) or None,
        "Cgroup": "",
        "ConsoleSize": [0, 0],
        "Links": None,
        "CgroupnsMode": config.cgroupns_mode or "private",
        "Dns": list(config.dns_servers),
        "DnsOptions": list(config.dns_options),
        "DnsSearch": list(config.dns_search),
        "ExtraHosts": list(config.extra_hosts) or None,
        "GroupAdd": list(config.groups) or None,
        "IpcMode": config.ipc_mode or "private",
        "OomScoreAdj": config.oom_score_adj,
        "PidMode": config.pid_mode,
        "Privileged": config.privileged,
        "PublishAllPorts": False,
        "ReadonlyRootfs": config.read_only,
        "SecurityOpt": _security_options(config) or None,
        "UTSMode": config.uts_mode,
        "UsernsMode": config.userns_mode,
        "ShmSize": config.shm_size_bytes,
        "Runtime": "fleet",
        "Isolation": "",
        "CpuShares": limits.cpu_shares,
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": config.cgroup_parent,
        **dict.fromkeys(_NEVER_LIMITED, 0),
        "CpuPeriod": limits.cpu_period_us,
        "CpuQuota": limits.cpu_quota_us,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "MemorySwappiness": None if limits.memory_swappiness < 0 else limits.memory_swappiness,
        "OomKillDisable": limits.oom_kill_disable,
        "BlkioWeight": limits.blkio_weight,
        "BlkioWeightDevice": [{"Path": d.path, "Weight": d.rate} for d in limits.blkio_weight_devices],
        "BlkioDeviceReadBps": _rates(limits.device_read_bps),
        "BlkioDeviceWriteBps": _rates(limits.device_write_bps),
        "BlkioDeviceReadIOps": _rates(limits.device_read_iops),
        "BlkioDeviceWriteIOps": _rates(limits.device_write_iops),
        "DeviceCgroupRules": list(config.device_cgroup_rules) or None,
        "Devices": [
            {"PathOnHost": d.source, "PathInContainer": d.target or d.source, "CgroupPermissions": d.permissions}
            for d in config.devices
        ],
        "DeviceRequests": [
            {
                "Driver": "cdi",
                "Count": 0,
                "DeviceIDs": list(config.cdi_devices),
                "Capabilities": None,
                "Options": None,
            }
        ]
        if config.cdi_devices
        else None,
        "MemoryReservation": limits.memory_reservation_bytes,
        "MemorySwap": limits.memory_swap_bytes,
        "PidsLimit": limits.pids_limit or None,
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in config.ulimits] or None,
        "MaskedPaths": None,
        "ReadonlyPaths": None,
    }


def _bind_text(point: MountPoint) -> str:
    return f"{point.name or point.source}:{point.target}:{'ro' if point.read_only else 'rw'}"


def _security_options(config: ContainerConfig) -> list[str]:
    options = [] if config.no_new_privileges else ["no-new-privileges=false"]
    options += [] if config.seccomp == "default" else [f"seccomp={config.seccomp}"]
    return [*options, f"apparmor={config.apparmor}"] if config.apparmor else options


def _rates(entries: tuple[DeviceRate, ...]) -> list[dict[str, Any]]:
    return [{"Path": entry.path, "Rate": entry.rate} for entry in entries]


def _network_mode(config: ContainerConfig, network_name: Callable[[str], str]) -> str:
    if config.network_mode is NetworkMode.CONTAINER:
        return f"container:{config.network_container}"
    if config.network_mode is not NetworkMode.NETWORKS:
        return str(config.network_mode)
    return network_name(config.networks[0].network_id) if config.networks else "none"


def _bindings(container: Container) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for port in container.config.host_ports:
        result.setdefault(f"{port.target_port}/{port.protocol}", []).append(
            {"HostIp": port.host_address, "HostPort": str(port.host_port)}
        )
    return result


def _network_settings(container: Container, network_name: Callable[[str], str]) -> dict[str, Any]:
    first = (
        container.networks[0] if container.networks and container.config.network_mode is NetworkMode.BRIDGE else None
    )
    ports: dict[str, Any] = dict.fromkeys(container.exposed_ports)
    if container.is_up:
        ports |= {
            key: [
                {**item, "HostIp": address}
                for item in items
                for address in ((item["HostIp"],) if item["HostIp"] else _every(container))
            ]
            for key, items in _bindings(container).items()
        }
    return {
        "Bridge": "",
        "SandboxID": container.id if container.networks else "",
        "SandboxKey": "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "Ports": ports,
        "EndpointID": container.id if first else "",
        "Gateway": first.gateway if first else "",
        "GlobalIPv6Address": first.address6 if first else "",
        "GlobalIPv6PrefixLen": first.prefix_len6 if first else 0,
        "IPAddress": first.address if first else "",
        "IPPrefixLen": first.prefix_len if first else 0,
        "IPv6Gateway": first.gateway6 if first else "",
        "MacAddress": first.mac if first else "",
        "Networks": _networks(container, network_name),
    }


def _networks(container: Container, network_name: Callable[[str], str]) -> dict[str, Any]:
    config = container.config
    if config.network_mode is NetworkMode.CONTAINER:
        return {}
    if config.network_mode in (NetworkMode.HOST, NetworkMode.NONE):
        return {str(config.network_mode): _endpoint("", aliases=())}
    known = {address.network_id: address for address in container.networks}

    def id_on(network_id: str) -> str:
        return endpoint_id(container.id, network_id) if network_id in known else ""

    if config.network_mode is NetworkMode.BRIDGE:
        found = next(iter(known.values()), None)
        return {"bridge": {**_endpoint("bridge", aliases=(), found=found), "EndpointID": id_on("bridge")}}
    return {
        network_name(spec.network_id): {
            **_endpoint(spec.network_id, aliases=spec.aliases, found=known.get(spec.network_id)),
            "IPAMConfig": _ipam_config(spec),
            "EndpointID": id_on(spec.network_id),
            "DNSNames": list(
                dict.fromkeys((container.name, *config.network_names, *spec.aliases, container.id[:_SHORT_ID]))
            ),
        }
        for spec in config.networks
    }


def _ipam_config(spec: AttachmentSpec) -> dict[str, str] | None:
    """The addresses that were asked for."""
    wanted = {"IPv4Address": spec.address, "IPv6Address": spec.address6}
    return {key: value for key, value in wanted.items() if value} or None


def _every(container: Container) -> tuple[str, ...]:
    """What a port on every address is shown as: of the families that lead to the container."""
    return ("0.0.0.0", "::") if any(address.address6 for address in container.networks) else ("0.0.0.0",)


def endpoint_id(container_id: str, network_id: str) -> str:
    """A name of the container's place on the network, in the form of Docker's (64 hexadecimal digits)."""
    return hashlib.sha256(f"{container_id}/{network_id}".encode()).hexdigest()


def _endpoint(network_id: str, *, aliases: tuple[str, ...], found: Any = None) -> dict[str, Any]:
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": list(aliases) or None,
        "MacAddress": found.mac if found else "",
        "NetworkID": network_id,
        "EndpointID": "",
        "Gateway": found.gateway if found else "",
        "IPAddress": found.address if found else "",
        "IPPrefixLen": found.prefix_len if found else 0,
        "IPv6Gateway": found.gateway6 if found else "",
        "GlobalIPv6Address": found.address6 if found else "",
        "GlobalIPv6PrefixLen": found.prefix_len6 if found else 0,
        "DriverOpts": None,
        "DNSNames": None,
    }


def _ports(container: Container) -> list[dict[str, Any]]:
    published = container.config.host_ports if container.is_up else ()
    result: list[dict[str, Any]] = [
        {"IP": address, "PrivatePort": p.target_port, "PublicPort": p.host_port, "Type": p.protocol}
        for p in published
        for address in ((p.host_address,) if p.host_address else _every(container))
    ]
    covered = {f"{p.target_port}/{p.protocol}" for p in published}
    for port in container.exposed_ports:
        if port not in covered:
            number, _, protocol = port.partition("/")
            result.append({"PrivatePort": int(number), "Type": protocol or "tcp"})
    return result


def _mount(point: MountPoint) -> dict[str, Any]:
    result = {
        "Type": point.kind,
        "Source": point.source,
        "Destination": point.target,
        "Mode": "",
        "RW": not point.read_only,
        "Propagation": point.propagation if point.kind == "bind" else "",
    }
    if point.kind == "volume":
        result |= {"Name": point.name, "Driver": "local"}
    return result


def _command_text(args: tuple[str, ...]) -> str:
    """The command as ps shows it: words with blanks in double quotes."""
    return " ".join(f'"{word}"' if not word or any(c.isspace() for c in word) else word for word in args)
