"""Values from outside are checked where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.errors import UserError
from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    HostPort,
    NetworkSpec,
    NodeRecord,
    PublishedPort,
    SandboxSpec,
    ServiceRecord,
)

GOOD: dict[str, Any] = {
    "id": "n",
    "name": "n",
    "driver": "overlay",
    "subnet": "10.0.1.0/24",
    "gateway": "10.0.1.1",
    "vni": 4097,
}


def test_good_network_is_accepted() -> None:
    assert NetworkSpec(**GOOD).prefix_len == 24


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../n"},
        {"id": ""},
        {"id": "n\n"},
        {"subnet": "10.0.1.1/24"},
        {"gateway": "10.0.2.1"},
        {"gateway": "10.0.1.1; flush ruleset"},
        {"driver": "macvlan"},
        {"vni": 0},
        {"vni": 1 << 24},
        {"mtu": 100},
        {"vxlan_port": 0},
        {"node_address": "10.0.2.9"},
    ],
)
def test_bad_network_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"network|id"):
        NetworkSpec(**(GOOD | change))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Endpoint(id="e", address="10.0.0.1/24"),
        lambda: Endpoint(id="e", address="10.0.0.1", mac="02:42"),
        lambda: Endpoint(id="e", address="10.0.0.1", underlay="host"),
        lambda: Endpoint(id="e", address="10.0.0.1", names=tuple(str(n) for n in range(100))),
        lambda: ServiceRecord(id="s", name="s", vip="}"),
        lambda: NodeRecord(node_id="n", underlay="10.0.0.1", address="x"),
        lambda: PublishedPort(protocol="tcp", published_port=0, target_port=80, service_id="s"),
        lambda: PublishedPort(protocol="icmp", published_port=1, target_port=80, service_id="s"),  # type: ignore[arg-type]
        lambda: HostPort(protocol="tcp", host_port=80, target_port=65536),
        lambda: HostPort(protocol="tcp", host_port=80, target_port=80, host_address="::1/128"),
        lambda: AttachmentSpec(network_id="a/b"),
        lambda: AttachmentSpec(network_id="n", mac="02:42:0A:00:00:01"),
        lambda: SandboxSpec(id="/etc/passwd"),
        lambda: SandboxSpec(id="s", attachments=(AttachmentSpec(network_id="n"), AttachmentSpec(network_id="n"))),
        lambda: SandboxSpec(id="s", dns_servers=("resolver.example",)),
        lambda: SandboxSpec(id="s", dns_search=("a b",)),
        lambda: SandboxSpec(id="s", dns_options=("ndots:1\nnameserver 6.6.6.6",)),
    ],
)
def test_bad_values_are_refused(make: Any) -> None:
    with pytest.raises(UserError):
        make()
