"""From networks and sandboxes to rules and names: what ``plane`` must bring about. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fleet.network.cardrules import Card
from fleet.network.ipam import is_ipv6
from fleet.network.return_routes import NO_RETURNS, ReturnRoutes, return_routes
from fleet.network.rules import Backend, Family, HostPortRule, HostRules, NetworkRule, SandboxRules
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
from fleet.network.tunnel.keeper import TunnelPeer

__all__ = [
    "cards",
    "cards_of",
    "free_name",
    "host_ports",
    "host_rules",
    "local_endpoints",
    "peers_of",
    "published_backends",
    "returns_of",
    "sandbox_rules",
    "showing_clients",
    "tunnel_peers",
    "turned",
    "with_attachments",
    "with_gateway",
]


def sandbox_rules(
    states: Iterable[NetworkState], *, seed: str, port: int, returns: ReturnRoutes = NO_RETURNS
) -> SandboxRules:
    """The rules of a sandbox that is on the networks ``states``, whose DNS sockets are on ``port``."""
    vips: dict[str, tuple[str, ...]] = {}
    vips6: dict[str, tuple[str, ...]] = {}
    with_ipv6 = False
    for state in states:
        ready = _ready(state)
        for service in state.services:
            if service.vip is not None:
                vips[service.vip] = turned(ready.get(service.id, ()), seed=seed)
        if not state.network.subnet6:
            continue
        with_ipv6, ready = True, _ready(state, family="ip6")
        for service in state.services:
            if service.vip6 is not None:
                vips6[service.vip6] = turned(ready.get(service.id, ()), seed=seed)
    return SandboxRules(dns_port=port, vips=vips, vips6=vips6 if with_ipv6 else None, returns=returns)


def showing_clients(published: Iterable[PublishedPort]) -> frozenset[str]:
    """Services with a port that shows its clients' own addresses."""
    return frozenset(port.service_id for port in published if port.source == "client")


def returns_of(
    interfaces: Iterable[Interface], *, ingress: NetworkState | None, published: Iterable[PublishedPort]
) -> ReturnRoutes:
    """The ways back that a sandbox with these cards needs: those of a service with a port that shows its clients."""
    services = showing_clients(published)
    if ingress is None or not services:
        return NO_RETURNS
    for interface in interfaces:
        if interface.network_id == ingress.network.id and any(
            endpoint.service_id in services and endpoint.address == interface.address for endpoint in ingress.endpoints
        ):
            return return_routes(ingress, card=interface.name, ipv6=bool(interface.address6))
    return NO_RETURNS


def host_rules(
    states: Mapping[str, NetworkState],
    *,
    bridges: Mapping[str, str],
    records: Iterable[SandboxRecord],
    published: Iterable[PublishedPort],
    seed: str,
    closed_router: bool,
    tunnel: str = "",
    family: Family = "ip",
) -> HostRules | None:
    """The host's rules of one family. ``bridges`` are link names by network id, ``tunnel`` is the name of the link for encrypted
    ones. ``None`` for IPv6 that no network here has."""
    specs = [state.network for state in states.values() if family == "ip" or state.network.subnet6]
    if family == "ip6" and not specs:
        return None
    ingress = next((states[spec.id] for spec in specs if spec.ingress), None)
    ports = tuple(published)
    is_v4 = family == "ip"
    return HostRules(
        networks=frozenset(
            NetworkRule(
                bridge=bridges[spec.id],
                subnet=spec.subnet if is_v4 else spec.subnet6,
                internal=spec.internal,
                node_address=(spec.node_address if is_v4 else spec.node_address6) if spec.ingress else "",
            )
            for spec in specs
        ),
        host_ports=host_ports(records, family=family),
        published=published_backends(ingress, ports, seed=seed, family=family),
        client_ports=frozenset(
            (port.protocol, port.published_port) for port in ports if port.source == "client" and ingress is not None
        ),
        tunnels=frozenset((spec.vxlan_port, spec.vni) for spec in specs if is_v4 and spec.driver == "overlay"),
        peers=frozenset(peer for state in states.values() for peer in peers_of(state)) if is_v4 else frozenset(),
        sealed=frozenset((spec.vxlan_port, spec.vni) for spec in specs if is_v4 and spec.encrypted),
        tunnel=tunnel if is_v4 and any(spec.encrypted for spec in specs) else "",
        closed_router=closed_router,
    )


def cards(records: Iterable[SandboxRecord], *, guarded: str = "") -> frozenset[Card]:
    """Cables into containers that have IPv6, or are on the network ``guarded``, and the addresses each may send from."""
    return frozenset(card for record in records for card in cards_of(record.interfaces, record.veths, guarded=guarded))


def cards_of(interfaces: Sequence[Interface], veths: Sequence[str], *, guarded: str = "") -> frozenset[Card]:
    """The same for one container; ``veths`` are the host's ends of its cables in the order of ``interfaces``."""
    return frozenset(
        Card(veth, interface.mac, interface.address6, interface.address if interface.network_id == guarded else "")
        for interface, veth in zip(interfaces, veths, strict=True)
        if veth and (interface.address6 or interface.network_id == guarded)
    )


