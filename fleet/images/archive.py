"""Archives in and out: ``docker save`` files, OCI layouts, and plain root file systems.

An archive arrives as a byte stream of unknown length and is spooled to disk, bounded, because both formats may list
their contents last. Layers go into the blob store as they are, so the same archive gives the same manifest digest on
every node. An image without a manifest (Docker's format has none) gets a synthesised OCI one.

Functions here block, except ``spool``; the store runs them in threads.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from fleet.errors import RejectedFault, TooLargeError, UserError
from fleet.images.blobs import BlobStore, storage_errors
from fleet.images.compression import PlainReader, detect_compression
from fleet.images.config import CONFIG_BYTES_MAX, parse_config
from fleet.images.jsondoc import Document, decode_document, encode_canonical
from fleet.images.manifest import (
    INDEX_TYPES,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MANIFEST_BYTES_MAX,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Manifest,
    Platform,
    build_manifest,
    choose_platform,
    parse_descriptor,
    parse_manifest,
)
from fleet.images.reference import Reference, parse_reference
from fleet.images.tarstream import EntryKind, TarReader
from fleet.images.threads import in_thread
from fleet.images.unpack import Cancelled, UnpackLimits

__all__ = [
    "ArchivedImage",
    "ImageToSave",
    "import_layer",
    "read_archive",
    "spool",
    "spooled",
    "write_archive",
    "write_archive_file",
]

_CHUNK = 1 << 20
_MEMBERS_MAX = 20_000
_LAYER_TYPES = {"plain": LAYER_TAR, "gzip": LAYER_GZIP, "zstd": LAYER_ZSTD}
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedImage:
    """An image whose blobs were copied into the store."""

    manifest: Manifest
    indexes: tuple[Manifest, ...]
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToSave:
    """An image to write into an archive, with the names to write it under."""

    manifest: Manifest
    image: ImageManifest
    references: tuple[Reference, ...]


async def spool(stream: AsyncIterator[bytes], write: Callable[[bytes], object], *, bytes_max: int) -> None:
    """Pass a stream to ``write``, in a thread and in large pieces. ``TooLargeError`` past ``bytes_max``, ``UserError``
    when it is empty.
    """
    size = 0
    pending = bytearray()
    async for data in stream:
        pending += data
        size += len(data)
        if size > bytes_max:
            raise TooLargeError(f"the archive is larger than {bytes_max} bytes")
        if len(pending) >= _CHUNK:
            await in_thread(write, bytes(pending))
            pending.clear()
    await in_thread(write, bytes(pending))
    if not size:
        raise UserError("the archive is empty")


@asynccontextmanager
async def spooled(stream: AsyncIterator[bytes], blobs: BlobStore, *, bytes_max: int) -> AsyncIterator[Path]:
    """A stream as a file, for as long as the block runs. Raises as ``spool`` does, and ``StorageFullError``."""
    path = blobs.scratch_path()
    try:
        with path.open("xb") as file:

            def write(data: bytes) -> None:
                with storage_errors("spool an archive"):
                    file.write(data)
                    file.flush()

            await spool(stream, write, bytes_max=bytes_max)
        yield path
    finally:
        await in_thread(path.unlink, missing_ok=True)  # freeing gigabytes takes a while


def read_archive(
    path: Path, blobs: BlobStore, *, platform: Platform, limits: UnpackLimits, cancel: threading.Event
) -> list[ArchivedImage]:
    """Copy every image of a spooled archive into the blob store. Raises ``RejectedFault`` or ``UserError`` saying what
    is wrong.
    """
    plain = blobs.scratch_path()
    try:
        with path.open("rb") as file:
            if detect_compression(file.read(6)) != "plain":
                file.seek(0)
                _decompress(file, plain, limits=limits, cancel=cancel)
                path = plain
        with path.open("rb") as file:
            archive = _Archive(file, blobs, cancel)
            if "oci-layout" in archive.members and "index.json" in archive.members:
                return _read_layout(archive, platform)
            if "manifest.json" in archive.members:
                return _read_docker(archive)
    finally:
        plain.unlink(missing_ok=True)
    raise UserError(
        "not an image archive: it holds neither manifest.json (docker save) nor index.json (OCI layout);"
        " a root file system is read by import, not load"
    )


def import_layer(
    digest: str,
    blobs: BlobStore,
    *,
    config: dict[str, Any],
    platform: Platform,
    created: datetime,
    message: str,
    limits: UnpackLimits,
) -> Manifest:
    """Make a one-layer image of a root file system tar that is a blob already; its manifest."""
    with blobs.path(digest).open("rb") as file:
        reader = PlainReader(file, bytes_max=limits.bytes_max, ratio_max=limits.ratio_max)
        if reader.compression == "plain":
            diff_id = digest
        else:
            reader.drain()
            diff_id = reader.digest
    layer = Descriptor(media_type=_LAYER_TYPES[reader.compression], digest=digest, size=blobs.size(digest))
    created_text = created.isoformat().replace("+00:00", "Z")
    body = encode_canonical(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            **({"variant": platform.variant} if platform.variant else {}),
            "config": config,
            "created": created_text,
            "history": [{"created": created_text, "comment": message or "imported"}],
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
    manifest = build_manifest(
        config=Descriptor(media_type=OCI_CONFIG, digest=blobs.put(body), size=len(body)), layers=[layer]
    )
    blobs.put(manifest.body)
    return manifest


def write_archive(images: Sequence[ImageToSave], blobs: BlobStore, file: BinaryIO) -> None:
    """Write images as one tar that is both an OCI layout and a Docker archive, as ``docker save`` does since 25.0."""
    written: set[str] = set()
    listed: list[dict[str, object]] = []
    docker: list[dict[str, object]] = []
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for image in images:
            for digest in (
                image.manifest.digest,
                image.image.config.digest,
                *(item.digest for item in image.image.layers),
            ):
                if digest not in written:
                    written.add(digest)
                    _add_blob(tar, blobs, digest)
            descriptor = {
                "mediaType": image.manifest.media_type,
                "digest": image.manifest.digest,
                "size": len(image.manifest.body),
            }
            for reference in image.references or (None,):
                names = (
                    {_NAME_ANNOTATIONS[0]: str(reference), _NAME_ANNOTATIONS[1]: reference.tag or ""}
                    if reference
                    else {}
                )
                listed.append({**descriptor, **({"annotations": names} if names else {})})
            docker.append(
                {
                    "Config": _blob_name(image.image.config.digest),
                    "RepoTags": [reference.familiar for reference in image.references] or None,
                    "Layers": [_blob_name(layer.digest) for layer in image.image.layers],
                }
            )
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        _add_bytes(tar, "oci-layout", encode_canonical({"imageLayoutVersion": "1.0.0"}))
        _add_bytes(tar, "index.json", encode_canonical(index))
        _add_bytes(tar, "manifest.json", encode_canonical({"list": docker})[len('{"list":') : -1])


def write_archive_file(images: Sequence[ImageToSave], blobs: BlobStore, path: Path) -> None:
    """The same as a new file. Raises ``StorageFullError``."""
    with storage_errors("write an archive"), path.open("xb") as file:
        write_archive(images, blobs, file)


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _add_blob(tar: tarfile.TarFile, blobs: BlobStore, digest: str) -> None:
    path = blobs.path(digest)
    member = tarfile.TarInfo(_blob_name(digest))
    member.size = path.stat().st_size
    member.mode = 0o644
    with path.open("rb") as file:
        tar.addfile(member, file)


def _add_bytes(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(body)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(body))


def _decompress(file: BinaryIO, target: Path, *, limits: UnpackLimits, cancel: threading.Event) -> None:
    reader = PlainReader(file, bytes_max=limits.archive_bytes_max, ratio_max=limits.ratio_max)
    with storage_errors("spool an archive"), target.open("xb") as plain:
        while data := reader.read(_CHUNK):
            if cancel.is_set():
                raise Cancelled
            plain.write(data)


class _Archive:
    """A plain tar on disk, indexed once: names to where their bytes are. Links inside it are followed by name."""

    def __init__(self, file: BinaryIO, blobs: BlobStore, cancel: threading.Event) -> None:
        self._file = file
        self._blobs = blobs
        self._cancel = cancel
        self.members: dict[str, tuple[int, int] | str] = {}
        for entry in TarReader(file):
            if len(self.members) >= _MEMBERS_MAX:
                raise RejectedFault(f"the archive has more than {_MEMBERS_MAX} members")
            if cancel.is_set():
                raise Cancelled
            name = posixpath.normpath(entry.name.decode(errors="surrogateescape"))
            if entry.kind is EntryKind.FILE:
                if entry.regions is not None:
                    raise RejectedFault(f"archive member {entry.label}: sparse files are not expected here")
                self.members[name] = (file.tell(), entry.size)
            elif entry.kind is EntryKind.SYMLINK:  # docker save before 25.0 links layers that appear twice
                target = entry.link_target.decode(errors="surrogateescape")
                self.members[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            elif entry.kind is EntryKind.HARDLINK:
                self.members[name] = posixpath.normpath(entry.link_target.decode(errors="surrogateescape"))

    def locate(self, name: str) -> tuple[int, int]:
        """(offset, size) of a member's bytes."""
        at: tuple[int, int] | str | None = posixpath.normpath(name)
        for _ in range(10):
            if not isinstance(at, str):
                break
            at = self.members.get(at)
        if at is None or isinstance(at, str):
            raise RejectedFault(f"the archive has no file {name[:200]!r}, which its own list names")
        return at

    def read(self, name: str, *, bytes_max: int) -> bytes:
        offset, size = self.locate(name)
        if size > bytes_max:
            raise RejectedFault(f"archive member {name[:200]!r}: larger than {bytes_max} bytes")
        self._file.seek(offset)
        return self._file.read(size)

    def copy(self, name: str, *, expected: Descriptor | None = None) -> Descriptor:
        """Copy a member into the blob store, checking digest and size when they are known."""
        offset, size = self.locate(name)
        if expected is not None and size != expected.size:
            raise RejectedFault(f"archive member {name!r}: {size} bytes, its descriptor says {expected.size}")
        if expected is not None and self._blobs.has(expected.digest):
            return expected
        self._file.seek(offset)
        compression = detect_compression(self._file.read(min(6, size)))
        self._file.seek(offset)
        with self._blobs.ingest() as ingest:
            while ingest.offset < size:
                if self._cancel.is_set():
                    raise Cancelled
                ingest.write(self._file.read(min(_CHUNK, size - ingest.offset)))
            digest = ingest.commit(expected.digest if expected is not None else None)
        return expected or Descriptor(media_type=_LAYER_TYPES[compression], digest=digest, size=size)

    def put(self, body: bytes) -> str:
        return self._blobs.put(body)

    def stored(self, digest: str) -> bytes:
        """A manifest that was copied: from the store, where its digest was checked, not from the archive."""
        return self._blobs.read(digest, bytes_max=MANIFEST_BYTES_MAX)


