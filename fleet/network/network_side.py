"""The networks' side of what the plane brings about: each one's devices, and the tunnel that the encrypted ones share.

Used on the network thread, in the host's namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fleet.network import desired
from fleet.network.direct import DirectLinks
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.known import Known
from fleet.network.links import NetworkLinks
from fleet.network.naming import Owner
from fleet.network.topology import NetworkState
from fleet.network.tunnel.keeper import TunnelKeeper

__all__ = ["NetworkSide"]


class NetworkSide:
    """One ``links`` of the known a network."""

    def __init__(
        self, *, known: Known, netlink: Netlink, owner: Owner, underlay: Callable[[], str], tunnel: TunnelKeeper
    ) -> None:
        self._known = known
        self._netlink = netlink
        self._owner = owner
        self._underlay = underlay
        self._tunnel = tunnel

    def admit(self, state: NetworkState) -> None:
        """Know a network from now on."""
        spec = state.network
        if spec.id not in self._known.links:
            kind = DirectLinks if spec.is_direct else NetworkLinks
            self._known.links[spec.id] = kind(
                spec=spec,
                owner=self._owner,
                netlink=self._netlink,
                underlay=self._underlay,
                tunnel=self._tunnel,
                peers_at=lambda at: desired.tunnel_peers(
                    self._known.states.values(), node_id=self._known.node_id, underlay=at
                ),
            )
        self._known.links[spec.id].spec = spec
        self._known.states[spec.id] = state

    def ensure(self, network_id: str) -> list[str]:
        """Make its devices, or mend them; a sentence for each that was not as it should be."""
        return self._known.links[network_id].ensure(veths=partial(self._known.veths_of, network_id))

    def apply(self, network_id: str) -> None:
        """Bring the tunnel's peers and the entries of its devices to the state."""
        links = self._known.links[network_id]
        links.apply_peers()
        links.apply_remotes(self._known.remotes(network_id))

    def mend(self, network_id: str) -> list[str]:
        """Look at the devices and their entries, and put right what differs; a sentence for each."""
        done = self.ensure(network_id)
        links = self._known.links[network_id]
        links.forget_remotes()
        changes = links.apply_remotes(self._known.remotes(network_id))
        return [*done, f"network {links.spec.name}: mended {changes} forwarding and ARP entries"] if changes else done

    def retire_tunnel(self) -> None:
        """End the tunnel when no encrypted network is left."""
        if not any(state.network.encrypted for state in self._known.states.values()):
            self._tunnel.remove()
