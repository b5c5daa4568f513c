"""VXLAN packets as a tunnel carries them: IPv4, UDP, VXLAN, and anything inside."""

from __future__ import annotations

import struct

__all__ = ["checksum", "vxlan_packet"]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over something that has a right one in it."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - total


def vxlan_packet(
    payload: bytes,
    *,
    vni: int = 4097,
    vxlan_flags: int = 0x08,
    source: str = "10.0.0.1",
    target: str = "10.0.0.2",
    source_port: int = 40000,
    target_port: int = 4789,
    service: int = 0,
    lifetime: int = 64,
    identification: int = 7,
    fragment: int = 0,
    protocol: int = 17,
    udp_length: int | None = None,
) -> bytes:
    """The whole packet, with the checksum of IP; UDP's is left out, as it may be."""
    length = 20 + 8 + 8 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, service, length, identification, fragment, lifetime, protocol, 0)
    head += bytes(map(int, source.split("."))) + bytes(map(int, target.split(".")))
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    udp = struct.pack("!HHHH", source_port, target_port, length - 20 if udp_length is None else udp_length, 0)
    return head + udp + struct.pack("!B3xI", vxlan_flags, vni << 8) + payload
