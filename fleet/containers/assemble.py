"""From what was asked and what the image says to what is run. Pure: no file is read, no clock, nothing is started.

Rules are Docker's: moby ``daemon/commit.go`` (merge of image and container configuration), ``oci/defaults.go`` and the
Engine API.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fleet.containers.cdi import Edits
from fleet.containers.config import ContainerConfig, NetworkMode, normal_target
from fleet.containers.record import Container, MountPoint
from fleet.errors import RejectedFault, UserError
from fleet.images.config import ImageConfig
from fleet.model.service import HealthConfig
from fleet.model.service import Mount as MountRequest
from fleet.node_runtime import spec as rt
from fleet.node_runtime.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES, normalize_capability

__all__ = [
    "Merged",
    "merge",
    "merge_env",
    "parse_signal",
    "plan_capabilities",
    "plan_spec",
    "planned_mounts",
]

HOST_FILES: Final = ("resolv.conf", "hostname", "hosts")
_SIGNALS_MAX: Final = 64
_REALTIME: Final = re.compile(r"(?:SIG)?RT(MIN|MAX)([+-]\d{1,2})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Image and request joined."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str
    labels: dict[str, str]
    stop_signal: str
    healthcheck: HealthConfig | None
    volume_targets: tuple[str, ...]
    exposed_ports: tuple[str, ...]


def merge(config: ContainerConfig, image: ImageConfig) -> Merged:
    """Join request and image. Raises ``RejectedFault`` when there is no command, ``UserError`` for a bad signal or label."""
    entrypoint, command = config.entrypoint, config.command
    if entrypoint is None:
        entrypoint = image.entrypoint
        command = image.cmd if command is None else command
    # An entrypoint given by the user drops the image's CMD: it was meant for another program.
    args = (*entrypoint, *(command or ()))
    if not args or not args[0]:
        raise RejectedFault(f"no command specified: neither the container nor the image {config.image} names one")
    stop_signal = config.stop_signal or image.stop_signal or "SIGTERM"
    parse_signal(stop_signal)
    return Merged(
        args=args,
        env=merge_env(image.env, config.env),
        working_dir=config.working_dir or image.working_dir or "/",
        user=config.user or image.user,
        labels={**image.labels, **config.labels},
        stop_signal=stop_signal,
        healthcheck=merge_health(config.healthcheck, image.healthcheck, shell=image.shell),
        volume_targets=(*config.volume_targets, *image.volumes),
        exposed_ports=tuple(sorted({*config.exposed_ports, *image.exposed_ports})),
    )


def merge_env(image_env: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The image's variables with the container's over them, in first-seen order; ``KEY`` without ``=`` removes."""
    merged: dict[str, str | None] = {}
    for text in (*image_env, *own):
        key, separator, value = text.partition("=")
        if separator:
            merged[key] = value
        else:
            merged.pop(key, None)
    return tuple(f"{key}={value}" for key, value in merged.items() if key)


def full_env(container: Container) -> tuple[str, ...]:
    """``Container.env`` with what every process finds: PATH, HOSTNAME, and TERM on a terminal."""
    defaults = [f"PATH={rt.DEFAULT_PATH}", f"HOSTNAME={container.hostname}"]
    if container.config.tty:
        defaults.append("TERM=xterm")
    return merge_env(defaults, container.env)


def merge_health(
    own: HealthConfig | None, image: dict[str, Any] | None, *, shell: Sequence[str] = ()
) -> HealthConfig | None:
    """The health check to run, or None. Fields the request leaves at 0 come from the image; ``NONE`` switches it off."""
    base = HealthConfig()
    if image:
        base = HealthConfig(
            test=tuple(image.get("Test") or ()),
            interval_ns=int(image.get("Interval") or 0),
            timeout_ns=int(image.get("Timeout") or 0),
            retries=int(image.get("Retries") or 0),
            start_period_ns=int(image.get("StartPeriod") or 0),
            start_interval_ns=int(image.get("StartInterval") or 0),
        )
    own = own or HealthConfig()
    merged = HealthConfig(
        test=own.test or base.test,
        interval_ns=own.interval_ns or base.interval_ns,
        timeout_ns=own.timeout_ns or base.timeout_ns,
        retries=own.retries or base.retries,
        start_period_ns=own.start_period_ns or base.start_period_ns,
        start_interval_ns=own.start_interval_ns or base.start_interval_ns,
    )
    if not merged.test or merged.test[0] == "NONE":
        return None
    if merged.test[0] == "CMD" and len(merged.test) > 1:
        return merged
    if merged.test[0] == "CMD-SHELL" and len(merged.test) == 2:
        words = ("CMD", *(shell or ("/bin/sh", "-c")), merged.test[1])
        return HealthConfig(
            test=words,
            interval_ns=merged.interval_ns,
            timeout_ns=merged.timeout_ns,
            retries=merged.retries,
            start_period_ns=merged.start_period_ns,
            start_interval_ns=merged.start_interval_ns,
        )
    raise UserError(
        f'health check: expected ["NONE"], ["CMD", program, ...] or ["CMD-SHELL", text], found {list(merged.test)}'
    )