def _read_docker(archive: _Archive) -> list[ArchivedImage]:
    listing = archive.read("manifest.json", bytes_max=MANIFEST_BYTES_MAX)
    document = decode_document(b'{"manifest.json":' + listing + b"}", "archive", bytes_max=MANIFEST_BYTES_MAX + 32)
    copied: dict[str, Descriptor] = {}
    images = []
    for item in document.children("manifest.json"):
        body = archive.read(item.text("Config"), bytes_max=CONFIG_BYTES_MAX)
        config = parse_config(body, what=f"archive member {item.text('Config')!r}")
        names = item.texts("Layers")
        if len(names) != len(config.diff_ids):
            raise RejectedFault(f"{item.what}: {len(names)} layers, the configuration has {len(config.diff_ids)}")
        for name in names:
            if name not in copied:
                copied[name] = archive.copy(name)
        manifest = build_manifest(
            config=Descriptor(media_type=OCI_CONFIG, digest=archive.put(body), size=len(body)),
            layers=[copied[name] for name in names],
        )
        archive.put(manifest.body)
        references = tuple(parse_reference(text) for text in item.texts("RepoTags"))
        images.append(ArchivedImage(manifest=manifest, indexes=(), references=references))
    if not images:
        raise RejectedFault("the archive's manifest.json lists no image")
    return images


