"""Tar archives by hand, for headers that no library writes."""

from __future__ import annotations

__all__ = ["BLOCK", "END", "FILE", "extended", "header", "record"]

BLOCK = 512


def header(name: bytes, flag: bytes, size: int) -> bytes:
    """A ustar header with a right checksum."""
    raw = bytearray(BLOCK)
    raw[0 : len(name)] = name
    raw[100:108], raw[108:116], raw[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    raw[124:136] = f"{size:011o}\0".encode() if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    raw[136:148], raw[148:156], raw[156:157], raw[257:265] = b"00000000000\0", b" " * 8, flag, b"ustar\x0000"
    raw[148:156] = f"{sum(raw):06o}\0 ".encode()
    return bytes(raw)


def extended(flag: bytes, body: bytes) -> bytes:
    """A PAX (``x``, ``g``) or GNU (``L``, ``K``) header with its body."""
    return header(b"x", flag, len(body)) + body + bytes(-len(body) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    """A PAX record with a right length."""
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


FILE = header(b"f", b"0", 0)
END = bytes(2 * BLOCK)
