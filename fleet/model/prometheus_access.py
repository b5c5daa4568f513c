"""Which Prometheus the managers may be made to ask.

Whoever may write a service names an address in its labels, and a manager then connects to it from the hosts' own network: without
a limit, a way to what only hosts reach (metadata services of clouds, consoles on loopback). Beside what services of the cluster
publish (``fleet.manager.prometheus_targets``) an administrator says what may be asked, in a label of the cluster:

    fleet.autoscale.prometheus-allow    10.0.0.5,10.1.0.0/16,prometheus.example.org,127.0.0.1

A name allows whatever addresses it has when it is asked, but for loopback, which has to be named as an address or ``localhost``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fleet import errors

__all__ = ["ALLOW_LABEL", "Address", "AllowedHosts", "explain_never", "parse_allowed"]

ALLOW_LABEL: Final = "fleet.autoscale.prometheus-allow"
_ENTRIES_MAX: Final = 100
_NAME: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?"
)
_LOCALHOST: Final = ("127.0.0.0/8", "::1/128")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER: Final[tuple[tuple[_Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("169.254.0.0/16", "link-local, where clouds have their metadata services"),
        ("fe80::/10", "link-local"),
        ("fd00:ec2::254/128", "a cloud's metadata service"),
        ("0.0.0.0/8", "no host's"),
        ("::/128", "no host's"),
        ("224.0.0.0/4", "of a group, not of a host"),
        ("ff00::/8", "of a group, not of a host"),
        ("255.255.255.255/32", "no host's"),
    )
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedHosts:
    """What an administrator allowed; nothing by default."""

    networks: tuple[_Network, ...] = ()
    names: frozenset[str] = frozenset()

    def covers(self, host: str, address: Address) -> bool:
        """Whether ``address``, which ``host`` was resolved to, may be asked."""
        address = _plain(address)
        if any(address.version == network.version and address in network for network in self.networks):
            return True
        return host.lower().rstrip(".") in self.names and not address.is_loopback


def parse_allowed(labels: Mapping[str, str]) -> AllowedHosts:
    """Of the cluster's labels. Raises ``UserError`` naming the entry that is none, or that can never be asked."""
    entries = [entry.strip().lower() for entry in labels.get(ALLOW_LABEL, "").split(",") if entry.strip()]
    if len(entries) > _ENTRIES_MAX:
        raise errors.UserError(f"label {ALLOW_LABEL} has {len(entries)} entries; at most {_ENTRIES_MAX} are taken")
    networks: list[_Network] = []
    names = set()
    for entry in entries:
        if entry == "localhost":
            networks += map(ipaddress.ip_network, _LOCALHOST)
            continue
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as cause:
            if not _NAME.fullmatch(entry) or not re.search("[a-z_]", entry.rstrip(".").rpartition(".")[2]):
                raise errors.UserError(
                    f"label {ALLOW_LABEL}: {entry[:100]!r} is neither an address, a network nor a host name; expected such as "
                    "10.0.0.5, 10.1.0.0/16 or prometheus.example.org, with commas between"
                ) from cause
            names.add(entry.rstrip("."))
            continue
        for never, what in _NEVER:
            if network.version == never.version and network.subnet_of(never):  # type: ignore[arg-type]
                raise errors.UserError(f"label {ALLOW_LABEL}: {entry} is {what}: it is never asked")
        networks.append(network)
    return AllowedHosts(networks=tuple(networks), names=frozenset(names))


def explain_never(address: Address) -> str:
    """What makes it an address that is never asked, whoever allows it; empty for any other."""
    for each in _meant(address):
        for network, what in _NEVER:
            if each.version == network.version and each in network:
                return what
    return ""


def _plain(address: Address) -> Address:
    """An IPv4 address that is written as IPv6 (``::ffff:127.0.0.1``) leads to the former."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _meant(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 one that a gateway may make of it (RFC 4291, 3056, 6052)."""
    yield _plain(address)
    if isinstance(address, ipaddress.IPv6Address):
        if address.sixtofour is not None:
            yield address.sixtofour
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
