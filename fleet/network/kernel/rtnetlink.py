"""rtnetlink(7): messages as bytes, batches in one system call, typed answers.

About a dozen message kinds is all a host's part of the network needs. They are packed here rather than by a library
because of what it costs on the path of every container start: building and sending the five messages of an attachment
takes 0.1 ms here and 1.4 ms through pyroute2 0.9, which runs an event loop (and a thread) of its own behind each call.

A ``Netlink`` socket belongs to the network namespace it was opened in, whatever thread uses it later. Not thread-safe.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fleet.errors import RuntimeFault

__all__ = [
    "FdbEntry",
    "Link",
    "Message",
    "NeighbourEntry",
    "Netlink",
    "NetlinkError",
    "add_address",
    "add_bridge",
    "add_default_route",
    "add_fdb",
    "add_ipvlan",
    "add_loopback_route6",
    "add_macvlan",
    "add_mark_rule",
    "add_neighbour",
    "add_table_route",
    "add_veth",
    "add_vlan",
    "add_vxlan",
    "add_wireguard",
    "delete_fdb",
    "delete_group",
    "delete_link",
    "delete_mark_rule",
    "delete_neighbour",
    "family_of",
    "link_up",
    "set_alias",
    "set_bridge_port",
    "set_group",
    "set_link_address",
    "set_master",
    "set_mtu",
]

# linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/neighbour.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE = 24
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
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
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 6, 10, 15, 16
FR_ACT_TO_TBL = 1
_MARK_RULES_PRIORITY = 100
"""Before the tables every namespace has (32766 main), after its own addresses (0)."""
NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04
IFF_UP = 1
NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK, SOL_NETLINK = 11, 10, 12, 270
NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_SCOPE_LINK = 253  # RT_SCOPE_LINK
SCOPE_HOST = 254
_LAST_METRIC = 0x7FFFFFFF
_BATCH_BYTES_MAX = 60_000
_RECEIVE_BYTES = 1 << 17  # a dump's parts are at most 32 KiB; acknowledgements of a batch are far smaller
_TIMEOUT_S = 10.0  # the kernel answers in microseconds; beyond this something is very wrong and must not hang a thread


class NetlinkError(RuntimeFault):
    """The kernel refused a message. ``number`` is the errno."""

    def __init__(self, what: str, number: int, detail: str) -> None:
        super().__init__(f"{what}: {os.strerror(number)}" + (f" ({detail})" if detail else ""))
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One request. ``tolerate`` lists error numbers that mean "already so"."""

    kind: int
    flags: int
    body: bytes
    describe: str
    tolerate: tuple[int, ...] = ()


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


