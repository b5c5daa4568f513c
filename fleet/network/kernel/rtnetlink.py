"""rtnetlink(7): messages about links and neighbours as bytes, typed answers; ``routing`` has those about addresses and routes.

About a dozen message kinds is all a host's part of the network needs. They are packed here rather than by a library
because of what it costs on the path of every container start: building and sending the five messages of an attachment
takes 0.1 ms here and 1.4 ms through pyroute2 0.9, which runs an event loop (and a thread) of its own behind each call.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from fleet.network.kernel.netlink import (
    NLM_F_DUMP,
    SOL_NETLINK,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    u32,
)

__all__ = [
    "FdbEntry",
    "Link",
    "NeighbourEntry",
    "Netlink",
    "add_bridge",
    "add_fdb",
    "add_ipvlan",
    "add_macvlan",
    "add_neighbour",
    "add_veth",
    "add_vlan",
    "add_vxlan",
    "add_wireguard",
    "delete_fdb",
    "delete_group",
    "delete_link",
    "delete_neighbour",
    "family_of",
    "link_up",
    "packed_address",
    "set_alias",
    "set_bridge_port",
    "set_group",
    "set_link_address",
    "set_master",
    "set_mtu",
]

# linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/neighbour.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_GETADDR = 22
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETRULE = 34
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 10, 18, 20
IFLA_LINK, IFLA_TXQLEN, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 5, 13, 27, 28, 29
IFLA_MACVLAN_MODE, IFLA_IPVLAN_MODE, IFLA_VLAN_ID = 1, 1, 1
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_L2 = 0
RTEXT_FILTER_SKIP_STATS = 1 << 3
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PROXY, IFLA_VXLAN_PORT = 11, 15
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 1, 5, 23
IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING = 4, 8
VETH_INFO_PEER = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
FRA_FWMARK = 10
NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04
IFF_UP = 1
NETLINK_GET_STRICT_CHK = 12
_IFINFO = struct.Struct("=BxHiII")
_SCOPE_LINK = 253  # RT_SCOPE_LINK


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network device as the kernel lists it."""

    index: int
    name: str
    up: bool
    mtu: int
    group: int
    master: int
    mac: str
    alias: str
    kind: str
    vxlan_id: int = 0
    vxlan_local: str = ""
    vxlan_port: int = 0
    vxlan_link: int = 0
    """Index of the link by which a VXLAN device sends; 0: by whichever the routes say."""


@dataclass(frozen=True, slots=True, order=True)
class FdbEntry:
    """Forwarding entry of a VXLAN device: frames for ``mac`` go to the host ``underlay``, through the link with index ``link`` if
    that is not 0."""

    mac: str
    underlay: str
    link: int = 0


@dataclass(frozen=True, slots=True, order=True)
class NeighbourEntry:
    """Proxied answer of a VXLAN device to ARP, or to neighbour solicitation for an IPv6 ``address`` (RFC 4861)."""

    address: str
    mac: str