def published_backends(
    ingress: NetworkState | None, ports: Iterable[PublishedPort], *, seed: str, family: Family = "ip"
) -> dict[tuple[str, int], tuple[Backend, ...]]:
    """Where each published (protocol, port) leads; nothing while this host has no ingress network."""
    if ingress is None:
        return {}
    ready = _ready(ingress, family=family)
    return {
        (port.protocol, port.published_port): tuple(
            (address, port.target_port) for address in turned(ready.get(port.service_id, ()), seed=seed)
        )
        for port in ports
    }


def host_ports(records: Iterable[SandboxRecord], *, family: Family = "ip") -> frozenset[HostPortRule]:
    """Ports of this host; each leads to the address by which its container also reaches the outside."""
    found: set[HostPortRule] = set()
    every = "0.0.0.0" if family == "ip" else "::"
    for record in records:
        address = next((a for i in record.interfaces if (a := _way_out(i, family))), "")
        for port in record.spec.host_ports if address else ():
            where = port.host_address or every
            if is_ipv6(where) is not (family == "ip6"):
                continue
            target = (address, port.target_port)
            rule = HostPortRule(protocol=port.protocol, host_address=where, host_port=port.host_port, target=target)
            found.add(rule)
    return frozenset(found)


def _way_out(interface: Interface, family: Family) -> str:
    """The card's address if the default route of that family leads through it."""
    if family == "ip":
        return interface.address if interface.gateway else ""
    return interface.address6 if interface.gateway6 else ""


def local_endpoints(record: SandboxRecord, network_id: str) -> list[Endpoint]:
    """A sandbox's place on a network of this host, which no manager knows about."""
    aliases = next((a.aliases for a in record.spec.attachments if a.network_id == network_id), ())
    return [
        Endpoint(
            id=record.spec.id,
            names=record.spec.names,
            aliases=aliases,
            address=i.address,
            address6=i.address6,
            mac=i.mac,
        )
        for i in record.interfaces
        if i.network_id == network_id
    ]


def peers_of(state: NetworkState) -> set[str]:
    """Underlay addresses from which packets of a network may come."""
    if state.network.driver != "overlay":
        return set()
    addresses = {endpoint.underlay for endpoint in state.endpoints} | {node.underlay for node in state.nodes}
    return addresses - {""}


def tunnel_peers(states: Iterable[NetworkState], *, node_id: str, underlay: str) -> frozenset[TunnelPeer]:
    """The other hosts on encrypted networks whose keys are known.

    Where the state names two keys for one address - a host that was made anew while its old tasks are not yet forgotten - that
    of a ready endpoint counts. One key for two addresses - a host that moved - is the key of the last one told.
    """
    keys: dict[str, str] = {}
    for state in states:
        for each in sorted(state.endpoints, key=lambda endpoint: endpoint.ready) if state.network.encrypted else ():
            if each.tunnel_key and each.underlay not in ("", underlay) and each.node_id != (node_id or None):
                keys[each.underlay] = each.tunnel_key
    return frozenset(TunnelPeer(key, address) for address, key in keys.items())


def with_gateway(
    interfaces: Sequence[Interface], networks: Mapping[str, NetworkSpec], *, ingress_first: bool = False
) -> tuple[Interface, ...]:
    """Give the gateway to the first network with a way out, and to the ingress network only if there is no other.

    For each family by itself: where the first network has no IPv6, the first that has gets the IPv6 gateway. ``ingress_first`` is
    for containers that see their clients' addresses (``return_routes`` says why).
    """
    ways_out = [networks[i.network_id] for i in interfaces if not networks[i.network_id].internal]
    ways_out.sort(key=lambda spec: spec.ingress is not ingress_first)
    chosen = next((spec.id for spec in ways_out if spec.gateway), "")
    chosen6 = next((spec.id for spec in ways_out if spec.gateway6), "")
    return tuple(
        replace(
            i,
            gateway=networks[chosen].gateway if i.network_id == chosen else "",
            gateway6=networks[chosen6].gateway6 if i.network_id == chosen6 and i.address6 else "",
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
    """The addresses of one family in order, beginning at a place that differs from seed to seed and stays the same for each.

    Round robin starts at the first backend; if that were the same everywhere, every short-lived client would go to it.
    """
    ordered = sorted(addresses)
    if not ordered:
        return ()
    start = zlib.crc32(seed.encode()) % len(ordered)
    return (*ordered[start:], *ordered[:start])


def _ready(state: NetworkState, *, family: Family = "ip") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for endpoint in state.endpoints:
        address = endpoint.address if family == "ip" else endpoint.address6
        if endpoint.ready and endpoint.service_id and address:
            found.setdefault(endpoint.service_id, []).append(address)
    return found
