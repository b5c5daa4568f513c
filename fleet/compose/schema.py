"""Which keys a Compose file may have, and what becomes of each: honoured, understood but not honoured, refused.

Source: Compose specification (services, networks, volumes, configs, secrets, deploy). This table is the only place that
says so; ``diagnose`` walks a file along it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, Literal

__all__ = ["DOCUMENT", "Key"]

Keys = Mapping[str, "Key"]


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """``below`` describes the keys of the value (*value*; *either*: if it is a mapping), of each of its items, or of each of its
    named entries.
    """

    verdict: Literal["honoured", "ignored", "refused"] = "honoured"
    note: str = ""
    below: Keys | None = None
    of: Literal["value", "items", "entries", "either"] = "value"


def _honoured(*names: str) -> dict[str, Key]:
    return dict.fromkeys(names, Key())


def _ignored(**notes: str) -> dict[str, Key]:
    return {name: Key("ignored", note) for name, note in notes.items()}


def _refused(**notes: str) -> dict[str, Key]:
    return {name: Key("refused", note) for name, note in notes.items()}


_UPDATE: Final = _honoured(
    "parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order", "x-progress-deadline"
)

_GENERIC_RESOURCE: Final = {"discrete_resource_spec": Key(below=_honoured("kind", "value"))}

_DEPLOY: Final = {
    **_honoured("mode", "replicas", "labels", "endpoint_mode"),
    "placement": Key(
        below={
            **_honoured("constraints", "max_replicas_per_node"),
            "preferences": Key(below=_honoured("spread"), of="items"),
        }
    ),
    "resources": Key(
        below={
            "limits": Key(below=_honoured("cpus", "memory", "pids")),
            "reservations": Key(
                below={
                    **_honoured("cpus", "memory"),
                    "generic_resources": Key(below=_GENERIC_RESOURCE, of="items"),
                    **_ignored(devices="devices are not handed to containers yet; use generic_resources to place them"),
                }
            ),
        }
    ),
    "restart_policy": Key(below=_honoured("condition", "delay", "max_attempts", "window")),
    "update_config": Key(below=_UPDATE),
    "rollback_config": Key(below=_UPDATE),
}

_HEALTHCHECK: Final = _honoured("test", "interval", "timeout", "retries", "start_period", "start_interval", "disable")

_SERVICE_NETWORK: Final = {
    **_honoured("aliases", "driver_opts"),
    **_ignored(
        ipv4_address="addresses are chosen by the cluster",
        ipv6_address="addresses are chosen by the cluster",
        link_local_ips="addresses are chosen by the cluster",
        mac_address="addresses are chosen by the cluster",
        gw_priority="the gateway is chosen by the cluster",
        interface_name="interfaces are named by the cluster",
        priority="networks are joined in the order of their names",
    ),
}

_SERVICE_PORT: Final = {
    **_honoured("target", "published", "protocol", "mode", "name", "x-source"),
    **_ignored(
        host_ip="a service is published on every node, on all addresses",
        app_protocol="ports are forwarded without looking at what they carry",
    ),
}

_SERVICE_VOLUME: Final = {
    **_honoured("type", "source", "target", "read_only", "consistency"),
    "bind": Key(
        below={
            **_honoured("propagation", "create_host_path"),
            **_ignored(selinux="labels are not set", recursive="submounts are always included"),
        }
    ),
    "volume": Key(below=_honoured("nocopy", "subpath", "labels")),
    "tmpfs": Key(below=_honoured("size", "mode")),
}

_FILE_REFERENCE: Final = _honoured("source", "target", "uid", "gid", "mode")

_SERVICE: Final = {
    **_honoured(
        "image", "command", "entrypoint", "environment", "labels", "cap_add", "cap_drop", "sysctls",
        "ulimits", "init", "stop_signal", "stop_grace_period", "user", "group_add", "working_dir", "hostname",
        "extra_hosts", "dns", "dns_search", "dns_opt", "tty", "stdin_open", "read_only", "tmpfs", "oom_score_adj",
        "restart", "scale", "expose", "profiles", "userns_mode",
    ),
    "env_file": Key(
        below={
            **_honoured("path", "required"),
            **_ignored(format="files are NAME=value lines: quotes around a whole value go, nothing else is replaced"),
        },
        of="items",
    ),
    "depends_on": Key(
        below={
            **_honoured("condition", "required"),
            **_ignored(restart="a service is not restarted because another is updated"),
        },
        of="entries",
    ),
    "extends": Key(below=_honoured("file", "service"), of="either"),
    "deploy": Key(below=_DEPLOY),
    "healthcheck": Key(below=_HEALTHCHECK),
    "logging": Key(below=_honoured("driver", "options")),
    "networks": Key(below=_SERVICE_NETWORK, of="entries"),
    "ports": Key(below=_SERVICE_PORT, of="items"),
    "volumes": Key(below=_SERVICE_VOLUME, of="items"),
    "secrets": Key(below=_FILE_REFERENCE, of="items"),
    "configs": Key(below=_FILE_REFERENCE, of="items"),
    **_ignored(
        annotations="annotations have no counterpart in a service; use labels",
        attach="a stack runs in the background",
        blkio_config="block I/O is not limited yet",
        build="a stack runs images that exist; build and load the image first",
        cgroup="containers always have their own cgroup",
        cgroup_parent="the cgroup is chosen by the node",
        container_name="tasks are named SERVICE.SLOT.ID, because there may be several",
        credential_spec="Windows only",
        develop="for development on one host",
        device_cgroup_rules="devices are not handed to containers yet",
        devices="devices are not handed to containers yet",
        domainname="put the whole name in 'hostname'",
        external_links="use networks and names",
        gpus="devices are not handed to containers yet",
        ipc="containers always have their own IPC namespace",
        isolation="Windows only",
        label_file="put the labels into 'labels'",
        links="services on one network reach each other by name; use networks and aliases",
        mac_address="addresses are chosen by the cluster",
        models="models are not run by a stack",
        network_mode="use networks",
        oom_kill_disable="the kernel's choice is kept",
        pid="containers always have their own PID namespace",
        platform="the image decides",
        post_start="hooks are not run",
        pre_stop="hooks are not run",
        privileged="containers are never given all privileges; use cap_add",
        provider="services are run by this cluster only",
        pull_policy="images are pulled when a node lacks them",
        runtime="the node's own runtime is used",
        security_opt="the default profile is kept",
        shm_size="shared memory has its default size; mount a tmpfs of the size you need there instead",
        stop_timeout="use stop_grace_period",
        storage_opt="the writable layer has no limit",
        use_api_socket="the daemon's socket is not handed to containers",
        uts="containers always have their own UTS namespace",
    ),
    **_refused(
        volume_driver="use the top-level 'volumes' with a driver",
        volumes_from="use named volumes",
        cpu_count="use deploy.resources.limits.cpus",
        cpu_percent="use deploy.resources.limits.cpus",
        cpu_period="use deploy.resources.limits.cpus",
        cpu_quota="use deploy.resources.limits.cpus",
        cpu_rt_period="use deploy.resources.limits.cpus",
        cpu_rt_runtime="use deploy.resources.limits.cpus",
        cpu_shares="use deploy.resources.reservations.cpus",
        cpus="use deploy.resources.limits.cpus",
        cpuset="use deploy.resources.limits.cpus",
        mem_limit="use deploy.resources.limits.memory",
        mem_reservation="use deploy.resources.reservations.memory",
        mem_swappiness="not supported in stacks",
        memswap_limit="not supported in stacks",
        pids_limit="use deploy.resources.limits.pids",
    ),
}  # fmt: skip

_IPAM: Final = {
    **_honoured("driver", "options"),
    "config": Key(below=_honoured("subnet", "ip_range", "gateway", "aux_addresses"), of="items"),
}

_NETWORK: Final = {
    **_honoured(
        "name", "driver", "driver_opts", "external", "internal", "attachable", "labels", "enable_ipv6", "enable_ipv4"
    ),
    "ipam": Key(below=_IPAM),
}

_VOLUME: Final = _honoured("name", "driver", "driver_opts", "external", "labels")

_SECRET: Final = _honoured(
    "name", "file", "environment", "external", "labels", "driver", "driver_opts", "template_driver"
)

_CONFIG: Final = _honoured("name", "file", "environment", "content", "external", "labels", "template_driver")

DOCUMENT: Final[Keys] = {
    **_honoured("version", "name"),
    "services": Key(below=_SERVICE, of="entries"),
    "networks": Key(below=_NETWORK, of="entries"),
    "volumes": Key(below=_VOLUME, of="entries"),
    "secrets": Key(below=_SECRET, of="entries"),
    "configs": Key(below=_CONFIG, of="entries"),
    **_ignored(models="models are not run by a stack"),
    "include": Key(below=_honoured("path", "project_directory", "env_file"), of="items"),
}
"""The keys of a whole file."""