class Netlink(NetlinkSocket):
    """One rtnetlink socket, in the namespace of the thread that constructs it."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def links(self) -> list[Link]:
        """All links of the namespace."""
        return [_parse_link(body) for body in self._dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The link called ``name``, or ``None``."""
        # without the counters of the device, which are most of the answer and of its cost
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        try:
            [answer] = self._ask(RTM_GETLINK, body, what=f"look up link {name}")
        except NetlinkError as error:
            if error.number == errno.ENODEV:
                return None
            raise
        return _parse_link(answer)

    def addresses(self, index: int, *, family: int = socket.AF_INET) -> set[tuple[str, int]]:
        """(address, prefix length) of a link, of IPv4 unless ``family`` is another; the kernel's link-local ones are left out."""
        found: set[tuple[str, int]] = set()
        for body in self._dump(RTM_GETADDR, struct.pack("=BBBBI", family, 0, 0, 0, index)):
            _, prefix_len, _, scope, link_index = struct.unpack_from("=BBBBI", body)
            fields = attributes(body, 8)
            local = fields.get(IFA_LOCAL) or fields.get(IFA_ADDRESS)  # IPv6 has IFA_LOCAL on tunnels only
            if local is not None and link_index == index and not (family == socket.AF_INET6 and scope == _SCOPE_LINK):
                found.add((socket.inet_ntop(family, local), prefix_len))
        return found

    def address_index(self, address: str) -> int:
        """Index of the link that carries ``address``; 0 if none does."""
        for body in self._dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            if attributes(body, 8).get(IFA_LOCAL) == socket.inet_aton(address):
                return int(struct.unpack_from("=BBBBI", body)[4])
        return 0

    def fdb(self, index: int) -> set[FdbEntry]:
        """Static forwarding entries of a VXLAN device."""
        found: set[FdbEntry] = set()
        # family AF_BRIDGE; with strict checking the dump is filtered by ndm_ifindex
        for body in self._dump(RTM_GETNEIGH, struct.pack("=BBHiHBB", socket.AF_BRIDGE, 0, 0, index, 0, 0, 0)):
            _, _, _, link_index, _, flags, _ = struct.unpack_from("=BBHiHBB", body)
            fields = attributes(body, 12)
            if link_index == index and flags & NTF_SELF and len(fields.get(NDA_DST, b"")) == 4:
                underlay, link = socket.inet_ntoa(fields[NDA_DST]), _number(fields.get(NDA_IFINDEX))
                found.add(FdbEntry(_mac(fields[NDA_LLADDR]), underlay, link))
        return found

    def neighbours(self, index: int) -> set[NeighbourEntry]:
        """Permanent neighbour entries of a link, of both families."""
        found: set[NeighbourEntry] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._dump(RTM_GETNEIGH, struct.pack("=BBHiHBB", family, 0, 0, 0, 0, 0, 0)):
                kind, _, _, link_index, state, _, _ = struct.unpack_from("=BBHiHBB", body)
                fields = attributes(body, 12)
                if kind != family or link_index != index or not state & NUD_PERMANENT or NDA_LLADDR not in fields:
                    continue  # a kernel without IPv6 answers with the other family's
                address = socket.inet_ntop(family, fields[NDA_DST])
                found.add(NeighbourEntry(address, _mac(fields[NDA_LLADDR])))
        return found

    def marked_rules(self, base: int, mask: int) -> set[tuple[int, int]]:
        """(address family, mark) of the routing rules that ask for a mark which under ``mask`` is ``base``."""
        found: set[tuple[int, int]] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._dump(RTM_GETRULE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)):
                mark = attributes(body, 12).get(FRA_FWMARK)
                if body[0] == family and mark is not None and _number(mark) & mask == base:
                    found.add((int(family), _number(mark)))
        return found

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        return list(self._ask(kind, body, flags=NLM_F_DUMP, what=f"list (message {kind})"))


def add_bridge(name: str, *, mac: str, mtu: int, group: int) -> Message:
    """Create a bridge, up: no spanning tree, no forwarding delay, no multicast snooping (its timers cost, floods are small)."""
    data = attribute(IFLA_BR_FORWARD_DELAY, struct.pack("=I", 0))
    data += attribute(IFLA_BR_STP_STATE, struct.pack("=I", 0)) + attribute(IFLA_BR_MCAST_SNOOPING, b"\0")
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, _mac_bytes(mac))
    body += u32(IFLA_MTU, mtu) + u32(IFLA_GROUP, group) + attribute(IFLA_LINKINFO, _kind("bridge", data))
    return _create_link(body, f"create bridge {name}")


def add_vxlan(
    name: str, *, vni: int, local: str, port: int, mtu: int, group: int, master: int, link: int = 0
) -> Message:
    """Create a VXLAN device, up, as a port of bridge ``master``: no learning, ARP answered from its neighbour table.

    With ``link`` it belongs to that link: the kernel deletes it when that goes.
    """
    data = u32(IFLA_VXLAN_ID, vni) + attribute(IFLA_VXLAN_LOCAL, socket.inet_aton(local))
    data += attribute(IFLA_VXLAN_LEARNING, b"\0") + attribute(IFLA_VXLAN_PROXY, b"\1")
    data += attribute(IFLA_VXLAN_PORT, struct.pack("!H", port))
    if link:
        data += u32(IFLA_VXLAN_LINK, link)
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += u32(IFLA_GROUP, group) + u32(IFLA_MASTER, master) + attribute(IFLA_LINKINFO, _kind("vxlan", data))
    return _create_link(body, f"create VXLAN device {name} (VNI {vni}, port {port})")


def add_wireguard(name: str, *, mtu: int, group: int) -> Message:
    """Create a WireGuard device, down: it is brought up when it has its key and port (``genetlink``)."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += u32(IFLA_GROUP, group) + attribute(IFLA_LINKINFO, _kind("wireguard", b""))
    return _create_link(body, f"create WireGuard device {name}")


def add_veth(name: str, *, mtu: int, group: int, master: int, peer: str, peer_mac: str, peer_netns: int) -> Message:
    """Create a cable: this end up and a port of bridge ``master``, the other called ``peer`` in namespace ``peer_netns`` (fd)."""
    other = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, peer) + attribute(IFLA_ADDRESS, _mac_bytes(peer_mac))
    other += u32(IFLA_MTU, mtu) + u32(IFLA_NET_NS_FD, peer_netns)
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += u32(IFLA_GROUP, group) + u32(IFLA_MASTER, master)
    body += attribute(IFLA_LINKINFO, _kind("veth", attribute(VETH_INFO_PEER, other)))
    return _create_link(body, f"create cable {name} to {peer}")


def add_macvlan(name: str, *, parent: int, mode: str, mac: str = "", mtu: int = 0, netns: int | None = None) -> Message:
    """Create a macvlan device of link ``parent``, down, in the namespace ``netns`` if that is given. ``mtu`` 0: the parent's."""
    data = u32(IFLA_MACVLAN_MODE, _MACVLAN_MODES[mode])
    return _add_child("macvlan", name, data, parent=parent, mac=mac, mtu=mtu, netns=netns)


