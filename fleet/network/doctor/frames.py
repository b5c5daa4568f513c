"""VXLAN packets (RFC 7348) that carry a mark from one host's doctor to another's; pure.

Inside is an Ethernet frame to the other host's bridge, of a type that is set aside for experiments (IEEE 802, 0x88B5): the bridge
hands it to its host, where only our socket listens, and to no container.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ETHER_TYPE", "OUTER_BYTES", "Mark", "datagram", "ladder", "parse_frame"]

ETHER_TYPE = 0x88B5
OUTER_BYTES = 50
"""What is around the inner packet, as the underlay's MTU counts it: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14."""
SMALL_BYTES = 200
_MAGIC = b"fleet-doctor\0\0\0\0"
_SENDER = "02:66:6c:64:72:00"
_MARK = struct.Struct("!16s16sH")  # magic, run, sender's number
_LADDER = (8950, 1500, 1480, 1460, 1440, 1420, 1400, 1370, 1340, 1300, 1280, 1200, 1000, 576)


@dataclass(frozen=True, slots=True)
class Mark:
    """``run`` is 16 bytes, ``sender`` the sending host's number in that run, ``size`` the outer packet's bytes."""

    run: bytes
    sender: int
    size: int


def datagram(mark: Mark, *, vni: int, mac: str) -> bytes:
    """The UDP payload of a packet that is ``mark.size`` bytes of IPv4."""
    header = struct.pack("!II", 0x08000000, vni << 8)
    frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex(_SENDER.replace(":", ""))
    frame += struct.pack("!H", ETHER_TYPE) + _MARK.pack(_MAGIC, mark.run, mark.sender)
    return (header + frame).ljust(mark.size - 28, b"\0")


def parse_frame(frame: bytes) -> Mark | None:
    """The mark in an Ethernet frame; ``None`` if it is not one of ours."""
    if len(frame) < 14 + _MARK.size or frame[12:14] != struct.pack("!H", ETHER_TYPE):
        return None
    magic, run, sender = _MARK.unpack_from(frame, 14)
    if magic != _MAGIC:
        return None
    return Mark(run, sender, len(frame) - 14 + OUTER_BYTES)


def ladder(mtu: int) -> tuple[int, ...]:
    """Outer sizes to try for a network of that MTU: a small one first, the full one, then smaller ones to find what fits."""
    full = mtu + OUTER_BYTES
    return (SMALL_BYTES, full, *(size for size in _LADDER if SMALL_BYTES < size < full))