class Netlink:
    """One rtnetlink socket, in the namespace of the thread that constructs it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *messages: Message) -> None:
        """Apply messages in order. Raises ``NetlinkError`` for the first refused one; later ones were still applied.

        Not a transaction: rtnetlink has none. Callers order messages so that each prefix is harmless.
        """
        self.send_all(messages)

    def send_all(self, messages: Sequence[Message]) -> None:
        """``send`` for many messages, in batches of bounded size."""
        first_error: NetlinkError | None = None
        for batch in _batches(messages):
            error = self._exchange(batch)
            first_error = first_error or error
        if first_error is not None:
            raise first_error

    def links(self) -> list[Link]:
        """All links of the namespace."""
        return [_parse_link(body) for body in self._dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The link called ``name``, or ``None``."""
        # without the counters of the device, which are most of the answer and of its cost
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        try:
            answer = self._get(RTM_GETLINK, body, describe=f"look up link {name}")
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
            attributes = _attributes(body, 8)
            local = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)  # IPv6 has IFA_LOCAL on tunnels only
            if local is not None and link_index == index and not (family == socket.AF_INET6 and scope == _SCOPE_LINK):
                found.add((socket.inet_ntop(family, local), prefix_len))
        return found

    def address_index(self, address: str) -> int:
        """Index of the link that carries ``address``; 0 if none does."""
        for body in self._dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            if _attributes(body, 8).get(IFA_LOCAL) == socket.inet_aton(address):
                return int(struct.unpack_from("=BBBBI", body)[4])
        return 0

    def fdb(self, index: int) -> set[FdbEntry]:
        """Static forwarding entries of a VXLAN device."""
        found: set[FdbEntry] = set()
        # family AF_BRIDGE; with strict checking the dump is filtered by ndm_ifindex
        for body in self._dump(RTM_GETNEIGH, struct.pack("=BBHiHBB", socket.AF_BRIDGE, 0, 0, index, 0, 0, 0)):
            _, _, _, link_index, _, flags, _ = struct.unpack_from("=BBHiHBB", body)
            attributes = _attributes(body, 12)
            if link_index == index and flags & NTF_SELF and len(attributes.get(NDA_DST, b"")) == 4:
                underlay, link = socket.inet_ntoa(attributes[NDA_DST]), _number(attributes.get(NDA_IFINDEX))
                found.add(FdbEntry(_mac(attributes[NDA_LLADDR]), underlay, link))
        return found

    def neighbours(self, index: int) -> set[NeighbourEntry]:
        """Permanent neighbour entries of a link, of both families."""
        found: set[NeighbourEntry] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._dump(RTM_GETNEIGH, struct.pack("=BBHiHBB", family, 0, 0, 0, 0, 0, 0)):
                kind, _, _, link_index, state, _, _ = struct.unpack_from("=BBHiHBB", body)
                attributes = _attributes(body, 12)
                if kind != family or link_index != index or not state & NUD_PERMANENT or NDA_LLADDR not in attributes:
                    continue  # a kernel without IPv6 answers with the other family's
                address = socket.inet_ntop(family, attributes[NDA_DST])
                found.add(NeighbourEntry(address, _mac(attributes[NDA_LLADDR])))
        return found

    def marked_rules(self, base: int, mask: int) -> set[tuple[int, int]]:
        """(address family, mark) of the routing rules that ask for a mark which under ``mask`` is ``base``."""
        found: set[tuple[int, int]] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._dump(RTM_GETRULE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)):
                mark = _attributes(body, 12).get(FRA_FWMARK)
                if body[0] == family and mark is not None and _number(mark) & mask == base:
                    found.add((int(family), _number(mark)))
        return found

    def _exchange(self, batch: Sequence[Message]) -> NetlinkError | None:
        start = self._sequence + 1
        parts = []
        for offset, message in enumerate(batch):
            flags = message.flags | NLM_F_REQUEST | NLM_F_ACK
            parts.append(_HEADER.pack(16 + len(message.body), message.kind, flags, start + offset, 0) + message.body)
        self._sequence += len(batch)
        self._socket.send(b"".join(parts))
        first_error: NetlinkError | None = None
        missing = len(batch)
        while missing:
            for kind, sequence, flags, body in self._receive():
                if kind != NLMSG_ERROR or not start <= sequence < start + len(batch):
                    continue  # an echo or a late answer to something that timed out
                missing -= 1
                message = batch[sequence - start]
                number = -struct.unpack_from("=i", body)[0]
                if number and number not in message.tolerate and first_error is None:
                    first_error = NetlinkError(message.describe, number, _extended_error(body, flags))
        return first_error

    def _get(self, kind: int, body: bytes, *, describe: str) -> bytes:
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, self._sequence, 0) + body)
        while True:
            for answer_kind, sequence, flags, answer in self._receive():
                if sequence != self._sequence:
                    continue
                if answer_kind == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", answer)[0]
                    raise NetlinkError(describe, number, _extended_error(answer, flags))
                return answer

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        sequence = self._sequence
        self._socket.send(_HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0) + body)
        answers: list[bytes] = []
        while True:
            for answer_kind, answer_sequence, flags, answer in self._receive():
                if answer_sequence != sequence:
                    continue
                if answer_kind == NLMSG_DONE:
                    return iter(answers)
                if answer_kind == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", answer)[0]
                    raise NetlinkError(f"list (message {kind})", number, _extended_error(answer, flags))
                answers.append(answer)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise RuntimeFault(f"netlink: no answer from the kernel within {_TIMEOUT_S:.0f} s") from error
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, sequence, flags, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def add_bridge(name: str, *, mac: str, mtu: int, group: int) -> Message:
    """Create a bridge, up: no spanning tree, no forwarding delay, no multicast snooping (its timers cost, floods are small)."""
    data = _attribute(IFLA_BR_FORWARD_DELAY, struct.pack("=I", 0))
    data += _attribute(IFLA_BR_STP_STATE, struct.pack("=I", 0)) + _attribute(IFLA_BR_MCAST_SNOOPING, b"\0")
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + _attribute(IFLA_ADDRESS, _mac_bytes(mac))
    body += _u32(IFLA_MTU, mtu) + _u32(IFLA_GROUP, group) + _attribute(IFLA_LINKINFO, _kind("bridge", data))
    return _create_link(body, f"create bridge {name}")