def _read_layout(archive: _Archive, platform: Platform) -> list[ArchivedImage]:
    layout = decode_document(archive.read("oci-layout", bytes_max=4096), "oci-layout", bytes_max=4096)
    if layout.text("imageLayoutVersion") != "1.0.0":
        raise RejectedFault(f"oci-layout: version {layout.text('imageLayoutVersion')!r} is not 1.0.0")
    index = decode_document(
        archive.read("index.json", bytes_max=MANIFEST_BYTES_MAX), "index.json", bytes_max=MANIFEST_BYTES_MAX
    )
    by_name: dict[Reference | None, list[Descriptor]] = {}
    for item in index.children("manifests"):
        descriptor = parse_descriptor(item)
        if descriptor.media_type in MANIFEST_TYPES + INDEX_TYPES:
            by_name.setdefault(_layout_name(item), []).append(descriptor)
    if not by_name:
        raise RejectedFault("index.json lists no image")
    found: dict[str, ArchivedImage] = {}
    for name, descriptors in by_name.items():
        several = len({item.digest for item in descriptors}) > 1 and any(item.platform for item in descriptors)
        for descriptor in [choose_platform(descriptors, platform)] if several else descriptors:
            manifest, indexes = _copy_image(archive, descriptor, platform)
            known = found.get(manifest.digest)
            names = {*(known.references if known else ()), *([name] if name else ())}
            found[manifest.digest] = ArchivedImage(
                manifest=manifest, indexes=indexes, references=tuple(sorted(names, key=str))
            )
    return list(found.values())


def _layout_name(item: Document) -> Reference | None:
    """The name an index.json entry was saved under; a bare tag, as umoci and skopeo write, names nothing."""
    annotations = item.text_map("annotations")
    for key in _NAME_ANNOTATIONS:
        text = annotations.get(key, "")
        if "/" in text or ":" in text:
            with suppress(UserError):  # the OCI layout allows any text here
                return parse_reference(text)
    return None


def _copy_image(archive: _Archive, descriptor: Descriptor, platform: Platform) -> tuple[Manifest, tuple[Manifest, ...]]:
    indexes: list[Manifest] = []
    for _ in range(4):
        archive.copy(_blob_name(descriptor.digest), expected=descriptor)
        body = archive.stored(descriptor.digest)
        manifest = Manifest(media_type=descriptor.media_type, digest=descriptor.digest, body=body)
        document = parse_manifest(manifest)
        if isinstance(document, ImageIndex):
            indexes.append(manifest)
            descriptor = choose_platform(document.manifests, platform)
            continue
        for part in (document.config, *document.layers):
            archive.copy(_blob_name(part.digest), expected=part)
        return manifest, tuple(indexes)
    raise RejectedFault(f"manifest {descriptor.digest}: indexes nested too deep")
