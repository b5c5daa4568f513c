"""Generic netlink (genetlink(7)) as far as WireGuard of the kernel needs it: find the family, set a device, ask about it.

The kernel's interface is linux/wireguard.h (UAPI, since 5.6): one command sets everything, in several messages where the peers
are many; one dumps it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.network.kernel.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    NetlinkSocket,
    attribute,
    attributes,
    each_attribute,
    u32,
)

__all__ = ["WireGuard", "WireGuardDevice", "WireGuardPeer", "WireGuardSeen"]

_NETLINK_GENERIC = 16  # linux/netlink.h
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3  # linux/genetlink.h
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_WG_CMD_GET_DEVICE, _WG_CMD_SET_DEVICE = 0, 1  # linux/wireguard.h
_DEVICE_IFINDEX, _DEVICE_PRIVATE_KEY, _DEVICE_PUBLIC_KEY, _DEVICE_FLAGS, _DEVICE_LISTEN_PORT, _DEVICE_PEERS = (
    1,
    3,
    4,
    5,
    6,
    8,
)
_DEVICE_REPLACE_PEERS = 1
_PEER_PUBLIC_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE_S = 1, 3, 4, 5
_PEER_LAST_HANDSHAKE, _PEER_RX_BYTES, _PEER_TX_BYTES, _PEER_ALLOWED = 6, 7, 8, 9
_PEER_REMOVE, _PEER_REPLACE_ALLOWED = 1, 2
_ALLOWED_FAMILY, _ALLOWED_ADDRESS, _ALLOWED_PREFIX = 1, 2, 3
_PEERS_PER_MESSAGE = 100


@dataclass(frozen=True, slots=True, order=True)
class WireGuardPeer:
    """``public`` is 32 bytes; it is at ``address`` and ``port``, and ``address`` is what packets from and to it have inside."""

    public: bytes
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardSeen:
    """A peer as the kernel shows it. ``handshake_at``: time of day of the last handshake in seconds; 0: there was none."""

    public: bytes
    endpoint: tuple[str, int]
    allowed: tuple[tuple[str, int], ...]
    handshake_at: float
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardDevice:
    """What the kernel has."""

    public: bytes
    port: int
    peers: tuple[WireGuardSeen, ...]


class WireGuard(NetlinkSocket):
    """One socket. Raises ``NetlinkError`` for what the kernel refuses; ENOENT at the start means it has no WireGuard."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_GENERIC)
        try:
            self._family = self._find_family("wireguard")
        except BaseException:
            self.close()
            raise

    def set_identity(self, index: int, *, private: bytes, port: int) -> None:
        """The device's private key and UDP port."""
        body = u32(_DEVICE_IFINDEX, index) + attribute(_DEVICE_PRIVATE_KEY, private)
        self._set(body + _number("=H", _DEVICE_LISTEN_PORT, port), what="set the key and port of the tunnel")

    def set_peers(self, index: int, *, wanted: Sequence[WireGuardPeer], keepalive_s: int) -> None:
        """Exactly these; those that stay keep their sessions. A keepalive that is new makes the kernel greet the peer at once."""
        names = {peer.public for peer in wanted}
        seen = {peer.public: peer for peer in self.device(index).peers}
        gone = [
            attribute(_PEER_PUBLIC_KEY, public) + u32(_PEER_FLAGS, _PEER_REMOVE)
            for public in seen
            if public not in names
        ]
        self._send_peers(index, gone)
        self._send_peers(
            index, [_peer(peer, keepalive_s) for peer in wanted if not _is_as_wanted(peer, seen.get(peer.public))]
        )

    def device(self, index: int) -> WireGuardDevice:
        """The device as it is. Raises ``NetlinkError`` (ENODEV, EOPNOTSUPP) if it is no WireGuard device."""
        public, port = b"", 0
        peers: dict[bytes, WireGuardSeen] = {}
        body = u32(_DEVICE_IFINDEX, index)
        for answer in self._command(
            self._family, _WG_CMD_GET_DEVICE, body, flags=NLM_F_DUMP, what="look at the tunnel"
        ):
            fields = attributes(answer, 4)
            public = fields.get(_DEVICE_PUBLIC_KEY, public)
            if _DEVICE_LISTEN_PORT in fields:
                port = struct.unpack("=H", fields[_DEVICE_LISTEN_PORT])[0]
            for _, nested in each_attribute(fields.get(_DEVICE_PEERS, b"")):
                peer = _seen(nested)
                before = peers.get(peer.public)
                if before is not None:  # its addresses went on in another message
                    peer = WireGuardSeen(
                        public=before.public,
                        endpoint=before.endpoint,
                        allowed=before.allowed + peer.allowed,
                        handshake_at=before.handshake_at,
                        sent_bytes=before.sent_bytes,
                        received_bytes=before.received_bytes,
                    )
                peers[peer.public] = peer
        return WireGuardDevice(public=public, port=port, peers=tuple(peers.values()))

    def _send_peers(self, index: int, peers: Sequence[bytes]) -> None:
        for start in range(0, len(peers), _PEERS_PER_MESSAGE):
            nested = b"".join(
                attribute(number | NLA_F_NESTED, peer)
                for number, peer in enumerate(peers[start : start + _PEERS_PER_MESSAGE])
            )
            body = u32(_DEVICE_IFINDEX, index) + attribute(_DEVICE_PEERS | NLA_F_NESTED, nested)
            self._set(body, what="set the peers of the tunnel")

    def _set(self, body: bytes, *, what: str) -> None:
        self._command(self._family, _WG_CMD_SET_DEVICE, body, flags=NLM_F_ACK, what=what)

    def _find_family(self, name: str) -> int:
        body = attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
        what = f"look up the kernel's {name}"
        answers = self._command(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, body, flags=NLM_F_ACK, what=what)
        found: int = struct.unpack("=H", attributes(answers[0], 4)[_CTRL_ATTR_FAMILY_ID])[0]
        return found

    def _command(self, family: int, command: int, body: bytes, *, flags: int, what: str) -> list[bytes]:
        """The answers' bodies, each with its generic header of four bytes in front."""
        return list(self._ask(family, struct.pack("=BBH", command, 1, 0) + body, flags=flags, what=what))


