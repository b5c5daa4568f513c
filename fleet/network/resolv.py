"""The host's resolver configuration, and a sandbox's (resolv.conf(5)); pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["EMBEDDED_SERVER", "HostResolver", "parse_resolv_conf", "render_resolv_conf"]

EMBEDDED_SERVER = "127.0.0.11"
"""Docker's address for the server inside each container; images and people know it."""

_SERVERS_MAX = 8


@dataclass(frozen=True, slots=True)
class HostResolver:
    """What the host asks, and which domains it tries."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> HostResolver:
    """Read a host's resolv.conf; lines it does not know and IPv6 servers are passed over."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and _is_ipv4(words[1]) and words[1] != EMBEDDED_SERVER:
            servers.append(words[1])
        elif words[0] in ("search", "domain"):  # the last one wins
            search = tuple(words[1:])
    return HostResolver(tuple(dict.fromkeys(servers))[:_SERVERS_MAX], search)


def render_resolv_conf(*, search: Sequence[str], options: Sequence[str], host: HostResolver, embedded: bool) -> str:
    """Write a sandbox's resolv.conf.

    ``search`` ``(".",)`` means none, as in Docker; empty means the host's. ``ndots:0`` makes resolvers try a bare name as it
    is before appending domains, so that a service called ``web`` costs one question. Without the embedded server (a
    sandbox without networks) the host's servers are listed, for the day a network is connected.
    """
    lines = [f"nameserver {server}" for server in ([EMBEDDED_SERVER] if embedded else host.servers)]
    domains = tuple(search) or host.search
    if domains and domains != (".",):
        lines.append("search " + " ".join(domains))
    words = list(options)
    if not any(word.startswith("ndots:") for word in words):
        words.append("ndots:0")
    lines.append("options " + " ".join(words))
    return "\n".join(lines) + "\n"


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
