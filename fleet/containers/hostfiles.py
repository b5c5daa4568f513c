"""The three files a container finds in /etc: hosts, hostname, resolv.conf. Pure text in, text out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from fleet.errors import UserError

__all__ = ["hostname_text", "hosts_text", "resolv_conf_text"]

_LOCAL = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "ff00::0\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
"""What Docker writes first, byte for byte (moby daemon/libnetwork/etchosts)."""


def hostname_text(hostname: str) -> str:
    """/etc/hostname."""
    return hostname + "\n"


def hosts_text(
    *,
    hostname: str,
    domainname: str = "",
    addresses: Sequence[str] = (),
    extra_hosts: Iterable[str] = (),
    host_gateway: str = "",
    base: str = "",
) -> str:
    """/etc/hosts: the local names, what the user added, then the container's own addresses.

    ``extra_hosts`` entries are ``name:address`` (IPv6 may be in brackets) or ``name=address``; the address ``host-gateway``
    stands for ``host_gateway``. ``base`` replaces the local names (containers on the host's network see the host's file).
    Raises ``UserError`` for an entry that is neither.
    """
    lines = [base if base.endswith("\n") or not base else base + "\n"] if base else [_LOCAL]
    for entry in extra_hosts:
        name, address = parse_extra_host(entry)
        if address == "host-gateway":
            if not host_gateway:
                raise UserError(f"extra host {entry!r}: this container's network has no gateway to the host")
            address = host_gateway
        lines.append(f"{address}\t{name}\n")
    names = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    lines.extend(f"{address}\t{names}\n" for address in addresses)
    return "".join(lines)


def parse_extra_host(entry: str) -> tuple[str, str]:
    """``name:address`` as (name, address). Raises ``UserError``."""
    separator = "=" if "=" in entry else ":"
    name, _, address = entry.partition(separator)
    address = address.strip("[]")
    if not name or any(c.isspace() for c in name):
        raise UserError(f"bad format for extra host {entry!r}: expected name:address")
    if address != "host-gateway":
        try:
            ipaddress.ip_address(address)
        except ValueError as cause:
            raise UserError(f"bad format for extra host {entry!r}: {address!r} is not an IP address") from cause
    return name, address


def resolv_conf_text(
    host_text: str, *, servers: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    """/etc/resolv.conf of a container without a name server of its own: the host's, with what the user gave in place of it.

    ``search`` of a single ``.`` means no search domains, as in Docker.
    """
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in host_text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            found["nameserver"].append(words[1])
        elif words[0] in ("search", "domain"):
            found["search"] = words[1:]
        elif words[0] == "options":
            found["options"] += words[1:]
    servers = servers or found["nameserver"]
    search = search or found["search"]
    options = options or found["options"]
    lines = [f"nameserver {server}" for server in servers]
    if search and list(search) != ["."]:
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return "".join(line + "\n" for line in lines)
