"""nftables rules as text; pure.

What a sandbox and a host should filter and translate, and the transaction from one state to the next.

In a sandbox (table ``ip fleet``):

    to VIP            a chain for each virtual address, reached by a verdict map; round robin over backends, all protocols
    to VIP, no backend  refused at once (ICMP port unreachable: "connection refused"), instead of an ARP timeout of 3 s
    to 127.0.0.11:53  to the port the DNS process has there; port 53 itself stays free for containers that are DNS servers
    entered, back     where published ports show the client's address: replies are marked for the node they came by
                      (``return_routes``)

On the host (table ``ip fleet_<owner>``):

    guard    packets from containers to 127.0.0.0/8 are dropped before anything sees them (route_localnet, CVE-2020-8558), and
             those that would make a published port believe in an address that is not theirs
    local    packets to a local address: host ports (one map lookup), then published ports (a chain a port, round robin)
    source   to the ingress network: this node's address there, unless the port is to see its clients'; container to outside:
             masquerade
    forward  nothing between different networks, nothing from or to internal ones, from outside only what was published
    input    VXLAN packets of our networks only from their hosts, none from containers (they could inject frames); nothing from
             internal networks
    sealed   of encrypted overlays, by the tunnel only (``_sealed_changes``)

IPv6 has tables of the same names and chains in the family ``ip6``, in sandboxes and on hosts that are on a network with IPv6.
What differs is what IPv6 lacks (VXLAN packets here are IPv4, 127.0.0.0/8 is one address) or has more of:

    guard    router advertisements and redirects from containers are dropped (the host's routes are not theirs to change)

Who sends under which IPv6 address is ``cardrules``' matter, for it must see frames that never leave the bridge.

A change is the smallest set of element and chain operations. ``None`` as the current state means unknown, and replaces the
table in one transaction, so packets never meet half a table. We never touch, list or depend on tables that are not ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from fleet.network.resolv import EMBEDDED_SERVER
from fleet.network.return_routes import MARK_BASE, MARK_MASK, NO_RETURNS, ReturnRoutes

__all__ = [
    "FAMILIES",
    "Backend",
    "Family",
    "HostPortRule",
    "HostRules",
    "NetworkRule",
    "SandboxRules",
    "plan_host",
    "plan_sandbox",
]

Family = Literal["ip", "ip6"]
"""As nftables calls them."""
FAMILIES: Final[tuple[Family, ...]] = ("ip", "ip6")

Backend = tuple[str, int]
"""Address and port."""

SANDBOX_TABLE = "fleet"
_ELEMENTS_PER_COMMAND = 200
_EVERY = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRules:
    """Desired rules of one sandbox. ``vips`` maps each virtual address to its backends, in the order to use them.

    ``vips6`` is the same for IPv6; ``None`` where the sandbox has no IPv6, which then has no table of that family either.
    ``returns`` are the marks of replies to clients whose address it sees.
    """

    dns_port: int
    vips: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vips6: Mapping[str, tuple[str, ...]] | None = None
    returns: ReturnRoutes = NO_RETURNS


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NetworkRule:
    """One network on the host. ``node_address`` is set on the ingress network only."""

    bridge: str
    subnet: str
    internal: bool
    node_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class HostPortRule:
    """One host port. ``host_address`` ``0.0.0.0``, or ``::`` among rules of IPv6, stands for every local address."""

    protocol: str
    host_address: str
    host_port: int
    target: Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """Desired rules of the host. ``published`` maps (protocol, port) to backends; none means the port is closed.

    ``tunnels`` are (UDP port, VNI) of the overlays, ``peers`` the hosts from which their packets may come; ``sealed`` are those
    of the encrypted ones, which take the link ``tunnel`` (empty when there are none).
    ``closed_router`` drops what is forwarded between links that are not ours: set when it was us who turned forwarding on.
    ``client_ports`` are those of ``published`` that see their clients' addresses.
    """

    networks: frozenset[NetworkRule] = frozenset()
    host_ports: frozenset[HostPortRule] = frozenset()
    published: Mapping[tuple[str, int], tuple[Backend, ...]] = field(default_factory=dict)
    tunnels: frozenset[tuple[int, int]] = frozenset()
    peers: frozenset[str] = frozenset()
    sealed: frozenset[tuple[int, int]] = frozenset()
    tunnel: str = ""
    closed_router: bool = False
    client_ports: frozenset[tuple[str, int]] = frozenset()


def plan_sandbox(current: SandboxRules | None, desired: SandboxRules) -> str:
    """The transaction that turns ``current`` into ``desired``; empty if there is nothing to do."""
    lines: list[str] = []
    if current is None or current.dns_port != desired.dns_port:
        embedded = [
            f"ip daddr {EMBEDDED_SERVER} {protocol} dport 53 dnat to {EMBEDDED_SERVER}:{desired.dns_port}"
            for protocol in ("udp", "tcp")
        ]
        lines += _sandbox_skeleton("ip", embedded=embedded)
        lines += _vip_changes("ip", {}, desired.vips)
        lines += _return_changes("ip", NO_RETURNS, desired.returns)
    else:
        lines += _vip_changes("ip", current.vips, desired.vips)
        lines += _return_changes("ip", current.returns, desired.returns)
    before = current.vips6 if current is not None else None
    if desired.vips6 is not None:
        lines += _sandbox_skeleton("ip6", embedded=[]) if before is None else []
        lines += _vip_changes("ip6", before or {}, desired.vips6)
        known = current.returns if current is not None and before is not None else NO_RETURNS
        lines += _return_changes("ip6", known, desired.returns)
    elif before is not None:
        lines.append(f"delete table ip6 {SANDBOX_TABLE}")
    return "".join(line + "\n" for line in lines)


def _sandbox_skeleton(family: Family, *, embedded: Sequence[str]) -> list[str]:
    table = f"{family} {SANDBOX_TABLE}"
    return [
        f"add table {table}",
        f"delete table {table}",
        f"add table {table}",
        f"add map {table} vips {{ type {_address_type(family)} : verdict; }}",
        f"add set {table} vip_addresses {{ type {_address_type(family)}; }}",
        f"add chain {table} out {{ type nat hook output priority -100; }}",
        f"add rule {table} out {family} daddr vmap @vips",
        *(f"add rule {table} out {rule}" for rule in embedded),
        # a container that routes for others (a VPN, nested containers) sends their packets through here
        f"add chain {table} in {{ type nat hook prerouting priority -100; }}",
        f"add rule {table} in {family} daddr vmap @vips",
        f"add chain {table} refuse {{ type filter hook output priority 0; }}",
        f"add rule {table} refuse {family} daddr @vip_addresses reject",
    ]


def _vip_changes(
    family: Family, before: Mapping[str, tuple[str, ...]], after: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    table = f"{family} {SANDBOX_TABLE}"
    removed = sorted(before.keys() - after.keys())
    added = sorted(after.keys() - before.keys())
    yield from _elements("delete", table, "vips", removed)
    yield from _elements("delete", table, "vip_addresses", removed)
    for vip in removed:
        yield from (f"flush chain {table} {_vip_chain(vip)}", f"delete chain {table} {_vip_chain(vip)}")
    for vip in added:
        yield from (f"add chain {table} {_vip_chain(vip)}", *_vip_rule(table, vip, after[vip]))
    yield from _elements("add", table, "vips", [f"{vip} : goto {_vip_chain(vip)}" for vip in added])
    yield from _elements("add", table, "vip_addresses", added)
    for vip in sorted(before.keys() & after.keys()):
        if before[vip] != after[vip]:
            yield from (f"flush chain {table} {_vip_chain(vip)}", *_vip_rule(table, vip, after[vip]))


def _return_changes(family: Family, before: ReturnRoutes, after: ReturnRoutes) -> Iterator[str]:
    """Where a packet came in by a node, replies of its flow get that node's mark. The last packet counts: a client may ask
    with one UDP port through several nodes."""
    if before == after:
        return
    table = f"{family} {SANDBOX_TABLE}"
    mark_reply = f"ct direction reply ct mark and {MARK_MASK:#x} == {MARK_BASE:#x} meta mark set ct mark"
    if before.routes:
        for chain in ("entered", "back"):
            yield from (f"flush chain {table} {chain}", f"delete chain {table} {chain}")
        yield f"delete map {table} entrances"
    if not after.routes:
        return
    yield f"add map {table} entrances {{ type ether_addr : mark; }}"
    yield from _elements("add", table, "entrances", [f"{r.mac} : {r.mark:#x}" for r in sorted(after.routes)])
    yield f"add chain {table} entered {{ type filter hook prerouting priority -150; }}"
    card = f'iifname "{after.card}" ct direction original'
    yield f"add rule {table} entered {card} ct mark set ether saddr map @entrances"
    yield f"add rule {table} entered {mark_reply}"  # of containers that route for others
    yield f"add chain {table} back {{ type route hook output priority -150; }}"
    yield f"add rule {table} back {mark_reply}"


def _address_type(family: Family) -> str:
    return "ipv4_addr" if family == "ip" else "ipv6_addr"


def plan_host(current: HostRules | None, desired: HostRules, *, table: str, family: Family = "ip") -> str:
    """The transaction that turns ``current`` into ``desired``; empty if there is nothing to do."""
    name = f"{family} {table}"
    lines: list[str] = []
    if current is None or current.closed_router != desired.closed_router:
        lines += _host_skeleton(table, family=family, closed_router=desired.closed_router)
        before = HostRules()
    else:
        before = current
    lines += list(_host_elements(name, before, desired))
    lines += list(_sealed_changes(name, before, desired))
    gone = sorted(before.published.keys() - desired.published.keys())
    new = sorted(desired.published.keys() - before.published.keys())
    lines += _elements("delete", name, "published", [f"{protocol} . {port}" for protocol, port in gone])
    for key in gone:
        lines += [f"flush chain {name} {_port_chain(*key)}", f"delete chain {name} {_port_chain(*key)}"]
    for key in new:
        lines += [f"add chain {name} {_port_chain(*key)}", *_port_rule(name, key, desired.published[key])]
    lines += _elements("add", name, "published", [f"{key[0]} . {key[1]} : goto {_port_chain(*key)}" for key in new])
    for key in sorted(before.published.keys() & desired.published.keys()):
        if before.published[key] != desired.published[key]:
            lines += [f"flush chain {name} {_port_chain(*key)}", *_port_rule(name, key, desired.published[key])]
    return "".join(line + "\n" for line in lines)


def _host_skeleton(table: str, *, family: Family, closed_router: bool) -> list[str]:
    name, address = f"{family} {table}", _address_type(family)
    loopback = "127.0.0.0/8" if family == "ip" else "::1"
    elsewhere = f"{family} saddr != @subnets {family} saddr != {loopback}"
    sets = {
        "bridges": "type ifname;",
        "internal": "type ifname;",
        "pairs": "type ifname . ifname;",
        "subnets": f"type {address}; flags interval;",
        "vxlan_ports": "type inet_service;",
        "peers": f"type {address};",
        "client_ports": "type inet_proto . inet_service;",
        "client_targets": f"type inet_proto . {address} . inet_service;",
    }
    maps = {
        "ingress_source": f"type ifname : {address};",
        "host_at": f"type {address} . inet_proto . inet_service : {address} . inet_service;",
        "host_any": f"type inet_proto . inet_service : {address} . inet_service;",
        "published": "type inet_proto . inet_service : verdict;",
    }
    lines = [f"add table {name}", f"delete table {name}", f"add table {name}"]
    lines += [f"add set {name} {key} {{ {kind} }}" for key, kind in sets.items()]
    lines += [f"add map {name} {key} {{ {kind} }}" for key, kind in maps.items()]
    chains: list[tuple[str, str, list[str]]] = [
        ("guard", "type filter hook prerouting priority -300;", _guard(family)),
        (
            "local",
            "",
            [
                f"dnat {family} to {family} daddr . meta l4proto . th dport map @host_at",
                f"dnat {family} to meta l4proto . th dport map @host_any",
                "meta l4proto . th dport vmap @published",
            ],
        ),
        ("tunnels", "", []),
        ("in_nat", "type nat hook prerouting priority -100;", ["fib daddr type local jump local"]),
        ("out_nat", "type nat hook output priority -100;", ["fib daddr type local jump local"]),
        (
            "source",
            "type nat hook postrouting priority 100;",
            [
                f"ct status dnat meta l4proto . {family} daddr . th dport @client_targets {elsewhere} accept",
                "ct status dnat snat to oifname map @ingress_source",
                f"{family} saddr {loopback} oifname @bridges masquerade",
                # a container reaching another one through a port of the host: the answer must come back through us
                f"{family} saddr @subnets oifname @bridges ct status dnat masquerade",
                f"{family} saddr @subnets oifname != @bridges masquerade",
            ],
        ),
        (
            "forward",
            "type filter hook forward priority 0;",
            [
                "iifname . oifname @pairs accept",  # bridged frames come by here where br_netfilter is loaded
                "iifname @internal drop",
                "oifname @internal drop",
                "iifname @bridges udp dport @vxlan_ports drop",
                "ct state established,related accept",
                "ct status dnat accept",
                "oifname @bridges drop",
                *(["iifname != @bridges drop"] if closed_router else []),
            ],
        ),
        (
            "input",
            "type filter hook input priority 0;",
            [
                "iifname @internal drop",
                "iifname @bridges udp dport @vxlan_ports drop",
                "udp dport @vxlan_ports jump tunnels",
            ],
        ),
    ]
    for chain, hook, rules in chains:
        lines.append(f"add chain {name} {chain}" + (f" {{ {hook} }}" if hook else ""))
        lines += [f"add rule {name} {chain} {rule}" for rule in rules]
    return lines


def _guard(family: Family) -> list[str]:
    pretended = (
        f"iifname @bridges meta l4proto . th dport @client_ports {family} saddr != @subnets fib daddr type local drop"
    )
    if family == "ip":
        return ["iifname @bridges ip daddr 127.0.0.0/8 drop", pretended]
    return [
        "iifname @bridges ip6 daddr ::1 drop",
        "iifname @bridges icmpv6 type { nd-router-advert, nd-redirect } drop",
        pretended,
    ]


def _host_elements(name: str, before: HostRules, after: HostRules) -> Iterator[str]:
    for command, networks in (("delete", before.networks - after.networks), ("add", after.networks - before.networks)):
        ordered = sorted(networks)
        yield from _elements(command, name, "bridges", [f'"{network.bridge}"' for network in ordered])
        yield from _elements(
            command, name, "pairs", [f'"{network.bridge}" . "{network.bridge}"' for network in ordered]
        )
        yield from _elements(
            command, name, "internal", [f'"{network.bridge}"' for network in ordered if network.internal]
        )
        yield from _elements(command, name, "subnets", [n.subnet for n in ordered if n.subnet and not n.internal])
        sources = [network for network in ordered if network.node_address]
        yield from _elements(
            command, name, "ingress_source", [f'"{network.bridge}" : {network.node_address}' for network in sources]
        )
    for command, ports in (
        ("delete", before.host_ports - after.host_ports),
        ("add", after.host_ports - before.host_ports),
    ):
        everywhere = sorted(port for port in ports if port.host_address in _EVERY)
        somewhere = sorted(port for port in ports if port.host_address not in _EVERY)
        yield from _elements(
            command,
            name,
            "host_any",
            [f"{p.protocol} . {p.host_port} : {p.target[0]} . {p.target[1]}" for p in everywhere],
        )
        yield from _elements(
            command,
            name,
            "host_at",
            [f"{p.host_address} . {p.protocol} . {p.host_port} : {p.target[0]} . {p.target[1]}" for p in somewhere],
        )
    for command, keys in (
        ("delete", before.client_ports - after.client_ports),
        ("add", after.client_ports - before.client_ports),
    ):
        yield from _elements(command, name, "client_ports", [f"{protocol} . {port}" for protocol, port in sorted(keys)])
    old_targets, new_targets = _client_targets(before), _client_targets(after)
    for command, targets in (("delete", old_targets - new_targets), ("add", new_targets - old_targets)):
        elements = [f"{protocol} . {address} . {port}" for protocol, address, port in sorted(targets)]
        yield from _elements(command, name, "client_targets", elements)
    old_ports, new_ports = ({port for port, _ in state.tunnels} for state in (before, after))
    yield from _elements("delete", name, "vxlan_ports", [str(port) for port in sorted(old_ports - new_ports)])
    yield from _elements("add", name, "vxlan_ports", [str(port) for port in sorted(new_ports - old_ports)])
    yield from _elements("delete", name, "peers", sorted(before.peers - after.peers))
    yield from _elements("add", name, "peers", sorted(after.peers - before.peers))
    if before.tunnels != after.tunnels:
        # VXLAN has no authentication: at least the sender must be a host of ours. By VNI (bits 96 to 119 from the UDP header on,
        # RFC 7348 section 5), because others may use the same port for networks of their own.
        yield f"flush chain {name} tunnels"
        for port, vni in sorted(after.tunnels):
            yield f"add rule {name} tunnels udp dport {port} @th,96,24 {vni} ip saddr != @peers drop"


def _client_targets(rules: HostRules) -> set[tuple[str, str, int]]:
    """Where the ports lead that show their clients: by then the packet bears the task's address and port."""
    return {(key[0], *backend) for key in rules.client_ports for backend in rules.published.get(key, ())}


