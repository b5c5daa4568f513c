"""What one host should look like on the network, as plain values.

Everything here is desired state: written by managers (or by the engine for local containers), read by ``host``. Nothing
here touches the kernel. Construction checks shape, so that nothing malformed reaches a netlink message or an nftables rule.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from fleet.errors import UserError
from fleet.network.ipam import is_ipv6

__all__ = [
    "AttachmentSpec",
    "ClientSource",
    "Driver",
    "Endpoint",
    "HostPort",
    "Interface",
    "NetworkSpec",
    "NetworkState",
    "NodeRecord",
    "Protocol",
    "PublishedPort",
    "Sandbox",
    "SandboxSpec",
    "ServiceRecord",
]

Driver = Literal["overlay", "bridge", "macvlan", "ipvlan"]
DIRECT: Final = ("macvlan", "ipvlan")
"""Drivers whose containers have cards on the host's own network, without a bridge."""
MODES: Final[dict[str, tuple[str, ...]]] = {"macvlan": ("bridge", "private", "vepa", "passthru"), "ipvlan": ("l2",)}
"""What such a card may reach on the same parent; the first is what it is when nothing is said."""
Protocol = Literal["tcp", "udp", "sctp"]
ClientSource = Literal["node", "client"]
"""Whose address a service sees as its client's: the node's that the client asked, or the client's own."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_LINK = re.compile(r"[^\s/:%]{1,15}\Z")  # ip-link(8); a colon would be an alias of old
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_TUNNEL_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\Z")
_PROTOCOLS = ("tcp", "udp", "sctp")
_VNI_MAX = (1 << 24) - 1  # RFC 7348 section 5: 24 bits
_MTU_MIN, _MTU_MAX = 576, 65535
_MTU6_MIN = 1280  # RFC 8200 section 5; below, the kernel turns IPv6 off on the link
_NAMES_MAX = 64
"""Names or aliases of one endpoint: far above any use, and a bound on what one record can cost the DNS process."""


def check_id(kind: str, value: str) -> None:
    """Raise ``UserError`` unless ``value`` can be a file name and a log field: 1 to 128 of ``[A-Za-z0-9_.-]``."""
    if not _ID.match(value):
        raise UserError(
            f"{kind} id {value!r}: must be 1 to 128 letters, digits, '_', '.', '-' and begin with a letter or digit"
        )


def check_address(what: str, value: str) -> None:
    """Raise ``UserError`` unless ``value`` is one IPv4 address without prefix."""
    try:
        ipaddress.IPv4Address(value)
    except ValueError as error:
        raise UserError(f"{what} {value!r}: not an IPv4 address without prefix length") from error


def check_address6(what: str, value: str) -> None:
    """Raise ``UserError`` unless ``value`` is one IPv6 address without prefix or zone, in its canonical form (RFC 5952).

    One form only, because addresses are compared as text here, and with what the kernel lists.
    """
    try:
        canonical = str(ipaddress.IPv6Address(value))
    except ValueError as error:
        raise UserError(f"{what} {value!r}: not an IPv6 address without prefix length") from error
    if canonical != value or "%" in value:
        raise UserError(f"{what} {value!r}: write it as {canonical.partition('%')[0]}")


def check_mac(what: str, value: str) -> None:
    """Raise ``UserError`` unless ``value`` is a lower-case, colon-separated MAC address."""
    if not _MAC.match(value):
        raise UserError(f"{what} {value!r}: not a MAC address like 02:42:0a:00:00:02 (lower case)")


def is_tunnel_key(value: str) -> bool:
    """Whether ``value`` is the base64 of 32 bytes, in its one canonical form."""
    return _TUNNEL_KEY.match(value) is not None


def _check_tunnel_key(what: str, value: str) -> None:
    if value and not is_tunnel_key(value):
        raise UserError(f"{what}: tunnel key {value!r} is not 32 bytes in base64")


def _check_port(what: str, protocol: str, port: int) -> None:
    if protocol not in _PROTOCOLS:
        raise UserError(f"{what}: protocol {protocol!r} is not tcp, udp or sctp")
    if not 1 <= port <= 65535:
        raise UserError(f"{what}: port {port} is not between 1 and 65535")


def _check_names(what: str, names: tuple[str, ...]) -> None:
    if len(names) > _NAMES_MAX:
        raise UserError(f"{what}: {len(names)} names, at most {_NAMES_MAX} are possible")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A network as managers (``overlay``) or this host's engine (``bridge``) defined it.

    ``subnet`` is CIDR, ``gateway`` an address inside it that the bridge carries on *every* host (unless ``internal``).
    ``mtu`` 0 means: what the underlay leaves. ``node_address`` is this node's own address on an ``ingress`` network; it
    differs from host to host, everything else is the same on all of them. What ends in ``6`` is the same for IPv6, and empty
    on a network without it. A bridge may be without IPv4 instead: then ``subnet`` and ``gateway`` are empty. ``parent`` and
    ``mode`` are those of macvlan and ipvlan, which are of this host too; their gateway is a router of the host's network.
    ``encrypted``: its packets go to other hosts through the tunnel, or not at all.
    """

    id: str
    name: str
    driver: Driver
    subnet: str
    gateway: str
    vni: int = 0
    internal: bool = False
    mtu: int = 0
    vxlan_port: int = 4789
    ingress: bool = False
    node_address: str = ""
    ip_range: str = ""
    reserved: tuple[str, ...] = ()
    subnet6: str = ""
    gateway6: str = ""
    node_address6: str = ""
    ip_range6: str = ""
    parent: str = ""
    mode: str = ""
    encrypted: bool = False

    @property
    def is_local(self) -> bool:
        """Known to this host alone, which gives its addresses."""
        return self.driver != "overlay"

    @property
    def is_direct(self) -> bool:
        """Without a bridge: cards are devices of ``parent``."""
        return self.driver in DIRECT

    def __post_init__(self) -> None:
        check_id("network", self.id)
        what = f"network {self.name}"
        if self.subnet or self.driver == "overlay" or not self.subnet6:
            self._check4(what)
        elif self.gateway or self.node_address or self.ip_range:
            raise UserError(f"{what}: IPv4 addresses need an IPv4 subnet")
        if self.driver not in ("overlay", "bridge", *DIRECT):
            raise UserError(f"{what}: driver {self.driver!r} is not overlay, bridge, macvlan or ipvlan")
        if self.is_direct and not _LINK.match(self.parent):
            raise UserError(
                f"{what}: {self.driver} needs a link of this host to be its parent: -o parent=eth1, or eth1.10"
            )
        if self.is_direct and self.mode not in ("", *MODES[self.driver]):
            raise UserError(
                f"{what}: mode {self.mode!r} of {self.driver} is not one of {', '.join(MODES[self.driver])}"
            )
        if self.encrypted and self.driver != "overlay":
            raise UserError(
                f"{what}: only an overlay can be encrypted; packets of a {self.driver} go to no other host's tunnel"
            )
        if self.driver == "overlay" and not 1 <= self.vni <= _VNI_MAX:
            raise UserError(f"{what}: VNI {self.vni} is not between 1 and {_VNI_MAX}")
        if self.mtu and not _MTU_MIN <= self.mtu <= _MTU_MAX:
            raise UserError(f"{what}: MTU {self.mtu} is not between {_MTU_MIN} and {_MTU_MAX} bytes")
        if not 1 <= self.vxlan_port <= 65535:
            raise UserError(f"{what}: VXLAN port {self.vxlan_port} is not between 1 and 65535")
        if self.subnet6:
            self._check6(what)
        elif self.gateway6 or self.node_address6 or self.ip_range6:
            raise UserError(f"{what}: IPv6 addresses need an IPv6 subnet")

    def _check4(self, what: str) -> None:
        try:
            subnet = ipaddress.IPv4Network(self.subnet)
        except ValueError as error:
            raise UserError(f"{what}: subnet {self.subnet!r} is not an IPv4 network: {error}") from error
        check_address(f"{what}: gateway", self.gateway)
        if ipaddress.IPv4Address(self.gateway) not in subnet:
            raise UserError(f"{what}: gateway {self.gateway} is outside the subnet {self.subnet}")
        if self.node_address:
            check_address(f"{what}: node address", self.node_address)
            if ipaddress.IPv4Address(self.node_address) not in subnet:
                raise UserError(f"{what}: node address {self.node_address} is outside the subnet {self.subnet}")

    def _check6(self, what: str) -> None:
        try:
            subnet = ipaddress.IPv6Network(self.subnet6)
        except ValueError as error:
            raise UserError(f"{what}: subnet {self.subnet6!r} is not an IPv6 network: {error}") from error
        if self.mtu and self.mtu < _MTU6_MIN:
            raise UserError(f"{what}: MTU {self.mtu} is too small for IPv6, which needs {_MTU6_MIN} bytes")
        for kind, address in (("gateway", self.gateway6), ("node address", self.node_address6)):
            if address or kind == "gateway":
                check_address6(f"{what}: {kind}", address)
                if ipaddress.IPv6Address(address) not in subnet:
                    raise UserError(f"{what}: {kind} {address} is outside the subnet {self.subnet6}")

    @property
    def tunnel_port(self) -> int:
        """UDP port of the tunnel between hosts: the one behind the VXLAN port."""
        return self.vxlan_port % 65535 + 1

    @property
    def prefix_len(self) -> int:
        """Prefix length of the subnet in bits; 0 when there is none."""
        return ipaddress.IPv4Network(self.subnet).prefixlen if self.subnet else 0

    @property
    def prefix_len6(self) -> int:
        """Prefix length of the IPv6 subnet in bits; 0 when there is none."""
        return ipaddress.IPv6Network(self.subnet6).prefixlen if self.subnet6 else 0

    def without_ipv6(self) -> NetworkSpec:
        """The same network as a host without IPv6 sees it."""
        return replace(self, subnet6="", gateway6="", node_address6="", ip_range6="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One container on one network, anywhere in the cluster.

    ``ready`` decides about virtual addresses, ``tasks.`` names and published ports; reachability does not depend on it.
    ``address`` is empty on a network without IPv4, ``address6`` on one without IPv6.
    """

    id: str
    service_id: str = ""
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    address: str
    mac: str = ""
    node_id: str = ""
    underlay: str = ""
    ready: bool = True
    address6: str = ""
    tunnel_key: str = ""
    """Public key (base64) of its host's end of the tunnel; empty while managers know of none."""

    def __post_init__(self) -> None:
        if self.address or not self.address6:
            check_address(f"endpoint {self.id}: address", self.address)
        if self.address6:
            check_address6(f"endpoint {self.id}: address", self.address6)
        if self.mac:
            check_mac(f"endpoint {self.id}: MAC", self.mac)
        if self.underlay:
            check_address(f"endpoint {self.id}: underlay", self.underlay)
        _check_tunnel_key(f"endpoint {self.id}", self.tunnel_key)
        _check_names(f"endpoint {self.id}", self.names + self.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """A service on one network. ``vip`` is its virtual address there; ``None`` means endpoint mode dnsrr. ``vip6`` is its second
    one, on a network with IPv6."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    vip: str | None = None
    vip6: str | None = None

    def __post_init__(self) -> None:
        if self.vip6 is not None:
            check_address6(f"service {self.name}: virtual address", self.vip6)
        if self.vip is not None:
            check_address(f"service {self.name}: virtual address", self.vip)
        _check_names(f"service {self.name}", self.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node's own address on the ingress network, so that replies to published ports find their way back."""

    node_id: str
    underlay: str
    address: str
    mac: str = ""
    address6: str = ""

    def __post_init__(self) -> None:
        if self.address6:
            check_address6(f"node {self.node_id}: address", self.address6)
        check_address(f"node {self.node_id}: underlay", self.underlay)
        check_address(f"node {self.node_id}: address", self.address)
        if self.mac:
            check_mac(f"node {self.node_id}: MAC", self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkState:
    """Everything this host must know about one network; complete, so applying it twice changes nothing."""

    network: NetworkSpec
    endpoints: tuple[Endpoint, ...] = ()
    services: tuple[ServiceRecord, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """Publish mode *ingress*: open on every node, leads to the ready endpoints of the service on the ingress network.

    ``source`` is whose address they see: ``return_routes`` says how replies to a client's own find their way.
    """

    protocol: Protocol
    published_port: int
    target_port: int
    service_id: str
    source: ClientSource = "node"

    def __post_init__(self) -> None:
        what = f"published port {self.published_port}/{self.protocol}"
        _check_port(what, self.protocol, self.published_port)
        _check_port(what, self.protocol, self.target_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """Publish mode *host*: open on this host only, leads to one container.

    ``0.0.0.0`` means every local IPv4 address, ``::`` every IPv6 address, and an empty ``host_address`` every address of either.
    """

    protocol: Protocol
    host_port: int
    target_port: int
    host_address: str = ""

    def __post_init__(self) -> None:
        what = f"host port {self.host_port}/{self.protocol}"
        _check_port(what, self.protocol, self.host_port)
        _check_port(what, self.protocol, self.target_port)
        if is_ipv6(self.host_address):
            check_address6(f"{what}: host address", self.host_address)
        elif self.host_address:
            check_address(f"{what}: host address", self.host_address)

    def overlaps(self, other: HostPort) -> bool:
        """Whether both want the same packets."""
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        mine, others = self.host_address, other.host_address
        if not mine or not others or mine == others:
            return True
        return is_ipv6(mine) == is_ipv6(others) and bool({mine, others} & {"0.0.0.0", "::"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentSpec:
    """A container's wish to be on a network. ``address`` ``None`` is for driver ``bridge``: this host allocates.

    ``address6`` is for networks with IPv6; elsewhere it must be ``None``.
    """

    network_id: str
    address: str | None = None
    mac: str | None = None
    aliases: tuple[str, ...] = ()
    address6: str | None = None

    def __post_init__(self) -> None:
        check_id("network", self.network_id)
        if self.address6 is not None:
            check_address6(f"attachment to {self.network_id}: address", self.address6)
        if self.address is not None:
            check_address(f"attachment to {self.network_id}: address", self.address)
        if self.mac is not None:
            check_mac(f"attachment to {self.network_id}: MAC", self.mac)
        _check_names(f"attachment to {self.network_id}", self.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """A container's whole network. No attachments means loopback only (Docker's network ``none``)."""

    id: str
    attachments: tuple[AttachmentSpec, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ids: tuple[int, int] | None = None
    """(first, count): it belongs to a user namespace whose ids are these of the host's. None: to the host's."""

    def __post_init__(self) -> None:
        check_id("sandbox", self.id)
        seen: set[str] = set()
        for attachment in self.attachments:
            if attachment.network_id in seen:
                raise UserError(f"sandbox {self.id}: attached to network {attachment.network_id} twice")
            seen.add(attachment.network_id)
        for server in self.dns_servers:
            check_address(f"sandbox {self.id}: DNS server", server)
        _check_names(f"sandbox {self.id}", self.names)
        for word in self.dns_search + self.dns_options:
            if not word or len(word) > 255 or any(character.isspace() for character in word):
                raise UserError(
                    f"sandbox {self.id}: DNS search domain or option {word!r} is empty, too long or has a space"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One network card inside a sandbox. ``gateway`` is empty unless the default route leads through it; ``address6`` and what
    belongs to it is empty on a network without IPv6, and ``address`` on one without IPv4."""

    network_id: str
    name: str
    address: str
    prefix_len: int
    mac: str
    gateway: str = ""
    address6: str = ""
    prefix_len6: int = 0
    gateway6: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A prepared network namespace. ``netns_path`` can be opened and entered until ``remove_sandbox``."""

    id: str
    netns_path: str
    interfaces: tuple[Interface, ...]
    resolv_conf: str
