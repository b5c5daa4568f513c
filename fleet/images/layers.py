"""Layers unpacked once, each as an overlay lower directory, named by chain id.

    snapshots/<chain id hex>/fs/           the directory to mount from
    snapshots/<chain id hex>/layer.json    diff_id, bytes, entries, whether its root hides everything below
    snapshots/.partial-<random>/           being unpacked, or being removed; swept away when the store opens

The chain id (OCI image spec, config.md) names a layer together with all below it, because what a layer's tar unpacks
to depends on them: missing parents take their owner and mode from below, names may go through lower links. Unpacking
fills a partial directory, compares the diff_id, flushes the file system once an image, and renames; so a crash leaves
only ``.partial-*``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet.durable import sync_directory
from fleet.errors import RejectedFault
from fleet.images.beneath import is_opaque, is_whiteout, open_directory, remove_tree, sync_filesystem
from fleet.images.blobs import BlobStore, storage_errors
from fleet.images.merged import keeps_xattr
from fleet.images.unpack import UnpackLimits, unpack_layer

__all__ = ["LayerStore", "LayerRecord", "LayerSource", "chain_ids", "flatten_layers"]

_PARTIAL = ".partial-"
_EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What is known about an unpacked layer."""

    diff_id: str
    size_bytes: int
    entries: int
    opaque_root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSource:
    """A layer to have: its blob, and the digest its plain bytes must have."""

    digest: str
    diff_id: str


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of each layer, lowest first: sha256 of the parent's chain id, a space, and the diff_id."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
        else:
            chain.append(diff_id)
    return tuple(chain)


class LayerStore:
    """Unpacked layers below one directory. Blocks; one writer at a time (``ImageStore`` sees to it)."""

    def __init__(self, root: Path, blobs: BlobStore, *, limits: UnpackLimits) -> None:
        self._root = root / "snapshots"
        self._blobs = blobs
        self._limits = limits
        self._records: dict[str, LayerRecord] = {}

    def open(self) -> None:
        """Make the directory, remove half-unpacked layers, read what is there."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in list(self._root.iterdir()):
            if path.name.startswith(_PARTIAL):
                self._erase(path.name)
            elif path.name != _EMPTY and (record := _read_record(path)) is not None:
                self._records[f"sha256:{path.name}"] = record
            elif path.name != _EMPTY:
                self._discard(path.name)
        (self._root / _EMPTY / "fs").mkdir(mode=0o755, parents=True, exist_ok=True)

    def has(self, chain_id: str) -> bool:
        """Whether the layer is unpacked."""
        return chain_id in self._records

    def record(self, chain_id: str) -> LayerRecord:
        """Facts about an unpacked layer; the caller knows it is there."""
        return self._records[chain_id]

    def chain(self) -> Iterator[str]:
        """Every unpacked layer's chain id."""
        yield from list(self._records)

    def directories(self, diff_ids: Sequence[str]) -> tuple[Path, ...]:
        """The overlay lower directories of an image, topmost first; never empty, since overlayfs needs one."""
        found = []
        for chain_id in reversed(chain_ids(diff_ids)):
            found.append(self._directory(chain_id))
            if self._records[chain_id].opaque_root:
                break
        return tuple(found) or (self._root / _EMPTY / "fs",)

    def ensure(
        self,
        layers: Sequence[LayerSource],
        *,
        cancel: threading.Event,
        on_layer: Callable[[LayerSource, bool], None] = lambda _layer, _finished: None,
    ) -> None:
        """Have every layer unpacked, lowest first. All or nothing becomes visible, after one flush.

        Raises what ``unpack_layer`` does, with the layer named, and ``RejectedFault`` when plain bytes do not have the
        diff_id.
        """
        chain = chain_ids([layer.diff_id for layer in layers])
        partial: dict[str, str] = {}
        try:
            lowers: list[Path] = []
            for layer, chain_id in zip(layers, chain, strict=True):
                if self.has(chain_id):
                    lowers.insert(0, self._directory(chain_id))
                    continue
                if chain_id in partial:
                    raise RejectedFault(f"layer {layer.digest}: listed twice in one place")
                on_layer(layer, False)
                name = partial[chain_id] = _PARTIAL + secrets.token_hex(16)
                with storage_errors(f"unpack layer {layer.digest}"):
                    self._unpack(layer, name, lowers, cancel)
                lowers.insert(0, self._root / name / "fs")
                on_layer(layer, True)
            with storage_errors("flush layers"):
                self._publish(partial)
        finally:
            for name in partial.values():
                if (self._root / name).exists():
                    self._erase(name)

    def remove(self, chain_id: str) -> int:
        """Remove an unpacked layer; the bytes it took. The caller knows nothing is mounted from it."""
        record = self._records.pop(chain_id)
        self._discard(chain_id.removeprefix("sha256:"))
        return record.size_bytes

    def _unpack(self, layer: LayerSource, name: str, lowers: Sequence[Path], cancel: threading.Event) -> None:
        (self._root / name).mkdir(mode=0o700)
        target = self._root / name / "fs"
        target.mkdir(mode=0o755)
        target.chmod(0o755)
        try:
            with self._blobs.path(layer.digest).open("rb") as blob:
                result = unpack_layer(blob, into=target, lowers=lowers, limits=self._limits, cancel=cancel)
        except RejectedFault as fault:
            raise RejectedFault(f"unpack layer {layer.digest}: {fault}") from fault
        if result.diff_id != layer.diff_id:
            raise RejectedFault(
                f"unpack layer {layer.digest}: its plain content has digest {result.diff_id},"
                f" the image says {layer.diff_id}"
            )
        record = LayerRecord(
            diff_id=result.diff_id, size_bytes=result.size_bytes, entries=result.entries, opaque_root=result.opaque_root
        )
        (self._root / name / "layer.json").write_text(json.dumps(asdict(record)))

    def _publish(self, partial: dict[str, str]) -> None:
        if not partial:
            return
        root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(root_fd)
        finally:
            os.close(root_fd)
        for chain_id, name in partial.items():
            final = self._root / chain_id.removeprefix("sha256:")
            (self._root / name).rename(final)
            record = _read_record(final)
            assert record is not None, f"{final} was written a moment ago"
            self._records[chain_id] = record
        sync_directory(self._root)

    def _discard(self, name: str) -> None:
        """Out of sight first, so that a crash half-way does not leave a layer with files missing."""
        doomed = _PARTIAL + secrets.token_hex(16)
        (self._root / name).rename(self._root / doomed)
        sync_directory(self._root)
        self._erase(doomed)

    def _erase(self, name: str) -> None:
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, os.fsencode(name))
        finally:
            os.close(fd)

    def _directory(self, chain_id: str) -> Path:
        return self._root / chain_id.removeprefix("sha256:") / "fs"


