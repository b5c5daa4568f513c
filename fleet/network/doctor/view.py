"""What the doctor may see of this host's plane, on the network thread and for the length of one look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet.network.cardrules import Card
from fleet.network.dns.records import Zone
from fleet.network.kernel.nft import NftCloser
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.kernel.thread import KernelThread
from fleet.network.links import NetworkLinks, Remotes
from fleet.network.rules import HostRules, SandboxRules
from fleet.network.store import SandboxRecord
from fleet.network.topology import NetworkState, PublishedPort
from fleet.network.tunnel.keeper import TunnelKeeper

__all__ = ["PlaneView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneView:
    """References into the plane: read them, change nothing, keep nothing."""

    thread: KernelThread
    netlink: Netlink
    closer: NftCloser
    table: str
    underlay: str
    states: Mapping[str, NetworkState]
    links: Mapping[str, NetworkLinks]
    records: Mapping[str, SandboxRecord]
    published: tuple[PublishedPort, ...]
    remotes: Callable[[str], Remotes]
    host_rules: Callable[[], HostRules]
    host_rules6: Callable[[], HostRules | None]
    cards: Callable[[], frozenset[Card]]
    ipv6_fault: str
    sandbox_rules: Callable[[SandboxRecord], SandboxRules]
    asking_order: Callable[[SandboxRecord], list[str]]
    zone: Callable[[str], Zone]
    obstacles: Callable[[], list[str]]
    netns_path: Callable[[str], Path]
    tunnel: TunnelKeeper
