"""What a container can not have where fleetd runs as an ordinary user: refused where it would be something else than was asked
for, discarded with a warning where Docker does so. Pure.

Not here: what the kernel judges. Capabilities and privileged mode are those of fleetd's own user namespace, devices are opened
with the user's own rights, and "the host's" network, IPC and UTS namespaces are fleetd's.
"""

from __future__ import annotations

import dataclasses

import msgspec

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.errors import UnsupportedError
from fleet.node_runtime.spec import ResourceLimits

__all__ = ["adapt", "discard_limits", "warnings_of"]

_NO_LIMITS = ResourceLimits()
_FLAGS = {
    "nano_cpus": "CPU",
    "memory_bytes": "memory",
    "memory_swap_bytes": "memory and swap",
    "memory_reservation_bytes": "memory reservation",
    "pids_limit": "pids",
    "cpu_shares": "CPU shares",
    "cpuset_cpus": "cpuset CPU",
    "cpuset_mems": "cpuset memory node",
    "cpu_period_us": "CPU period",
    "cpu_quota_us": "CPU quota",
    "memory_swappiness": "swappiness",
    "oom_kill_disable": "OOM killer",
    "blkio_weight": "block I/O weight",
    "blkio_weight_devices": "block I/O weight",
    "device_read_bps": "block I/O rate",
    "device_write_bps": "block I/O rate",
    "device_read_iops": "block I/O rate",
    "device_write_iops": "block I/O rate",
}


def adapt(config: ContainerConfig) -> ContainerConfig:
    """The config as it can be had. Raises ``UnsupportedError`` for what cannot be."""
    if config.pid_mode == "host":
        raise UnsupportedError(
            "pid mode host: fleetd runs without root, and its processes may not show those of this host; share another "
            "container's with container:NAME"
        )
    if config.userns_mode == "remap":
        raise UnsupportedError(
            "userns mode remap: fleetd runs without root, in a user namespace that all its containers share; owners of files "
            "cannot be mapped once more in it"
        )
    return msgspec.structs.replace(config, resources=_NO_LIMITS)


def discard_limits(limits: ResourceLimits) -> list[str]:
    """A warning for each kind of limit that is set."""
    set_ = [
        field.name
        for field in dataclasses.fields(limits)
        if getattr(limits, field.name) != getattr(_NO_LIMITS, field.name)
    ]
    words = dict.fromkeys(_FLAGS[name] for name in set_)
    return [f"fleetd runs without root and without cgroups. Limitation discarded: {word}." for word in words]


def warnings_of(config: ContainerConfig) -> list[str]:
    """What of a config, as it was asked for, will not be or be otherwise."""
    found = discard_limits(config.resources)
    if config.network_mode is NetworkMode.HOST:
        found.append(
            "network host is that of fleetd's own namespace, for it runs without root: nobody outside reaches ports opened "
            "there; publish them instead"
        )
    return found
