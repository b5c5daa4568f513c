"""From the state of a network to the table of its names; pure.

    NAME, alias of a service        -> its virtual address; endpoint mode dnsrr: every ready task
    tasks.NAME, tasks.ALIAS         -> every ready task, whatever the mode
    web.1.TASKID, web.1, container  -> that container, ready or not (peers must find each other to *become* ready)
    alias of a container            -> every ready container with it, unless a service owns the name
    reverse                         -> first name of the container (or service) and the network's name, as Docker does

The ingress network has no names, as Docker's has none: it is a way to published ports, and services that share nothing else must
not find each other by it.

A name has the IPv4 and the IPv6 addresses of what it leads to, the latter on networks with IPv6.

A service without a ready task keeps its name: with a virtual address that address (connections are refused at once), with dnsrr
an empty answer. So a name that exists never turns into "no such host" because of a restart.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.network.dns import wire
from fleet.network.topology import Endpoint, NetworkSpec, NetworkState

__all__ = ["TTL_TASK_S", "TTL_VIP_S", "Zone", "zone_of"]

TTL_VIP_S = 600  # as Docker: a virtual address lives as long as its service
TTL_TASK_S = 2  # task addresses move; resolvers that cache (Java, nginx) must not keep a dead one


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """All names of one network: ``hosts`` maps names to (TTL in seconds, addresses)."""

    network_id: str
    name: str
    subnet: str
    subnet6: str = ""
    hosts: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    reverse: dict[str, str] = field(default_factory=dict)

    def to_json(self, revision: int) -> dict[str, Any]:
        """The form in which the DNS process receives it."""
        subnet = ipaddress.IPv4Network(self.subnet or "0.0.0.0/32")  # nobody's, where there is no IPv4
        six = ipaddress.IPv6Network(self.subnet6) if self.subnet6 else None
        return {
            "id": self.network_id,
            "name": self.name,
            "revision": revision,
            "subnet": [int(subnet.network_address), int(subnet.netmask)],
            # as text: 128 bits are more than other readers of JSON take for a number
            "subnet6": [f"{int(six.network_address):x}", f"{int(six.netmask):x}"] if six else None,
            "hosts": {name: [ttl_s, *addresses] for name, (ttl_s, addresses) in self.hosts.items()},
            "reverse": self.reverse,
        }


def zone_of(state: NetworkState, local: Sequence[Endpoint] = ()) -> Zone:
    """Compute the names of ``state``; ``local`` are this host's own containers that no manager knows (driver bridge)."""
    network = state.network
    endpoints = list(state.endpoints)
    known = {endpoint.id for endpoint in endpoints}
    endpoints += [endpoint for endpoint in local if endpoint.id not in known]
    services = state.services
    if network.ingress:
        endpoints, services = [], ()
    hosts: dict[str, tuple[int, tuple[str, ...]]] = {}
    reverse: dict[str, str] = {}

    containers: dict[str, list[str]] = {}
    for endpoint in endpoints:
        for name in endpoint.names:
            containers.setdefault(name.lower(), []).extend(_addresses(endpoint, network))
        if endpoint.ready:
            for name in endpoint.aliases:
                containers.setdefault(name.lower(), []).extend(_addresses(endpoint, network))
    for name, addresses in containers.items():
        hosts[name] = (TTL_TASK_S, _unique(addresses))

    ready: dict[str, list[str]] = {}
    for endpoint in endpoints:
        if endpoint.ready and endpoint.service_id:
            ready.setdefault(endpoint.service_id, []).extend(_addresses(endpoint, network))
    shared: dict[str, list[str]] = {}  # an alias may be shared by services: all their addresses, as Docker answers
    ttls: dict[str, int] = {}
    for service in services:
        tasks = ready.get(service.id, [])
        vips = [vip for vip in (service.vip, service.vip6 if network.subnet6 else None) if vip is not None]
        addresses = vips if service.vip is not None else tasks
        for name in {service.name.lower(), *(alias.lower() for alias in service.aliases)}:
            shared.setdefault(name, []).extend(addresses)
            ttls[name] = min(ttls.get(name, TTL_VIP_S), TTL_TASK_S if service.vip is None else TTL_VIP_S)
            shared.setdefault(f"tasks.{name}", []).extend(tasks)
            ttls[f"tasks.{name}"] = TTL_TASK_S
        for vip in vips:
            _add_reverse(reverse, vip, service.name, network.name)
    for name, addresses in shared.items():
        hosts[name] = (ttls[name], _unique(addresses))
    for endpoint in endpoints:
        if endpoint.names:
            for address in _addresses(endpoint, network):
                _add_reverse(reverse, address, endpoint.names[0], network.name)
    return Zone(
        network_id=network.id,
        name=network.name,
        subnet=network.subnet,
        subnet6=network.subnet6,
        hosts=hosts,
        reverse=reverse,
    )


def _addresses(endpoint: Endpoint, network: NetworkSpec) -> tuple[str, ...]:
    pair = (endpoint.address, endpoint.address6 if network.subnet6 else "")
    return tuple(address for address in pair if address)


def _unique(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))


def _add_reverse(reverse: dict[str, str], address: str, name: str, network: str) -> None:
    full = f"{name}.{network}"
    try:
        wire.encode_name(full)
    except wire.WireError:
        return  # a name that DNS cannot carry (over 63 bytes a label) has no reverse; it cannot be asked for either
    reverse[address] = full