def _read_record(path: Path) -> LayerRecord | None:
    """The layer's facts, or None when the directory is not a layer of ours (it is then removed and unpacked anew)."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        raw = json.loads((path / "layer.json").read_bytes())
        if (path / "fs").is_dir():
            return LayerRecord(**raw)
    return None


def flatten_layers(layer_dirs: Sequence[Path], into: Path) -> None:
    """Move the content of layers (topmost first, no longer needed afterwards) into an empty directory of the same file
    system, so that it shows what an overlay of them would. No mark of overlayfs remains. Blocks.

    Moving keeps owners, modes, attributes, times and hard links. What lies in the layers was put there by
    ``unpack_layer``, so its depth is bounded; nothing here follows a symbolic link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(into, flags)
    try:
        for layer in reversed(layer_dirs):
            source = os.open(layer, flags)
            try:
                _move_over(source, target)
            finally:
                os.close(source)
    finally:
        os.close(target)


def _move_over(source: int, target: int) -> None:
    """Move one layer's directory over what the layers below it left; the target then has its attributes."""
    status = os.fstat(source)
    if is_opaque(source):
        for child in os.listdir(target):
            remove_tree(target, os.fsencode(child))
    for child in os.listdir(source):
        name = os.fsencode(child)
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            _move_directory(source, target, name)
            continue
        remove_tree(target, name)
        if not is_whiteout(found):
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    attributes = {name for name in os.listxattr(source) if keeps_xattr(name)}
    for name_left in os.listxattr(target):
        if keeps_xattr(name_left) and name_left not in attributes:
            os.removexattr(target, name_left)
    for attribute in attributes:
        os.setxattr(target, attribute, os.getxattr(source, attribute))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _move_directory(source: int, target: int, name: bytes) -> None:
    try:
        below = os.stat(name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=target)
    else:
        if not stat.S_ISDIR(below.st_mode):
            os.unlink(name, dir_fd=target)
            os.mkdir(name, 0o700, dir_fd=target)
    inner_source = open_directory(source, name)
    try:
        inner_target = open_directory(target, name)
        try:
            _move_over(inner_source, inner_target)
        finally:
            os.close(inner_target)
    finally:
        os.close(inner_source)
