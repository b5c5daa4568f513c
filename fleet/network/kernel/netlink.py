"""netlink(7): one socket, whatever family of the kernel is at its other end, and the attributes that all of them speak in.

Families lie on top of it: ``rtnetlink`` (links, addresses, routes), ``genetlink`` (WireGuard), ``conntrack`` (tracked flows).
A socket belongs to the network namespace it was opened in, whatever thread uses it later. Not thread-safe.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from fleet.errors import RuntimeFault

__all__ = [
    "NLA_F_NESTED",
    "NLM_F_ACK",
    "NLM_F_DUMP",
    "Message",
    "NetlinkError",
    "NetlinkSocket",
    "attribute",
    "attributes",
    "each_attribute",
    "u32",
]

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF  # the top two bits of a type: nested, byte order
NETLINK_CAP_ACK, NETLINK_EXT_ACK, SOL_NETLINK = 10, 11, 270
_HEADER = struct.Struct("=IHHII")
_BATCH_BYTES_MAX, _BATCH_MESSAGES_MAX = 60_000, 500
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


class NetlinkSocket:
    """One socket, in the namespace of the thread that constructs it. ``protocol`` is that of linux/netlink.h."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *messages: Message) -> None:
        """Apply messages in order. Raises ``NetlinkError`` for the first refused one; later ones were still applied.

        Not a transaction: netlink has none. Callers order messages so that each prefix is harmless.
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

    def _exchange(self, batch: Sequence[Message]) -> NetlinkError | None:
        start = self._sequence + 1
        parts = [
            _packed(message.kind, message.flags | NLM_F_ACK, sequence, message.body)
            for sequence, message in enumerate(batch, start)
        ]
        self._sequence += len(batch)
        self._socket.send(b"".join(parts))
        first_error: NetlinkError | None = None
        missing = len(batch)
        while missing:
            for kind, sequence, flags, body in self._receive("netlink"):
                if kind != NLMSG_ERROR or not start <= sequence < start + len(batch):
                    continue  # an echo or a late answer to something that timed out
                missing -= 1
                message = batch[sequence - start]
                error = _error_in(body, flags, what=message.describe)
                if error is not None and error.number not in message.tolerate and first_error is None:
                    first_error = error
        return first_error

    def _ask(self, kind: int, body: bytes, *, flags: int = 0, what: str) -> Iterator[bytes]:
        """The bodies of all answers to a request with ``NLM_F_DUMP`` or ``NLM_F_ACK``, without either of the only one.

        Nothing else may be asked before the last of them was taken. Raises ``NetlinkError``.
        """
        self._sequence += 1
        self._socket.send(_packed(kind, flags, self._sequence, body))
        while True:
            for answer_kind, sequence, answer_flags, answer in self._receive(what):
                if sequence != self._sequence:
                    continue  # a late answer to something that timed out
                if answer_kind == NLMSG_DONE:
                    return
                if answer_kind == NLMSG_ERROR:
                    error = _error_in(answer, answer_flags, what=what)
                    if error is not None:
                        raise error
                    return
                yield answer
                if not flags:
                    return

    def _receive(self, what: str) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise RuntimeFault(f"{what}: no answer from the kernel within {_TIMEOUT_S:.0f} s") from error
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, sequence, flags, data[offset + _HEADER.size : offset + length]
            offset += (max(length, _HEADER.size) + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """A type, a length and a value, padded to four bytes; ``kind`` with ``NLA_F_NESTED`` where the family is strict about it."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def u32(kind: int, value: int) -> bytes:
    """An attribute with a number of 32 bits, in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def each_attribute(body: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The types, without their flags, and values of what follows ``offset``; what is cut off or no attribute ends it."""
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, body[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """The same by type; of several of one type the last."""
    return dict(each_attribute(body, offset))


def _packed(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def _error_in(body: bytes, flags: int, *, what: str) -> NetlinkError | None:
    """What an acknowledgement refuses, with the kernel's own words if it has any; nothing if it is a good one."""
    number = -struct.unpack_from("=i", body)[0]
    if not number:
        return None
    detail = attributes(body, 20).get(NLMSGERR_ATTR_MSG, b"") if flags & NLM_F_ACK_TLVS else b""
    return NetlinkError(what, number, detail.rstrip(b"\0").decode(errors="replace"))


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        if batch and (size + len(message.body) + 20 > _BATCH_BYTES_MAX or len(batch) >= _BATCH_MESSAGES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.body) + 20
    if batch:
        yield batch
