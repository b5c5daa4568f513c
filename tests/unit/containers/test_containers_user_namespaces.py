"""Which containers have ids of their own when nobody says."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from fleet.containers.config import ContainerConfig, DeviceSpec, NetworkMode
from fleet.containers.ports import Runtime
from fleet.containers.user_namespaces import UserNamespaces, keeps_host_ids


@pytest.mark.parametrize(
    ("fields", "user", "kept"),
    [
        ({}, "", False),
        ({}, "1000:1000", False),
        ({}, "www-data", False),
        ({"capabilities_add": ("NET_RAW", "CAP_CHOWN")}, "", False),
        ({"capabilities_drop": ("ALL",)}, "", False),
        ({"ipc_mode": "none"}, "", False),
        ({}, "70000", True),
        ({}, "1000:70000", True),
        ({"groups": ("70000",)}, "", True),
        ({"privileged": True}, "", True),
        ({"capabilities_add": ("NET_ADMIN",)}, "", True),
        ({"capabilities_add": ("ALL",)}, "", True),
        ({"devices": (DeviceSpec(source="/dev/fuse"),)}, "", True),
        ({"device_cgroup_rules": ("c 1:3 rwm",)}, "", True),
        ({"network_mode": NetworkMode.HOST}, "", True),
        ({"network_mode": NetworkMode.CONTAINER, "network_container": "a"}, "", True),
        ({"pid_mode": "host"}, "", True),
        ({"pid_mode": "container:a"}, "", True),
        ({"ipc_mode": "shareable"}, "", True),
        ({"uts_mode": "host"}, "", True),
        ({"cgroupns_mode": "host"}, "", True),
    ],
)
def test_what_would_not_work_with_other_ids_keeps_the_hosts(fields: dict[str, Any], user: str, kept: bool) -> None:
    assert keeps_host_ids(ContainerConfig(image="app", **fields), user=user) is kept


def test_the_word_of_the_container_goes_before_the_hosts_choice() -> None:
    async def story() -> None:
        users = UserNamespaces(cast("Runtime", None))

        async def chosen(**fields: Any) -> bool:
            return await users.choose(ContainerConfig(image="app", **fields), user="") is not None

        assert [await chosen(), await chosen(userns_mode="remap"), await chosen(userns_mode="host")] == [
            False,
            True,
            False,
        ]
        users.by_default = True
        assert [await chosen(), await chosen(userns_mode="remap"), await chosen(userns_mode="host")] == [
            True,
            True,
            False,
        ]
        assert not await chosen(privileged=True)

    asyncio.run(story())
