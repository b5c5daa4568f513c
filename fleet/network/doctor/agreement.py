"""What should be on the host against what is; pure.

Knock-on effects are left out: where the bridge is missing, nobody is told that its ports have no bridge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fleet.network.doctor.finding import MENDS, Check, Finding, right, wrong
from fleet.network.kernel.rtnetlink import FdbEntry, Link
from fleet.network.links import Remotes
from fleet.network.topology import Interface
from fleet.network.tunnel.keeper import Contact

__all__ = [
    "Cable",
    "SeenLinks",
    "WantedLinks",
    "compare_card",
    "compare_forwarding",
    "compare_links",
    "compare_tunnel",
]

_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Cable:
    """``link`` is the host's end, ``of`` the container."""

    link: str
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLinks:
    """``vxlan`` empty: a network of this host only. ``tunnel`` is (VNI, UDP port, underlay address), ``link``
    the index of the link its packets must take; 0 if the network is not encrypted."""

    network: str
    bridge: str
    mac: str
    mtu: int
    addresses: frozenset[tuple[str, int]]
    vxlan: str = ""
    tunnel: tuple[int, int, str] = (0, 0, "")
    link: int = 0
    cables: tuple[Cable, ...] = ()
    remotes: Remotes = field(default_factory=Remotes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLinks:
    """What the kernel lists. ``addresses`` are the bridge's, ``remotes`` the VXLAN device's."""

    links: Mapping[str, Link]
    addresses: Collection[tuple[str, int]] = ()
    remotes: Remotes = field(default_factory=Remotes)


def compare_links(wanted: WantedLinks, seen: SeenLinks) -> list[Finding]:
    """Bridge, its addresses, VXLAN device, cables; one finding that all is right if it is."""
    says = [*_bridge(wanted, seen)]
    bridge = seen.links.get(wanted.bridge)
    if wanted.vxlan:
        says += _vxlan(wanted, seen, bridge)
    says += _cables(wanted, seen, bridge)
    found = [wrong(Check.LINKS, sentence, remedy, network=wanted.network) for sentence, remedy in says]
    if not found:
        parts = ["bridge"] + ["VXLAN device"] * bool(wanted.vxlan)
        parts.append("1 cable" if len(wanted.cables) == 1 else f"{len(wanted.cables)} cables")
        return [right(Check.LINKS, f"{_listed(parts)} are as they should be", network=wanted.network)]
    return found


def _bridge(wanted: WantedLinks, seen: SeenLinks) -> list[tuple[str, str]]:
    name = wanted.bridge
    bridge = seen.links.get(name)
    if bridge is None:
        return [(f"bridge {name} is missing: containers of this host reach nothing on this network", MENDS)]
    found = []
    if not bridge.up:
        found.append((f"bridge {name} is down", MENDS))
    if bridge.mac != wanted.mac:
        found.append((f"bridge {name} has MAC address {bridge.mac}; it should be {wanted.mac}", MENDS))
    if bridge.mtu != wanted.mtu:
        found.append((f"bridge {name} has an MTU of {bridge.mtu} bytes; it should be {wanted.mtu}", MENDS))
    for address, prefix_len in sorted(wanted.addresses - set(seen.addresses)):
        found.append((f"bridge {name} lacks its address {address}/{prefix_len}", MENDS))
    return found


def _vxlan(wanted: WantedLinks, seen: SeenLinks, bridge: Link | None) -> list[tuple[str, str]]:
    name, (vni, port, local) = wanted.vxlan, wanted.tunnel
    device = seen.links.get(name)
    if device is None:
        return [(f"VXLAN device {name} is missing: no container here reaches one on another host", MENDS)]
    found = []
    if not device.up:
        found.append((f"VXLAN device {name} is down", MENDS))
    if (device.vxlan_id, device.vxlan_port, device.vxlan_local) != wanted.tunnel:
        found.append(
            (
                (
                    f"VXLAN device {name} is for VNI {device.vxlan_id}, port {device.vxlan_port}, address {device.vxlan_local}; "
                    f"it should be VNI {vni}, port {port}, address {local}"
                ),
                MENDS,
            )
        )
    if device.vxlan_link != wanted.link:
        found.append((f"VXLAN device {name} does not send through the encrypted tunnel as it should", MENDS))
    if bridge is not None and device.master != bridge.index:
        found.append((f"VXLAN device {name} is no port of bridge {wanted.bridge}", MENDS))
    if device.mtu != wanted.mtu:
        found.append(
            (
                f"VXLAN device {name} has an MTU of {device.mtu} bytes; it should be {wanted.mtu}",
                f"ip link set {name} mtu {wanted.mtu}",
            )
        )
    return found


def _cables(wanted: WantedLinks, seen: SeenLinks, bridge: Link | None) -> list[tuple[str, str]]:
    found = []
    for cable in wanted.cables:
        link = seen.links.get(cable.link)
        again = f"the container has to be made anew: remove {cable.of[:12]}, a service's task is then replaced"
        if link is None:
            found.append((f"cable {cable.link} of container {cable.of[:12]} is missing", again))
            continue
        if not link.up:
            up = f"ip link set {cable.link} up"
            found.append((f"cable {cable.link} of container {cable.of[:12]} is down", up))
        if bridge is not None and link.master != bridge.index:
            plugged = f"ip link set {cable.link} master {wanted.bridge}"
            found.append(
                (f"cable {cable.link} of container {cable.of[:12]} is no port of bridge {wanted.bridge}", plugged)
            )
        if link.mtu > wanted.mtu:
            found.append(
                (
                    (
                        f"cable {cable.link} of container {cable.of[:12]} has an MTU of {link.mtu}, the network {wanted.mtu}: "
                        "larger packets of the container are lost"
                    ),
                    "restart the container: it was started before the MTU became smaller",
                )
            )
    return found


def compare_forwarding(wanted: WantedLinks, seen: SeenLinks) -> list[Finding]:
    """Forwarding entries and ARP answers for what is on other hosts."""
    if not wanted.vxlan or wanted.vxlan not in seen.links:
        return []
    network = wanted.network
    found = []
    hosts = {entry.mac: _place(entry) for entry in wanted.remotes.forwarding}
    seen_hosts = {entry.mac: _place(entry) for entry in seen.remotes.forwarding}
    lost = [f"{mac} at host {where}" for mac, where in sorted(hosts.items()) if mac not in seen_hosts]
    moved = [
        f"{mac} leads to host {seen_hosts[mac]}, is at {where}"
        for mac, where in sorted(hosts.items())
        if seen_hosts.get(mac, where) != where
    ]
    surplus = [f"{mac} at host {where}" for mac, where in sorted(seen_hosts.items()) if mac not in hosts]
    silent = [entry.address for entry in sorted(wanted.remotes.neighbours - seen.remotes.neighbours)]
    unknown = [entry.address for entry in sorted(seen.remotes.neighbours - wanted.remotes.neighbours)]
    for what, entries in (
        ("forwarding entries are missing, so containers there are not reached", lost),
        ("forwarding entries lead to the wrong host", moved),
        ("forwarding entries are there that should not be", surplus),
        ("addresses are not answered for (ARP, neighbour discovery)", silent),
        ("addresses are answered for (ARP, neighbour discovery) that nobody has", unknown),
    ):
        if entries:
            found.append(wrong(Check.FORWARDING, f"{len(entries)} {what}: {_some(entries)}", MENDS, network=network))
    if not found:
        number = len(hosts)
        return [right(Check.FORWARDING, f"{number} addresses on other hosts are where they should be", network=network)]
    return found


def _place(entry: FdbEntry) -> str:
    return f"{entry.underlay} by link {entry.link}" if entry.link else entry.underlay


def compare_tunnel(
    *, missing: Mapping[str, Collection[str]], contacts: Collection[Contact], fault: str, port: int
) -> list[Finding]:
    """This host's end of the encrypted tunnel. ``missing``: networks with hosts whose keys nobody has said; ``fault``: why there
    are no ``contacts``."""
    found = [
        wrong(
            Check.TUNNEL,
            f"no key is known of {_listed(sorted(hosts))}, so nothing is sent there",
            "see whether fleetd runs there and is as new as here, and whether its kernel has WireGuard or TUN "
            "(modprobe wireguard, modprobe tun)",
            network=network,
        )
        for network, hosts in sorted(missing.items())
    ]
    if fault:
        found.append(wrong(Check.TUNNEL, f"the encrypted tunnel does not work here: {fault}", MENDS))
    for contact in sorted(contacts, key=lambda each: each.peer):
        if not contact.is_connected:
            last = "never" if contact.handshake_s < 0 else f"not for {contact.handshake_s:.0f} s"
            found.append(
                wrong(
                    Check.TUNNEL,
                    f"the encrypted tunnel to {contact.peer.address} is down ({last} agreed on keys): packets for it are dropped",
                    f"let UDP port {port} pass between the two hosts, in both directions",
                )
            )
    if not found:
        hosts = "1 host" if len(contacts) == 1 else f"{len(contacts)} hosts"
        return [right(Check.TUNNEL, f"the encrypted tunnel to {hosts} is up")]
    return found


def compare_card(
    interface: Interface, *, of: str, network: str, links: Mapping[str, Link], addresses: Collection[tuple[str, int]]
) -> list[Finding]:
    """A container's card as its own namespace shows it; nothing when it is right."""
    name, again = (
        interface.name,
        "restart the container; something inside it, or with its rights, has changed its network",
    )
    link = links.get(name)
    if link is None:
        return [wrong(Check.LINKS, f"container {of[:12]} has no card {name}", again, network=network)]
    found = []
    if not link.up:
        found.append(wrong(Check.LINKS, f"card {name} of container {of[:12]} is down", again, network=network))
    pairs = ((interface.address, interface.prefix_len), (interface.address6, interface.prefix_len6))
    for address, prefix_len in pairs:
        if address and (address, prefix_len) not in addresses:
            says = f"card {name} of container {of[:12]} lacks its address {address}/{prefix_len}"
            found.append(wrong(Check.LINKS, says, again, network=network))
    return found


def _some(entries: list[str]) -> str:
    more = f" and {len(entries) - _NAMED_MAX} more" if len(entries) > _NAMED_MAX else ""
    return ", ".join(entries[:_NAMED_MAX]) + more


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
