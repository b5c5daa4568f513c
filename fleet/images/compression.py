"""Streams in: plain, gzip or zstd bytes become plain bytes, counted, hashed and bounded on the way.

The format is told from the first bytes, not from a name or media type: those are often wrong, and the digest of the
plain bytes, which the caller compares with the image's configuration, settles what was meant. Memory stays bounded: a
zstd window above 128 MiB is refused, and every read returns at most what was asked for.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import BinaryIO, Literal

import zstandard

from fleet.errors import RejectedFault
from fleet.images.tarstream import ByteReader

__all__ = ["PlainReader", "detect_compression", "Compression"]

Compression = Literal["plain", "gzip", "zstd"]
_ZSTD_WINDOW_MAX = 1 << 27  # 128 MiB, the window of `zstd -19 --long=27`, the most decoders promise
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP = 31  # wbits of zlib: a gzip header and trailer, the largest window
_INPUT_BYTES = 1 << 17
_RATIO_FREE_BYTES = 256 << 20  # small layers may be as sparse as they like


def detect_compression(head: bytes) -> Compression:
    """The format of a stream by its first six bytes; ``RejectedFault`` for known formats that images do not use."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and head[0] & 0xF0 == 0x50):
        return "zstd"
    if head.startswith((b"BZh", b"\xfd7zXZ\x00")):
        raise RejectedFault("the archive is compressed with bzip2 or xz: compress it with gzip or zstd, or not at all")
    return "plain"


class PlainReader:
    """Plain bytes of a possibly compressed file from its current position.

    ``bytes_max`` bounds what comes out, ``ratio_max`` what comes out per byte that went in (after the first 256 MiB).
    Both, and damage, raise ``RejectedFault``. ``digest`` covers every plain byte read so far.
    """

    def __init__(self, file: BinaryIO, *, bytes_max: int, ratio_max: int) -> None:
        head = file.read(6)
        file.seek(-len(head), io.SEEK_CUR)
        self._file = file
        self._start = file.tell()
        self._bytes_max = bytes_max
        self._ratio_max = ratio_max
        self._hash = hashlib.sha256()
        self._count = 0
        self.compression: Compression = detect_compression(head)
        if self.compression == "gzip":
            self._reader: ByteReader = _GzipReader(file)
        elif self.compression == "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
            self._reader = decompressor.stream_reader(file, read_across_frames=True, closefd=False)
        else:
            self._reader = file

    @property
    def count(self) -> int:
        """Plain bytes read so far."""
        return self._count

    @property
    def digest(self) -> str:
        """sha256 of the plain bytes read so far."""
        return "sha256:" + self._hash.hexdigest()

    def read(self, size: int, /) -> bytes:
        """At most ``size`` plain bytes, none at the end of the stream."""
        try:
            data = self._reader.read(size)
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            raise RejectedFault(f"{self.compression} stream is damaged: {error}") from error
        self._count += len(data)
        self._hash.update(data)
        if self._count > self._bytes_max:
            raise RejectedFault(f"unpacks to more than {self._bytes_max} bytes (limit bytes_max)")
        if self.compression != "plain" and self._count > _RATIO_FREE_BYTES:
            consumed = max(self._file.tell() - self._start, 1)
            if self._count > consumed * self._ratio_max:
                raise RejectedFault(
                    f"unpacks to more than {self._ratio_max} times its size (limit ratio_max):"
                    " looks like a decompression bomb"
                )
        return data

    def drain(self) -> None:
        """Read to the end, for the digest."""
        while self.read(1 << 18):
            pass


class _GzipReader:
    """The plain bytes of a gzip file of any number of members (RFC 1952); zero padding after one is passed over, as by gzip(1).

    Own code rather than ``gzip``, which decompresses in pieces of 8 KiB: half of its time was spent around them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._input = b""
        self._members = 0
        self._member: zlib._Decompress | None = None

    def read(self, size: int, /) -> bytes:
        while self._member is not None or self._begin_member():
            member = self._member
            assert member is not None
            if not self._input and not member.eof:
                self._input = self._file.read(_INPUT_BYTES)
                if not self._input:
                    raise EOFError("it ends in the middle")
            data = member.decompress(self._input, size)
            self._input = member.unused_data if member.eof else member.unconsumed_tail
            if member.eof:
                self._member = None
            if data:
                return data
        return b""

    def _begin_member(self) -> bool:
        """Whether there is another one."""
        while True:
            if self._members:
                self._input = self._input.lstrip(b"\0")
            if self._input:
                break
            self._input = self._file.read(_INPUT_BYTES)
            if not self._input:
                return False
        self._members += 1
        self._member = zlib.decompressobj(_GZIP)
        return True
