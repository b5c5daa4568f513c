"""Sends marks to other hosts through their VXLAN port and hears theirs, by the network's own bridge.

``ears`` opens the listening sockets of a run on the network thread, ``Hearing`` reads them on the loop until it is closed. Where
a host has no overlay yet, nobody listens on the VXLAN port and a plain socket takes its place.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from fleet.network.desired import peers_of
from fleet.network.doctor.frames import ETHER_TYPE, Mark, datagram, ladder, parse_frame
from fleet.network.doctor.view import PlaneView

__all__ = ["Ear", "Hearing", "Mouth", "ears", "plain_ear"]

_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3  # linux/in.h, ip(7): do not fragment, whatever is known of the way
_ROUNDS, _ROUND_S = 3, 0.1
_PING_S = 1.0
_FRAME_MAX = 1 << 16
_READ_MAX = 256
_HEARD_MAX = 100_000
_VNI_NOBODY = 0xFFFFFF


@dataclass(slots=True, kw_only=True)
class Ear:
    """A socket that hears marks on one network; ``network_id`` empty: on the VXLAN port itself, as there is no overlay here."""

    network_id: str
    name: str = ""
    vni: int = _VNI_NOBODY
    port: int
    mac: str = "02:00:00:00:00:00"
    mtu: int = 0
    peers: frozenset[str] = frozenset()
    encrypted: bool = False
    sock: socket.socket


def ears(view: PlaneView, networks: Sequence[str]) -> list[Ear]:
    """For each overlay of ``networks`` whose bridge is there and up; on the network thread."""
    found: list[Ear] = []
    for network_id in networks:
        state, links = view.states.get(network_id), view.links.get(network_id)
        if state is None or links is None or state.network.driver != "overlay":
            continue
        bridge = view.netlink.link(links.bridge)
        if bridge is None or not bridge.up:
            continue
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETHER_TYPE))
        try:
            sock.bind((links.bridge, ETHER_TYPE))
        except OSError:  # it went this moment; the look at links says so
            sock.close()
            continue
        found.append(
            Ear(
                network_id=network_id,
                name=state.network.name,
                vni=state.network.vni,
                port=state.network.vxlan_port,
                mac=bridge.mac,
                mtu=links.mtu,
                peers=frozenset(peers_of(state)),
                encrypted=state.network.encrypted,
                sock=sock,
            )
        )
    return found


def plain_ear(view: PlaneView, port: int) -> Ear | None:
    """On the VXLAN port itself, for a host that has no overlay; ``None`` where it has one, or the port is taken."""
    if any(state.network.driver == "overlay" for state in view.states.values()):
        return None
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((view.underlay, port))
    except OSError:
        sock.close()
        return None
    index = view.netlink.address_index(view.underlay)
    mtu = next((link.mtu for link in view.netlink.links() if link.index == index and link.name != "lo"), 1500)
    return Ear(network_id="", port=port, mtu=mtu - 50, sock=sock)


class Hearing:
    """What is heard in one run: sizes by (network id, sender's number). On the loop; ``close`` ends it."""

    def __init__(self, run: bytes, listening: Sequence[Ear]) -> None:
        self.ears = tuple(listening)
        self.heard: dict[tuple[str, int], set[int]] = {}
        self._run = run
        self._loop = asyncio.get_running_loop()
        for ear in self.ears:
            self._loop.add_reader(ear.sock.fileno(), self._read, ear)

    def close(self) -> None:
        """Idempotent."""
        ears_, self.ears = self.ears, ()
        for ear in ears_:
            self._loop.remove_reader(ear.sock.fileno())
            ear.sock.close()

    def _read(self, ear: Ear) -> None:
        for _ in range(_READ_MAX):
            try:
                data = ear.sock.recv(_FRAME_MAX)
            except OSError:
                return
            mark = parse_frame(data if ear.network_id else data[8:])
            if mark is not None and mark.run == self._run and len(self.heard) < _HEARD_MAX:
                self.heard.setdefault((ear.network_id, mark.sender), set()).add(mark.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mouth:
    """Where marks go: another host's ear. ``mtu`` is that of the network on the sending host, whose packets are to fit."""

    underlay: str
    network_id: str
    vni: int
    port: int
    mac: str
    mtu: int

    def sizes(self) -> tuple[int, ...]:
        """Outer sizes that are sent."""
        return ladder(self.mtu)


def speaking_socket(view: PlaneView, *, encrypted: bool) -> socket.socket:
    """From the underlay address, unfragmented, ``encrypted`` through the tunnel; on the network thread."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((view.underlay, 0))
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        if encrypted:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, view.tunnel.name.encode())
    except BaseException:
        sock.close()
        raise
    return sock


async def speak(sock: socket.socket, mouths: Sequence[Mouth], *, run: bytes, number: int) -> dict[Mouth, int]:
    """Send everything a few times; returns, for mouths whose full size did not leave this host, that size. Closes the socket."""
    too_big: dict[Mouth, int] = {}
    with sock:
        for _ in range(_ROUNDS):
            for mouth in mouths:
                for size in mouth.sizes():
                    try:
                        payload = datagram(Mark(run, number, size), vni=mouth.vni, mac=mouth.mac)
                        sock.sendto(payload, (mouth.underlay, mouth.port))
                    except OSError as error:  # the rest shows in what arrives
                        if error.errno == errno.EMSGSIZE:
                            too_big[mouth] = max(size, too_big.get(mouth, 0))
            await asyncio.sleep(_ROUND_S)
    return too_big


def ping_socket(view: PlaneView) -> socket.socket:
    """For ICMP echo; on the network thread."""
    del view  # the socket belongs to the host's namespace, where this thread is
    return socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)


async def ping(sock: socket.socket, addresses: Sequence[str], *, run: bytes) -> frozenset[str]:
    """Which answer within a second. Closes the socket."""
    loop = asyncio.get_running_loop()
    missing = set(addresses)
    with sock:
        for address in missing:
            with suppress(OSError):
                sock.sendto(_echo(run), (address, 0))
        with suppress(TimeoutError):
            async with asyncio.timeout(_PING_S):
                while missing:
                    data = await loop.sock_recv(sock, _FRAME_MAX)
                    start = (data[0] & 15) * 4
                    if data[start] == 0 and data[start + 8 : start + 8 + len(run)] == run:  # echo reply
                        missing.discard(socket.inet_ntoa(data[12:16]))
    return frozenset(addresses) - missing


def _echo(run: bytes) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + run
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return body[:2] + struct.pack("!H", checksum) + body[4:]
