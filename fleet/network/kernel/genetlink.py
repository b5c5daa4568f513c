"""Generic netlink (genetlink(7)) as far as WireGuard of the kernel needs it: find the family, set a device, ask about it.

The kernel's interface is linux/wireguard.h (UAPI, since 5.6): one command sets everything, in several messages where the peers
are many; one dumps it. A socket belongs to the namespace it was opened in. Not thread-safe.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleet.errors import RuntimeFault
from fleet.network.kernel.rtnetlink import NetlinkError

__all__ = ["WireGuard", "WireGuardDevice", "WireGuardPeer", "WireGuardSeen"]

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
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLA_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_PEERS_PER_MESSAGE = 100
_RECEIVE_BYTES = 1 << 17
_TIMEOUT_S = 10.0


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


class WireGuard:
    """One socket. Raises ``NetlinkError`` for what the kernel refuses; ENOENT at the start means it has no WireGuard."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 16)  # NETLINK_GENERIC
        self._socket.settimeout(_TIMEOUT_S)
        self._sequence = 0
        try:
            self._family = self._find_family("wireguard")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def __enter__(self) -> WireGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_identity(self, index: int, *, private: bytes, port: int) -> None:
        """The device's private key and UDP port."""
        body = _number("=I", _DEVICE_IFINDEX, index) + _attribute(_DEVICE_PRIVATE_KEY, private)
        self._set(body + _number("=H", _DEVICE_LISTEN_PORT, port), what="set the key and port of the tunnel")

    def set_peers(self, index: int, *, wanted: Sequence[WireGuardPeer], keepalive_s: int) -> None:
        """Exactly these; those that stay keep their sessions. A keepalive that is new makes the kernel greet the peer at once."""
        names = {peer.public for peer in wanted}
        seen = {peer.public: peer for peer in self.device(index).peers}
        gone = [
            _attribute(_PEER_PUBLIC_KEY, public) + _number("=I", _PEER_FLAGS, _PEER_REMOVE)
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
        body = _number("=I", _DEVICE_IFINDEX, index)
        for answer in self._exchange(
            self._family, _WG_CMD_GET_DEVICE, body, flags=_NLM_F_DUMP, what="look at the tunnel"
        ):
            fields = _fields(answer, 4)
            public = fields.get(_DEVICE_PUBLIC_KEY, public)
            if _DEVICE_LISTEN_PORT in fields:
                port = struct.unpack("=H", fields[_DEVICE_LISTEN_PORT])[0]
            for _, nested in _each(fields.get(_DEVICE_PEERS, b""), 0):
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
                _attribute(number | _NLA_NESTED, peer)
                for number, peer in enumerate(peers[start : start + _PEERS_PER_MESSAGE])
            )
            body = _number("=I", _DEVICE_IFINDEX, index) + _attribute(_DEVICE_PEERS | _NLA_NESTED, nested)
            self._set(body, what="set the peers of the tunnel")

    def _set(self, body: bytes, *, what: str) -> None:
        self._exchange(self._family, _WG_CMD_SET_DEVICE, body, flags=_NLM_F_ACK, what=what)

    def _find_family(self, name: str) -> int:
        body = _attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
        what = f"look up the kernel's {name}"
        answers = self._exchange(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, body, flags=_NLM_F_ACK, what=what)
        found: int = struct.unpack("=H", _fields(answers[0], 4)[_CTRL_ATTR_FAMILY_ID])[0]
        return found

    def _exchange(self, family: int, command: int, body: bytes, *, flags: int, what: str) -> list[bytes]:
        """The answers' bodies, each with its generic header of four bytes in front."""
        self._sequence += 1
        payload = struct.pack("=BBH", command, 1, 0) + body
        self._socket.send(_HEADER.pack(16 + len(payload), family, flags | _NLM_F_REQUEST, self._sequence, 0) + payload)
        answers: list[bytes] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError as error:
                raise RuntimeFault(f"{what}: no answer from the kernel within {_TIMEOUT_S:.0f} s") from error
            offset = 0
            while offset + 16 <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                answer = data[offset + 16 : offset + length]
                offset += (max(length, 16) + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", answer)[0]
                    if number:
                        raise NetlinkError(what, number, "")
                    return answers
                if kind == _NLMSG_DONE:
                    return answers
                answers.append(answer)


def _peer(peer: WireGuardPeer, keepalive_s: int) -> bytes:
    address = socket.inet_aton(peer.address)
    allowed = _number("=H", _ALLOWED_FAMILY, socket.AF_INET) + _attribute(_ALLOWED_ADDRESS, address)
    allowed += _number("=B", _ALLOWED_PREFIX, 32)
    endpoint = struct.pack("=H", socket.AF_INET) + struct.pack("!H", peer.port) + address + bytes(8)  # sockaddr_in
    return (
        _attribute(_PEER_PUBLIC_KEY, peer.public)
        + _number("=I", _PEER_FLAGS, _PEER_REPLACE_ALLOWED)
        + _attribute(_PEER_ENDPOINT, endpoint)
        + _number("=H", _PEER_KEEPALIVE_S, keepalive_s)
        + _attribute(_PEER_ALLOWED | _NLA_NESTED, _attribute(_NLA_NESTED, allowed))
    )


def _is_as_wanted(peer: WireGuardPeer, seen: WireGuardSeen | None) -> bool:
    return seen is not None and seen.endpoint == (peer.address, peer.port) and seen.allowed == ((peer.address, 32),)


def _seen(body: bytes) -> WireGuardSeen:
    fields = _fields(body, 0)
    endpoint = fields.get(_PEER_ENDPOINT, b"")
    where = ("", 0)
    if len(endpoint) >= 8 and struct.unpack_from("=H", endpoint)[0] == socket.AF_INET:
        where = (socket.inet_ntoa(endpoint[4:8]), struct.unpack_from("!H", endpoint, 2)[0])
    allowed: list[tuple[str, int]] = []
    for _, nested in _each(fields.get(_PEER_ALLOWED, b""), 0):
        parts = _fields(nested, 0)
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


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _number(form: str, kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(form, value))


def _each(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, body[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _fields(body: bytes, offset: int) -> dict[int, bytes]:
    return dict(_each(body, offset))