def _peer(peer: WireGuardPeer, keepalive_s: int) -> bytes:
    address = socket.inet_aton(peer.address)
    allowed = _number("=H", _ALLOWED_FAMILY, socket.AF_INET) + attribute(_ALLOWED_ADDRESS, address)
    allowed += _number("=B", _ALLOWED_PREFIX, 32)
    endpoint = struct.pack("=H", socket.AF_INET) + struct.pack("!H", peer.port) + address + bytes(8)  # sockaddr_in
    return (
        attribute(_PEER_PUBLIC_KEY, peer.public)
        + u32(_PEER_FLAGS, _PEER_REPLACE_ALLOWED)
        + attribute(_PEER_ENDPOINT, endpoint)
        + _number("=H", _PEER_KEEPALIVE_S, keepalive_s)
        + attribute(_PEER_ALLOWED | NLA_F_NESTED, attribute(NLA_F_NESTED, allowed))
    )


def _is_as_wanted(peer: WireGuardPeer, seen: WireGuardSeen | None) -> bool:
    return seen is not None and seen.endpoint == (peer.address, peer.port) and seen.allowed == ((peer.address, 32),)


def _seen(body: bytes) -> WireGuardSeen:
    fields = attributes(body)
    endpoint = fields.get(_PEER_ENDPOINT, b"")
    where = ("", 0)
    if len(endpoint) >= 8 and struct.unpack_from("=H", endpoint)[0] == socket.AF_INET:
        where = (socket.inet_ntoa(endpoint[4:8]), struct.unpack_from("!H", endpoint, 2)[0])
    allowed: list[tuple[str, int]] = []
    for _, nested in each_attribute(fields.get(_PEER_ALLOWED, b"")):
        parts = attributes(nested)
        address = parts.get(_ALLOWED_ADDRESS, b"")
        if len(address) == 4:
            allowed.append((socket.inet_ntoa(address), parts.get(_ALLOWED_PREFIX, b"\0")[0]))
    seconds, nanoseconds = struct.unpack("=qq", fields.get(_PEER_LAST_HANDSHAKE, bytes(16)))
    return WireGuardSeen(
        public=fields.get(_PEER_PUBLIC_KEY, b""),
        endpoint=where,
        allowed=tuple(allowed),
        handshake_at=seconds + nanoseconds / 1e9,
        sent_bytes=struct.unpack("=Q", fields.get(_PEER_TX_BYTES, bytes(8)))[0],
        received_bytes=struct.unpack("=Q", fields.get(_PEER_RX_BYTES, bytes(8)))[0],
    )


def _number(form: str, kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(form, value))
