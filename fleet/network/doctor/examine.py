"""Fetches what should be and what is, and has them compared. On the network thread; each function is one short look."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from fleet.errors import FleetError, NotFoundError, RuntimeFault
from fleet.network import cardrules, rules
from fleet.network.doctor.agreement import (
    Cable,
    SeenLinks,
    WantedLinks,
    compare_card,
    compare_forwarding,
    compare_links,
    compare_tunnel,
)
from fleet.network.doctor.features import kernel_findings
from fleet.network.doctor.finding import Check, Finding, Level, right, wrong
from fleet.network.doctor.listing import compare_rules, dropping_rules
from fleet.network.doctor.view import PlaneView
from fleet.network.kernel.nft import NftContext
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.links import Remotes
from fleet.network.namespaces import open_namespace
from fleet.network.topology import NetworkSpec
from fleet.network.tunnel.keeper import Contact

__all__ = [
    "look_at_host",
    "look_at_network",
    "look_at_sandbox",
    "look_at_tunnel",
    "network_ids",
    "sandboxes_on",
    "suspects",
]


def network_ids(view: PlaneView, wanted: Sequence[str]) -> list[str]:
    """Of ``wanted`` (ids or names; empty for all) those this host has."""
    return [
        network_id
        for network_id, state in sorted(view.states.items())
        if not wanted or network_id in wanted or state.network.name in wanted
    ]


def sandboxes_on(view: PlaneView, networks: Sequence[str]) -> list[str]:
    """Sandboxes with a card on one of the networks."""
    return sorted(
        record.spec.id for record in view.records.values() if any(i.network_id in networks for i in record.interfaces)
    )


def look_at_host(view: PlaneView) -> list[Finding]:
    """The kernel's abilities and switches, and the host's table of rules."""
    found = kernel_findings(view)
    plans = [("ip", rules.plan_host(None, view.host_rules(), table=view.table))]
    if (six := view.host_rules6()) is not None:
        plans.append(("ip6", rules.plan_host(None, six, table=view.table, family="ip6")))
    if cards := view.cards():
        plans.append(("bridge", cardrules.plan_cards(None, cards, table=view.table)))
    try:
        with view.thread.inside_new(), NftContext(view.closer) as nft:
            should = {}
            for family, plan in plans:
                nft.run(plan)
                should[family] = nft.run(f"list table {family} {view.table}\n")
    except FleetError as cause:
        return [
            *found,
            wrong(Check.RULES, f"the host's rules cannot be tried out: {cause}", "see what the kernel lacks"),
        ]
    with NftContext(view.closer) as nft:
        for family, listing in should.items():
            where = f"host, table {family} {view.table}"
            found.append(compare_rules(listing, _table(nft, view.table, family), where=where))
    return found


def look_at_network(view: PlaneView, network_id: str) -> list[Finding]:
    """A network's links and forwarding entries; nothing for one that has gone meanwhile."""
    links, state = view.links.get(network_id), view.states.get(network_id)
    if links is None or state is None:
        return []
    if state.network.is_direct:
        return [_parent(view, state.network)]
    is_overlay = state.network.driver == "overlay"
    cables = tuple(
        Cable(veth, of=record.spec.id)
        for record in view.records.values()
        for interface, veth in zip(record.interfaces, record.veths, strict=True)
        if interface.network_id == network_id
    )
    wanted = WantedLinks(
        network=state.network.name,
        bridge=links.bridge,
        mac=links.bridge_mac(),
        mtu=links.mtu,
        addresses=frozenset(links.bridge_addresses()),
        vxlan=links.vxlan if is_overlay else "",
        tunnel=(state.network.vni, state.network.vxlan_port, links.underlay),
        link=links.tunnel_link,
        cables=cables,
        remotes=view.remotes(network_id),
    )
    seen = {link.name: link for link in view.netlink.links()}
    bridge, device = seen.get(links.bridge), seen.get(links.vxlan)
    remotes = Remotes()
    if is_overlay and device is not None:
        fdb, neighbours = view.netlink.fdb(device.index), view.netlink.neighbours(device.index)
        remotes = Remotes(frozenset(fdb), frozenset(neighbours))
    addresses = links.seen_addresses(bridge.index) if bridge is not None else set()
    found = SeenLinks(links=seen, addresses=addresses, remotes=remotes)
    return compare_links(wanted, found) + compare_forwarding(wanted, found)