def _sealed_changes(name: str, before: HostRules, after: HostRules) -> Iterator[str]:
    """Packets of encrypted overlays come in and go out by the tunnel only, and nothing else comes in by it.

    VXLAN devices have no such rule themselves: a plain packet with the right VNI from any link would be taken. What leaves does
    so by the link that its forwarding entry names; this is the second lock on that door. Chains of their own, which exist only
    while there is an encrypted network here.
    """
    if (before.sealed, before.tunnel) == (after.sealed, after.tunnel):
        return
    chains = {"sealed_in": "input", "sealed_out": "output", "sealed_through": "forward"}
    for chain in chains if before.tunnel else ():
        yield from (f"flush chain {name} {chain}", f"delete chain {name} {chain}")
    if not after.tunnel:
        return
    for chain, hook in chains.items():
        yield f"add chain {name} {chain} {{ type filter hook {hook} priority 0; }}"
    for port, vni in sorted(after.sealed):
        packet = f"udp dport {port} @th,96,24 {vni}"
        yield f'add rule {name} sealed_in iifname "{after.tunnel}" {packet} accept'
        yield f"add rule {name} sealed_in {packet} drop"
        yield f'add rule {name} sealed_out oifname != "{after.tunnel}" {packet} drop'
    yield f'add rule {name} sealed_in iifname "{after.tunnel}" drop'
    yield f'add rule {name} sealed_through iifname "{after.tunnel}" drop'
    yield f'add rule {name} sealed_through oifname "{after.tunnel}" drop'