def add_vxlan(
    name: str, *, vni: int, local: str, port: int, mtu: int, group: int, master: int, link: int = 0
) -> Message:
    """Create a VXLAN device, up, as a port of bridge ``master``: no learning, ARP answered from its neighbour table.

    With ``link`` it belongs to that link: the kernel deletes it when that goes.
    """
    data = _u32(IFLA_VXLAN_ID, vni) + _attribute(IFLA_VXLAN_LOCAL, socket.inet_aton(local))
    data += _attribute(IFLA_VXLAN_LEARNING, b"\0") + _attribute(IFLA_VXLAN_PROXY, b"\1")
    data += _attribute(IFLA_VXLAN_PORT, struct.pack("!H", port))
    if link:
        data += _u32(IFLA_VXLAN_LINK, link)
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + _u32(IFLA_MTU, mtu)
    body += _u32(IFLA_GROUP, group) + _u32(IFLA_MASTER, master) + _attribute(IFLA_LINKINFO, _kind("vxlan", data))
    return _create_link(body, f"create VXLAN device {name} (VNI {vni}, port {port})")


def add_wireguard(name: str, *, mtu: int, group: int) -> Message:
    """Create a WireGuard device, down: it is brought up when it has its key and port (``genetlink``)."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _u32(IFLA_MTU, mtu)
    body += _u32(IFLA_GROUP, group) + _attribute(IFLA_LINKINFO, _kind("wireguard", b""))
    return _create_link(body, f"create WireGuard device {name}")


def add_veth(name: str, *, mtu: int, group: int, master: int, peer: str, peer_mac: str, peer_netns: int) -> Message:
    """Create a cable: this end up and a port of bridge ``master``, the other called ``peer`` in namespace ``peer_netns`` (fd)."""
    other = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, peer) + _attribute(IFLA_ADDRESS, _mac_bytes(peer_mac))
    other += _u32(IFLA_MTU, mtu) + _u32(IFLA_NET_NS_FD, peer_netns)
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + _u32(IFLA_MTU, mtu)
    body += _u32(IFLA_GROUP, group) + _u32(IFLA_MASTER, master)
    body += _attribute(IFLA_LINKINFO, _kind("veth", _attribute(VETH_INFO_PEER, other)))
    return _create_link(body, f"create cable {name} to {peer}")


def add_macvlan(name: str, *, parent: int, mode: str, mac: str = "", mtu: int = 0, netns: int | None = None) -> Message:
    """Create a macvlan device of link ``parent``, down, in the namespace ``netns`` if that is given. ``mtu`` 0: the parent's."""
    data = _u32(IFLA_MACVLAN_MODE, _MACVLAN_MODES[mode])
    return _add_child("macvlan", name, data, parent=parent, mac=mac, mtu=mtu, netns=netns)


