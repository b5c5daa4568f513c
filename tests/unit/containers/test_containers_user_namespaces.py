"""Which containers have ids of their own when nobody says."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from fleet.containers.config import ContainerConfig, DeviceSpec, NetworkMode
from fleet.containers.ports import Runtime
from fleet.containers.record import Container
from fleet.containers.subids import IdRange
from fleet.containers.user_namespaces import UserNamespaces, keeps_host_ids
from fleet.errors import UserError
from fleet.model.service import BindOptions, Mount

NOW = datetime(2026, 11, 1, tzinfo=UTC)
sliding = Mount(type="bind", source="/a", target="/a", bind_options=BindOptions(propagation="rslave"))


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
        ({"capabilities_add": ("NET_ADMIN", "SYS_PTRACE")}, "", False),
        ({"capabilities_add": ("SYS_ADMIN",)}, "", True),
        ({"ipc_mode": "shareable"}, "", True),
        ({"network_mode": NetworkMode.CONTAINER, "network_container": "a"}, "", False),
        ({"pid_mode": "container:a"}, "", True),
        ({"pid_mode": "container:a", "network_mode": NetworkMode.CONTAINER, "network_container": "a"}, "", False),
        ({"sysctls": {"net.core.somaxconn": "1024"}}, "", False),
        ({"sysctls": {"net.ipv6.route.gc_thresh": "1024"}}, "", True),
        ({"mounts": (Mount(type="bind", source="/a", target="/a"),)}, "", False),
        ({"mounts": (sliding,)}, "", True),
        ({"capabilities_add": ("ALL",)}, "", True),
        ({"devices": (DeviceSpec(source="/dev/fuse"),)}, "", True),
        ({"device_cgroup_rules": ("c 1:3 rwm",)}, "", True),
        ({"network_mode": NetworkMode.HOST}, "", True),
        ({"pid_mode": "host"}, "", True),
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


def test_who_shares_namespaces_has_the_ids_of_those_it_shares_with() -> None:
    async def story() -> None:
        users = UserNamespaces(cast("Runtime", None))
        users.by_default = True
        ids = IdRange(first_id=500_000)
        known: dict[str, Container] = {}

        def add(name: str, own: IdRange | None, **fields: Any) -> None:
            known[name] = Container(
                id=name, ids=own, name=name, created_at=NOW, config=ContainerConfig(image="app", **fields), image_id="i"
            )

        add("a", ids)
        add("b", ids)
        add("of-a", ids, network_mode=NetworkMode.CONTAINER, network_container="a")
        add("hosts", None)

        async def chosen(network: str, **fields: Any) -> IdRange | None:
            config = ContainerConfig(
                image="app", network_mode=NetworkMode.CONTAINER, network_container=network, **fields
            )
            return await users.choose(config, user="", find=known.get)

        assert await chosen("a") == ids
        assert await chosen("a", pid_mode="container:of-a", ipc_mode="container:a") == ids
        assert await chosen("of-a", pid_mode="container:b") is None
        assert await chosen("hosts") is None
        assert await chosen("gone") is None
        assert await chosen("a", privileged=True) is None
        users.by_default = False
        assert await chosen("a") is None
        assert await chosen("a", userns_mode="remap") == ids
        with pytest.raises(UserError, match="must be in one user namespace"):
            await chosen("hosts", userns_mode="remap")

    asyncio.run(story())
