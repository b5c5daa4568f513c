"""This host's addresses, and which of them to tell others (CLI-SW-02)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

from fleet import errors
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.naming import is_fleet_group

__all__ = ["CLUSTER_PORT", "choose_address", "has_global_ipv6", "host_addresses", "split_address"]

CLUSTER_PORT: Final = 2377
_CONTAINER_LINKS: Final = re.compile(r"(docker|veth|br-|cni|virbr)")
"""Bridges of container engines and hypervisors: addresses on them are not reached by other hosts."""


def host_addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) of every address that other hosts might reach; blocking, a few netlink messages."""
    with Netlink() as netlink:
        return [
            (link.name, address)
            for link in netlink.links()
            if link.name != "lo" and not is_fleet_group(link.group)
            for address, _ in sorted(netlink.addresses(link.index))
            if not ipaddress.ip_address(address).is_loopback
        ]


def has_global_ipv6() -> bool:
    """Whether this host has an IPv6 address by which others might reach it; blocking, a few netlink messages."""
    with Netlink() as netlink:
        return any(
            netlink.addresses(link.index, family=socket.AF_INET6)
            for link in netlink.links()
            if link.name != "lo" and not is_fleet_group(link.group) and not _CONTAINER_LINKS.match(link.name)
        )


def split_address(text: str, *, default_port: int, what: str) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port``. Raises ``UserError`` naming ``what``."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", text.strip())
    if match is None:
        raise errors.UserError(f"{what}: {text!r} is not an address; write IP, INTERFACE or IP:PORT")
    port = int(match[3]) if match[3] else default_port
    if not 0 < port < 65536:
        raise errors.UserError(f"{what}: port {port} is not between 1 and 65535")
    return match[1] or match[2], port


def choose_address(wanted: str, *, candidates: Sequence[tuple[str, str]], what: str) -> str:
    """The IPv4 address to advertise: the one asked for (address or interface), else the host's only one.

    Raises ``UserError`` listing the candidates when there is a choice to make, or none.
    """
    usable = [(name, address) for name, address in candidates if not _CONTAINER_LINKS.match(name)]
    if wanted:
        try:
            return str(ipaddress.IPv4Address(wanted))
        except ValueError:
            pass
        named = [address for name, address in candidates if name == wanted]
        if not named:
            known = ", ".join(sorted({name for name, _ in usable})) or "none"
            raise errors.UserError(f"{what}: {wanted!r} is neither an IPv4 address nor an interface with one ({known})")
        return named[0]
    addresses = sorted({address for _, address in usable})
    if len(addresses) == 1:
        return addresses[0]
    if not addresses:
        raise errors.UserError(f"could not choose an IP address to advertise: this host has none; give {what}")
    listed = ", ".join(f"{address} ({name})" for name, address in usable)
    raise errors.UserError(
        f"could not choose an IP address to advertise since this system has multiple addresses: {listed}; give {what}"
    )
