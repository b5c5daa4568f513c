"""Two tunnel processes in this one, joined by real UDP sockets; their devices are pairs of local sockets."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from fleet.network.tunnel import process as under_test
from fleet.network.tunnel.noise import KeyPair
from fleet.network.tunnel.offload import HEADER_BYTES, plain
from fleet.network.tunnel.process import TunnelProcess
from tests.support.vxlan_packets import vxlan_packet

_PRIVATE = (bytes(range(32)), bytes(range(1, 33)))
_UDP, _UDP_GRO = 17, 104


class Side:
    """A tunnel process; ``kernel`` is the kernel's end of its device."""

    def __init__(self, private: bytes, stack: ExitStack) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.settimeout(5.0)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(_UDP, _UDP_GRO, 1)
        self.port = sock.getsockname()[1]
        self.public = KeyPair(private).public
        self.process = TunnelProcess(daemon_uid=os.getuid())
        descriptors = [device.detach(), sock.detach()]
        self.process.handle({"op": "open", "private": private.hex(), "mtu": 1440}, descriptors)
        for part in (self.kernel, self.process._epoll, self.process._socket):
            assert part is not None
            stack.callback(part.close)
        stack.callback(os.close, self.process._device)

    def know(self, other: Side) -> None:
        self.process.handle({"op": "peers", "peers": [[other.public.hex(), "127.0.0.1", other.port]]}, [])

    def give(self, packets: Sequence[bytes]) -> None:
        """What the kernel sends by the device."""
        for packet in packets:
            self.kernel.send(b"".join(plain(packet)))
        self.process._device_ready()

    def take(self, count: int) -> list[bytes]:
        """What the kernel was given, so many writes."""
        return [self.kernel.recv(70_000) for _ in range(count)]


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    """Two that have met."""
    with ExitStack() as stack:
        one, two = (Side(private, stack) for private in _PRIVATE)
        one.know(two)
        two.know(one)
        for _ in range(3):
            for side in (one, two):
                side.process._socket_ready()
        assert all(side.process._status()[0]["connected"] for side in (one, two))
        yield one, two


def _packets(count: int) -> list[bytes]:
    full = [
        vxlan_packet(bytes([n]) * 1404, source="127.0.0.1", target="127.0.0.1", identification=n) for n in range(count)
    ]
    return [*full, vxlan_packet(b"last", source="127.0.0.1", target="127.0.0.1")]


def test_a_burst_is_given_to_the_kernel_as_one_packet(sides: tuple[Side, Side]) -> None:
    one, two = sides
    packets = _packets(4)  # a local socket has room for few more
    one.give(packets)
    two.process._socket_ready()
    (written,) = two.take(1)
    assert written[:2] == b"\x01\x05"
    assert written[HEADER_BYTES + 28 :] == b"".join(packet[28:] for packet in packets)


def test_single_packets_pass_as_they_are(sides: tuple[Side, Side]) -> None:
    one, two = sides
    for packet in _packets(3):
        one.give([packet])
        two.process._socket_ready()
        assert two.take(1) == [bytes(HEADER_BYTES) + packet]


def test_a_kernel_that_cuts_no_udp_packets_is_given_each_alone(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux before 6.2."""
    one, two = sides
    real = os.writev

    def writev(descriptor: int, buffers: Sequence[bytes]) -> int:
        if buffers[0][1]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, buffers)

    monkeypatch.setattr(under_test.os, "writev", writev)
    packets = _packets(4)
    one.give(packets)
    two.process._socket_ready()
    assert two.take(5) == [bytes(HEADER_BYTES) + packet for packet in packets]


def test_a_packet_larger_than_the_tunnel_takes_is_dropped_whole(sides: tuple[Side, Side]) -> None:
    one, two = sides
    large = vxlan_packet(bytes(1405), source="127.0.0.1", target="127.0.0.1")
    (small,) = _packets(0)
    one.give([large, small])
    two.process._socket_ready()
    assert two.take(1) == [bytes(HEADER_BYTES) + small]
