"""A reader for tar streams written by strangers: headers in, typed entries out, nothing on disk.

Own code rather than ``tarfile``: names stay bytes, extended headers are bounded and length-checked, binary attributes
(file capabilities) survive, sparse maps are validated before anybody seeks by them, and there is nothing that could
extract. Formats: ustar, star prefix, GNU (long names, base-256 numbers, old sparse), PAX (records, sparse 0.0, 0.1,
1.0). Global PAX headers are skipped, as Docker and containerd do. Source: pax(1) in POSIX.1-2017, tar(5), GNU tar
manual "Sparse Formats".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from fleet.errors import RejectedFault

__all__ = ["TarReader", "TarEntry", "EntryKind", "ByteReader"]

BLOCK = 512
_CHUNK = 1 << 18
_EXTENDED_BYTES_MAX = 1 << 20  # one PAX header or long name; xattrs are at most 64 KiB each in the kernel
_EXTENDED_TOTAL_MAX = (
    256 << 20
)  # all of an archive's: a quarter of a million files with a KiB each, or half a minute of parsing
_EXTENDED_ROW_MAX = 16  # before one entry; GNU tar writes two, or two PAX headers
_SPARSE_REGIONS_MAX = 65_536
_SIZE_MAX = 1 << 62


class ByteReader(Protocol):
    """Anything with a ``read`` that returns at most ``size`` bytes, and none at the end."""

    def read(self, size: int, /) -> bytes: ...


class EntryKind(Enum):
    """What a tar entry makes."""

    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,
    b"7": EntryKind.FILE,
    b"S": EntryKind.FILE,
    b"1": EntryKind.HARDLINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER_DEVICE,
    b"4": EntryKind.BLOCK_DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}


@dataclass(slots=True, kw_only=True)
class TarEntry:
    """One entry. ``name`` and ``link_target`` are raw bytes, unchecked: the extractor decides what they may mean."""

    name: bytes
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    """Bytes of the file as it will be, holes included."""
    link_target: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    stored_size: int = 0
    """Bytes of data in the archive; differs from ``size`` in sparse files only."""
    regions: tuple[tuple[int, int], ...] | None = None
    """Sparse files: (offset, length) of each piece of data, ascending, within ``size``."""

    @property
    def label(self) -> str:
        """The name for error texts, printable and bounded."""
        return repr(self.name[:200].decode(errors="backslashreplace"))


class TarReader:
    """Iterate entries; between two steps ``data`` yields the current one's bytes. Data left unread is skipped."""

    def __init__(self, source: ByteReader) -> None:
        self._source = source
        self._left = 0
        self._padding = 0
        self._current: TarEntry | None = None
        self._extended_bytes = 0

    def __iter__(self) -> Iterator[TarEntry]:
        extended: dict[bytes, list[bytes]] = {}
        long_name = long_target = None
        row = 0
        while True:
            self._skip_rest()
            header = self._next_header()
            if header is None:
                if extended or long_name is not None or long_target is not None:
                    raise RejectedFault("tar: ends after an extended header")
                return
            flag = header[156:157]
            if flag in {b"x", b"g", b"L", b"K"}:
                row += 1
                if row > _EXTENDED_ROW_MAX:
                    raise RejectedFault(f"tar: more than {_EXTENDED_ROW_MAX} extended headers in a row")
                body = self._extended_body(header)
                if flag == b"x":
                    extended = _parse_pax(body)
                elif flag == b"L":
                    long_name = body.split(b"\0", 1)[0]
                elif flag == b"K":
                    long_target = body.split(b"\0", 1)[0]
                continue
            entry = self._make_entry(header, flag, extended, long_name, long_target)
            extended, long_name, long_target, row = {}, None, None, 0
            self._current = entry
            yield entry

    def data(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) pieces of the current file in ascending order; holes are left out."""
        entry = self._current
        if entry is None or entry.kind is not EntryKind.FILE:
            return
        for start, length in entry.regions if entry.regions is not None else ((0, entry.size),):
            offset, end = start, start + length
            while offset < end:
                piece = self._read_some(min(_CHUNK, end - offset))
                yield offset, piece
                offset += len(piece)

    def _read_some(self, size: int) -> bytes:
        piece = self._source.read(size)
        if not piece:
            raise RejectedFault("tar: ends in the middle of a file")
        self._left -= len(piece)
        return piece

    def _read_exactly(self, size: int) -> bytes:
        parts = []
        while size:
            piece = self._source.read(min(size, _CHUNK))
            if not piece:
                break
            parts.append(piece)
            size -= len(piece)
        return b"".join(parts)

    def _skip_rest(self) -> None:
        left = self._left + self._padding
        while left:
            piece = self._source.read(min(left, _CHUNK))
            if not piece:
                if left <= self._padding:  # a last block cut short of its padding holds everything that matters
                    break
                raise RejectedFault("tar: ends in the middle of a file")
            left -= len(piece)
        self._left = self._padding = 0
        self._current = None

    def _expect_data(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK

    def _next_header(self) -> bytes | None:
        header = self._read_exactly(BLOCK)
        if not header:
            return None
        if len(header) < BLOCK:
            raise RejectedFault("tar: ends in a header: cut short, or not a tar archive")
        if header.count(0) == BLOCK:
            following = self._read_exactly(BLOCK)
            if following.strip(b"\0"):
                raise RejectedFault("tar: data after a zero block")
            return None
        field_bytes = header[148:156].split(b"\0", 1)[0].strip(b" ")
        blanked = header[:148] + b" " * 8 + header[156:]
        if not field_bytes or field_bytes.strip(b"01234567") or not _has_sum(blanked, int(field_bytes, 8)):
            raise RejectedFault("tar: header checksum is wrong: not a tar archive, or damaged")
        return header

    def _extended_body(self, header: bytes) -> bytes:
        size = _number(header[124:136], "size")
        if size > _EXTENDED_BYTES_MAX:
            raise RejectedFault(f"tar: extended header of {size} bytes, more than {_EXTENDED_BYTES_MAX}")
        self._extended_bytes += size
        if self._extended_bytes > _EXTENDED_TOTAL_MAX:
            raise RejectedFault(f"tar: extended headers of more than {_EXTENDED_TOTAL_MAX} bytes in all")
        body = self._read_exactly(size)
        padding = self._read_exactly(-size % BLOCK)
        if len(body) < size or len(padding) < -size % BLOCK:
            raise RejectedFault("tar: ends in an extended header")
        return body

    def _make_entry(
        self,
        header: bytes,
        flag: bytes,
        pax: dict[bytes, list[bytes]],
        long_name: bytes | None,
        long_target: bytes | None,
    ) -> TarEntry:
        name = _last(pax, b"GNU.sparse.name") or _last(pax, b"path") or long_name or _ustar_name(header)
        kind = _KINDS.get(flag)
        if kind is None:
            raise RejectedFault(f"tar: {name[:200]!r}: entry type {flag!r} is not supported")
        if flag in {b"0", b"\0"} and name.endswith(b"/"):
            kind = EntryKind.DIRECTORY  # pre-POSIX archives have no type for directories
        has_data = kind is EntryKind.FILE
        size = _pax_number(pax, b"size", header[124:136]) if has_data else 0
        entry = TarEntry(
            name=name,
            kind=kind,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=_pax_number(pax, b"uid", header[108:116]),
            gid=_pax_number(pax, b"gid", header[116:124]),
            mtime_ns=_pax_time(pax, header[136:148]),
            size=size,
            stored_size=size,
            link_target=_last(pax, b"linkpath") or long_target or header[157:257].split(b"\0", 1)[0],
            device=(_number(header[329:337], "device major"), _number(header[337:345], "device minor"))
            if kind in {EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE}
            else (0, 0),
            xattrs={
                key.removeprefix(b"SCHILY.xattr."): values[-1]
                for key, values in pax.items()
                if key.startswith(b"SCHILY.xattr.")
            },
        )
        self._expect_data(entry.stored_size)
        if flag == b"S":
            self._read_old_sparse(entry, header)
        elif has_data and any(key.startswith(b"GNU.sparse.") for key in pax):
            self._read_pax_sparse(entry, pax)
        return entry

    def _read_old_sparse(self, entry: TarEntry, header: bytes) -> None:
        numbers = [_number(header[at : at + 12], "sparse map") for at in range(386, 482, 12)]
        more, entry.size = header[482], _number(header[483:495], "sparse size")
        while more:
            block = self._read_exactly(BLOCK)
            if len(block) < BLOCK or len(numbers) > 2 * _SPARSE_REGIONS_MAX:
                raise RejectedFault(f"tar: {entry.label}: sparse map is cut short or too long")
            numbers += [_number(block[at : at + 12], "sparse map") for at in range(0, 504, 12)]
            more = block[504]
        self._set_regions(entry, numbers)

    def _read_pax_sparse(self, entry: TarEntry, pax: dict[bytes, list[bytes]]) -> None:
        if (_last(pax, b"GNU.sparse.major"), _last(pax, b"GNU.sparse.minor")) == (b"1", b"0"):
            entry.size = _decimal(_last(pax, b"GNU.sparse.realsize"), "GNU.sparse.realsize")
            self._set_regions(entry, self._read_sparse_map_in_data())
            return
        if b"GNU.sparse.major" in pax:
            raise RejectedFault(f"tar: {entry.label}: this version of sparse files is not supported")
        if b"GNU.sparse.size" not in pax:
            return  # as GNU.sparse.name alone on a plain file
        entry.size = _decimal(_last(pax, b"GNU.sparse.size"), "GNU.sparse.size")
        if b"GNU.sparse.map" in pax:
            texts = pax[b"GNU.sparse.map"][-1].split(b",") if pax[b"GNU.sparse.map"][-1] else []
        else:
            offsets, lengths = pax.get(b"GNU.sparse.offset", []), pax.get(b"GNU.sparse.numbytes", [])
            if len(offsets) != len(lengths):
                raise RejectedFault(
                    f"tar: {entry.label}: sparse map has {len(offsets)} offsets, {len(lengths)} lengths"
                )
            texts = [text for pair in zip(offsets, lengths, strict=True) for text in pair]
        self._set_regions(entry, [_decimal(text, "sparse map") for text in texts])

    def _read_sparse_map_in_data(self) -> list[int]:
        """Sparse format 1.0: decimal lines (count, then offset and length of each) in blocks before the data."""
        numbers: list[int] = []
        wanted, pending = 1, b""
        while len(numbers) < wanted:
            if self._left < BLOCK:
                raise RejectedFault("tar: sparse map is cut short")
            block = self._read_exactly(BLOCK)
            if len(block) < BLOCK:
                raise RejectedFault("tar: ends in a sparse map")
            self._left -= BLOCK
            *lines, pending = (pending + block).split(b"\n")
            if len(pending) > BLOCK:
                raise RejectedFault("tar: sparse map holds something other than numbers")
            if wanted == 1 and lines:
                wanted = 1 + 2 * _decimal(lines[0], "sparse map")
                if wanted > 1 + 2 * _SPARSE_REGIONS_MAX:
                    raise RejectedFault(f"tar: sparse map of more than {_SPARSE_REGIONS_MAX} regions")
            numbers += [_decimal(line, "sparse map") for line in lines[: wanted - len(numbers)]]
        return numbers[1:]

    def _set_regions(self, entry: TarEntry, numbers: list[int]) -> None:
        if len(numbers) % 2 or len(numbers) > 2 * _SPARSE_REGIONS_MAX or entry.size > _SIZE_MAX:
            raise RejectedFault(f"tar: {entry.label}: sparse map has a wrong length")
        regions = tuple((numbers[at], numbers[at + 1]) for at in range(0, len(numbers), 2) if numbers[at + 1])
        end = 0
        for offset, length in regions:
            if offset < end or offset + length > entry.size:
                raise RejectedFault(f"tar: {entry.label}: sparse map overlaps itself or exceeds the file")
            end = offset + length
        if sum(length for _, length in regions) != self._left:
            raise RejectedFault(f"tar: {entry.label}: sparse map does not match the data")
        entry.regions = regions
        entry.stored_size = self._left


def _has_sum(header: bytes, wanted: int) -> bool:
    """Old tars summed signed bytes."""
    return sum(header) == wanted or sum(byte - 256 if byte > 127 else byte for byte in header) == wanted


def _ustar_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] != b"ustar\0":
        return name
    prefix = header[345:476] if header[508:512] == b"tar\0" else header[345:500]
    prefix = prefix.split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix else name


def _parse_pax(body: bytes) -> dict[bytes, list[bytes]]:
    """Records ``length key=value\\n``; values may hold any byte. Repeated keys keep their order (sparse 0.0 needs
    it).
    """
    records: dict[bytes, list[bytes]] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        length_text = body[at:space] if space > 0 else b""
        if not length_text.isdigit() or len(length_text) > 9:
            raise RejectedFault("tar: extended header record has no length")
        end = at + int(length_text)
        if end > len(body) or end <= space + 1 or body[end - 1 : end] != b"\n":
            raise RejectedFault("tar: extended header record has a wrong length")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise RejectedFault("tar: extended header record without a key")
        if key in {b"path", b"linkpath", b"GNU.sparse.name"} and b"\0" in value:
            raise RejectedFault("tar: extended header: a name holds a NUL")
        records.setdefault(key, []).append(value)
        at = end
    return records


def _last(pax: dict[bytes, list[bytes]], key: bytes) -> bytes | None:
    values = pax.get(key)
    return values[-1] if values else None


def _number(field_bytes: bytes, what: str) -> int:
    """Octal text, or GNU base-256 if the top bit is set. Negative numbers are refused (see ``_pax_time`` for times)."""
    if field_bytes[0] & 0x80:
        value = int.from_bytes(bytes([field_bytes[0] & 0x7F]) + field_bytes[1:], "big")
        if field_bytes[0] & 0x40 or value > _SIZE_MAX:
            raise RejectedFault(f"tar: {what} is negative or too large")
        return value
    text = field_bytes.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise RejectedFault(f"tar: {what} {text!r} is not a number")
    return int(text, 8)


def _decimal(text: bytes | None, what: str) -> int:
    if text is None or not text.isdigit() or len(text) > 19 or int(text) > _SIZE_MAX:
        raise RejectedFault(f"tar: {what} {text!r} is not a number")
    return int(text)


def _pax_number(pax: dict[bytes, list[bytes]], key: bytes, field_bytes: bytes) -> int:
    text = _last(pax, key)
    return _number(field_bytes, key.decode()) if text is None else _decimal(text, key.decode())


def _pax_time(pax: dict[bytes, list[bytes]], field_bytes: bytes) -> int:
    """Modification time in nanoseconds since 1970, before which it is cut off: few file systems agree about less."""
    text = _last(pax, b"mtime")
    if text is None:
        return 0 if field_bytes[0] & 0xC0 == 0xC0 else _clamp_seconds(_number(field_bytes, "mtime")) * 1_000_000_000
    if text.startswith(b"-"):
        return 0
    seconds, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise RejectedFault(f"tar: mtime {text[:40]!r} is not a number")
    nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    return _clamp_seconds(_decimal(seconds, "mtime")) * 1_000_000_000 + nanoseconds


def _clamp_seconds(seconds: int) -> int:
    return min(seconds, 0x3_7FFF_FFFF)  # the last second ext4 can store (year 2446)
