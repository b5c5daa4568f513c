"""Packets given to the kernel as one: which are, how they look, and that the kernel's cutting gives back what was put in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from fleet.network.tunnel.offload import HEADER_BYTES, join_packets, runs
from tests.support.vxlan_packets import checksum, vxlan_packet


def _cut(buffers: Sequence[bytes]) -> list[bytes]:
    """What the kernel makes of a write (``__udp_gso_segment``): every piece complete, with its checksums."""
    written = b"".join(buffers)
    flags, kind, header, size, start, offset = struct.unpack_from("=BBHHHH", written)
    packet = written[HEADER_BYTES:]
    if not kind:
        assert not flags
        return [packet]
    assert (flags, kind, header, start, offset) == (1, 5, 28, 20, 6)
    assert len(packet) == struct.unpack_from("!H", packet, 2)[0] <= 0xFFFF
    assert len(packet) - 20 == struct.unpack_from("!H", packet, 24)[0]
    assert checksum(packet[:20]) == 0
    pseudo = packet[12:20] + struct.pack("!HH", 17, len(packet) - 20)
    assert struct.unpack_from("!H", packet, 26)[0] == 0xFFFF - checksum(pseudo)
    payload = packet[28:]
    return [_piece(packet[:28], payload[at : at + size]) for at in range(0, len(payload), size)]


def _piece(head: bytes, payload: bytes) -> bytes:
    piece = bytearray(head + payload)
    struct.pack_into("!HH", piece, 2, len(piece), 0)
    struct.pack_into("!H", piece, 10, 0)
    struct.pack_into("!HH", piece, 24, len(piece) - 20, 0)
    return bytes(piece)


def _without_sums(packet: bytes) -> bytes:
    """Without what the kernel makes anew: identification and checksums."""
    return _piece(packet[:28], packet[28:]) if packet[9:10] == b"\x11" else packet


def _joined(packets: list[bytes]) -> list[int]:
    """How many packets each write carries; they come out again as they were."""
    writes = list(join_packets(packets))
    assert [packet for _, run in writes for packet in run] == packets
    for buffers, run in writes:
        pieces = [_without_sums(piece) for piece in _cut(buffers)]
        assert pieces == [_without_sums(packet) for packet in run]
    return [len(run) for _, run in writes]


def test_full_packets_of_a_flow_and_a_shorter_last_one_are_one_write() -> None:
    packets = [vxlan_packet(bytes([n]) * 1390, identification=n) for n in range(10)]
    assert _joined([*packets, vxlan_packet(b"end")]) == [11]
    assert _joined([*packets, vxlan_packet(b"end"), *packets]) == [11, 10]
    assert _joined([vxlan_packet(b"short"), *packets]) == [1, 10]
    assert _joined(packets[:1]) == [1]
    assert _joined([]) == []


def test_a_write_is_at_most_as_large_as_an_ip_packet_can_be() -> None:
    packets = [vxlan_packet(bytes(1400)) for _ in range(100)]
    counts = _joined(packets)
    assert sum(counts) == 100
    assert len(counts) == 3
    assert _joined([vxlan_packet(bytes(40_000))] * 3) == [1, 1, 1]
    assert _joined([vxlan_packet(b"small")] * 100) == [64, 36]


@pytest.mark.parametrize(
    "change",
    [
        {"vni": 4098},
        {"vxlan_flags": 0},
        {"source_port": 40001},
        {"target_port": 53},
        {"source": "10.0.0.3"},
        {"target": "10.0.0.3"},
        {"service": 3},
        {"lifetime": 1},
        {"fragment": 0x2000},
        {"fragment": 0x4000},
        {"protocol": 6},
        {"udp_length": 700},
    ],
    ids=str,
)
def test_packets_that_rules_may_judge_differently_are_never_one_write(change: dict[str, Any]) -> None:
    """The first one's headers are all that firewall rules are shown, so another network's packet must not follow it."""
    usual, other = vxlan_packet(bytes(1400)), vxlan_packet(bytes(1400), **change)
    short = vxlan_packet(bytes(700), **change)
    assert [len(run) for _, run in join_packets([usual, other, usual, usual])] == [1, 1, 2]
    assert [len(run) for _, run in join_packets([usual, usual, short])] == [2, 1]


@pytest.mark.parametrize(
    "packet",
    [
        vxlan_packet(bytes(1400), protocol=1),
        vxlan_packet(bytes(1400), fragment=0x2000),
        vxlan_packet(bytes(1400), fragment=100),
        vxlan_packet(bytes(1400), udp_length=100),
        b"\x46" + vxlan_packet(bytes(1400))[1:],
        vxlan_packet(b"")[:28],
    ],
)
def test_what_is_no_whole_udp_packet_is_written_alone(packet: bytes) -> None:
    assert [len(run) for _, run in join_packets([packet] * 3)] == [1, 1, 1]


def test_runs_of_datagrams_have_one_size_and_a_shorter_last() -> None:
    def lengths(*sizes: int) -> list[list[int]]:
        return [list(map(len, run)) for run in runs([bytes(size) for size in sizes])]

    assert lengths() == [[]]
    assert lengths(32) == [[32]]
    assert lengths(1472, 1472, 100, 1472) == [[1472, 1472, 100], [1472]]
    assert lengths(100, 1472, 1472) == [[100], [1472, 1472]]
    assert lengths(1472, 100, 100) == [[1472, 100], [100]]
    assert [len(run) for run in lengths(*[1472] * 100)] == [44, 44, 12]
    assert [len(run) for run in lengths(*[96] * 100)] == [64, 36]
    assert lengths(65_400, 65_400) == [[65_400], [65_400]]
