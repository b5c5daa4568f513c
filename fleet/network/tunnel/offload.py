"""Many packets in one system call: what the kernel cuts apart for us on the way out, and on the way in. Pure.

Each packet is sealed by itself, so nothing of this is seen on the wire. What it saves is the kernel's work for each packet,
which is most of what a packet costs:

- datagrams of one size to one peer are given to the socket as one, and cut there or by the network card (UDP_SEGMENT);
- VXLAN packets of one flow are given to the TUN device as one large UDP packet (Linux 6.2: the virtio header's
  VIRTIO_NET_HDR_GSO_UDP_L4). Firewall, routing and connection tracking look at it once; the VXLAN socket cuts it, and the kernel
  joins the TCP segments in the pieces again before the bridge, so a container gets, and acknowledges, many at once.

Firewall rules are asked about the first packet of a joined one only. So its followers are exactly like it in everything rules
look at: addresses, ports, and the VXLAN header, which says of which network a packet is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

__all__ = ["HEADER_BYTES", "join_packets", "plain", "runs"]

HEADER_BYTES: Final = 10
"""Of ``struct virtio_net_hdr``, which precedes each packet read from or written to the device."""
_HEADER: Final = struct.Struct("=BBHHHH")  # flags, type, header bytes, bytes of a piece, checksum from, checksum at
_PLAIN: Final = bytes(HEADER_BYTES)
_NEEDS_CHECKSUM, _UDP_L4 = 1, 5  # linux/virtio_net.h

_SEGMENTS_MAX: Final = 64  # UDP_MAX_SEGMENTS of Linux before 6.9; of a write, far below IOV_MAX
_BYTES_MAX: Final = 65_000  # of a UDP packet, with room for what is around it
_IP_BYTES, _UDP_BYTES, _VXLAN_BYTES = 20, 8, 8
_HEADERS_BYTES: Final = _IP_BYTES + _UDP_BYTES
_PREFIX_BYTES: Final = _HEADERS_BYTES + _VXLAN_BYTES
_CHECKED: Final = struct.Struct("!BxH2xHxB14xH10x")  # version; length, fragment, protocol of IP; length of UDP
# What makes a flow: everything in these headers but identification and checksum of IP, and the checksum of UDP.
_FLOW: Final = int.from_bytes(
    bytes.fromhex("ffffffff 0000ffff ffff0000 ffffffff ffffffff ffffffff ffff0000 ffffffff ffffffff")
)
_LENGTHS: Final = (1 << 8 * (_PREFIX_BYTES - 4)) + (1 << 8 * (_PREFIX_BYTES - 26))
"""One in each of the two lengths, of IP and of UDP."""
_VERSION_4_PLAIN: Final = 0x45
_FRAGMENT: Final = 0x3FFF
_UDP: Final = 17


def runs(datagrams: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    """Neighbours that one send can carry: all of one size, but for the last, which may be shorter."""
    return _runs(datagrams) if len(datagrams) > 1 else (datagrams,)


def _runs(datagrams: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = 0
    while start < len(datagrams):
        size = len(datagrams[start])
        end = min(len(datagrams), start + min(_SEGMENTS_MAX, max(1, _BYTES_MAX // size)))
        stop = start + 1
        while stop < end and len(datagrams[stop]) == size:
            stop += 1
        if stop < end and len(datagrams[stop]) < size:
            stop += 1
        yield datagrams[start:stop]
        start = stop


def plain(packet: bytes) -> list[bytes]:
    """The buffers of a write of one packet."""
    return [_PLAIN, packet]


def join_packets(packets: Sequence[bytes]) -> Iterable[tuple[list[bytes], Sequence[bytes]]]:
    """The buffers of each write to the device, and the packets (IPv4, exactly as long as they say) it carries, in order."""
    return _join(packets) if len(packets) > 1 else [(plain(packet), packets) for packet in packets]


def _join(packets: Sequence[bytes]) -> Iterator[tuple[list[bytes], Sequence[bytes]]]:
    start = 0
    while start < len(packets):
        stop = _flow_end(packets, start)
        run = packets[start:stop]
        yield plain(run[0]) if len(run) == 1 else _joined(run), run
        start = stop


def _flow_end(packets: Sequence[bytes], start: int) -> int:
    """Where the packets end that go with the one at ``start``: of its flow and length, the last may be shorter."""
    first = packets[start]
    size, stop = len(first), start + 1
    if stop == len(packets) or size < _PREFIX_BYTES:
        return stop
    version, length, fragment, protocol, udp_length = _CHECKED.unpack_from(first)
    if version != _VERSION_4_PLAIN or fragment & _FRAGMENT or protocol != _UDP:
        return stop
    if length != size or udp_length != size - _IP_BYTES:
        return stop
    flow = int.from_bytes(first[:_PREFIX_BYTES], "big") & _FLOW
    end = min(len(packets), start + min(_SEGMENTS_MAX, _BYTES_MAX // size))
    while stop < end and int.from_bytes(packets[stop][:_PREFIX_BYTES], "big") & _FLOW == flow:
        stop += 1
    if stop < end and (missing := size - len(packets[stop])) > 0:
        stop += int.from_bytes(packets[stop][:_PREFIX_BYTES], "big") & _FLOW == flow - missing * _LENGTHS
    return stop


def _joined(run: Sequence[bytes]) -> list[bytes]:
    """One UDP packet of all their payloads, under the first's headers."""
    first = run[0]
    payloads = [packet[_HEADERS_BYTES:] for packet in run]
    udp_bytes = _UDP_BYTES + sum(map(len, payloads))
    head = bytearray(first[:_HEADERS_BYTES])
    struct.pack_into("!H", head, 2, _IP_BYTES + udp_bytes)
    struct.pack_into("!H", head, 10, 0)
    struct.pack_into("!H", head, 10, 0xFFFF - _sum(head[:_IP_BYTES]))
    # the sum of the pseudo header: the kernel adds the rest to it, or not, where it needs no checksum
    pseudo = _sum(head[12:20] + struct.pack("!HH", _UDP, udp_bytes))
    struct.pack_into("!HH", head, 24, udp_bytes, pseudo)
    virtio = _HEADER.pack(_NEEDS_CHECKSUM, _UDP_L4, _HEADERS_BYTES, len(first) - _HEADERS_BYTES, _IP_BYTES, 6)
    return [virtio + head, *payloads]


def _sum(data: bytes | bytearray) -> int:
    """Its 16-bit words added as Internet checksums are (RFC 1071): 2**16 is 1 when one counts modulo 2**16 - 1."""
    return int.from_bytes(data, "big") % 0xFFFF
