"""Metadata and decompression bombs: refused soon, in little memory, with the name of the bound."""

from __future__ import annotations

import gzip
import io
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from fleet.errors import RejectedFault
from fleet.images import UnpackLimits
from fleet.images.unpack import unpack_layer
from tests.support.tar_headers import END, FILE, extended, header, record

pytestmark = pytest.mark.kernel

PAX = extended(b"x", record(b"comment", b"c" * 1000) * 500)


def unpacked(stream: bytes, tmp_path: Path) -> tuple[str, int, float]:
    """Why it was refused, the peak of memory, and how long that took."""
    (tmp_path / "layer").mkdir()
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(RejectedFault) as caught:
            unpack_layer(io.BytesIO(stream), into=tmp_path / "layer", lowers=[], limits=UnpackLimits())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return str(caught.value), peak, time.monotonic() - started


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (header(b"x", b"x", 2 << 20), "extended header of 2097152 bytes"),
        (header(b"x", b"x", 1 << 62), "extended header of 4611686018427387904 bytes"),
        (header(b"x", b"g", 2 << 20), "extended header of"),
        (header(b"x", b"L", 1 << 40), "extended header of"),
        (header(b"x", b"K", 1 << 40), "extended header of"),
        (PAX * 20 + FILE + END, "extended headers in a row"),
        (extended(b"x", b"999999999 path=x\n") + FILE + END, "wrong length"),
        (extended(b"x", b"9" * 30 + b" path=x\n") + FILE + END, "no length"),
        (extended(b"x", b"4 =\n\n") + FILE + END, "without a key"),
        (extended(b"x", record(b"size", b"9" * 5000)) + FILE + END, "is not a number"),
        (extended(b"x", record(b"size", b"-1")) + FILE + END, "is not a number"),
        (extended(b"x", record(b"uid", b"1e9")) + FILE + END, "is not a number"),
        (extended(b"x", record(b"path", b"a\0b")) + FILE + END, "holds a NUL"),
        (extended(b"x", record(b"path", b"a" * 5000)) + FILE + END, "limit path_bytes_max"),
        (extended(b"x", record(b"GNU.sparse.size", b"9" * 19) + record(b"GNU.sparse.map", b"0,1")) + FILE + END, "number|sparse"),
        (extended(b"x", record(b"SCHILY.xattr.user.big", b"v" * 70_000)) + FILE + END, "f"),
    ],
)  # fmt: skip
def test_metadata_bombs_are_refused_in_little_memory(stream: bytes, why: str, tmp_path: Path) -> None:
    said, peak_bytes, _ = unpacked(stream, tmp_path)
    assert why in said or any(part in said for part in why.split("|"))
    assert peak_bytes < 32 << 20


def test_extended_headers_of_a_whole_layer_are_bounded(tmp_path: Path) -> None:
    """Half a megabyte of records before every empty file: small when packed, and minutes of parsing."""
    pieces = (PAX + header(b"f%d" % number, b"0", 0) for number in range(1000))
    said, peak_bytes, _ = unpacked(gzip.compress(b"".join(pieces), 1), tmp_path)
    assert "extended headers of more than" in said
    assert peak_bytes < 64 << 20


def zstd_frame(window_log: int) -> bytes:
    """The beginning of a frame that asks for a window (RFC 8878, 3.1.1.1.2)."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(window_log - 10) << 3]) + struct.pack("<I", 0)[:3] + b"\x00" * 8


@pytest.mark.parametrize("window_log", [28, 31, 41])
def test_zstd_windows_beyond_128_mib_are_refused_before_memory_is_taken(window_log: int, tmp_path: Path) -> None:
    said, peak_bytes, _ = unpacked(zstd_frame(window_log), tmp_path)
    assert "zstd stream is damaged" in said
    assert "memory" in said or "window" in said.lower()
    assert peak_bytes < 8 << 20


def test_a_zstd_window_of_128_mib_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packed = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(packed, closefd=False) as writer:
        writer.write(FILE + END)
    (tmp_path / "layer").mkdir()
    result = unpack_layer(io.BytesIO(packed.getvalue()), into=tmp_path / "layer", lowers=[], limits=UnpackLimits())
    assert result.entries == 1


@pytest.mark.parametrize("packed", [lambda b: gzip.compress(b, 9), lambda b: zstandard.compress(b, 19)])
def test_many_members_of_nothing_but_zeros_are_counted_together(
    packed: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    member = packed(bytes(64 << 20))
    stream = packed(header(b"zeros", b"0", 8 << 30)) + member * 128
    said, peak_bytes, _ = unpacked(stream, tmp_path)
    assert "limit ratio_max" in said
    assert peak_bytes < 256 << 20