def _parent(view: PlaneView, network: NetworkSpec) -> Finding:
    """The one thing on the host that a network without a bridge needs."""
    link = view.netlink.link(network.parent)
    if link is not None and link.up:
        return right(Check.LINKS, f"parent {network.parent} is there and up", network=network.name)
    is_missing = "is missing" if link is None else "is down"
    says = f"parent {network.parent} {is_missing}: containers on it reach nothing"
    return wrong(Check.LINKS, says, f"ip link set {network.parent} up, once it is there", network=network.name)


def look_at_tunnel(view: PlaneView, networks: Sequence[str]) -> list[Finding]:
    """This host's end of the tunnel, if one of ``networks`` is encrypted."""
    states = [view.states[each] for each in networks if each in view.states and view.states[each].network.encrypted]
    if not states:
        return []
    missing: dict[str, set[str]] = {}
    for state in states:
        for endpoint in state.endpoints:
            if endpoint.underlay not in ("", view.underlay) and not endpoint.tunnel_key:
                missing.setdefault(state.network.name, set()).add(endpoint.underlay)
    contacts: list[Contact] = []
    fault = ""
    try:
        contacts = view.tunnel.contacts()
    except FleetError as cause:
        fault = str(cause)
    return compare_tunnel(missing=missing, contacts=contacts, fault=fault, port=states[0].network.tunnel_port)


def look_at_sandbox(view: PlaneView, sandbox_id: str, networks: Sequence[str]) -> list[Finding]:
    """A container's cards and rules, seen from inside; only what is wrong. Nothing for one that has gone meanwhile."""
    record = view.records.get(sandbox_id)
    if record is None:
        return []
    try:
        netns = open_namespace(view.netns_path(sandbox_id))
    except NotFoundError:
        return []
    found: list[Finding] = []
    try:
        with view.thread.inside(netns), Netlink() as netlink, NftContext(view.closer) as nft:
            links = {link.name: link for link in netlink.links()}
            for interface in record.interfaces:
                if interface.network_id in networks:
                    link = links.get(interface.name)
                    indexes = [link.index] if link is not None else []
                    found += compare_card(
                        interface,
                        of=sandbox_id,
                        network=view.states[interface.network_id].network.name,
                        links=links,
                        addresses={
                            pair
                            for index in indexes
                            for family in (socket.AF_INET, socket.AF_INET6)
                            for pair in netlink.addresses(index, family=family)
                        },
                    )
            seen = {family: _table(nft, rules.SANDBOX_TABLE, family) for family in rules.FAMILIES}
        if record.dns_port:
            wanted = view.sandbox_rules(record)
            families = rules.FAMILIES if wanted.vips6 is not None else ("ip",)
            with view.thread.inside_new(), NftContext(view.closer) as nft:
                nft.run(rules.plan_sandbox(None, wanted))
                should = {family: nft.run(f"list table {family} {rules.SANDBOX_TABLE}\n") for family in families}
            for family, listing in should.items():
                where = f"container {sandbox_id[:12]}" + (" (IPv6)" if family == "ip6" else "")
                found.append(compare_rules(listing, seen[family], where=where))
    finally:
        os.close(netns)
    return [finding for finding in found if finding.level is not Level.RIGHT]


def suspects(view: PlaneView, port: int) -> list[str]:
    """Rules on this host, not ours, that drop packets to ``port``."""
    with NftContext(view.closer) as nft:
        return dropping_rules(nft.run("list ruleset\n"), port=port, ours=view.table)


def _table(nft: NftContext, table: str, family: str) -> str:
    try:
        return nft.run(f"list table {family} {table}\n")
    except RuntimeFault:
        return ""
