"""What COPY and ADD bring: files below a scratch directory that nobody else writes to, as items of a layer. Blocks."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from fleet.builder.ignore import Ignore, glob_pattern
from fleet.containers.layertar import member_of
from fleet.errors import RejectedFault, UserError
from fleet.images.authoring import Sink
from fleet.images.compression import PlainReader, detect_compression

__all__ = ["Item", "collect", "digest_of", "is_tar", "locate", "remove_ignored", "select", "write_items"]

_LINKS_MAX: Final = 40
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of the layer: its name there, and where it is now."""

    name: str
    path: Path
    owner: tuple[int, int] | None
    mode: int | None


def locate(root: Path, name: str) -> Path:
    """``name`` below ``root``; symbolic links are resolved as if ``root`` were ``/``. Raises ``FileNotFoundError``."""
    for _ in range(_LINKS_MAX):
        parts = [part for part in posixpath.normpath("/" + name).split("/") if part]
        at = root
        for index, part in enumerate(parts):
            at = at / part
            if stat.S_ISLNK(at.lstat().st_mode):
                link = str(at.readlink())
                base = "/" if link.startswith("/") else "/" + "/".join(parts[:index])
                name = posixpath.join(base, link, *parts[index + 1 :])
                break
        else:
            return at
    raise UserError(f"{name}: too many symbolic links")


def select(root: Path, pattern: str) -> list[str]:
    """Names below ``root`` that fit a source of COPY; sorted."""
    clean = posixpath.normpath("/" + pattern).lstrip("/")
    if not any(char in clean for char in "*?["):
        return [clean]
    found = [""]
    for part in clean.split("/"):
        matcher = glob_pattern(part, what="source")
        found = [
            posixpath.join(head, name)
            for head in found
            if (root / head).is_dir() and not (root / head).is_symlink()
            for name in _names(root / head)
            if matcher.fullmatch(name)
        ]
    return found


def collect(path: Path, name: str, *, owner: tuple[int, int] | None, mode: int | None) -> list[Item]:
    """The file, or the directory with everything in it, as ``name`` of the layer."""
    items = [Item(name=name, path=path, owner=owner, mode=mode)] if name else []
    if path.is_dir() and not path.is_symlink():
        for child in _names(path):
            items += collect(path / child, posixpath.join(name, child), owner=owner, mode=mode)
    return items


def digest_of(items: Sequence[Item]) -> str:
    """Names, modes, owners, contents; not times, which a checkout changes."""
    total = hashlib.sha256()
    for item in items:
        status = item.path.lstat()
        owner = item.owner or (status.st_uid, status.st_gid)
        head = [item.name, status.st_mode if item.mode is None else item.mode, *owner]
        if stat.S_ISLNK(status.st_mode):
            head.append(str(item.path.readlink()))
        elif stat.S_ISREG(status.st_mode):
            with item.path.open("rb") as file:
                head.append(hashlib.file_digest(file, "sha256").hexdigest())
        total.update(repr(head).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def write_items(items: Sequence[Item], sink: Sink) -> int:
    """A layer's tar of the items; their number."""
    with tarfile.open(fileobj=cast("tarfile._Fileobj", sink), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for item in items:
            status = item.path.lstat()
            member = member_of(item.name, status)
            if member is None:
                raise RejectedFault(f"{item.name}: is neither a file, a directory nor a link")
            if item.owner is not None:
                member.uid, member.gid = item.owner
            if item.mode is not None and not member.issym():
                member.mode = item.mode
            if member.issym():
                member.linkname = str(item.path.readlink())
                tar.addfile(member)
            elif member.isreg():
                with item.path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
    return len(items)


def is_tar(path: Path) -> bool:
    """Whether ADD unpacks the file: a plain, gzip or zstd tar."""
    with path.open("rb") as file:
        try:
            detect_compression(file.read(6))
            file.seek(0)
            head = PlainReader(file, bytes_max=_CHUNK, ratio_max=1 << 20).read(512)
        except RejectedFault:
            return False
    return head[257:262] == b"ustar"


def remove_ignored(root: Path, rules: Ignore, *, keep: frozenset[str]) -> None:
    """Take away what ``.dockerignore`` excludes, except the names in ``keep``."""
    for directory, _folders, files in os.walk(root, topdown=False):
        relative = Path(directory).relative_to(root)
        for name in files:
            path = str(relative / name)
            if path not in keep and rules.excludes(path):
                (Path(directory) / name).unlink()
        inner = str(relative)
        if inner != "." and rules.excludes(inner) and not _names(Path(directory)):
            Path(directory).rmdir()


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