def add_ipvlan(name: str, *, parent: int, mtu: int = 0, netns: int | None = None) -> Message:
    """The same with ipvlan, mode L2; its MAC address is the parent's."""
    data = _attribute(IFLA_IPVLAN_MODE, struct.pack("=H", _IPVLAN_L2))
    return _add_child("ipvlan", name, data, parent=parent, mac="", mtu=mtu, netns=netns)


def add_vlan(name: str, *, parent: int, vlan: int, group: int) -> Message:
    """Create the device of a VLAN (IEEE 802.1Q) of link ``parent``, up."""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + _u32(IFLA_LINK, parent)
    info = _kind("vlan", _attribute(IFLA_VLAN_ID, struct.pack("=H", vlan)))
    body += _u32(IFLA_GROUP, group) + _attribute(IFLA_LINKINFO, info)
    return _create_link(body, f"create VLAN device {name}")


def _add_child(kind: str, name: str, data: bytes, *, parent: int, mac: str, mtu: int, netns: int | None) -> Message:
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _u32(IFLA_LINK, parent)
    body += _attribute(IFLA_ADDRESS, _mac_bytes(mac)) if mac else b""
    body += _u32(IFLA_MTU, mtu) if mtu else b""
    body += _u32(IFLA_NET_NS_FD, netns) if netns is not None else b""
    return _create_link(body + _attribute(IFLA_LINKINFO, _kind(kind, data)), f"create {kind} device {name}")


def set_alias(name: str, alias: str) -> Message:
    """Write the text people see beside a link."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _text(IFLA_IFALIAS, alias)
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"set alias of {name}")


def set_group(index: int, group: int, *, queue_packets: int) -> Message:
    """Mark a link that was made by other means as ours, and say how many packets may wait to leave by it."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + _u32(IFLA_GROUP, group) + _u32(IFLA_TXQLEN, queue_packets)
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"mark link {index}")


def set_mtu(index: int, mtu: int) -> Message:
    """Change a link's MTU in bytes."""
    return Message(
        kind=RTM_SETLINK, flags=0, body=_IFINFO.pack(0, 0, index, 0, 0) + _u32(IFLA_MTU, mtu), describe=f"set MTU {mtu}"
    )


def set_link_address(index: int, mac: str) -> Message:
    """Change a link's MAC address."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + _attribute(IFLA_ADDRESS, _mac_bytes(mac))
    return Message(kind=RTM_SETLINK, flags=0, body=body, describe=f"set MAC address {mac}")


def set_bridge_port(name: str, *, learning: bool | None = None, hairpin: bool | None = None) -> Message:
    """Change how a bridge treats one of its ports."""
    data = b""
    if learning is not None:
        data += _attribute(IFLA_BRPORT_LEARNING, bytes([learning]))
    if hairpin is not None:
        data += _attribute(IFLA_BRPORT_MODE, bytes([hairpin]))
    info = _text(IFLA_INFO_SLAVE_KIND, "bridge") + _attribute(IFLA_INFO_SLAVE_DATA, data)
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + _attribute(IFLA_LINKINFO, info)
    return Message(kind=RTM_NEWLINK, flags=0, body=body, describe=f"set bridge port {name}")


def set_master(index: int, master: int) -> Message:
    """Make a link a port of a bridge, and bring it up."""
    body = _IFINFO.pack(0, 0, index, IFF_UP, IFF_UP) + _u32(IFLA_MASTER, master)
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
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _u32(IFLA_GROUP, group)
    return Message(
        kind=RTM_DELLINK, flags=0, body=body, describe=f"delete link group {group:#x}", tolerate=(errno.ENODEV,)
    )


def add_address(index: int, address: str, prefix_len: int, *, scope: int = 0) -> Message:
    """Give a link an address of either family; having it already is fine. ``scope`` as in rtnetlink(7), 0 is everywhere.

    An IPv6 address is usable at once: managers see to it that nobody else has it, and detecting that by asking around (DAD, RFC
    4862 section 5.4) takes a second.
    """
    family, packed = _packed(address)
    body = struct.pack("=BBBBI", family, prefix_len, IFA_F_NODAD if family == socket.AF_INET6 else 0, scope, index)
    body += _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Message(
        kind=RTM_NEWADDR,
        flags=flags,
        body=body,
        describe=f"add address {address}/{prefix_len}",
        tolerate=(errno.EEXIST,),
    )


def add_default_route(index: int, gateway: str) -> Message:
    """Replace the default route of the gateway's family."""
    family, packed = _packed(gateway)
    # rtmsg: family, dst_len, src_len, tos, table main 254, protocol boot 3, scope universe 0, type unicast 1
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 3, 0, 1, 0)
    body += _attribute(RTA_GATEWAY, packed) + _u32(RTA_OIF, index)
    return Message(
        kind=RTM_NEWROUTE, flags=NLM_F_CREATE | NLM_F_REPLACE, body=body, describe=f"add default route via {gateway}"
    )


