"""Gzip as it is found in the wild: several members, padding, damage."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable

import pytest

from fleet.errors import RejectedFault
from fleet.images.compression import PlainReader

PLAIN = os.urandom(300_000) + bytes(3_000_000) + b"end"


def read(stream: bytes, *, piece: int = 1 << 16, bytes_max: int = 1 << 30) -> tuple[bytes, str]:
    reader = PlainReader(io.BytesIO(stream), bytes_max=bytes_max, ratio_max=1000)
    parts = []
    while data := reader.read(piece):
        assert len(data) <= piece
        parts.append(data)
    return b"".join(parts), reader.compression


@pytest.mark.parametrize("piece", [1, 511, 1 << 20])
def test_members_and_padding_are_one_stream(piece: int) -> None:
    short = PLAIN[:5000]
    for stream in (
        gzip.compress(short),
        gzip.compress(short[:100]) + gzip.compress(b"") + gzip.compress(short[100:]),
        gzip.compress(short) + bytes(1000),
        gzip.compress(short[:100]) + bytes(300_000) + gzip.compress(short[100:]) + bytes(3),
    ):
        assert read(stream, piece=piece) == (short, "gzip")


def test_large_streams_are_read_in_bounded_pieces() -> None:
    assert read(gzip.compress(PLAIN, 1), piece=70_000) == (PLAIN, "gzip")


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[:-9],
        lambda b: b[:12],
        lambda b: b + b"garbage",
        lambda b: b + b"\x1f\x8b",
        lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:],
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b[:2] + b"\x07" + b[3:],
    ],
)
def test_damage_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(RejectedFault, match="gzip stream is damaged"):
        read(damage(gzip.compress(PLAIN[:5000])))
