"""Address arithmetic: subnets from pools, addresses from subnets, MAC addresses from addresses; IPv4 and IPv6 alike.

Pure: what is in use comes in, a choice goes out; whoever calls writes it down in the same transaction. Allocation rotates:
it continues after the last one given (the caller passes ``after``), so an address that was just freed is not given to
somebody else while caches, connections and names still point to its former owner.

Each call is about one family: a network of both is two subnets, and two calls.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Collection, Sequence

from fleet.errors import ConflictError, UserError

__all__ = [
    "IpAddress",
    "IpNetwork",
    "SubnetPool",
    "UlaPool",
    "is_ipv6",
    "mac_for",
    "next_address",
    "parse_any_subnet",
    "parse_subnet",
    "parse_subnet6",
]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_PREFIX_LEN_MAX = 30  # a /31 or /32 has no room for gateway and container
_PREFIX_LEN_MIN = 8
_PREFIX6_LEN_MAX = 126
_PREFIX6_LEN_MIN = 16
_ULA_PREFIX_LEN, _ULA_SUBNET_LEN = 48, 64  # RFC 4193 section 3.1: a site's prefix, and one link's


def is_ipv6(text: str) -> bool:
    """Whether an address or subnet in text form is of IPv6; no check that it is one at all."""
    return ":" in text


def parse_subnet(subnet: str) -> ipaddress.IPv4Network:
    """Return the network written as ``10.0.1.0/24``. Raises ``UserError`` for host bits, IPv6, and sizes outside /8../30."""
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise UserError(f"subnet {subnet!r}: {error}") from error
    _check_prefix_len(network, _PREFIX_LEN_MIN, _PREFIX_LEN_MAX)
    return network


def parse_subnet6(subnet: str) -> ipaddress.IPv6Network:
    """Return the network written as ``fd00:9::/64``.

    Raises ``UserError`` for host bits, IPv4, sizes outside /16../126, and for what can be no network's: multicast (RFC 4291
    section 2.7), link-local (2.5.6), loopback and unspecified (2.5.2, 2.5.3), IPv4-mapped (2.5.5.2) addresses.
    """
    try:
        network = ipaddress.IPv6Network(subnet)
    except ValueError as error:
        raise UserError(f"subnet {subnet!r}: {error}") from error
    _check_prefix_len(network, _PREFIX6_LEN_MIN, _PREFIX6_LEN_MAX)
    for special, what in _SPECIAL6:
        if network.overlaps(special):
            raise UserError(
                f"subnet {subnet}: contains {what} ({special}); choose one of fd00::/8 (RFC 4193), or your own"
            )
    return network


_SPECIAL6 = tuple(
    (ipaddress.IPv6Network(text), what)
    for text, what in (
        ("::/96", "the loopback and unspecified addresses"),
        ("::ffff:0:0/96", "IPv4-mapped addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    )
)


def parse_any_subnet(subnet: str) -> IpNetwork:
    """``parse_subnet6`` or ``parse_subnet``, by the text. Raises ``UserError``."""
    return parse_subnet6(subnet) if is_ipv6(subnet) else parse_subnet(subnet)


def _check_prefix_len(network: IpNetwork, shortest: int, longest: int) -> None:
    if not shortest <= network.prefixlen <= longest:
        raise UserError(f"subnet {network}: prefix length must be between /{shortest} and /{longest}")


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


class UlaPool:
    """The 65,536 /64 subnets of one unique local prefix (RFC 4193), for networks whose IPv6 subnet nobody chose.

    The prefix is derived from ``seed``, a name of the cluster or the host: the same for everyone who computes it, without being
    stored, and another one elsewhere, so that two clusters can be joined by a router one day (as Docker does since 27).
    """

    def __init__(self, seed: str, used: Collection[str] = ()) -> None:
        digest = hashlib.sha256(b"fleet ula\0" + seed.encode()).digest()
        self.prefix = ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), _ULA_PREFIX_LEN))
        self._used = [ipaddress.IPv6Network(subnet) for subnet in used]

    def next_subnet(self) -> str:
        """Take the first subnet that overlaps none in use. Raises ``ConflictError`` when there is none."""
        step = 1 << (128 - _ULA_SUBNET_LEN)
        near = [other for other in self._used if other.overlaps(self.prefix)]
        for number in range(1 << (_ULA_SUBNET_LEN - _ULA_PREFIX_LEN)):
            candidate = ipaddress.IPv6Network((int(self.prefix.network_address) + number * step, _ULA_SUBNET_LEN))
            if not any(candidate.overlaps(other) for other in near):
                self._used.append(candidate)
                return str(candidate)
        raise ConflictError(f"no free IPv6 subnet: all of {self.prefix} are in use; remove a network or name a subnet")


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
    outside ``ip_range``, as in Docker). ``after`` is the address given last; the search begins behind it and wraps. All are of
    the family of ``subnet``. IPv6 has no broadcast; its first address is the routers' anycast address (RFC 4291 section 2.6.1)
    and is not given either. Raises ``UserError`` if the request makes no sense, ``ConflictError`` if it is taken or nothing
    is left.
    """
    whole = parse_any_subnet(subnet)
    label = f"network {network}" if network else f"subnet {subnet}"
    taken = {int(ipaddress.ip_address(address)) for address in used}
    first, last = int(whole.network_address) + 1, int(whole.broadcast_address) - (1 if whole.version == 4 else 0)
    reserved = int(ipaddress.ip_address(gateway)) if gateway else -1
    if requested is not None:
        bounds = (_address(first, whole), _address(last, whole))
        return _requested_address(requested, label=label, bounds=bounds, reserved=reserved, taken=taken)
    if ip_range is not None:
        part = _parse_range(ip_range, whole, label=label)
        first, last = max(first, int(part.network_address)), min(last, int(part.broadcast_address))
    count = last - first + 1
    start = 0
    if after is not None:
        start = int(ipaddress.ip_address(after)) + 1 - first
        start = start if 0 <= start < count else 0
    for step in range(count):  # ends after at most one more than are taken
        candidate = first + (start + step) % count
        if candidate != reserved and candidate not in taken:
            return str(_address(candidate, whole))
    usable = count - (1 if first <= reserved <= last else 0)
    raise ConflictError(f"{label}: all {usable} addresses of {ip_range or subnet} are in use")