def add_table_route(index: int, gateway: str, table: int) -> Message:
    """Replace the default route of the gateway's family in a table of its own; the gateway must be on the link."""
    family, packed = _packed(gateway)
    # rtmsg as above; table 0 (unspecified) because the number is in an attribute, having more than 8 bits
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 3, 0, 1, 0)
    body += _attribute(RTA_GATEWAY, packed) + _u32(RTA_OIF, index) + _u32(RTA_TABLE, table)
    return Message(
        kind=RTM_NEWROUTE,
        flags=NLM_F_CREATE | NLM_F_REPLACE,
        body=body,
        describe=f"add route via {gateway} to table {table:#x}",
    )


def add_mark_rule(family: int, mark: int) -> Message:
    """Packets with this mark use the table of the same number; having it already is fine."""
    return Message(
        kind=RTM_NEWRULE,
        flags=NLM_F_CREATE | NLM_F_EXCL,
        body=_mark_rule(family, mark),
        describe=f"add rule for mark {mark:#x}",
        tolerate=(errno.EEXIST,),
    )


def delete_mark_rule(family: int, mark: int) -> Message:
    """Remove such a rule; absent is fine. Its table's routes stay, unused."""
    return Message(
        kind=RTM_DELRULE,
        flags=0,
        body=_mark_rule(family, mark),
        describe=f"delete rule for mark {mark:#x}",
        tolerate=(errno.ENOENT,),
    )


def _mark_rule(family: int, mark: int) -> bytes:
    # fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += _u32(FRA_PRIORITY, _MARK_RULES_PRIORITY) + _u32(FRA_TABLE, mark)
    return body + _u32(FRA_FWMARK, mark) + _u32(FRA_FWMASK, 0xFFFFFFFF)


def add_loopback_route6(index: int) -> Message:
    """Let answers to ::1 come in by a link; having it already is fine.

    IPv6 has no ``route_localnet``: for a loopback address the kernel takes only a route of the very link a packet came by.
    The link's own, last of all by its metric, is never used for sending.
    """
    # rtmsg: table local 255, protocol boot 3, scope host 254, type local 2
    body = struct.pack("=BBBBBBBBI", socket.AF_INET6, 128, 0, 0, 255, 3, 254, 2, 0)
    body += _attribute(RTA_DST, socket.inet_pton(socket.AF_INET6, "::1")) + _u32(RTA_OIF, index)
    body += _u32(RTA_PRIORITY, _LAST_METRIC)
    return Message(
        kind=RTM_NEWROUTE,
        flags=NLM_F_CREATE | NLM_F_EXCL,
        body=body,
        describe="let ::1 be answered",
        tolerate=(errno.EEXIST,),
    )