def add_ipvlan(name: str, *, parent: int, mtu: int = 0, netns: int | None = None) -> Message:
    """The same with ipvlan, mode L2; its MAC address is the parent's."""
    data = attribute(IFLA_IPVLAN_MODE, struct.pack("=H", _IPVLAN_L2))
    return _add_child("ipvlan", name, data, parent=parent, mac="", mtu=mtu, netns=netns)


def add_vlan(name: str, *, parent: int, vlan: int, group: int) -> Message:
    """Create the device of a VLAN (IEEE 802.1Q) of link ``parent``, up."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent)
    info = _kind("vlan", attribute(IFLA_VLAN_ID, struct.pack("=H", vlan)))
    body += u32(IFLA_GROUP, group) + attribute(IFLA_LINKINFO, info)
    return _create_link(body, f"create VLAN device {name}")


def _add_child(kind: str, name: str, data: bytes, *, parent: int, mac: str, mtu: int, netns: int | None) -> Message:
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent)
    body += attribute(IFLA_ADDRESS, _mac_bytes(mac)) if mac else b""
    body += u32(IFLA_MTU, mtu) if mtu else b""
    body += u32(IFLA_NET_NS_FD, netns) if netns is not None else b""
    return _create_link(body + attribute(IFLA_LINKINFO, _kind(kind, data)), f"create {kind} device {name}")


def set_alias(name: str, alias: str) -> Message:
    """Write the text people see beside a link."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _text(IFLA_IFALIAS, alias)
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"set alias of {name}")


def set_group(index: int, group: int, *, queue_packets: int) -> Message:
    """Mark a link that was made by other means as ours, and say how many packets may wait to leave by it."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + u32(IFLA_GROUP, group) + u32(IFLA_TXQLEN, queue_packets)
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"mark link {index}")


def set_mtu(index: int, mtu: int) -> Message:
    """Change a link's MTU in bytes."""
    return Message(
        kind=RTM_SETLINK, flags=0, body=_IFINFO.pack(0, 0, index, 0, 0) + u32(IFLA_MTU, mtu), describe=f"set MTU {mtu}"
    )


def set_link_address(index: int, mac: str) -> Message:
    """Change a link's MAC address."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + attribute(IFLA_ADDRESS, _mac_bytes(mac))
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"set MAC address {mac}")


def set_bridge_port(name: str, *, learning: bool | None = None, hairpin: bool | None = None) -> Message:
    """Change how a bridge treats one of its ports."""
    data = b""
    if learning is not None:
        data += attribute(IFLA_BRPORT_LEARNING, bytes([learning]))
    if hairpin is not None:
        data += attribute(IFLA_BRPORT_MODE, bytes([hairpin]))
    info = _text(IFLA_INFO_SLAVE_KIND, "bridge") + attribute(IFLA_INFO_SLAVE_DATA, data)
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + attribute(IFLA_LINKINFO, info)
    return Message(kind=RTM_NEWLINK, flags=0, body=body, describe=f"set bridge port {name}")


def set_master(index: int, master: int) -> Message:
    """Make a link a port of a bridge, and bring it up."""
    body = _IFINFO.pack(0, 0, index, IFF_UP, IFF_UP) + u32(IFLA_MASTER, master)
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"make link {index} a port of bridge {master}")


def link_up(index: int) -> Message:
    """Bring a link up."""
    return Message(
        kind=RTM_SETLINK, flags=0, body=_IFINFO.pack(0, 0, index, IFF_UP, IFF_UP), describe=f"bring link {index} up"
    )


def delete_link(name: str) -> Message:
    """Delete a link; absent is fine. About 20 ms: the kernel waits for a grace period."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name)
    return Message(kind=RTM_DELLINK, flags=0, body=body, describe=f"delete link {name}", tolerate=(errno.ENODEV,))


