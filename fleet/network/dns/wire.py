"""DNS messages as bytes (RFC 1035), as much as a server for one zone and a forwarder need.

Standard library only and cheap to load: the server process starts in 10 ms with it. Everything from a container is hostile:
no compression is followed in a question, no recursion, every length is checked, a message is at most 64 KiB.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

__all__ = [
    "A",
    "AAAA",
    "NOERROR",
    "NXDOMAIN",
    "PTR",
    "REFUSED",
    "SERVFAIL",
    "Query",
    "WireError",
    "build_query",
    "build_response",
    "encode_a",
    "encode_aaaa",
    "encode_name",
    "parse_query",
    "question_of",
]

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
CLASS_IN = 1
UDP_SIZE_DEFAULT, UDP_SIZE_MAX = 512, 4096  # RFC 1035 section 4.2.1; what we offer by EDNS (RFC 6891)
_HEADER = struct.Struct("!HHHHHH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800


class WireError(ValueError):
    """A message is not DNS; it deserves no answer, or FORMERR."""


@dataclass(frozen=True)
class Query:
    """A parsed question. ``name`` is lower case without trailing dot; ``question`` are its bytes as received."""

    id: int
    recursion_desired: bool
    name: str
    kind: int
    klass: int
    question: bytes
    udp_size: int
    edns: bool


def parse_query(data: bytes) -> Query:
    """Parse a standard query with exactly one question. Raises ``WireError`` for everything else."""
    if len(data) < 17:
        raise WireError("shorter than a header and a question")
    identity, flags, questions, answers, _, additional = _HEADER.unpack_from(data)
    if flags & (_QR | _OPCODE) or questions != 1 or answers:
        raise WireError("not a standard query with one question")
    name, end = _parse_question_name(data, 12)
    if end + 4 > len(data):
        raise WireError("question is cut off")
    kind, klass = struct.unpack_from("!HH", data, end)
    udp_size, edns = UDP_SIZE_DEFAULT, False
    offset = end + 4
    # OPT has the root name; clients send it first. One in another place is simply not seen, which RFC 6891 allows.
    if additional and offset + 11 <= len(data) and data[offset] == 0 and data[offset + 1 : offset + 3] == b"\0\x29":
        edns = True
        udp_size = min(max(struct.unpack_from("!H", data, offset + 3)[0], UDP_SIZE_DEFAULT), UDP_SIZE_MAX)
    return Query(identity, bool(flags & _RD), name, kind, klass, data[12 : end + 4], udp_size, edns)


def build_response(
    query: Query, *, code: int, answers: list[tuple[int, int, bytes]], authoritative: bool, size_max: int
) -> bytes:
    """Answer ``query`` with (type, TTL in seconds, data) records, all owned by the question's name.

    Records that do not fit into ``size_max`` bytes are left off and TC is set, so the client asks again over TCP.
    """
    flags = _QR | _RA | code | (_AA if authoritative else 0) | (_RD if query.recursion_desired else 0)
    opt = b"\0\0\x29" + struct.pack("!HIH", UDP_SIZE_MAX, 0, 0) if query.edns else b""
    room = size_max - 12 - len(query.question) - len(opt)
    body: list[bytes] = []
    for kind, ttl_s, data in answers:
        record = b"\xc0\x0c" + struct.pack("!HHIH", kind, CLASS_IN, ttl_s, len(data)) + data
        room -= len(record)
        if room < 0:
            flags |= _TC
            break
        body.append(record)
    header = _HEADER.pack(query.id, flags, 1, len(body), 0, 1 if opt else 0)
    return b"".join((header, query.question, *body, opt))


def build_query(name: str, kind: int, *, identity: int, edns_size: int = 0) -> bytes:
    """A standard query; for tests, probes and benchmarks."""
    opt = b"\0\0\x29" + struct.pack("!HIH", edns_size, 0, 0) if edns_size else b""
    return (
        _HEADER.pack(identity, _RD, 1, 0, 0, 1 if opt else 0)
        + encode_name(name)
        + struct.pack("!HH", kind, CLASS_IN)
        + opt
    )


def encode_a(address: str) -> bytes:
    """Data of an A record."""
    return socket.inet_aton(address)


def encode_aaaa(address: str) -> bytes:
    """Data of an AAAA record (RFC 3596)."""
    return socket.inet_pton(socket.AF_INET6, address)


def encode_name(name: str) -> bytes:
    """A name as labels. Raises ``WireError`` for empty or over-long labels and names."""
    if not name:
        return b"\0"
    parts: list[bytes] = []
    for label in name.split("."):
        raw = label.encode("utf-8", "surrogateescape")
        if not 1 <= len(raw) <= 63:
            raise WireError(f"label of {len(raw)} bytes in {name!r}")
        parts.append(bytes([len(raw)]) + raw)
    encoded = b"".join(parts) + b"\0"
    if len(encoded) > 255:
        raise WireError(f"name of {len(encoded)} bytes")
    return encoded


def question_of(data: bytes) -> bytes:
    """The question's bytes of any message, lower-cased, to compare an answer with what was asked; empty if unreadable."""
    try:
        _, end = _parse_question_name(data, 12)
    except WireError:
        return b""
    return data[12 : end + 4].lower()


def _parse_question_name(data: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data):
            raise WireError("name is cut off")
        length = data[offset]
        offset += 1
        if length == 0:
            break
        if length > 63:
            raise WireError("compressed or extended label in a question")
        if offset + length > len(data) or offset - start > 255:
            raise WireError("name is cut off or too long")
        labels.append(data[offset : offset + length].decode("utf-8", "surrogateescape").lower())
        offset += length
    return ".".join(labels), offset
