"""nftables rules as text; pure.

What a sandbox and a host should filter and translate, and the transaction from one state to the next.

In a sandbox (table ``ip fleet``):

    to VIP            a chain for each virtual address, reached by a verdict map; round robin over backends, all protocols
    to VIP, no backend  refused at once (ICMP port unreachable: "connection refused"), instead of an ARP timeout of 3 s
    to 127.0.0.11:53  to the port the DNS process has there; port 53 itself stays free for containers that are DNS servers

On the host (table ``ip fleet_<owner>``):

    guard    packets from containers to 127.0.0.0/8 are dropped before anything sees them (route_localnet, CVE-2020-8558)
    local    packets to a local address: host ports (one map lookup), then published ports (a chain a port, round robin)
    source   to the ingress network: this node's address there; container to outside: masquerade
    forward  nothing between different networks, nothing from or to internal ones, from outside only what was published
    input    VXLAN packets of our networks only from their hosts, none from containers (they could inject frames); nothing from
             internal networks

A change is the smallest set of element and chain operations. ``None`` as the current state means unknown, and replaces the
table in one transaction, so packets never meet half a table. We never touch, list or depend on tables that are not ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fleet.network.resolv import EMBEDDED_SERVER

__all__ = ["Backend", "HostPortRule", "HostRules", "NetworkRule", "SandboxRules", "plan_host", "plan_sandbox"]

Backend = tuple[str, int]
"""Address and port."""

SANDBOX_TABLE = "fleet"
_ELEMENTS_PER_COMMAND = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRules:
    """Desired rules of one sandbox. ``vips`` maps each virtual address to its backends, in the order to use them."""

    dns_port: int
    vips: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NetworkRule:
    """One network on the host. ``node_address`` is set on the ingress network only."""

    bridge: str
    subnet: str
    internal: bool
    node_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class HostPortRule:
    """One host port. ``host_address`` ``0.0.0.0`` stands for every local address."""

    protocol: str
    host_address: str
    host_port: int
    target: Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """Desired rules of the host. ``published`` maps (protocol, port) to backends; none means the port is closed.

    ``tunnels`` are (UDP port, VNI) of the overlays, ``peers`` the hosts from which their packets may come.
    ``closed_router`` drops what is forwarded between links that are not ours: set when it was us who turned forwarding on.
    """

    networks: frozenset[NetworkRule] = frozenset()
    host_ports: frozenset[HostPortRule] = frozenset()
    published: Mapping[tuple[str, int], tuple[Backend, ...]] = field(default_factory=dict)
    tunnels: frozenset[tuple[int, int]] = frozenset()
    peers: frozenset[str] = frozenset()
    closed_router: bool = False


def plan_sandbox(current: SandboxRules | None, desired: SandboxRules) -> str:
    """The transaction that turns ``current`` into ``desired``; empty if there is nothing to do."""
    table = f"ip {SANDBOX_TABLE}"
    lines: list[str] = []
    if current is None or current.dns_port != desired.dns_port:
        lines += [f"add table {table}", f"delete table {table}", f"add table {table}"]
        lines += [
            f"add map {table} vips {{ type ipv4_addr : verdict; }}",
            f"add set {table} vip_addresses {{ type ipv4_addr; }}",
        ]
        lines += [f"add chain {table} out {{ type nat hook output priority -100; }}"]
        lines += [f"add rule {table} out ip daddr vmap @vips"]
        lines += [
            f"add rule {table} out ip daddr {EMBEDDED_SERVER} {protocol} dport 53 dnat to {EMBEDDED_SERVER}:{desired.dns_port}"
            for protocol in ("udp", "tcp")
        ]
        # a container that routes for others (a VPN, nested containers) sends their packets through here
        lines += [
            f"add chain {table} in {{ type nat hook prerouting priority -100; }}",
            f"add rule {table} in ip daddr vmap @vips",
        ]
        lines += [f"add chain {table} refuse {{ type filter hook output priority 0; }}"]
        lines += [f"add rule {table} refuse ip daddr @vip_addresses reject"]
        before: Mapping[str, tuple[str, ...]] = {}
    else:
        before = current.vips
    removed = sorted(before.keys() - desired.vips.keys())
    added = sorted(desired.vips.keys() - before.keys())
    lines += _elements("delete", table, "vips", removed)
    lines += _elements("delete", table, "vip_addresses", removed)
    for vip in removed:
        lines += [f"flush chain {table} {_vip_chain(vip)}", f"delete chain {table} {_vip_chain(vip)}"]
    for vip in added:
        lines += [f"add chain {table} {_vip_chain(vip)}", *_vip_rule(table, vip, desired.vips[vip])]
    lines += _elements("add", table, "vips", [f"{vip} : goto {_vip_chain(vip)}" for vip in added])
    lines += _elements("add", table, "vip_addresses", added)
    for vip in sorted(before.keys() & desired.vips.keys()):
        if before[vip] != desired.vips[vip]:
            lines += [f"flush chain {table} {_vip_chain(vip)}", *_vip_rule(table, vip, desired.vips[vip])]
    return "".join(line + "\n" for line in lines)


def plan_host(current: HostRules | None, desired: HostRules, *, table: str) -> str:
    """The transaction that turns ``current`` into ``desired``; empty if there is nothing to do."""
    name = f"ip {table}"
    lines: list[str] = []
    if current is None or current.closed_router != desired.closed_router:
        lines += _host_skeleton(name, closed_router=desired.closed_router)
        before = HostRules()
    else:
        before = current
    lines += list(_host_elements(name, before, desired))
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


def _host_skeleton(name: str, *, closed_router: bool) -> list[str]:
    sets = {
        "bridges": "type ifname;",
        "internal": "type ifname;",
        "pairs": "type ifname . ifname;",
        "subnets": "type ipv4_addr; flags interval;",
        "vxlan_ports": "type inet_service;",
        "peers": "type ipv4_addr;",
    }
    maps = {
        "ingress_source": "type ifname : ipv4_addr;",
        "host_at": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
        "host_any": "type inet_proto . inet_service : ipv4_addr . inet_service;",
        "published": "type inet_proto . inet_service : verdict;",
    }
    lines = [f"add table {name}", f"delete table {name}", f"add table {name}"]
    lines += [f"add set {name} {key} {{ {kind} }}" for key, kind in sets.items()]
    lines += [f"add map {name} {key} {{ {kind} }}" for key, kind in maps.items()]
    chains: list[tuple[str, str, list[str]]] = [
        ("guard", "type filter hook prerouting priority -300;", ["iifname @bridges ip daddr 127.0.0.0/8 drop"]),
        (
            "local",
            "",
            [
                "dnat ip to ip daddr . meta l4proto . th dport map @host_at",
                "dnat ip to meta l4proto . th dport map @host_any",
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
                "ct status dnat snat to oifname map @ingress_source",
                "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
                # a container reaching another one through a port of the host: the answer must come back through us
                "ip saddr @subnets oifname @bridges ct status dnat masquerade",
                "ip saddr @subnets oifname != @bridges masquerade",
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
        yield from _elements(command, name, "subnets", [network.subnet for network in ordered if not network.internal])
        sources = [network for network in ordered if network.node_address]
        yield from _elements(
            command, name, "ingress_source", [f'"{network.bridge}" : {network.node_address}' for network in sources]
        )
    for command, ports in (
        ("delete", before.host_ports - after.host_ports),
        ("add", after.host_ports - before.host_ports),
    ):
        everywhere = sorted(port for port in ports if port.host_address == "0.0.0.0")
        somewhere = sorted(port for port in ports if port.host_address != "0.0.0.0")
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


def _elements(command: str, table: str, container: str, elements: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(elements), _ELEMENTS_PER_COMMAND):
        part = elements[start : start + _ELEMENTS_PER_COMMAND]
        yield f"{command} element {table} {container} {{ {', '.join(part)} }}"


def _vip_chain(vip: str) -> str:
    return "vip_" + vip.replace(".", "_")


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
    if len(targets) == 1:
        targets = [f"{backends[0][0]}:{backends[0][1]}"]
    return [f"add rule {table} {_port_chain(*key)} meta l4proto {key[0]} dnat ip to {_round_robin(targets)}"]


def _round_robin(targets: Sequence[str]) -> str:
    if len(targets) == 1:
        return targets[0]
    return f"numgen inc mod {len(targets)} map {{ {', '.join(_numbered(targets))} }}"


def _numbered(targets: Iterable[str]) -> list[str]:
    return [f"{number} : {target}" for number, target in enumerate(targets)]
