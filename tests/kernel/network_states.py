"""States of networks as managers tell them to each host, and hosts that are brought up with them.

Task n is at 10 + n in each of its networks, of both families where they have both (task 1: 10.0.1.11, fd00:9::11); its sandbox
and its endpoint are called ``taskn``. On the ingress network the hosts have addresses too, from 2 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from network_hosts import Host

from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    HostPort,
    NetworkSpec,
    NetworkState,
    NodeRecord,
    SandboxSpec,
    ServiceRecord,
)

LOCAL = NetworkSpec(id="bridge", name="bridge", driver="bridge", subnet="172.30.0.0/24", gateway="172.30.0.1")
INGRESS_VIP = "10.255.0.50"


def overlay(name: str, third: int, *, ipv6: bool = False, encrypted: bool = False) -> NetworkSpec:
    """The overlay ``net-NAME`` with 10.0.THIRD.0/24, and fd00:THIRD::/64."""
    return NetworkSpec(
        id=f"net-{name}",
        name=name,
        driver="overlay",
        subnet=f"10.0.{third}.0/24",
        gateway=f"10.0.{third}.1",
        vni=4096 + third,
        subnet6=f"fd00:{third}::/64" if ipv6 else "",
        gateway6=f"fd00:{third}::1" if ipv6 else "",
        encrypted=encrypted,
    )


def seat(network: NetworkSpec, last: int) -> tuple[str, str]:
    """Addresses in a network, that of IPv6 empty where it has none."""
    prefix6 = network.subnet6.removesuffix("/64")
    return f"{network.subnet.rpartition('.')[0]}.{last}", f"{prefix6}{last}" if prefix6 else ""


def endpoint(
    host: Host,
    number: int,
    *,
    network: NetworkSpec,
    service: str = "svc-web",
    name: str = "web",
    ready: bool = True,
    tunnel_key: str = "",
) -> Endpoint:
    address, address6 = seat(network, 10 + number)
    return Endpoint(
        id=f"task{number}",
        service_id=service,
        names=(f"{name}.{number}.task{number}", f"{name}.{number}"),
        address=address,
        address6=address6,
        node_id=host.name,
        underlay=host.address,
        ready=ready,
        tunnel_key=tunnel_key,
    )


def web_state(network: NetworkSpec, *endpoints: Endpoint, vip: str | None, vip6: str | None = None) -> NetworkState:
    """A network with the service ``web``."""
    web = ServiceRecord(id="svc-web", name="web", aliases=("www",), vip=vip, vip6=vip6)
    return NetworkState(network=network, endpoints=endpoints, services=(web,))


def attachment(network: NetworkSpec, number: int) -> AttachmentSpec:
    address, address6 = seat(network, 10 + number)
    return AttachmentSpec(network_id=network.id, address=address, address6=address6 or None)


async def start(host: Host, number: int, *networks: NetworkSpec, host_ports: tuple[HostPort, ...] = ()) -> Path:
    """Make the task's sandbox; where its namespace is."""
    attachments = tuple(attachment(network, number) for network in networks)
    await host.network.create_sandbox(SandboxSpec(id=f"task{number}", attachments=attachments, host_ports=host_ports))
    return host.sandbox_path(f"task{number}")


async def open_all(made: list[Host], *states: NetworkState) -> None:
    for host in made:
        await host.network.open()
        for state in states:
            await host.network.apply_state(state)


def ingress(host: Host, made: list[Host], *, ipv6: bool = False) -> NetworkSpec:
    """The ingress network's spec on ``host``, one of ``made``."""
    last = 2 + [each.name for each in made].index(host.name)
    return NetworkSpec(
        id="ingress",
        name="ingress",
        driver="overlay",
        subnet="10.255.0.0/24",
        gateway="10.255.0.1",
        vni=4096,
        ingress=True,
        node_address=f"10.255.0.{last}",
        subnet6="fd00:255::/64" if ipv6 else "",
        gateway6="fd00:255::1" if ipv6 else "",
        node_address6=f"fd00:255::{last}" if ipv6 else "",
    )


def ingress_state(
    host: Host,
    made: list[Host],
    tasks: Mapping[int, Host],
    *,
    ipv6: bool = False,
    unready: tuple[int, ...] = (),
    other: tuple[int, ...] = (),
) -> NetworkState:
    """The ingress network as ``host`` sees it: the same for all but its own address. ``other`` tasks are of ``svc-other``."""
    specs = {each.name: ingress(each, made, ipv6=ipv6) for each in made}
    return NetworkState(
        network=specs[host.name],
        endpoints=tuple(
            endpoint(
                place,
                number,
                network=specs[host.name],
                service="svc-other" if number in other else "svc-web",
                ready=number not in unready,
            )
            for number, place in tasks.items()
        ),
        services=(ServiceRecord(id="svc-web", name="web", vip=INGRESS_VIP),),
        nodes=tuple(
            NodeRecord(
                node_id=each.name,
                underlay=each.address,
                address=specs[each.name].node_address,
                address6=specs[each.name].node_address6,
            )
            for each in made
        ),
    )
