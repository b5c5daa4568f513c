"""What a container asks of its host is asked of the next one only if a person says so."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import errors
from fleet.containers import ContainerConfig, NetworkMode
from fleet.daemon.moves.arriving import refuse_host_access
from fleet.model.service import Mount
from fleet.node_runtime.spec import DeviceSpec


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"privileged": True}, "privileges"),
        ({"capabilities_add": ("SYS_ADMIN",)}, "capabilities"),
        ({"devices": (DeviceSpec(source="/dev/sda", target="/dev/sda", permissions="rwm"),)}, "devices"),
        ({"cdi_devices": ("vendor.com/gpu=0",)}, "devices"),
        ({"device_cgroup_rules": ("b *:* rwm",)}, "devices"),
        ({"seccomp": "unconfined"}, "system call filter"),
        ({"mounts": (Mount(type="bind", source="/", target="/host"),)}, "directories of the host"),
        ({"network_mode": NetworkMode.HOST}, "the host's network"),
        ({"pid_mode": "host"}, "namespaces of the host"),
        ({"ipc_mode": "host"}, "namespaces of the host"),
        ({"cgroup_parent": "/other"}, "cgroup parent"),
    ],
)
def test_what_gets_at_the_host_is_named(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ForbiddenError, match="--allow-host-access") as caught:
        refuse_host_access(ContainerConfig(image="app:1", **asked))
    assert words in str(caught.value)


def test_an_ordinary_container_may_come() -> None:
    volume = Mount(type="volume", source="data", target="/data")
    refuse_host_access(ContainerConfig(image="app:1", mounts=(volume,), capabilities_drop=("ALL",), read_only=True))