def parse_signal(text: str | int) -> int:
    """``TERM``, ``SIGTERM``, ``SIGRTMIN+3`` or a number as its number. Raises ``UserError``."""
    name = str(text).strip().upper()
    if name.isdigit():
        number = int(name)
        if 1 <= number <= _SIGNALS_MAX:
            return number
        raise UserError(f"invalid signal: {text}: numbers are 1 to {_SIGNALS_MAX}")
    realtime = _REALTIME.fullmatch(name)
    if realtime:
        number = int(signal.SIGRTMIN if realtime[1] == "MIN" else signal.SIGRTMAX) + int(realtime[2] or 0)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
        raise UserError(
            f"invalid signal: {text}: real-time signals are {int(signal.SIGRTMIN)} to {int(signal.SIGRTMAX)}"
        )
    try:
        return int(signal.Signals["SIG" + name.removeprefix("SIG")])
    except KeyError:
        raise UserError(f"invalid signal: {text}: give a name such as SIGTERM, or a number") from None


def plan_capabilities(*, add: Collection[str], drop: Collection[str], privileged: bool = False) -> tuple[str, ...]:
    """The bounding set, in kernel order; moby ``oci/caps.TweakCapabilities``: ALL added wins over ALL dropped."""
    if privileged:
        return ALL_CAPABILITIES
    added = {normalize_capability(name) for name in add if not _is_all(name)}
    dropped = {normalize_capability(name) for name in drop if not _is_all(name)}
    if any(map(_is_all, add)):
        chosen = set(ALL_CAPABILITIES) - dropped
    elif any(map(_is_all, drop)):
        chosen = added
    else:
        chosen = (set(DEFAULT_CAPABILITIES) - dropped) | added
    return tuple(name for name in ALL_CAPABILITIES if name in chosen)


def _is_all(name: str) -> bool:
    return name.upper().removeprefix("CAP_") == "ALL"


def planned_mounts(requests: Sequence[MountRequest], volume_targets: Sequence[str]) -> tuple[MountRequest, ...]:
    """All mounts of a container: those requested, and an anonymous volume for each image or ``-v /path`` target not covered."""
    covered = {normal_target(mount.target) for mount in requests}
    result = list(requests)
    for target in volume_targets:
        clean = normal_target(target)
        if clean != "/" and clean not in covered:
            covered.add(clean)
            result.append(MountRequest(type="volume", target=clean))
    return tuple(result)


def plan_spec(
    container: Container,
    *,
    layer_dirs: Sequence[Path],
    directory: Path,
    file_sources: Sequence[tuple[str, Path]],
    etc_directory: Path | None = None,
) -> rt.ContainerSpec:
    """What the supervisor is told. ``directory`` is the container's own; ``file_sources`` are (target, host path) of
    secrets and configs; ``etc_directory`` holds hosts, hostname and resolv.conf when they are another container's.
    """
    config = container.config
    return rt.ContainerSpec(
        id=container.id,
        root=rt.RootFs(
            lower_dirs=tuple(str(d) for d in layer_dirs),
            upper_dir=str(directory / "upper"),
            work_dir=str(directory / "work"),
            read_only=config.read_only,
        ),
        process=plan_process(container),
        hostname=_hostname(container),
        domainname=config.domainname,
        mounts=_plan_mounts(container, etc_directory or directory, file_sources),
        resources=config.resources,
        network=_network(config),
        user_namespace=None
        if container.ids is None
        else rt.UserNamespace(first_id=container.ids.first_id, count=container.ids.count),
        pid=config.pid_mode or "private",
        ipc="private" if config.ipc_mode in ("", "shareable") else config.ipc_mode,
        uts="host" if config.uts_mode == "host" else "private",
        cgroup_namespace="host" if config.cgroupns_mode == "host" else "private",
        cgroup_path=f"{config.cgroup_parent.strip('/')}/{container.id}" if config.cgroup_parent.strip("/") else "",
        log=None
        if config.log.driver == "none"
        else rt.LogSpec(
            path=str(log_path(directory)), max_size_bytes=config.log.max_size_bytes, max_files=config.log.max_files
        ),
        seccomp=seccomp_of(config),
        masked_paths=() if config.privileged else rt.DEFAULT_MASKED_PATHS,
        read_only_paths=() if config.privileged else rt.DEFAULT_READ_ONLY_PATHS,
        devices=config.devices,
        device_cgroup_rules=config.device_cgroup_rules,
        sysctls=config.sysctls,
        init=config.init,
        privileged=config.privileged,
        shm_size_bytes=config.shm_size_bytes,
    )


