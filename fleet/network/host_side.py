"""The host's side of what the plane brings about: its rules, whose sender addresses are watched, ports of the host.

Used on the network thread, in the host's namespace.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fleet.errors import ConflictError, UserError
from fleet.network import desired
from fleet.network.cardrules import Card
from fleet.network.filters import HostFilter
from fleet.network.forwarding import enable_forwarding, restore_forwarding
from fleet.network.hostports import check_port_free
from fleet.network.ipv6 import Ipv6
from fleet.network.kernel.nft import NftCloser
from fleet.network.known import Known
from fleet.network.rules import HostRules
from fleet.network.store import Store
from fleet.network.sweeper import FlowSweeper
from fleet.network.topology import Interface, SandboxSpec
from fleet.network.tunnel.keeper import TunnelKeeper

__all__ = ["HostSide"]


class HostSide:
    """One table of the host for each family, and one for its bridges."""

    def __init__(
        self,
        *,
        known: Known,
        store: Store,
        closer: NftCloser,
        sweeper: FlowSweeper,
        ipv6: Ipv6,
        tunnel: TunnelKeeper,
        table: str,
    ) -> None:
        self._known = known
        self._store = store
        self._ipv6 = ipv6
        self._tunnel = tunnel
        self._filter = HostFilter(closer=closer, sweeper=sweeper, table=table)
        self._closed_router = False

    def open(self) -> None:
        """Let the host forward packets."""
        self._closed_router = enable_forwarding(self._store.run_dir)

    def close(self) -> None:
        """Leave the tables as they are."""
        self._filter.close()
        self._ipv6.close()

    def remove(self) -> None:
        """Remove the tables; the host forwards as it did before us."""
        self._filter.remove()
        self._ipv6.remove()
        restore_forwarding(self._store.run_dir)

    def apply(self, *, dead: Collection[str] = ()) -> None:
        """Bring the host to what is known. ``dead`` as in ``HostFilter.apply``."""
        if self._filter.apply(self.rules(), dead=dead):
            self._allow_loopback()
        self._ipv6.apply(self.rules6(), self.cards(), dead=dead)

    def mend(self) -> list[str]:
        """Replace what differs from what was ordered; a sentence for each."""
        done: list[str] = []
        if self._filter.mend(self.rules()):
            done.append("host rules: differed from what was ordered, replaced")
        done += self._ipv6.mend(self.rules6(), self.cards())
        self._allow_loopback()
        return done

    def watch(self, interfaces: Sequence[Interface], veths: Sequence[str]) -> None:
        """Cards that are about to come: watched before there is anything to watch, for their container may be running."""
        if coming := desired.cards_of(interfaces, veths, guarded=self._guarded()):
            self._ipv6.watch(self.cards() | coming)

    def check_ports(self, spec: SandboxSpec, interfaces: Sequence[Interface]) -> None:
        """Raises ``UserError`` or ``ConflictError`` if a new sandbox cannot have its ports of the host."""
        ipv6 = any(interface.address6 for interface in interfaces)
        for interface in interfaces if spec.host_ports else ():
            network = self._known.states[interface.network_id].network
            if network.is_direct and (interface.gateway or interface.gateway6):
                raise UserError(
                    f"ports cannot be published on network {network.name} ({network.driver}), for nothing of it passes this "
                    "host: the container is reached at its own address there"
                )
        taken = [(port, record.spec.id) for record in self._known.records.values() for port in record.spec.host_ports]
        for port in spec.host_ports:
            for other, sandbox_id in taken:
                if other.overlaps(port):
                    raise ConflictError(
                        f"host port {port.host_port}/{port.protocol} is already used by container {sandbox_id}"
                    )
            taken.append((port, spec.id))
            check_port_free(port, ipv6=ipv6)

    def cards(self) -> frozenset[Card]:
        """Cables into containers whose sender addresses are watched."""
        return desired.cards(self._known.records.values(), guarded=self._guarded())

    def obstacles(self) -> list[str]:
        """What on this host stands in the way, in sentences."""
        found = self._filter.obstacles()
        if desired.showing_clients(self._known.published) and not self._ipv6.can_watch():
            found.append(
                "published ports show their clients' addresses, and this host's kernel cannot filter on bridges (module "
                "nf_tables_bridge): a container here that is on the ingress network could pretend to be a client"
            )
        return found

    def rules(self) -> HostRules:
        """The host's IPv4 rules as they should be."""
        wanted = desired.host_rules(
            self._known.bridged(),
            bridges=self._known.bridges(),
            records=self._known.records.values(),
            published=self._known.published,
            seed=self._known.node_id,
            closed_router=self._closed_router,
            tunnel=self._tunnel.name,
        )
        assert wanted is not None  # of IPv4 there always are some
        return wanted

    def rules6(self) -> HostRules | None:
        """Those of IPv6; none where no network has it."""
        return self._ipv6.host_rules(
            self._known.bridged(),
            bridges=self._known.bridges(),
            records=self._known.records.values(),
            published=self._known.published,
            seed=self._known.node_id,
        )

    def _guarded(self) -> str:
        """The network whose containers' IPv4 addresses are watched too: the ingress network, once a port shows its clients."""
        ingress = self._known.ingress()
        if ingress is None or not desired.showing_clients(self._known.published) or not self._ipv6.can_watch():
            return ""
        return ingress.network.id

    def _allow_loopback(self) -> None:
        """Host ports work from 127.0.0.1 too. After the rules, because these contain the guard that makes it safe."""
        for record in self._known.records.values():
            way_out = next((interface for interface in record.interfaces if interface.gateway), None)
            if record.spec.host_ports and way_out is not None:
                self._known.links[way_out.network_id].allow_loopback_routes()
