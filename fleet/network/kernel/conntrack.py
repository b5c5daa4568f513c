"""Connection tracking entries that lead to somewhere that is gone, forgotten (ctnetlink).

A translation is chosen once a flow and then remembered. For TCP that is right as long as the backend lives. But a
UDP client that keeps its port (a resolver, a metrics sender) would send to a dead backend for ever, each packet
renewing the entry; and a TCP connection to a dead backend would hang until the client's own timeout. Forgotten, the
next UDP packet goes to a live backend, and the next TCP packet reaches one that knows no such connection and resets it at once.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import RuntimeFault

__all__ = ["UDP", "Flow", "forget_flows"]

UDP = socket.IPPROTO_UDP
NETLINK_NETFILTER = 12
# linux/netfilter/nfnetlink_conntrack.h
CT_GET, CT_DELETE = 0x0101, 0x0102  # subsystem 1, messages 1 and 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 1, 2
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 2
CTA_IP_V6_SRC, CTA_IP_V6_DST = 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
NLA_F_NESTED = 0x8000
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_TIMEOUT_S = 10.0
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
"""Flows of the reader's namespace."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked flow: where the client meant to go, and who answers."""

    protocol: int
    destination: str
    port: int
    answers: str
    key: bytes
    """The original tuple as the kernel wrote it, by which the entry is deleted."""
    family: int = socket.AF_INET


def forget_flows(select: Callable[[Flow], bool]) -> int:
    """Delete the flows of the calling thread's namespace that ``select`` picks; returns how many.

    A namespace without flows costs 0.05 ms, any other a walk of the kernel's whole table. Raises ``RuntimeFault``.
    """
    try:
        if _COUNT.read_text().strip() == "0":
            return 0
    except FileNotFoundError:
        return 0  # connection tracking is not loaded: nothing is tracked
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT_S)
        chosen = [flow for flow in _list(sock) if select(flow)]
        for number, flow in enumerate(chosen, 2):
            body = struct.pack("=BBH", flow.family, 0, 0) + _attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, flow.key)
            sock.send(_HEADER.pack(16 + len(body), CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, number, 0) + body)
            for kind, answer in _receive(sock):
                code = -struct.unpack_from("=i", answer)[0] if kind == NLMSG_ERROR else 0
                if code not in (0, errno.ENOENT):  # it ended by itself meanwhile
                    raise RuntimeFault(f"forget flow to {flow.destination}:{flow.port}: error {code}")
        return len(chosen)


def _list(sock: socket.socket) -> list[Flow]:
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)  # both families in one walk
    sock.send(_HEADER.pack(16 + len(body), CT_GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
    flows: list[Flow] = []
    while True:
        for kind, answer in _receive(sock):
            if kind == NLMSG_DONE:
                return flows
            if kind == NLMSG_ERROR:
                raise RuntimeFault(f"list tracked flows: error {-struct.unpack_from('=i', answer)[0]}")
            flow = _parse(answer)
            if flow is not None:
                flows.append(flow)


def _receive(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    data = sock.recv(1 << 17)
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _parse(body: bytes) -> Flow | None:
    attributes = _attributes(body, 4)
    original, reply = attributes.get(CTA_TUPLE_ORIG), attributes.get(CTA_TUPLE_REPLY)
    if original is None or reply is None:
        return None
    addresses = _attributes(_attributes(original, 0)[CTA_TUPLE_IP], 0)
    protocol = _attributes(_attributes(original, 0)[CTA_TUPLE_PROTO], 0)
    answers = _attributes(_attributes(reply, 0)[CTA_TUPLE_IP], 0)
    is_v4 = CTA_IP_V4_DST in addresses
    if not is_v4 and CTA_IP_V6_DST not in addresses:
        return None
    family = socket.AF_INET if is_v4 else socket.AF_INET6
    return Flow(
        protocol=protocol[CTA_PROTO_NUM][0],
        destination=socket.inet_ntop(family, addresses[CTA_IP_V4_DST if is_v4 else CTA_IP_V6_DST]),
        port=int.from_bytes(protocol.get(CTA_PROTO_DST_PORT, b""), "big"),
        answers=socket.inet_ntop(family, answers[CTA_IP_V4_SRC if is_v4 else CTA_IP_V6_SRC]),
        key=original,
        family=family,
    )


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
