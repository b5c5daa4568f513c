"""What this host is: name, platform, resources, engine. Read from the kernel, not configured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from fleet import __version__
from fleet.model.common import Platform, TlsInfo
from fleet.model.node import EngineDescription, EnginePlugin, NodeDescription, NodeResources

__all__ = ["cpu_count", "describe_host", "memory_total_bytes"]

_PLUGINS: Final = (
    EnginePlugin(type="Log", name="json-file"),
    EnginePlugin(type="Log", name="local"),
    EnginePlugin(type="Log", name="none"),
    EnginePlugin(type="Network", name="bridge"),
    EnginePlugin(type="Network", name="host"),
    EnginePlugin(type="Network", name="ipvlan"),
    EnginePlugin(type="Network", name="macvlan"),
    EnginePlugin(type="Network", name="null"),
    EnginePlugin(type="Network", name="overlay"),
    EnginePlugin(type="Volume", name="local"),
)
_ENCRYPTED: Final = EnginePlugin(type="Network", name="overlay-encrypted")
"""A word of fleet's own: tasks on encrypted networks are placed only where it is said (``NetworkSpec.needed_plugin``)."""


def memory_total_bytes() -> int:
    """Physical memory in bytes (``MemTotal`` of proc(5)), asked without reading that file, which takes milliseconds."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def describe_host(
    *, hostname: str, labels: Mapping[str, str], tls_info: TlsInfo, tunnel_key: str = ""
) -> NodeDescription:
    """The node's description as Docker shapes it; a few file reads, does not block long.

    ``tunnel_key`` is empty for a host that cannot be on encrypted networks.
    """
    uname = os.uname()
    plugins = (*_PLUGINS, _ENCRYPTED) if tunnel_key else _PLUGINS
    return NodeDescription(
        hostname=hostname,
        platform=Platform(architecture=uname.machine, os=uname.sysname.lower()),
        resources=NodeResources(nano_cpus=cpu_count() * 1_000_000_000, memory_bytes=memory_total_bytes()),
        engine=EngineDescription(engine_version=__version__, labels=dict(labels), plugins=plugins),
        tls_info=tls_info,
        tunnel_key=tunnel_key,
    )