def add_fdb(index: int, entry: FdbEntry) -> Message:
    """Send frames for a MAC address to a host: entry in the VXLAN device and, in the same message, in its bridge."""
    # NUD_NOARP is "static" for both; NUD_PERMANENT would mean "this MAC is the bridge's own" to the bridge.
    body = struct.pack("=BBHiHBB", socket.AF_BRIDGE, 0, 0, index, NUD_NOARP | NUD_REACHABLE, NTF_SELF | NTF_MASTER, 0)
    body += _attribute(NDA_LLADDR, _mac_bytes(entry.mac)) + _attribute(NDA_DST, socket.inet_aton(entry.underlay))
    if entry.link:
        body += _u32(NDA_IFINDEX, entry.link)
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
    body = struct.pack(
        "=BBHiHBB", socket.AF_BRIDGE, 0, 0, index, 0, NTF_MASTER if bridge else NTF_SELF, 0
    ) + _attribute(NDA_LLADDR, _mac_bytes(mac))
    return Message(kind=RTM_DELNEIGH, flags=0, body=body, describe=f"stop forwarding {mac}", tolerate=(errno.ENOENT,))


def add_neighbour(index: int, entry: NeighbourEntry) -> Message:
    """Answer ARP, or neighbour solicitation, for an address on behalf of its owner."""
    family, packed = _packed(entry.address)
    body = struct.pack("=BBHiHBB", family, 0, 0, index, NUD_PERMANENT, 0, 0)
    body += _attribute(NDA_DST, packed) + _attribute(NDA_LLADDR, _mac_bytes(entry.mac))
    return Message(
        kind=RTM_NEWNEIGH, flags=NLM_F_CREATE | NLM_F_REPLACE, body=body, describe=f"answer ARP for {entry.address}"
    )


def delete_neighbour(index: int, address: str) -> Message:
    """Stop answering ARP, or neighbour solicitation, for an address; absent is fine."""
    family, packed = _packed(address)
    body = struct.pack("=BBHiHBB", family, 0, 0, index, 0, 0, 0) + _attribute(NDA_DST, packed)
    return Message(kind=RTM_DELNEIGH, flags=0, body=body, describe=f"stop ARP for {address}", tolerate=(errno.ENOENT,))


def family_of(address: str) -> int:
    """``AF_INET`` or ``AF_INET6``."""
    return int(socket.AF_INET6 if ":" in address else socket.AF_INET)


def _packed(address: str) -> tuple[int, bytes]:
    family = family_of(address)
    return family, socket.inet_pton(family, address)


def _create_link(body: bytes, describe: str) -> Message:
    return Message(kind=RTM_NEWLINK, flags=NLM_F_CREATE | NLM_F_EXCL, body=body, describe=describe)


def _kind(kind: str, data: bytes) -> bytes:
    return _text(IFLA_INFO_KIND, kind) + _attribute(IFLA_INFO_DATA, data)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]  # top two bits: nested, byte order
        offset += (length + 3) & ~3
    return found


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    attributes = _attributes(body, 16)
    info = _attributes(attributes.get(IFLA_LINKINFO, b""), 0)
    kind = _string(info.get(IFLA_INFO_KIND))
    data = _attributes(info.get(IFLA_INFO_DATA, b""), 0) if kind == "vxlan" else {}
    local = data.get(IFLA_VXLAN_LOCAL)
    return Link(
        index=index,
        name=_string(attributes.get(IFLA_IFNAME)),
        up=bool(flags & IFF_UP),
        mtu=_number(attributes.get(IFLA_MTU)),
        group=_number(attributes.get(IFLA_GROUP)),
        master=_number(attributes.get(IFLA_MASTER)),
        mac=_mac(attributes.get(IFLA_ADDRESS, b"")),
        alias=_string(attributes.get(IFLA_IFALIAS)),
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


def _extended_error(body: bytes, flags: int) -> str:
    if not flags & 0x200:  # NLM_F_ACK_TLVS: the kernel explains itself
        return ""
    return _string(_attributes(body, 20).get(NLMSGERR_ATTR_MSG))


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        if batch and (size + len(message.body) + 20 > _BATCH_BYTES_MAX or len(batch) >= 500):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.body) + 20
    if batch:
        yield batch
