"""One network's devices on this host: bridge, VXLAN device, and where every remote endpoint is.

    container -- cable -- bridge (gateway address, on every host the same) -- VXLAN device ==> other hosts

The VXLAN device learns nothing. For each remote endpoint three things are written, from the managers' state: the host its MAC
address is on (forwarding entry of the device), that the MAC is behind the device (static entry of the bridge), and its MAC
address (neighbour entry; the device answers ARP from it). Unknown addresses get no answer and broadcasts go nowhere, so
the network cannot disagree with the control plane, and ARP for the gateway never leaves the host. IPv6 is the same with neighbour
solicitation in place of ARP; router solicitations get no answer from anybody, multicast stays on its host.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

from fleet.errors import RuntimeFault, UnsupportedError
from fleet.network.ipam import mac_for
from fleet.network.kernel import routing, rtnetlink
from fleet.network.kernel.netlink import Message, NetlinkError
from fleet.network.kernel.rtnetlink import FdbEntry, Link, NeighbourEntry, Netlink
from fleet.network.namespaces import read_sysctl, write_sysctl
from fleet.network.naming import Owner
from fleet.network.topology import Endpoint, NetworkSpec, NetworkState, NodeRecord
from fleet.network.tunnel.keeper import TunnelKeeper, TunnelPeer, tunnel_mtu

__all__ = ["NetworkLinks", "Remotes", "remotes_of"]

VXLAN_OVERHEAD_BYTES = 50  # RFC 7348: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14
_MTU_DEFAULT = 1500


@dataclass(frozen=True, slots=True)
class Remotes:
    """Where the other hosts' endpoints are, and which MAC address has which address."""

    forwarding: frozenset[FdbEntry] = frozenset()
    neighbours: frozenset[NeighbourEntry] = frozenset()


def remotes_of(state: NetworkState, *, node_id: str, underlay: str, link: int = 0) -> Remotes:
    """Compute what must be written for ``state`` on the host that is ``node_id`` (may be unknown: "") at ``underlay``; pure.

    ``link`` is the index of the tunnel, for an encrypted network.
    """
    own = node_id or None
    places: dict[str, tuple[str, str]] = {}
    with_ipv6 = bool(state.network.subnet6)
    everybody: tuple[NodeRecord | Endpoint, ...] = (*state.nodes, *state.endpoints)
    for each in everybody:
        place = (each.mac or mac_for(each.address), "" if each.node_id == own else each.underlay)
        places[each.address] = place
        if with_ipv6 and each.address6:
            places[each.address6] = place
    remote = [(address, mac, where) for address, (mac, where) in places.items() if where and where != underlay]
    return Remotes(
        forwarding=frozenset(FdbEntry(mac, where, link) for _, mac, where in remote),
        neighbours=frozenset(NeighbourEntry(address, mac) for address, mac, _ in remote),
    )