def with_devices(spec: rt.ContainerSpec, edits: Edits) -> rt.ContainerSpec:
    """The same with what CDI devices add; what the user mounts or sets himself wins."""
    targets = {mount.target for mount in spec.mounts}
    devices = {device.target or device.source for device in spec.devices}
    return replace(
        spec,
        process=replace(spec.process, env=merge_env(edits.env, spec.process.env)),
        mounts=(*spec.mounts, *(mount for mount in edits.mounts if mount.target not in targets)),
        devices=(*spec.devices, *(device for device in edits.devices if device.target not in devices)),
    )


def plan_process(container: Container) -> rt.ProcessSpec:
    """The container's first process; ``fleet.containers.execs`` derives joined ones from it."""
    config = container.config
    rlimits = {"nofile": rt.Rlimit(name="nofile", soft=1024, hard=524288)}
    rlimits.update({u.name: rt.Rlimit(name=u.name, soft=u.soft, hard=u.hard) for u in config.ulimits})
    return rt.ProcessSpec(
        args=container.args,
        env=full_env(container),
        cwd=container.working_dir,
        user=container.user,
        additional_groups=config.groups,
        tty=config.tty,
        capabilities=plan_capabilities(
            add=config.capabilities_add, drop=config.capabilities_drop, privileged=config.privileged
        ),
        no_new_privileges=config.no_new_privileges and not config.privileged,
        apparmor=container.apparmor,
        rlimits=tuple(rlimits.values()),
        oom_score_adj=config.oom_score_adj,
    )


def seccomp_of(config: ContainerConfig) -> str:
    """The profile that every process of the container gets."""
    return "unconfined" if config.privileged else config.seccomp


def log_path(directory: Path) -> Path:
    """Where a container's output is kept."""
    return directory / "log" / "json.log"


def _network(config: ContainerConfig) -> str:
    if config.network_mode is NetworkMode.CONTAINER:
        return f"container:{config.network_container}"
    return {NetworkMode.NONE: "none", NetworkMode.HOST: "host"}.get(config.network_mode, "fd")


def _hostname(container: Container) -> str:
    config = container.config
    if config.uts_mode == "host" or (config.network_mode is NetworkMode.HOST and not config.hostname):
        return ""
    return container.hostname


def _plan_mounts(
    container: Container, directory: Path, file_sources: Sequence[tuple[str, Path]]
) -> tuple[rt.MountSpec, ...]:
    """Shallow targets first, so that a mount never hides one made before it; the user's mounts win over the three files
    in /etc.
    """
    mounts: list[rt.MountSpec] = []
    for point in container.mounts:
        if point.kind == "tmpfs":
            mounts.append(_tmpfs(point))
        else:
            mounts.append(
                rt.MountSpec(
                    kind="bind",
                    target=point.target,
                    source=point.source,
                    read_only=point.read_only,
                    propagation=point.propagation,  # type: ignore[arg-type]  # checked when the container was made
                    recursive=point.recursive,
                )
            )
    taken = {mount.target for mount in mounts}
    mounts += [
        rt.MountSpec(kind="bind", target=f"/etc/{name}", source=str(directory / name))
        for name in HOST_FILES
        if f"/etc/{name}" not in taken
    ]
    mounts += [
        rt.MountSpec(kind="bind", target=target, source=str(source), read_only=True) for target, source in file_sources
    ]
    return tuple(sorted(mounts, key=lambda mount: mount.target.count("/")))


def _tmpfs(point: MountPoint) -> rt.MountSpec:
    return rt.MountSpec(
        kind="tmpfs",
        target=point.target,
        read_only=point.read_only,
        size_bytes=point.size_bytes,
        mode=point.mode or None,
        options=point.options,
    )
