"""What a container asks of its host that makes whoever controls it as good as root there."""

from __future__ import annotations

from fleet.containers.config import ContainerConfig, NetworkMode

__all__ = ["host_access_of"]


def host_access_of(config: ContainerConfig) -> list[str]:
    """In words for people; empty for an ordinary container."""
    namespaces = (config.pid_mode, config.ipc_mode, config.uts_mode, config.cgroupns_mode)
    asks = {
        "privileges (--privileged)": config.privileged,
        "capabilities (--cap-add)": bool(config.capabilities_add),
        "devices": bool(config.devices or config.cdi_devices or config.device_cgroup_rules),
        "another system call filter": config.seccomp != "default",
        "another AppArmor profile": config.apparmor != "",
        "directories of the host (bind mounts)": any(mount.type == "bind" for mount in config.mounts),
        "the host's network": config.network_mode is NetworkMode.HOST,
        "namespaces of the host": "host" in namespaces,
        "another cgroup parent": bool(config.cgroup_parent),
    }
    return [what for what, is_asked in asks.items() if is_asked]