def mac_for(address: str) -> str:
    """Return the MAC address of an IPv4 address: ``02:42:`` (locally administered) and its four bytes.

    Derived, not stored: two containers with one address would be wrong anyway, and a manager needs no table of them. A container
    with an address of each family has the MAC address of the IPv4 one. One with IPv6 only has ``02:46:`` and the last four
    bytes, which differ within any subnet unless users choose addresses that are more than four thousand million apart.
    """
    if is_ipv6(address):
        return "02:46:" + socket.inet_pton(socket.AF_INET6, address)[12:].hex(":")
    return "02:42:" + socket.inet_pton(socket.AF_INET, address).hex(
        ":"
    )  # ten times as fast as ipaddress, and as strict


def _address(number: int, network: IpNetwork) -> IpAddress:
    return ipaddress.IPv4Address(number) if network.version == 4 else ipaddress.IPv6Address(number)


def _requested_address(
    requested: str, *, label: str, bounds: tuple[IpAddress, IpAddress], reserved: int, taken: set[int]
) -> str:
    low, high = bounds
    try:
        wanted = type(low)(requested)
    except ValueError as error:
        raise UserError(f"{label}: address {requested!r} is not an IPv{low.version} address") from error
    if not int(low) <= int(wanted) <= int(high):
        raise UserError(f"{label}: address {requested} is not between {low} and {high}")
    if int(wanted) == reserved:
        raise ConflictError(f"{label}: address {requested} is the gateway")
    if int(wanted) in taken:
        raise ConflictError(f"{label}: address {requested} is in use")
    return str(wanted)


def _parse_range(ip_range: str, whole: IpNetwork, *, label: str) -> IpNetwork:
    try:
        part = type(whole)(ip_range, strict=False)  # Docker accepts host bits in --ip-range
    except ValueError as error:
        raise UserError(f"{label}: range {ip_range!r}: {error}") from error
    if not part.subnet_of(whole):  # type: ignore[arg-type]  # both are of one family
        raise UserError(f"{label}: range {ip_range} is not inside {whole}")
    return part
