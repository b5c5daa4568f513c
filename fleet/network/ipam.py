"""Address arithmetic: subnets from pools, addresses from subnets, MAC addresses from addresses.

Pure: what is in use comes in, a choice goes out; whoever calls writes it down in the same transaction. Allocation rotates:
it continues after the last one given (the caller passes ``after``), so an address that was just freed is not given to
somebody else while caches, connections and names still point to its former owner.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Sequence

from fleet.errors import ConflictError, UserError

__all__ = ["SubnetPool", "mac_for", "next_address", "parse_subnet"]

_PREFIX_LEN_MAX = 30  # a /31 or /32 has no room for gateway and container
_PREFIX_LEN_MIN = 8


def parse_subnet(subnet: str) -> ipaddress.IPv4Network:
    """Return the network written as ``10.0.1.0/24``. Raises ``UserError`` for host bits, IPv6, and sizes outside /8../30."""
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise UserError(f"subnet {subnet!r}: {error}") from error
    if not _PREFIX_LEN_MIN <= network.prefixlen <= _PREFIX_LEN_MAX:
        raise UserError(f"subnet {subnet}: prefix length must be between /{_PREFIX_LEN_MIN} and /{_PREFIX_LEN_MAX}")
    return network


class SubnetPool:
    """Address pools cut into equal subnets. Holds no more than the subnets in use; not thread-safe."""

    def __init__(self, pools: Sequence[tuple[str, int]], used: Collection[str] = ()) -> None:
        """``pools`` are (CIDR, prefix length of each subnet). Raises ``UserError`` when one cannot be cut that way."""
        self._pools: list[tuple[ipaddress.IPv4Network, int]] = []
        for cidr, prefix_len in pools:
            network = parse_subnet(cidr)
            if not network.prefixlen <= prefix_len <= _PREFIX_LEN_MAX:
                raise UserError(
                    f"address pool {cidr}: cannot be cut into /{prefix_len} subnets; "
                    f"choose between /{network.prefixlen} and /{_PREFIX_LEN_MAX}"
                )
            self._pools.append((network, prefix_len))
        self._used = {ipaddress.IPv4Network(subnet) for subnet in used}
        self._cursor = 0

    def next_subnet(self, *, avoid: Collection[str] = ()) -> str:
        """Take the next subnet that overlaps neither one in use nor ``avoid`` (routes of the host, say).

        Raises ``ConflictError`` when every subnet of every pool is taken.
        """
        taken = self._used | {ipaddress.IPv4Network(subnet) for subnet in avoid}
        total = sum(self._size(index) for index in range(len(self._pools)))
        for step in range(total):
            position = (self._cursor + step) % total
            candidate = self._at(position)
            if not any(candidate.overlaps(other) for other in taken):
                self._cursor = (position + 1) % total
                self._used.add(candidate)
                return str(candidate)
        pools = ", ".join(f"{network} in /{prefix_len}" for network, prefix_len in self._pools) or "none configured"
        raise ConflictError(
            f"no free subnet: all {total} of the address pools ({pools}) are in use; remove a network or add a pool"
        )

    def reserve(self, subnet: str) -> None:
        """Mark a subnet a user chose. Raises ``ConflictError`` if it overlaps one in use."""
        wanted = parse_subnet(subnet)
        for other in self._used:
            if wanted.overlaps(other):
                raise ConflictError(f"subnet {subnet} overlaps {other}, which another network uses")
        self._used.add(wanted)

    def release(self, subnet: str) -> None:
        """Give a subnet back; unknown ones are ignored, so releasing is idempotent."""
        self._used.discard(ipaddress.IPv4Network(subnet))

    def _size(self, index: int) -> int:
        network, prefix_len = self._pools[index]
        return 1 << (prefix_len - network.prefixlen)

    def _at(self, position: int) -> ipaddress.IPv4Network:
        for index, (network, prefix_len) in enumerate(self._pools):
            size = self._size(index)
            if position < size:
                return ipaddress.IPv4Network(
                    (int(network.network_address) + (position << (32 - prefix_len)), prefix_len)
                )
            position -= size
        raise AssertionError("position beyond the pools")


def next_address(
    subnet: str,
    gateway: str,
    used: Collection[str],
    ip_range: str | None = None,
    requested: str | None = None,
    *,
    after: str | None = None,
    network: str = "",
) -> str:
    """Choose an address of ``subnet`` that is neither network, broadcast, ``gateway`` nor ``used``.

    ``ip_range`` narrows automatic choice to a part of the subnet; ``requested`` asks for one address (which may lie
    outside ``ip_range``, as in Docker). ``after`` is the address given last; the search begins behind it and wraps.
    Raises ``UserError`` if the request makes no sense, ``ConflictError`` if it is taken or nothing is left.
    """
    whole = parse_subnet(subnet)
    label = f"network {network}" if network else f"subnet {subnet}"
    taken = {int(ipaddress.IPv4Address(address)) for address in used}
    first, last = int(whole.network_address) + 1, int(whole.broadcast_address) - 1
    reserved = int(ipaddress.IPv4Address(gateway)) if gateway else -1
    if requested is not None:
        return _requested_address(requested, label=label, bounds=(first, last), reserved=reserved, taken=taken)
    if ip_range is not None:
        part = _parse_range(ip_range, whole, label=label)
        first, last = max(first, int(part.network_address)), min(last, int(part.broadcast_address))
    count = last - first + 1
    start = 0
    if after is not None:
        start = int(ipaddress.IPv4Address(after)) + 1 - first
        start = start if 0 <= start < count else 0
    for step in range(count):
        candidate = first + (start + step) % count
        if candidate != reserved and candidate not in taken:
            return str(ipaddress.IPv4Address(candidate))
    usable = count - (1 if first <= reserved <= last else 0)
    raise ConflictError(f"{label}: all {usable} addresses of {ip_range or subnet} are in use")


def mac_for(address: str) -> str:
    """Return the MAC address of an IPv4 address: ``02:42:`` (locally administered) and its four bytes.

    Derived, not stored: two containers with one address would be wrong anyway, and a manager needs no table of them.
    """
    return "02:42:" + socket.inet_pton(socket.AF_INET, address).hex(
        ":"
    )  # ten times as fast as ipaddress, and as strict


def _requested_address(requested: str, *, label: str, bounds: tuple[int, int], reserved: int, taken: set[int]) -> str:
    try:
        wanted = int(ipaddress.IPv4Address(requested))
    except ValueError as error:
        raise UserError(f"{label}: address {requested!r} is not an IPv4 address") from error
    if not bounds[0] <= wanted <= bounds[1]:
        low, high = (ipaddress.IPv4Address(bound) for bound in bounds)
        raise UserError(f"{label}: address {requested} is not between {low} and {high}")
    if wanted == reserved:
        raise ConflictError(f"{label}: address {requested} is the gateway")
    if wanted in taken:
        raise ConflictError(f"{label}: address {requested} is in use")
    return str(ipaddress.IPv4Address(wanted))


def _parse_range(ip_range: str, whole: ipaddress.IPv4Network, *, label: str) -> ipaddress.IPv4Network:
    try:
        part = ipaddress.IPv4Network(ip_range, strict=False)  # Docker accepts host bits in --ip-range
    except ValueError as error:
        raise UserError(f"{label}: range {ip_range!r}: {error}") from error
    if not part.subnet_of(whole):
        raise UserError(f"{label}: range {ip_range} is not inside {whole}")
    return part
