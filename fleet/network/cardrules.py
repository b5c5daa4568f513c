"""Which IPv6 addresses each container may send from: rules on the bridges' own packets (nftables family ``bridge``); pure.

A container has the right to open raw sockets (Docker gives it), so nothing inside it can be trusted to say who it is. Frames
between two containers of a host never reach the host's ``ip6`` rules; these see every frame that comes out of a container's
cable, whatever it is bound for, and drop

- packets from another source address than the card's own two, the one it was given and the link-local one of its MAC address
  (the unspecified address passes: RFC 4862 uses it before there is any);
- neighbour advertisements about addresses it does not have, which would make others send to it (RFC 4861 section 7.2);
- router advertisements and redirects: routes are ours to give (RFC 6104, RFC 6105).

Where a published port shows its clients' own addresses (``return_routes``), services may trust them: cards on the ingress network
then send IPv4 and ARP from their own MAC and IPv4 address only.

Frames from other hosts come through the VXLAN device and were looked at by the host they left. Cards on networks without IPv6 are
not listed: their containers have none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Card", "link_local", "plan_cards"]

_PER_COMMAND = 200


@dataclass(frozen=True, slots=True, order=True)
class Card:
    """A container's place on a network: the host's end of its cable, its MAC, its IPv6 address (empty without), and its IPv4
    address where that is watched too."""

    veth: str
    mac: str
    address: str
    address4: str = ""


def link_local(mac: str) -> str:
    """The link-local address that the kernel makes from a MAC address (modified EUI-64, RFC 4291 appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([raw[0] ^ 0x02]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def plan_cards(current: frozenset[Card] | None, desired: frozenset[Card], *, table: str) -> str:
    """The transaction that turns ``current`` (``None``: unknown) into ``desired``; empty if there is nothing to do. Pure."""
    name = f"bridge {table}"
    lines: list[str] = []
    if current is None:
        lines += [
            f"add table {name}",
            f"delete table {name}",
            f"add table {name}",
            f"add set {name} cards {{ type ifname; }}",
            f"add set {name} owned {{ type ifname . ipv6_addr; }}",
            # the target address of a neighbour advertisement, 8 bytes into the ICMPv6 message; nft has a word for it since 1.0.8
            f"add set {name} claimed {{ typeof iifname . @th,64,128; }}",
            f"add set {name} cards4 {{ type ifname; }}",
            f"add set {name} owned_mac {{ type ifname . ether_addr; }}",
            f"add set {name} owned4 {{ type ifname . ipv4_addr; }}",
            f"add chain {name} cards {{ type filter hook prerouting priority -200; }}",
            f"add rule {name} cards iifname @cards4 iifname . ether saddr != @owned_mac drop",
            f"add rule {name} cards iifname @cards4 iifname . ip saddr != @owned4 drop",
            f"add rule {name} cards iifname @cards4 iifname . arp saddr ip != @owned4 drop",
            f"add rule {name} cards iifname != @cards accept",
            f"add rule {name} cards icmpv6 type {{ nd-router-advert, nd-redirect }} drop",
            f"add rule {name} cards icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @claimed drop",
            f"add rule {name} cards ip6 saddr != :: iifname . ip6 saddr != @owned drop",
        ]
    before = current or frozenset()
    for command, all_cards in (("delete", sorted(before - desired)), ("add", sorted(desired - before))):
        watched = [card for card in all_cards if card.address4]
        lines += _elements(command, name, "cards4", [f'"{card.veth}"' for card in watched])
        lines += _elements(command, name, "owned_mac", [f'"{card.veth}" . {card.mac}' for card in watched])
        lines += _elements(command, name, "owned4", [f'"{card.veth}" . {card.address4}' for card in watched])
        cards = [card for card in all_cards if card.address]
        lines += _elements(command, name, "cards", [f'"{card.veth}"' for card in cards])
        pairs = [(card.veth, address) for card in cards for address in (card.address, link_local(card.mac))]
        lines += _elements(command, name, "owned", [f'"{veth}" . {address}' for veth, address in pairs])
        numbers = [(veth, int(ipaddress.IPv6Address(address))) for veth, address in pairs]
        lines += _elements(command, name, "claimed", [f'"{veth}" . {number:#034x}' for veth, number in numbers])
    return "".join(line + "\n" for line in lines)


def _elements(command: str, table: str, container: str, elements: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(elements), _PER_COMMAND):
        yield f"{command} element {table} {container} {{ {', '.join(elements[start : start + _PER_COMMAND])} }}"
