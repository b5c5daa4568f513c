"""From networks and sandboxes to rules and names: what ``plane`` must bring about. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

from fleet.network.rules import Backend, HostPortRule, SandboxRules
from fleet.network.store import SandboxRecord
from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    Interface,
    NetworkSpec,
    NetworkState,
    PublishedPort,
    SandboxSpec,
)

__all__ = [
    "free_name",
    "host_ports",
    "local_endpoints",
    "peers_of",
    "published_backends",
    "sandbox_rules",
    "turned",
    "with_attachments",
    "with_gateway",
]


def sandbox_rules(states: Iterable[NetworkState], *, seed: str, port: int) -> SandboxRules:
    """The rules of a sandbox that is on the networks ``states``, whose DNS sockets are on ``port``."""
    vips: dict[str, tuple[str, ...]] = {}
    for state in states:
        ready = _ready(state)
        for service in state.services:
            if service.vip is not None:
                vips[service.vip] = turned(ready.get(service.id, ()), seed=seed)
    return SandboxRules(dns_port=port, vips=vips)


def published_backends(
    ingress: NetworkState | None, ports: Iterable[PublishedPort], *, seed: str
) -> dict[tuple[str, int], tuple[Backend, ...]]:
    """Where each published (protocol, port) leads; nothing while this host has no ingress network."""
    if ingress is None:
        return {}
    ready = _ready(ingress)
    return {
        (port.protocol, port.published_port): tuple(
            (address, port.target_port) for address in turned(ready.get(port.service_id, ()), seed=seed)
        )
        for port in ports
    }


def host_ports(records: Iterable[SandboxRecord]) -> frozenset[HostPortRule]:
    """Ports of this host; each leads to the address by which its container also reaches the outside."""
    found: set[HostPortRule] = set()
    for record in records:
        way_out = next((interface for interface in record.interfaces if interface.gateway), None)
        if way_out is not None:
            for port in record.spec.host_ports:
                target = (way_out.address, port.target_port)
                found.add(
                    HostPortRule(
                        protocol=port.protocol, host_address=port.host_address, host_port=port.host_port, target=target
                    )
                )
    return frozenset(found)


def local_endpoints(record: SandboxRecord, network_id: str) -> list[Endpoint]:
    """A sandbox's place on a network of this host, which no manager knows about."""
    aliases = next((a.aliases for a in record.spec.attachments if a.network_id == network_id), ())
    return [
        Endpoint(id=record.spec.id, names=record.spec.names, aliases=aliases, address=i.address, mac=i.mac)
        for i in record.interfaces
        if i.network_id == network_id
    ]


def peers_of(state: NetworkState) -> set[str]:
    """Underlay addresses from which packets of a network may come."""
    if state.network.driver != "overlay":
        return set()
    addresses = {endpoint.underlay for endpoint in state.endpoints} | {node.underlay for node in state.nodes}
    return addresses - {""}


def with_gateway(interfaces: Sequence[Interface], networks: Mapping[str, NetworkSpec]) -> tuple[Interface, ...]:
    """Give the gateway to the first network with a way out, and to the ingress network only if there is no other."""
    ways_out = [networks[i.network_id] for i in interfaces if not networks[i.network_id].internal]
    ways_out.sort(key=lambda spec: spec.ingress)
    chosen = ways_out[0].id if ways_out else ""
    return tuple(
        Interface(
            network_id=i.network_id,
            name=i.name,
            address=i.address,
            prefix_len=i.prefix_len,
            mac=i.mac,
            gateway=networks[chosen].gateway if i.network_id == chosen else "",
        )
        for i in interfaces
    )


def with_attachments(spec: SandboxSpec, attachments: tuple[AttachmentSpec, ...]) -> SandboxSpec:
    """The same sandbox on other networks."""
    return SandboxSpec(
        id=spec.id,
        attachments=attachments,
        host_ports=spec.host_ports,
        dns_servers=spec.dns_servers,
        dns_search=spec.dns_search,
        dns_options=spec.dns_options,
        names=spec.names,
    )


def free_name(interfaces: Sequence[Interface]) -> str:
    """The first of eth0, eth1... that is not taken."""
    taken = {interface.name for interface in interfaces}
    return next(name for number in range(len(taken) + 1) if (name := f"eth{number}") not in taken)


def turned(addresses: Iterable[str], *, seed: str) -> tuple[str, ...]:
    """The addresses in order, beginning at a place that differs from seed to seed and stays the same for each.

    Round robin starts at the first backend; if that were the same everywhere, every short-lived client would go to it.
    """
    ordered = sorted(addresses)
    if not ordered:
        return ()
    start = zlib.crc32(seed.encode()) % len(ordered)
    return (*ordered[start:], *ordered[:start])


def _ready(state: NetworkState) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for endpoint in state.endpoints:
        if endpoint.ready and endpoint.service_id:
            found.setdefault(endpoint.service_id, []).append(endpoint.address)
    return found