def delete_group(group: int) -> Message:
    """Delete all links of a group at once, for the price of one."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + u32(IFLA_GROUP, group)
    return Message(
        kind=RTM_DELLINK, flags=0, body=body, describe=f"delete link group {group:#x}", tolerate=(errno.ENODEV,)
    )


def add_fdb(index: int, entry: FdbEntry) -> Message:
    """Send frames for a MAC address to a host: entry in the VXLAN device and, in the same message, in its bridge."""
    # NUD_NOARP is "static" for both; NUD_PERMANENT would mean "this MAC is the bridge's own" to the bridge.
    body = struct.pack("=BBHiHBB", socket.AF_BRIDGE, 0, 0, index, NUD_NOARP | NUD_REACHABLE, NTF_SELF | NTF_MASTER, 0)
    body += attribute(NDA_LLADDR, _mac_bytes(entry.mac)) + attribute(NDA_DST, socket.inet_aton(entry.underlay))
    if entry.link:
        body += u32(NDA_IFINDEX, entry.link)
    return Message(
        kind=RTM_NEWNEIGH,
        flags=NLM_F_CREATE | NLM_F_REPLACE,
        body=body,
        describe=f"forward {entry.mac} to {entry.underlay}",
    )


def delete_fdb(index: int, mac: str, *, bridge: bool) -> Message:
    """Forget where frames for a MAC address go, in the bridge or in the VXLAN device; absent is fine.

    Two messages, not one with both flags: the kernel stops at the first of the two that is missing, and the bridge's is when
    the address has meanwhile been seen on one of its own ports.
    """
    body = struct.pack("=BBHiHBB", socket.AF_BRIDGE, 0, 0, index, 0, NTF_MASTER if bridge else NTF_SELF, 0) + attribute(
        NDA_LLADDR, _mac_bytes(mac)
    )
    return Message(kind=RTM_DELNEIGH, flags=0, body=body, describe=f"stop forwarding {mac}", tolerate=(errno.ENOENT,))


def add_neighbour(index: int, entry: NeighbourEntry) -> Message:
    """Answer ARP, or neighbour solicitation, for an address on behalf of its owner."""
    family, packed = packed_address(entry.address)
    body = struct.pack("=BBHiHBB", family, 0, 0, index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, packed) + attribute(NDA_LLADDR, _mac_bytes(entry.mac))
    return Message(
        kind=RTM_NEWNEIGH, flags=NLM_F_CREATE | NLM_F_REPLACE, body=body, describe=f"answer ARP for {entry.address}"
    )


def delete_neighbour(index: int, address: str) -> Message:
    """Stop answering ARP, or neighbour solicitation, for an address; absent is fine."""
    family, packed = packed_address(address)
    body = struct.pack("=BBHiHBB", family, 0, 0, index, 0, 0, 0) + attribute(NDA_DST, packed)
    return Message(kind=RTM_DELNEIGH, flags=0, body=body, describe=f"stop ARP for {address}", tolerate=(errno.ENOENT,))


def family_of(address: str) -> int:
    """``AF_INET`` or ``AF_INET6``."""
    return int(socket.AF_INET6 if ":" in address else socket.AF_INET)


def packed_address(address: str) -> tuple[int, bytes]:
    """Its family and its bytes."""
    family = family_of(address)
    return family, socket.inet_pton(family, address)


def _create_link(body: bytes, describe: str) -> Message:
    return Message(kind=RTM_NEWLINK, flags=NLM_F_CREATE | NLM_F_EXCL, body=body, describe=describe)


def _kind(kind: str, data: bytes) -> bytes:
    return _text(IFLA_INFO_KIND, kind) + attribute(IFLA_INFO_DATA, data)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    fields = attributes(body, 16)
    info = attributes(fields.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND))
    data = attributes(info.get(IFLA_INFO_DATA, b"")) if kind == "vxlan" else {}
    local = data.get(IFLA_VXLAN_LOCAL)
    return Link(
        index=index,
        name=_string(fields.get(IFLA_IFNAME)),
        up=bool(flags & IFF_UP),
        mtu=_number(fields.get(IFLA_MTU)),
        group=_number(fields.get(IFLA_GROUP)),
        master=_number(fields.get(IFLA_MASTER)),
        mac=_mac(fields.get(IFLA_ADDRESS, b"")),
        alias=_string(fields.get(IFLA_IFALIAS)),
        kind=kind,
        vxlan_id=_number(data.get(IFLA_VXLAN_ID)),
        vxlan_local=socket.inet_ntoa(local) if local else "",
        vxlan_port=int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
        vxlan_link=_number(data.get(IFLA_VXLAN_LINK)),
    )


def _string(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "little" if struct.pack("=H", 1) == b"\1\0" else "big")


def _mac(value: bytes) -> str:
    return value.hex(":")


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
