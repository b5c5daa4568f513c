"""What an operator may not ask for without host access: whatever makes root on a host, and thereby an admin, of whoever runs it.

The words are for people: what was asked for, as the flags call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from fleet.agent.http.container_body import CreateBody, HostSettings
from fleet.model.service import ContainerSpec, Mount, ServiceSpec, TaskSpec

__all__ = ["named_volumes", "wishes_of_container", "wishes_of_service", "wishes_of_task"]

_BINDS: Final = "directories of the host (bind mounts)"
_LOGS: Final = "sockets or files of the host for its log"
_OPTIONS: Final = "a volume with options of its driver"


def wishes_of_service(spec: ServiceSpec) -> list[str]:
    """What its tasks would get of their hosts."""
    networks = {target.target for target in spec.all_networks}
    return [*_of_spec(spec.task_template.container_spec), *_network(networks), *_logs_of(spec.task_template)]


def wishes_of_task(spec: TaskSpec) -> list[str]:
    """What a task of it has of its host."""
    return [*_of_spec(spec.container_spec), *_network({target.target for target in spec.networks}), *_logs_of(spec)]


def wishes_of_container(body: CreateBody) -> list[str]:
    """What a plain container would get of its host, or of another container."""
    host = body.host_config
    modes = (host.pid_mode, host.ipc_mode, host.uts_mode, host.cgroupns_mode, host.userns_mode)
    networks = {host.network_mode, *body.networking_config.endpoints_config}
    others = [mode for mode in (*modes, host.network_mode) if mode.startswith("container:")]
    asks = {
        "privileges (--privileged)": host.privileged,
        "capabilities (--cap-add)": bool(host.cap_add),
        "devices": bool(host.devices or host.device_cgroup_rules or host.device_requests),
        "security options": any(not option.startswith("no-new-privileges") for option in host.security_opt),
        "namespaces of the host": "host" in modes,
        "another cgroup parent": bool(host.cgroup_parent),
        "namespaces or volumes of another container": bool(others or host.volumes_from),
        _BINDS: any(_is_path(text) for text in host.binds),
        _LOGS: _reaches_files(host.log_config.config),
    }
    return [*(what for what, is_asked in asks.items() if is_asked), *_mounts(host.mounts), *_network(networks)]


def named_volumes(body: CreateBody | ContainerSpec) -> list[str]:
    """Volumes that it would mount by name."""
    mounts = body.host_config.mounts if isinstance(body, CreateBody) else body.mounts
    names = [mount.source for mount in mounts if mount.type == "volume" and mount.source]
    if isinstance(body, CreateBody):
        names += [text.partition(":")[0] for text in _binds(body.host_config) if not _is_path(text)]
    return names


def _binds(host: HostSettings) -> list[str]:
    """Those with a source."""
    return [text for text in host.binds if ":" in text]


def _is_path(text: str) -> bool:
    return ":" in text and text.startswith(("/", ".", "~"))


def _of_spec(spec: ContainerSpec) -> list[str]:
    privileges = spec.privileges
    seccomp = ((privileges.seccomp if privileges else None) or {}).get("Mode", "default")
    apparmor = ((privileges.app_armor if privileges else None) or {}).get("Mode", "default")
    asks = {
        "capabilities (--cap-add)": bool(spec.capability_add),
        "security options": (seccomp or "default", apparmor or "default") != ("default", "default"),
    }
    return [*(what for what, is_asked in asks.items() if is_asked), *_mounts(spec.mounts)]


def _logs_of(spec: TaskSpec) -> list[str]:
    return [_LOGS] if spec.log_driver is not None and _reaches_files(spec.log_driver.options) else []


def _reaches_files(options: Mapping[str, str]) -> bool:
    """Whether a log driver would speak to a socket of the host, which may be fleet's own, or read files there."""
    if any(name.startswith("syslog-tls-") and name != "syslog-tls-skip-verify" for name in options):
        return True
    try:
        return urlsplit(options.get("syslog-address", "")).scheme.startswith("unix")
    except ValueError:  # none at all, which the driver refuses
        return True


def _mounts(mounts: tuple[Mount, ...]) -> list[str]:
    known = []
    if any(mount.type not in ("volume", "tmpfs") or mount.source.startswith("/") for mount in mounts):
        known.append(_BINDS)
    drivers = [mount.volume_options.driver_config for mount in mounts if mount.volume_options is not None]
    if any(driver is not None and driver.options for driver in drivers):
        known.append(_OPTIONS)
    return known


def _network(names: set[str]) -> list[str]:
    return ["the host's network"] if "host" in names else []
