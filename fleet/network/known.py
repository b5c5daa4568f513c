"""What the plane knows: networks, sandboxes and published ports as they were ordered, and what follows from them.

The plane and its parts share one ``Known``. The plane changes it; what parts change by themselves is a network's place in it
(``NetworkSide``), a sandbox's default routes (``SandboxSide``) and its port for questions (``Names``). Nothing here touches the
kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fleet.errors import ConflictError, NotFoundError
from fleet.network import desired
from fleet.network.dns.records import Zone, zone_of
from fleet.network.links import NetworkLinks, Remotes, remotes_of
from fleet.network.return_routes import ReturnRoutes
from fleet.network.rules import SandboxRules
from fleet.network.store import SandboxRecord
from fleet.network.topology import Endpoint, Interface, NetworkSpec, NetworkState, PublishedPort

__all__ = ["Known", "networks_of"]


@dataclass(slots=True, kw_only=True)
class Known:
    """By id of network and of sandbox. ``links.keys() == states.keys()``."""

    node_id: str
    states: dict[str, NetworkState] = field(default_factory=dict)
    links: dict[str, NetworkLinks] = field(default_factory=dict)
    records: dict[str, SandboxRecord] = field(default_factory=dict)
    published: tuple[PublishedPort, ...] = ()

    # networks

    def ingress(self) -> NetworkState | None:
        """The ingress network, where this host has it."""
        return next((state for state in self.states.values() if state.network.ingress), None)

    def bridged(self) -> dict[str, NetworkState]:
        """Networks that the host's rules are about: the others' packets never pass it."""
        return {network_id: state for network_id, state in self.states.items() if not state.network.is_direct}

    def bridges(self) -> dict[str, str]:
        """Names of the bridges, by network."""
        return {network_id: links.bridge for network_id, links in self.links.items()}

    def remotes(self, network_id: str) -> Remotes:
        """What the network's VXLAN device should know of other hosts."""
        links = self.links[network_id]
        return remotes_of(
            self.states[network_id], node_id=self.node_id, underlay=links.underlay, link=links.tunnel_link
        )

    def zone(self, network_id: str) -> Zone:
        """The network's names."""
        state = self.states[network_id]
        local: list[Endpoint] = []
        if state.network.is_local:
            for record in self.on(network_id):
                local += desired.local_endpoints(record, network_id)
        return zone_of(state, local)

    def check_alone(self, spec: NetworkSpec) -> None:
        """Raises ``ConflictError`` if another network has its number on the wire, or its parent link."""
        for other in (state.network for state in self.states.values()):
            if other.id != spec.id and spec.vni and (other.vni, other.vxlan_port) == (spec.vni, spec.vxlan_port):
                raise ConflictError(f"network {spec.name}: VNI {spec.vni} is used by network {other.name}")
            if other.id != spec.id and spec.parent and other.parent == spec.parent:
                raise ConflictError(
                    f"network {spec.name}: link {spec.parent} is already the parent of network {other.name}"
                )

    # sandboxes

    def record(self, sandbox_id: str) -> SandboxRecord:
        """Raises ``NotFoundError``."""
        record = self.records.get(sandbox_id)
        if record is None:
            raise NotFoundError(f"no sandbox {sandbox_id} on this host")
        return record

    def on(self, network_id: str) -> list[SandboxRecord]:
        """The sandboxes on a network."""
        return [record for record in self.records.values() if network_id in networks_of(record)]

    def veths_of(self, network_id: str) -> list[str]:
        """The host's ends of their cables."""
        return [
            veth
            for record in self.records.values()
            for interface, veth in zip(record.interfaces, record.veths, strict=True)
            if interface.network_id == network_id
        ]

    def with_gateway(self, interfaces: Sequence[Interface]) -> tuple[Interface, ...]:
        """The same cards, with the default routes where they belong now."""
        networks = {key: state.network for key, state in self.states.items()}
        return desired.with_gateway(interfaces, networks, ingress_first=bool(self.returns(interfaces).routes))

    def sandbox_rules(self, sandbox_id: str, interfaces: Sequence[Interface], *, port: int) -> SandboxRules:
        """The rules of a sandbox with these cards, whose DNS sockets are on ``port``."""
        states = (self.states[interface.network_id] for interface in interfaces)
        return desired.sandbox_rules(states, seed=sandbox_id, port=port, returns=self.returns(interfaces))

    def returns(self, interfaces: Iterable[Interface]) -> ReturnRoutes:
        """The ways back that a sandbox with these cards needs."""
        return desired.returns_of(interfaces, ingress=self.ingress(), published=self.published)

    def asking_order(self, record: SandboxRecord) -> list[str]:
        """Networks whose names a sandbox sees, the ingress network's last: services meet on their own networks."""
        return sorted(networks_of(record), key=lambda network_id: self.states[network_id].network.ingress)

    def may_forward(self, record: SandboxRecord) -> bool:
        """Whether a sandbox may ask the outside: one on internal networks only must not leak by DNS (CVE-2024-29018)."""
        return any(not self.states[i.network_id].network.internal for i in record.interfaces)


def networks_of(record: SandboxRecord) -> tuple[str, ...]:
    """Ids of the networks a sandbox is on, in the order of its cards."""
    return tuple(interface.network_id for interface in record.interfaces)