class NetworkLinks:
    """The devices of one network. Used on the network thread, in the host's namespace."""

    def __init__(
        self,
        *,
        spec: NetworkSpec,
        owner: Owner,
        netlink: Netlink,
        underlay: Callable[[], str],
        tunnel: TunnelKeeper,
        peers_at: Callable[[str], frozenset[TunnelPeer]],
    ) -> None:
        """``peers_at`` gives the tunnel's other ends as a host at that underlay address has them."""
        self.spec = spec
        self._tunnel = tunnel
        self._peers_at = peers_at
        self._owner = owner
        self._netlink = netlink
        self._underlay = underlay
        self.bridge = owner.bridge(spec.id)
        self.vxlan = owner.vxlan(spec.id)
        self.bridge_index = 0
        self.mtu = 0
        self.underlay = ""
        """Address the VXLAN device really uses; empty for driver bridge."""
        self._vxlan_index = 0
        self._vxlan_link = 0
        self._remotes: Remotes | None = None  # None: unknown, read from the kernel before the next change

    def ensure(self, *, veths: Callable[[], list[str]]) -> list[str]:
        """Make the devices as the spec says; returns a sentence for each thing that had to be made or mended.

        ``veths`` names the cables that belong to the bridge, asked for only if the bridge had to be made anew.
        """
        done: list[str] = []
        self.underlay = self._effective_underlay()
        underlay_mtu = self._underlay_mtu(self.underlay)
        self.mtu = self._effective_mtu(underlay_mtu)
        if self.spec.encrypted:
            # first of all: where that cannot be had, nothing else of the network is made
            self.apply_peers()
            done += self._tunnel.ensure(port=self.spec.tunnel_port, mtu=tunnel_mtu(underlay_mtu))
        bridge = self._netlink.link(self.bridge)
        if bridge is None:
            bridge = self._make_bridge(veths())
            done.append(f"network {self.spec.name}: made bridge {self.bridge}")
        self.bridge_index = bridge.index
        done += self._mend(bridge)
        if self._routes_ipv6:
            done += self._mend_ipv6(self.bridge)
        wanted, present = self.bridge_addresses(), self.seen_addresses(bridge.index)
        if wanted - present:
            self._netlink.send_all([routing.add_address(bridge.index, *pair) for pair in sorted(wanted)])
            done.append(f"network {self.spec.name}: gave the bridge its addresses")
        if self.spec.ingress:
            self._allow_loopback6()
        if self.spec.driver == "overlay":
            done += self._ensure_vxlan(self.underlay)
        return done

    @property
    def devices(self) -> tuple[str, ...]:
        """Links of the host that are this network's."""
        return (self.bridge, self.vxlan)

    def stale(self) -> bool:
        """Whether ``ensure`` has not succeeded yet, or this host's underlay address became another one since."""
        if not self.bridge_index:
            return True
        return self.spec.driver == "overlay" and (
            not self._vxlan_index or self._effective_underlay() != self.underlay or self._vxlan_link != self.tunnel_link
        )

    @property
    def tunnel_link(self) -> int:
        """Index of the link that the network's packets to other hosts must take; 0: whichever the routes say."""
        return self._tunnel.index if self.spec.encrypted else 0

    def remove(self) -> None:
        """Delete the devices; absent is fine. About 40 ms."""
        self._netlink.send(rtnetlink.delete_link(self.vxlan), rtnetlink.delete_link(self.bridge))

    def allow_loopback_routes(self) -> None:
        """Let packets from 127.0.0.1 leave to this network, for ports published on it. Needs the host's ``guard`` chain.

        And from ::1, where the network has IPv6. With br_netfilter on for IPv6 (``bridge-nf-call-ip6tables``) the kernel drops
        the answers to those: it translates them back on the bridge, before it looks whether such a packet may come by a link.
        """
        write_sysctl(f"net/ipv4/conf/{self.bridge}/route_localnet", "1")
        self._allow_loopback6()

    def apply_remotes(self, desired: Remotes) -> int:
        """Make the kernel's entries equal ``desired``, touching only what differs; returns the number of changes."""
        if self.spec.driver != "overlay":
            return 0
        current = self._remotes or self._read_remotes()
        index = self._vxlan_index
        messages: list[Message] = []
        kept = {entry.mac for entry in desired.forwarding}
        # an entry that only moved is replaced in place, never deleted: no packet meets a gap
        for mac in sorted({entry.mac for entry in current.forwarding - desired.forwarding} - kept):
            messages += [rtnetlink.delete_fdb(index, mac, bridge=True), rtnetlink.delete_fdb(index, mac, bridge=False)]
        answered = {entry.address for entry in desired.neighbours}
        gone = current.neighbours - desired.neighbours
        messages += [rtnetlink.delete_neighbour(index, e.address) for e in sorted(gone) if e.address not in answered]
        messages += [rtnetlink.add_fdb(index, entry) for entry in sorted(desired.forwarding - current.forwarding)]
        messages += [rtnetlink.add_neighbour(index, entry) for entry in sorted(desired.neighbours - current.neighbours)]
        if messages:
            self._remotes = None
            self._netlink.send_all(messages)
        self._remotes = desired
        return len(messages)

    def apply_peers(self) -> None:
        """Let the tunnel know the hosts on encrypted networks; it is one for all of them."""
        if self.spec.encrypted:
            self._tunnel.set_peers(self._peers_at(self.underlay))

    def forget_remotes(self) -> None:
        """Trust the kernel's own list at the next ``apply_remotes`` rather than our memory."""
        self._remotes = None

    def bridge_addresses(self) -> set[tuple[str, int]]:
        """(address, prefix length) the bridge should have."""
        if self.spec.internal:
            return set()  # nothing to reach on the host: no way out, and no way in
        spec = self.spec
        pairs = ((spec.gateway, spec.prefix_len), (spec.node_address, spec.prefix_len))
        pairs6 = ((spec.gateway6, spec.prefix_len6), (spec.node_address6, spec.prefix_len6))
        return {(address, prefix_len) for address, prefix_len in (*pairs, *pairs6) if address}

    def seen_addresses(self, index: int) -> set[tuple[str, int]]:
        """(address, prefix length) that the bridge with this index has."""
        found = self._netlink.addresses(index)
        return found | self._netlink.addresses(index, family=socket.AF_INET6) if self.spec.subnet6 else found

    @property
    def _routes_ipv6(self) -> bool:
        return bool(self.spec.subnet6) and not self.spec.internal

    def _switch_ipv6(self, link: str, *, on: bool, link_local: bool = True) -> None:
        """Whether a link of ours speaks IPv6 with the host. Off where the network has none: a link-local address would let
        containers reach the host's services by it."""
        if on:
            # a container must not be able to tell the host where to send its packets (RFC 6104)
            write_sysctl(f"net/ipv6/conf/{link}/accept_ra", "0")
            write_sysctl(f"net/ipv6/conf/{link}/accept_redirects", "0")
            write_sysctl(
                f"net/ipv6/conf/{link}/accept_dad", "0"
            )  # every host's bridge has the same address, on purpose
            write_sysctl(f"net/ipv6/conf/{link}/addr_gen_mode", "0" if link_local else "1")
        write_sysctl(f"net/ipv6/conf/{link}/disable_ipv6", "0" if on else "1")

    def bridge_mac(self) -> str:
        """The MAC address the bridge should have."""
        # on the ingress network other hosts answer ARP for our address with this MAC; elsewhere it never leaves the host
        return mac_for(self.spec.node_address or self.spec.gateway or self.spec.gateway6)

    def _allow_loopback6(self) -> None:
        if self._routes_ipv6 and self.bridge_index:
            self._netlink.send(routing.add_loopback_route6(self.bridge_index))

    def _mend_ipv6(self, link: str, *, link_local: bool = True) -> list[str]:
        """A link that somebody silenced, or made listen to router advertisements."""
        switches = {"disable_ipv6": "0", "accept_ra": "0"}
        if all(read_sysctl(f"net/ipv6/conf/{link}/{name}") in (value, "") for name, value in switches.items()):
            return []
        self._switch_ipv6(link, on=True, link_local=link_local)
        return [f"network {self.spec.name}: set the IPv6 switches of {link}"]

    def _make_bridge(self, veths: list[str]) -> Link:
        spec, owner = self.spec, self._owner
        self._netlink.send(
            rtnetlink.add_bridge(self.bridge, mac=self.bridge_mac(), mtu=self.mtu, group=owner.group),
            rtnetlink.set_alias(self.bridge, owner.alias("bridge", spec.id)),
        )
        self._switch_ipv6(self.bridge, on=self._routes_ipv6)
        if spec.ingress:
            self.allow_loopback_routes()
        bridge = self._netlink.link(self.bridge)
        if bridge is None:
            raise RuntimeFault(
                f"bridge {self.bridge} vanished while it was made; is another daemon using this directory?"
            )
        links = {link.name: link for link in self._netlink.links()}
        self._netlink.send_all(
            [rtnetlink.set_master(links[name].index, bridge.index) for name in veths if name in links]
        )
        return bridge

    def _mend(self, bridge: Link) -> list[str]:
        done: list[str] = []
        if not bridge.up:
            self._netlink.send(rtnetlink.link_up(bridge.index))
            done.append(f"network {self.spec.name}: brought the bridge up")
        if bridge.mac != self.bridge_mac():
            self._netlink.send(rtnetlink.set_link_address(bridge.index, self.bridge_mac()))
            done.append(f"network {self.spec.name}: set the bridge's MAC address")
        if bridge.mtu != self.mtu:
            self._netlink.send(rtnetlink.set_mtu(bridge.index, self.mtu))
            done.append(f"network {self.spec.name}: set the bridge's MTU from {bridge.mtu} to {self.mtu}")
        return done

    def _ensure_vxlan(self, underlay: str) -> list[str]:
        spec, done = self.spec, []
        device = self._netlink.link(self.vxlan)
        wanted = (spec.vni, spec.vxlan_port, underlay, self.bridge_index, self.tunnel_link)
        if device is not None and wanted != (
            device.vxlan_id,
            device.vxlan_port,
            device.vxlan_local,
            device.master,
            device.vxlan_link,
        ):
            self._netlink.send(rtnetlink.delete_link(self.vxlan))  # these cannot be changed in place
            done.append(
                f"network {spec.name}: VXLAN device was for {device.vxlan_local or 'another address'}, replaced"
            )
            device = None
        if device is None:
            self._send_vxlan(
                rtnetlink.add_vxlan(
                    self.vxlan,
                    vni=spec.vni,
                    local=underlay,
                    port=spec.vxlan_port,
                    mtu=self.mtu,
                    group=self._owner.group,
                    master=self.bridge_index,
                    link=self.tunnel_link,
                ),
                rtnetlink.set_alias(self.vxlan, self._owner.alias("vxlan", spec.id)),
            )
            # the kernel keeps IPv6 neighbours, from which the device answers, only for devices that may speak it; no address
            self._switch_ipv6(self.vxlan, on=bool(spec.subnet6), link_local=False)
            device = self._netlink.link(self.vxlan)
            if device is None:
                raise RuntimeFault(
                    f"VXLAN device {self.vxlan} vanished while it was made; is another daemon using this directory?"
                )
            self._netlink.send(rtnetlink.set_bridge_port(self.vxlan, learning=False))
            self._remotes = None
            done.append(f"network {spec.name}: made VXLAN device {self.vxlan}")
        elif not device.up:
            self._netlink.send(rtnetlink.link_up(device.index))
            done.append(f"network {spec.name}: brought the VXLAN device up")
        if spec.subnet6:
            done += self._mend_ipv6(self.vxlan, link_local=False)
        if device.index != self._vxlan_index:
            self._remotes = None
        self._vxlan_index, self._vxlan_link = device.index, device.vxlan_link
        return done

    def _send_vxlan(self, *messages: Message) -> None:
        try:
            self._netlink.send(*messages)
        except NetlinkError as error:
            if error.number != errno.EOPNOTSUPP:
                raise
            raise UnsupportedError(
                f"network {self.spec.name}: this host's kernel has no VXLAN (module vxlan)"
            ) from error

    def _effective_underlay(self) -> str:
        """The address for VXLAN. Loopback means "not known yet" (a daemon that just started): then a device's own stays."""
        if self.spec.driver != "overlay":
            return ""
        wanted = self._underlay() or "127.0.0.1"
        if not wanted.startswith("127."):
            return wanted
        device = self._netlink.link(self.vxlan)
        return (device.vxlan_local if device is not None else "") or wanted

    def _underlay_mtu(self, underlay: str) -> int:
        if self.spec.driver != "overlay":
            return _MTU_DEFAULT
        index = self._netlink.address_index(underlay)
        return next(
            (link.mtu for link in self._netlink.links() if link.index == index and link.name != "lo"), _MTU_DEFAULT
        )

    def _effective_mtu(self, underlay_mtu: int) -> int:
        if self.spec.mtu or self.spec.driver != "overlay":
            return self.spec.mtu or _MTU_DEFAULT
        return (tunnel_mtu(underlay_mtu) if self.spec.encrypted else underlay_mtu) - VXLAN_OVERHEAD_BYTES

    def _read_remotes(self) -> Remotes:
        index = self._vxlan_index
        return Remotes(frozenset(self._netlink.fdb(index)), frozenset(self._netlink.neighbours(index)))
