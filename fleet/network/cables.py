"""Cables from a sandbox to the bridges of its networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fleet.errors import RuntimeFault
from fleet.network.direct import add_direct, explain_direct
from fleet.network.kernel import routing, rtnetlink
from fleet.network.kernel.netlink import Message, NetlinkError
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.links import NetworkLinks
from fleet.network.namespaces import write_sysctl
from fleet.network.naming import Owner
from fleet.network.return_routes import MARK_BASE, MARK_MASK, ReturnRoute, ReturnRoutes
from fleet.network.topology import Interface, NetworkSpec, SandboxSpec

__all__ = ["mend_routes", "plug", "set_default_route", "unplug"]


def plug(
    spec: SandboxSpec,
    interfaces: Sequence[Interface],
    *,
    veths: Sequence[str],
    host: Netlink,
    owner: Owner,
    links: Mapping[str, NetworkLinks],
    netns: int,
) -> None:
    """Make a cable for each interface and set up its inner end; ``veths`` are the names of the outer ends, empty for cards
    without (macvlan, ipvlan).

    Called inside the sandbox ``netns``; ``host`` is a socket of the host's namespace, which works from here too. Raises
    ``RuntimeFault``; what was made until then goes with the namespace.
    """
    outer: list[Message] = []
    for interface, veth in zip(interfaces, veths, strict=True):
        network = links[interface.network_id]
        if network.spec.is_direct:
            _plug_direct(interface, network.spec, parent=network.bridge_index, host=host, netns=netns)
            continue
        outer.append(
            rtnetlink.add_veth(
                veth,
                mtu=network.mtu,
                group=owner.group,
                master=network.bridge_index,
                peer=interface.name,
                peer_mac=interface.mac,
                peer_netns=netns,
            )
        )
        outer.append(rtnetlink.set_alias(veth, owner.alias("veth", spec.id, interface.network_id)))
        if spec.host_ports or network.spec.ingress:
            # A container asking for itself through a port of the host: with br_netfilter loaded, the kernel does not route that
            # packet but bridges it back ("bridged DNAT"), to the port it came from.
            outer.append(rtnetlink.set_bridge_port(veth, hairpin=True))
    host.send_all(outer)
    with Netlink() as netlink:
        inner: list[Message] = []
        for interface in interfaces:
            link = netlink.link(interface.name)
            if link is None:
                raise RuntimeFault(f"sandbox {spec.id}: card {interface.name} did not arrive in its namespace")
            if interface.address:
                inner.append(routing.add_address(link.index, interface.address, interface.prefix_len))
            if interface.address6:
                enable_ipv6(interface.name)
                inner.append(routing.add_address(link.index, interface.address6, interface.prefix_len6))
            inner.append(rtnetlink.link_up(link.index))
            gateways = filter(None, (interface.gateway, interface.gateway6))
            inner += [routing.add_default_route(link.index, gateway) for gateway in gateways]
        netlink.send_all(inner)


def _plug_direct(interface: Interface, network: NetworkSpec, *, parent: int, host: Netlink, netns: int) -> None:
    driver, mode = network.driver, network.mode
    mac = "" if driver == "ipvlan" else interface.mac
    try:
        host.send(add_direct(driver, mode, name=interface.name, parent=parent, mtu=network.mtu, mac=mac, netns=netns))
    except NetlinkError as error:
        raise explain_direct(error, network=network.name, parent=network.parent, mode=mode) from error


def unplug(card: str) -> None:
    """Remove a card with its cable; absent is fine. Called inside the sandbox."""
    with Netlink() as netlink:
        if netlink.link(card) is not None:
            netlink.send(rtnetlink.delete_link(card))


def set_default_route(interfaces: Sequence[Interface]) -> None:
    """Set the default route again after networks came or went. Called inside the sandbox."""
    with Netlink() as netlink:
        for interface in interfaces:
            link = netlink.link(interface.name)
            if link is not None:
                gateways = filter(None, (interface.gateway, interface.gateway6))
                netlink.send(*(routing.add_default_route(link.index, gateway) for gateway in gateways))


def mend_routes(wanted: ReturnRoutes, *, before: ReturnRoutes | None) -> bool:
    """Make the rules and tables of replies as ``wanted``; returns whether rules had to change. Called inside the sandbox.

    ``before`` is what they are; ``None`` asks the kernel for the rules, and writes each route again. Raises ``RuntimeFault``.
    """
    if before == wanted:
        return False
    with Netlink() as netlink:
        there = _marks(before.routes) if before is not None else netlink.marked_rules(MARK_BASE, MARK_MASK)
        asked = _marks(wanted.routes)
        messages: list[Message] = []
        link = netlink.link(wanted.card) if asked else None
        if link is not None:
            kept = before.routes if before is not None and before.card == wanted.card else frozenset()
            for route in sorted(wanted.routes - kept):
                messages += [routing.add_table_route(link.index, via, route.mark) for via in _vias(route)]
        messages += [routing.add_mark_rule(family, mark) for family, mark in sorted(asked - there)]
        messages += [routing.delete_mark_rule(family, mark) for family, mark in sorted(there - asked)]
        netlink.send_all(messages)
    return there != asked


def _vias(route: ReturnRoute) -> list[str]:
    return [via for via in (route.via, route.via6) if via]


def _marks(routes: Iterable[ReturnRoute]) -> set[tuple[int, int]]:
    return {(rtnetlink.family_of(via), route.mark) for route in routes for via in _vias(route)}


def enable_ipv6(card: str) -> None:
    """Let a card speak IPv6, which no card in a sandbox does by itself. Called inside the sandbox.

    Its routes come from us alone: a neighbour's router advertisements must not change them (RFC 6104).
    """
    write_sysctl(f"net/ipv6/conf/{card}/accept_ra", "0")
    write_sysctl(f"net/ipv6/conf/{card}/accept_redirects", "0")
    write_sysctl(
        f"net/ipv6/conf/{card}/accept_dad", "0"
    )  # the link-local address is made from a MAC that nobody else has
    write_sysctl(f"net/ipv6/conf/{card}/addr_gen_mode", "0")
    write_sysctl(f"net/ipv6/conf/{card}/disable_ipv6", "0")
