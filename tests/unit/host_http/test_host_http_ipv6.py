"""Containers with IPv6 as clients ask for them and see them: addresses, gateway, ports of each family, /etc/hosts."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.containers.networks import NetworkWish


def body(six: str = "fd00:9:0:0::5", **bindings: list[dict[str, str]]) -> dict[str, Any]:
    choice = {"IPAMConfig": {"IPv6Address": six}}
    return {
        "Image": "busybox",
        "HostConfig": {
            "NetworkMode": "lan",
            "PortBindings": {f"{port.removeprefix('p')}/tcp": found for port, found in bindings.items()},
        },
        "NetworkingConfig": {"EndpointsConfig": {"lan": choice}},
    }


def test_addresses_and_ports_are_shown_as_docker_shows_them(api: Any) -> None:
    async def story(host: Any) -> None:
        await host.engine.networks.create(NetworkWish(name="lan", enable_ipv6=True, subnet6="fd00:9::/64"))
        wish = body(
            p80=[{"HostIp": "", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
            p81=[{"HostIp": "0.0.0.0", "HostPort": "8081"}],
            p82=[{"HostIp": "::", "HostPort": "8082"}, {"HostIp": "::1", "HostPort": "8083"}],
        )
        key = (await host.post("/containers/create", wish, 201))["Id"]
        await host.post(f"/containers/{key}/start", status=204)
        found = await host.get(f"/containers/{key}/json")
        card = found["NetworkSettings"]["Networks"]["lan"]
        assert (card["GlobalIPv6Address"], card["GlobalIPv6PrefixLen"]) == ("fd00:9::5", 64)
        assert card["IPv6Gateway"] == "fd00:9::1" and card["IPAMConfig"] == {"IPv6Address": "fd00:9::5"}
        ports = {
            key: [(p["HostIp"], p["HostPort"]) for p in value]
            for key, value in found["NetworkSettings"]["Ports"].items()
        }
        assert ports == {
            "80/tcp": [("0.0.0.0", "8080"), ("::", "8080")],
            "81/tcp": [("0.0.0.0", "8081")],
            "82/tcp": [("::", "8082"), ("::1", "8083")],
        }
        listed = {(p["IP"], p["PublicPort"]) for p in (await host.get("/containers/json"))[0]["Ports"]}
        assert {("0.0.0.0", 8080), ("::", 8080), ("0.0.0.0", 8081), ("::", 8082), ("::1", 8083)} == listed
        hosts = next(m for m in host.runtime.specs[0].mounts if m.target == "/etc/hosts")
        with open(hosts.source) as lines:
            assert any(line.startswith("fd00:9::5\t") for line in lines)

    api(story)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (body("10.0.0.1"), "is not an IPv6 address"),
        (body("x"), "is not an IPv6 address"),
        (body(p80=[{"HostIp": "x", "HostPort": "1"}]), "invalid IP address: x"),
    ],
)
def test_what_is_no_address_is_said(api: Any, wish: dict[str, Any], words: str) -> None:
    async def story(host: Any) -> None:
        await host.engine.networks.create(NetworkWish(name="lan", enable_ipv6=True))
        answer = await host.post("/containers/create", wish, 400)
        assert words in answer["message"]

    api(story)
