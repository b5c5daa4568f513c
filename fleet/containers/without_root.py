"""What a container can not have where fleetd runs as an ordinary user: refused where it would be something else than was asked
for, discarded with a warning where Docker does so. Pure.

Not here: what the kernel judges. Capabilities and privileged mode are those of fleetd's own user namespace, devices are opened
with the user's own rights, and "the host's" network, IPC and UTS namespaces are fleetd's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import msgspec

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.errors import UnsupportedError
from fleet.node_runtime.spec import ResourceLimits

__all__ = ["adapt", "discard_limits", "keep_limits", "warnings_of"]

_NO_LIMITS = ResourceLimits()
_FLAGS = {
    "nano_cpus": ("CPU", "cpu"),
    "memory_bytes": ("memory", "memory"),
    "memory_swap_bytes": ("memory and swap", "memory"),
    "memory_reservation_bytes": ("memory reservation", "memory"),
    "pids_limit": ("pids", "pids"),
    "cpu_shares": ("CPU shares", "cpu"),
    "cpuset_cpus": ("cpuset CPU", "cpuset"),
    "cpuset_mems": ("cpuset memory node", "cpuset"),
    "cpu_period_us": ("CPU period", "cpu"),
    "cpu_quota_us": ("CPU quota", "cpu"),
    "memory_swappiness": ("swappiness", ""),
    "oom_kill_disable": ("OOM killer", ""),
    "blkio_weight": ("block I/O weight", "io"),
    "blkio_weight_devices": ("block I/O weight", "io"),
    "device_read_bps": ("block I/O rate", "io"),
    "device_write_bps": ("block I/O rate", "io"),
    "device_read_iops": ("block I/O rate", "io"),
    "device_write_iops": ("block I/O rate", "io"),
}
"""Field -> what it limits, and the controller of cgroup v2 that does it; "" where version 2 has nothing like it."""


def adapt(config: ContainerConfig, controllers: Collection[str]) -> ContainerConfig:
    """The config as it can be had with the ``controllers`` this user was given. Raises ``UnsupportedError`` for what cannot."""
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
    return msgspec.structs.replace(config, resources=keep_limits(config.resources, controllers))


def keep_limits(limits: ResourceLimits, controllers: Collection[str]) -> ResourceLimits:
    """Those limits that the controllers can set."""
    return dataclasses.replace(
        limits, **{name: getattr(_NO_LIMITS, name) for name, (_, by) in _FLAGS.items() if by not in controllers}
    )


def discard_limits(limits: ResourceLimits, controllers: Collection[str]) -> list[str]:
    """A warning for each kind of limit that is set and cannot be had."""
    kept = keep_limits(limits, controllers)
    set_ = [
        field.name for field in dataclasses.fields(limits) if getattr(limits, field.name) != getattr(kept, field.name)
    ]
    words = dict.fromkeys(_FLAGS[name] for name in set_)
    return [
        f"fleetd runs without root and {_why(by, controllers)}. Limitation discarded: {word}." for word, by in words
    ]


def _why(controller: str, controllers: Collection[str]) -> str:
    if not controllers:
        return "without cgroups"
    return f"was not given the cgroup controller {controller}" if controller else "cgroup v2 has none"


def warnings_of(config: ContainerConfig, controllers: Collection[str]) -> list[str]:
    """What of a config, as it was asked for, will not be or be otherwise."""
    found = discard_limits(config.resources, controllers)
    if config.network_mode is NetworkMode.HOST:
        found.append(
            "network host is that of fleetd's own namespace, for it runs without root: nobody outside reaches ports opened "
            "there; publish them instead"
        )
    return found