def _elements(command: str, table: str, container: str, elements: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(elements), _ELEMENTS_PER_COMMAND):
        part = elements[start : start + _ELEMENTS_PER_COMMAND]
        yield f"{command} element {table} {container} {{ {', '.join(part)} }}"


def _vip_chain(vip: str) -> str:
    return "vip_" + vip.replace(".", "_").replace(":", "_")


def _port_chain(protocol: str, port: int) -> str:
    return f"port_{protocol}_{port}"


def _vip_rule(table: str, vip: str, backends: Sequence[str]) -> list[str]:
    if not backends:
        return []
    return [f"add rule {table} {_vip_chain(vip)} dnat to {_round_robin(backends)}"]


def _port_rule(table: str, key: tuple[str, int], backends: Sequence[Backend]) -> list[str]:
    if not backends:
        return []
    # the transport protocol is known from the map that led here; the rule needs it said again to allow a port
    targets = [f"{address} . {port}" for address, port in backends]
    family = table.partition(" ")[0]
    if len(targets) == 1:
        address, port = backends[0]
        targets = [f"[{address}]:{port}" if family == "ip6" else f"{address}:{port}"]
    return [f"add rule {table} {_port_chain(*key)} meta l4proto {key[0]} dnat {family} to {_round_robin(targets)}"]


def _round_robin(targets: Sequence[str]) -> str:
    if len(targets) == 1:
        return targets[0]
    return f"numgen inc mod {len(targets)} map {{ {', '.join(_numbered(targets))} }}"


def _numbered(targets: Iterable[str]) -> list[str]:
    return [f"{number} : {target}" for number, target in enumerate(targets)]
