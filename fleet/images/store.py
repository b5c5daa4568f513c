"""The images of one host: the way in and out of everything in this package.

    load, import_tar, fetch  ->  blobs (by digest)  ->  layers (by chain id)  ->  record (names)  ->  Image

Content is written first and the record last, so a crash leaves either an image or garbage, and garbage is swept when
the store opens. Removing goes the other way round: the record goes first, then whatever no record leads to. Content is
swept only while nothing is being added, which is why adding never needs to announce what it is about to use.

One process at a time holds the store (a lock on ``lock``). Methods belong to one event loop; blocking work runs in
threads. ``get`` and ``list`` answer from memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from fleet.clock import Clock, SystemClock
from fleet.errors import (
    ConflictError,
    FleetError,
    NotFoundError,
    RejectedFault,
    StorageFullError,
    UnavailableError,
    UserError,
)
from fleet.images.archive import ImageToSave, import_layer, read_archive, spool, write_archive
from fleet.images.authoring import Authored, LayerWriter, author_manifest, unnamed_ancestors
from fleet.images.blobs import BlobStore, storage_errors
from fleet.images.changes import apply_changes
from fleet.images.config import CONFIG_BYTES_MAX, ConfigDocument, parse_config
from fleet.images.fetch import Fetcher
from fleet.images.image import Image
from fleet.images.inspect import image_history
from fleet.images.interrupted import InterruptedPulls
from fleet.images.layers import LayerSource, LayerStore, chain_ids
from fleet.images.manifest import (
    MANIFEST_BYTES_MAX,
    ImageManifest,
    Manifest,
    Platform,
    host_platform,
    parse_manifest,
    runs_on,
)
from fleet.images.progress import Progress, ProgressCallback
from fleet.images.push import Pusher, RegistryTarget
from fleet.images.records import ImageRecord, RecordFile
from fleet.images.reference import Reference, is_digest, parse_reference
from fleet.images.sources import Source
from fleet.images.threads import in_thread, in_thread_until_cancelled
from fleet.images.unpack import UnpackLimits
from fleet.logs import get_logger
from fleet.metrics import Histogram

__all__ = ["ImageStore", "Image"]

_SHORT_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})", re.ASCII)
_CHUNK = 1 << 20

# named here because ``ImageStore.list`` hides the type inside the class
Images: TypeAlias = list[Image]
Names: TypeAlias = list[str]
Removals: TypeAlias = list[dict[str, str]]
Steps: TypeAlias = list[dict[str, Any]]
InUse: TypeAlias = Callable[[], Collection[str]]

_log = get_logger("images")


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the store shows, by manifest digest; both have the same keys. Replaced whole, never changed."""

    records: Mapping[str, ImageRecord]
    images: Mapping[str, Image]


class ImageStore:
    """Images below one directory. Make one with ``open``, give it back with ``close``."""

    def __init__(
        self,
        root: Path,
        *,
        limits: UnpackLimits,
        platform: Platform,
        clock: Clock,
        rng: random.Random,
        lock_fd: int,
    ) -> None:
        """Use ``open``."""
        self._clock = clock
        self._limits = limits
        self._platform = platform
        self._file = RecordFile(root)
        self._blobs = BlobStore(root)
        self._layers = LayerStore(root, self._blobs, limits=limits)
        self._interrupted = InterruptedPulls(root)
        self._fetcher = Fetcher(self._blobs, interrupted=self._interrupted, limits=limits, clock=clock, rng=rng)
        self._pusher = Pusher(self._blobs, clock=clock, rng=rng)
        self._state = _State(records={}, images={})
        self._gate = asyncio.Lock()
        """Held while content is swept and while an addition starts: they exclude each other."""
        self._adding = 0
        self._held: Counter[str] = Counter()
        """Image ids somebody works with, see ``holding``."""
        self._sweep_owed = False
        self.fetches_s = Histogram(
            "fleet_image_fetch_seconds",
            "Getting an image from peers or a registry, by how it ended",
            ("outcome",),
            buckets=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0),
        )
        for outcome in ("done", "present", "failed"):
            self.fetches_s.begin(outcome)
        self._unpacking = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._release = weakref.finalize(self, os.close, lock_fd)

    @classmethod
    async def open(
        cls,
        root: Path,
        *,
        limits: UnpackLimits = UnpackLimits(),  # noqa: B008 - frozen
        platform: Platform | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> ImageStore:
        """Open or make the store. Sweeps what a crash left, and unpacks anew what is missing.

        Raises ``ConflictError`` while another process holds it, ``RuntimeFault`` when ``images.json`` is damaged.
        """
        store = cls(
            root,
            limits=limits,
            platform=platform or host_platform(),
            clock=clock or SystemClock(),
            rng=rng or random.Random(),  # noqa: S311 - spreads retries, nothing secret
            lock_fd=await in_thread(_lock, root),
        )
        try:
            await in_thread(store._blobs.open)
            await in_thread(store._interrupted.open)
            await in_thread(store._layers.open)
            for record in (await in_thread(store._file.read)).values():
                await store._revive(record)
            await in_thread(store._sweep)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Give the store back. Work under way is the caller's to end first. Idempotent."""
        self._release()

    # --- adding

    async def load(self, stream: AsyncIterator[bytes]) -> Images:
        """Load a ``docker save`` or OCI layout archive (plain, gzip or zstd). All images or, on error, none.

        Raises ``UserError`` saying what is wrong with the archive, ``TooLargeError``, ``StorageFullError``.
        """
        async with self._addition(), self._spooled(stream) as path:
            try:
                found = await in_thread_until_cancelled(
                    lambda cancel: read_archive(
                        path, self._blobs, platform=self._platform, limits=self._limits, cancel=cancel
                    )
                )
                loaded = []
                for item in found:
                    config = await self._prepare(item.manifest)
                    loaded.append((item, config))
            except RejectedFault as fault:
                raise UserError(f"load: {fault}") from fault
            images = []
            for item, _ in loaded:
                record = ImageRecord(
                    manifest_digest=item.manifest.digest,
                    media_type=item.manifest.media_type,
                    references=tuple(str(reference) for reference in item.references),
                    indexes={index.digest: index.media_type for index in item.indexes},
                )
                images.append(await self._add(record))
            return images

    async def import_tar(
        self, stream: AsyncIterator[bytes], *, reference: str | None, changes: Sequence[str] = (), message: str = ""
    ) -> Image:
        """Make a one-layer image of a root file system tar (plain, gzip or zstd), as ``docker import`` does.

        ``changes`` are Dockerfile lines (CMD, ENTRYPOINT, ENV, EXPOSE, ...). Raises ``UserError`` and
        ``TooLargeError``.
        """
        name = parse_reference(reference) if reference else None
        if name is not None and name.digest:
            raise UserError(f"import: {reference!r} names a digest; give a tag")
        config = apply_changes({}, changes)
        async with self._addition():
            try:
                with self._blobs.ingest() as ingest:
                    await spool(stream, ingest.write, bytes_max=self._limits.archive_bytes_max)
                    digest = await in_thread(ingest.commit)
                manifest = await in_thread(
                    import_layer,
                    digest,
                    self._blobs,
                    config=config,
                    platform=self._platform,
                    created=self._clock.now(),
                    message=message,
                    limits=self._limits,
                )
                await self._prepare(manifest)
            except RejectedFault as fault:
                raise UserError(f"import: {fault}") from fault
            record = ImageRecord(
                manifest_digest=manifest.digest,
                media_type=manifest.media_type,
                references=(str(name),) if name else (),
            )
            return await self._add(record)

    async def derive(
        self,
        parent: Image | None,
        step: Authored,
        layer: LayerWriter | None = None,
        *,
        hold: Callable[[str], None] = lambda _id: None,
    ) -> Image:
        """Make an unnamed image: the parent (None: nothing), one layer more if ``layer`` writes entries, and the step's
        configuration. ``hold`` (see ``holding``) is called before anybody sees it. What is half-made when it fails is swept.
        Raises ``RejectedFault``, ``StorageFullError``.
        """
        async with self._addition():
            digest: str | None = None
            if layer is not None:
                with self._blobs.ingest() as ingest:
                    if await in_thread(layer, ingest):
                        digest = await in_thread(ingest.commit)
            base: ImageManifest | None = None
            if parent is not None:
                stored = await in_thread(self._stored_manifest, self._state.records[parent.manifest_digest])
                base, _ = await in_thread(self._read, stored)
            manifest = await in_thread(
                author_manifest,
                base,
                digest,
                step,
                blobs=self._blobs,
                platform=self._platform,
                created=self._clock.now(),
            )
            await self._prepare(manifest)
            made = parse_manifest(manifest)
            assert isinstance(made, ImageManifest)
            hold(made.config.digest)
            return await self._add(ImageRecord(manifest_digest=manifest.digest, media_type=manifest.media_type))

    async def fetch(
        self,
        reference: str,
        sources: Sequence[Source],
        *,
        platform: Platform | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """Have the image a reference names, asking the sources in order; a digest that is here already asks nobody.

        ``platform``: which of an index's images, if not this host's. Content that is here is not fetched again, and what
        came before a cancellation, a kill or a failure that may go away is there for the next try. Raises
        ``NotFoundError``, ``UnavailableError`` (retry), ``UnauthorizedError``, ``RejectedFault`` (this image will never
        do), ``StorageFullError``.
        """
        name = parse_reference(reference)
        report = progress or (lambda _step: None)
        began = asyncio.get_running_loop().time()
        is_here = bool(name.digest and self._by_digest(name.digest))
        outcome = "failed"
        try:
            image = await self._fetch(name, sources, platform=platform, report=report)
            outcome = "present" if is_here else "done"
        finally:
            self.fetches_s.observe(asyncio.get_running_loop().time() - began, outcome)
        return image

    async def _fetch(
        self, name: Reference, sources: Sequence[Source], *, platform: Platform | None, report: ProgressCallback
    ) -> Image:
        async with self._addition(keep_on_failure=True):  # trying again continues with what is here
            known = self._by_digest(name.digest) if name.digest else None
            if known is not None and (platform is None or runs_on(known.config.platform, platform)):
                record = self._state.records[known.manifest_digest]
                image = await self._add(replace(record, repo_digests=(f"{name.name}@{name.digest}",)))
                report(Progress(reference=name.familiar, stage="done", digest=image.manifest_digest))
                return image
            try:
                fetched = await self._fetcher.fetch(name, sources, report, platform=platform or self._platform)
                made_for = fetched.config.config.platform
                if platform is not None and not runs_on(made_for, platform):
                    raise RejectedFault(f"image {name.familiar}: is for {made_for}, and there is none for {platform}")
                await self._prepare(fetched.manifest, report=report, reference=name)
            except FleetError as error:
                if isinstance(error, StorageFullError) or not isinstance(error, UnavailableError):
                    await in_thread(self._interrupted.end, str(name))
                    self._sweep_owed = True
                raise
            record = ImageRecord(
                manifest_digest=fetched.manifest.digest,
                media_type=fetched.manifest.media_type,
                references=() if name.digest else (str(name),),
                repo_digests=(f"{name.name}@{fetched.target.digest}",),
                indexes={index.digest: index.media_type for index in fetched.indexes},
            )
            image = await self._add(record)
            await in_thread(self._interrupted.end, str(name))
            report(Progress(reference=name.familiar, stage="done", digest=image.manifest_digest))
            return image

    # --- asking

    def get(self, name_or_id: str) -> Image:
        """The image with a name (``busybox``), id (whole or the beginning) or digest. ``NotFoundError`` "no such
        image".
        """
        if is_digest(name_or_id):
            image = self._by_digest(name_or_id)
        else:
            image = self._by_name(name_or_id) or self._by_short_id(name_or_id)
        if image is None:
            raise NotFoundError(f"no such image: {name_or_id}")
        return image

    def list(self) -> Images:
        """Every image, newest first."""
        return sorted(
            self._state.images.values(),
            key=lambda image: (image.created.timestamp() if image.created else 0.0, image.manifest_digest),
            reverse=True,
        )

    def history(self, image: Image) -> Steps:
        """How the image was made, in the Docker Engine API's shape, newest step first."""
        return image_history(image)

    def manifest(self, reference_or_digest: str) -> Manifest:
        """What this host answers a peer that asks for a name or digest: the index if there is one. Reads one small
        file.

        Raises ``NotFoundError``.
        """
        digest = reference_or_digest if is_digest(reference_or_digest) else parse_reference(reference_or_digest).digest
        image = self.get(digest or reference_or_digest)
        record = self._state.records[image.manifest_digest]
        if digest is None:
            name = parse_reference(reference_or_digest).name
            served = [item.partition("@")[2] for item in record.repo_digests if item.startswith(f"{name}@")]
            digest = next((item for item in reversed(served) if item in record.indexes), record.manifest_digest)
        elif digest != record.manifest_digest and digest not in record.indexes:
            raise NotFoundError(f"no such manifest: {reference_or_digest}")
        media_type = record.indexes.get(digest, record.media_type)
        body = self._blobs.read(digest, bytes_max=MANIFEST_BYTES_MAX)
        return Manifest(media_type=media_type, digest=digest, body=body)

    def blob_path(self, digest: str) -> Path:
        """The file with a blob's bytes, to be served as it is. ``NotFoundError``; ``UserError`` for what is no
        digest.
        """
        return self._blobs.path(digest)

    # --- changing

    async def tag(self, ref_or_id: str, new_ref: str) -> Image:
        """Give an image one more name; an image that had the name loses it."""
        name = parse_reference(new_ref)
        if name.digest:
            raise UserError(f"tag: {new_ref!r} names a digest; give a tag")
        async with self._addition():
            record = self._state.records[self.get(ref_or_id).manifest_digest]
            return await self._add(replace(record, references=(str(name),)))

    @contextmanager
    def holding(self) -> Iterator[Callable[[str], None]]:
        """What is called with the ids of images that nobody may remove until the context is left: for somebody who works with
        images that have neither a name nor a container yet.
        """
        held: Names = []

        def hold(image_id: str) -> None:
            held.append(image_id)
            self._held[image_id] += 1

        try:
            yield hold
        finally:
            self._held.subtract(held)
            self._held = +self._held

    async def remove(self, ref_or_id: str, *, force: bool = False, in_use: InUse = frozenset) -> Removals:
        """Remove a name, and the image with its last one; ``Untagged`` and ``Deleted`` entries as Docker answers.

        ``in_use`` tells the image ids that containers are made from, asked at the moment of removal; such an image, or one
        that is held, never loses its content. From that moment nobody can begin to use it. ``force`` removes all names of an
        image given by id, and the names of one that is in use. Raises ``NotFoundError`` and ``ConflictError``.
        """
        async with self._writing:
            image = self.get(ref_or_id)
            record = self._state.records[image.manifest_digest]
            named = self._named_by(record, ref_or_id)
            going = (named,) if named else record.references
            left = tuple(name for name in record.references if name not in going)
            if named is None and len(record.references) > 1 and not force:
                raise ConflictError(
                    f"unable to delete {ref_or_id} (must be forced) - image is referenced in multiple repositories"
                )
            is_used = image.id in in_use() or image.id in self._held
            if not left and is_used and not force:
                raise ConflictError(
                    f"unable to delete {ref_or_id} (must be forced) - image is being used by a container"
                )
            answer = [{"Untagged": parse_reference(name).familiar} for name in going]
            before = self._state
            records = dict(self._state.records)
            if left or is_used:
                kept = tuple(item for item in record.repo_digests if left)
                records[image.manifest_digest] = replace(record, references=left, repo_digests=kept)
            else:
                answer += [{"Untagged": parse_reference(item).familiar} for item in record.repo_digests]
                answer.append({"Deleted": image.id})
                del records[image.manifest_digest]
                self._hide(image)
            try:
                await self._write(records)
            except (FleetError, OSError):
                self._state = before
                raise
        freed = await self._collect()
        return answer + [{"Deleted": chain_id} for chain_id in freed]

    def _hide(self, image: Image) -> None:
        """Before the record is gone from disk: a container that is begun in between would lose its image."""
        self._state = _State(
            records={key: value for key, value in self._state.records.items() if key != image.manifest_digest},
            images={key: value for key, value in self._state.images.items() if key != image.manifest_digest},
        )

    async def prune(self, *, dangling_only: bool = True, in_use: InUse = frozenset) -> tuple[Removals, int]:
        """Remove images nobody uses - those without names, or all; Docker's ``ImagesDeleted`` and the bytes freed.
        Steps of a build stay as long as an image made of them stays. What interrupted fetches left goes too, unless one is
        under way.
        """
        answer: Removals = []
        before = sum(image.size_bytes for image in self._state.images.values())
        tried: set[str] = set()
        while True:  # a removed step lays bare the one before
            held = unnamed_ancestors(self.list())
            going = [
                image
                for image in self.list()
                if image.id not in tried.union(in_use(), self._held, held) and not (dangling_only and image.references)
            ]
            if not going:
                break
            tried.update(image.id for image in going)
            for image in going:
                answer += await self.remove(image.manifest_digest, force=True, in_use=in_use)
        await self._collect(forget_interrupted=True)
        return answer, before - sum(image.size_bytes for image in self._state.images.values())

    async def save(self, names: Sequence[str], sink: Callable[[bytes], Awaitable[None]]) -> None:
        """Write images as one archive that both Docker and OCI tools load, piece by piece into ``sink``."""
        async with self._addition():  # nothing is swept while it is read
            wanted: dict[str, ImageToSave] = {}
            for name in names:
                image = self.get(name)
                record = self._state.records[image.manifest_digest]
                manifest = Manifest(
                    media_type=record.media_type,
                    digest=record.manifest_digest,
                    body=self._blobs.read(record.manifest_digest, bytes_max=MANIFEST_BYTES_MAX),
                )
                named = self._named_by(record, name)
                references = {parse_reference(named)} if named else set()
                known = wanted.get(manifest.digest)
                document = parse_manifest(manifest)
                assert isinstance(document, ImageManifest)
                wanted[manifest.digest] = ImageToSave(
                    manifest=manifest,
                    image=document,
                    references=tuple(sorted({*references, *(known.references if known else ())}, key=str)),
                )
            scratch = self._blobs.scratch_path()
            try:
                await in_thread(_write_archive_file, list(wanted.values()), self._blobs, scratch)
                with scratch.open("rb") as file:
                    while data := await in_thread(file.read, _CHUNK):
                        await sink(data)
            finally:
                await in_thread(scratch.unlink, missing_ok=True)

    async def push(self, name: str, target: RegistryTarget, *, progress: ProgressCallback | None = None) -> Manifest:
        """Send the image with this name to the registry the name says; the manifest as it is there now.

        ``target`` was made for the same name. Raises ``NotFoundError``, ``UserError`` for a digest, and what the
        registry answers.
        """
        reference = parse_reference(name)
        if reference.digest or reference.tag is None:
            raise UserError(f"push: {name!r} names a digest; give a tag")
        async with self._addition():  # nothing is swept while it is sent
            record = self._state.records[self.get(name).manifest_digest]
            manifest = await in_thread(self._stored_manifest, record)
            document = parse_manifest(manifest)
            assert isinstance(document, ImageManifest)
            report = progress or (lambda _step: None)
            await self._pusher.push(
                document, manifest,
                target=target, reference=reference, elsewhere=self._elsewhere(reference), report=report,
            )  # fmt: skip
            await self._add(replace(record, repo_digests=(f"{reference.name}@{manifest.digest}",)))
            return manifest

    # --- inside

    def _elsewhere(self, reference: Reference) -> dict[str, Names]:
        """By blob, the other repositories of a reference's registry that images with it were fetched from or sent to."""
        found: dict[str, Names] = {}
        for digest, record in self._state.records.items():
            names = [parse_reference(text) for text in record.repo_digests]
            paths = [name.path for name in names if name.domain == reference.domain and name.path != reference.path]
            image = self._state.images[digest]
            for blob in (*image.layer_digests, image.id):
                known = found.setdefault(blob, [])
                known += [path for path in paths if path not in known]
        return found

    @asynccontextmanager
    async def _addition(self, *, keep_on_failure: bool = False) -> AsyncIterator[None]:
        """Content may be added, or read without being swept. What a failed one leaves is swept, unless it is kept."""
        async with self._gate:
            self._adding += 1
        try:
            yield
        except BaseException:
            self._sweep_owed = self._sweep_owed or not keep_on_failure
            raise
        finally:
            self._adding -= 1
            if self._sweep_owed:
                await self._collect()

    @asynccontextmanager
    async def _spooled(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Path]:
        path = self._blobs.scratch_path()
        try:
            with path.open("xb") as file:

                def write(data: bytes) -> None:
                    with storage_errors("spool an archive"):
                        file.write(data)
                        file.flush()

                await spool(stream, write, bytes_max=self._limits.archive_bytes_max)
            yield path
        finally:
            await in_thread(path.unlink, missing_ok=True)  # freeing gigabytes takes a while

    async def _prepare(
        self, manifest: Manifest, *, report: ProgressCallback | None = None, reference: Reference | None = None
    ) -> ConfigDocument:
        """Have every layer of a manifest unpacked whose blobs are all here."""
        image, config = await in_thread(self._read, manifest)
        layers = [
            LayerSource(digest=layer.digest, diff_id=diff_id)
            for layer, diff_id in zip(image.layers, config.diff_ids, strict=True)
        ]
        loop = asyncio.get_running_loop()

        def on_layer(layer: LayerSource, finished: bool) -> None:
            if report is not None and reference is not None:
                stage = Progress(
                    reference=reference.familiar, stage="unpacked" if finished else "unpacking", digest=layer.digest
                )
                loop.call_soon_threadsafe(report, stage)

        async with self._unpacking:
            await in_thread_until_cancelled(
                lambda cancel: self._layers.ensure(layers, cancel=cancel, on_layer=on_layer)
            )
        return config

    async def _add(self, record: ImageRecord) -> Image:
        """Merge a record whose content is complete, take its names from others, write, and show the image."""
        async with self._writing:
            record = replace(record, added=self._clock.now().isoformat())
            known = self._state.records.get(record.manifest_digest)
            merged = replace(known.merged_with(record), added=record.added) if known else record
            records = {
                digest: replace(other, references=tuple(n for n in other.references if n not in record.references))
                for digest, other in self._state.records.items()
            }
            records[merged.manifest_digest] = merged
            await self._write(records)
            return self._state.images[merged.manifest_digest]

    async def _write(self, records: dict[str, ImageRecord]) -> None:
        def write() -> None:  # whole in the thread: a cancelled caller must not part the file from what is shown
            images = {digest: self._view(record) for digest, record in records.items()}
            self._file.write(records)
            self._state = _State(records=records, images=images)

        await in_thread(write)

    def _read(self, manifest: Manifest) -> tuple[ImageManifest, ConfigDocument]:
        document = parse_manifest(manifest)
        if not isinstance(document, ImageManifest):
            raise RejectedFault(f"manifest {manifest.digest}: is an index, not an image")
        body = self._blobs.read(document.config.digest, bytes_max=CONFIG_BYTES_MAX)
        config = parse_config(body, what=f"configuration {document.config.digest}")
        if len(config.diff_ids) != len(document.layers):
            raise RejectedFault(
                f"image {document.config.digest}: {len(config.diff_ids)} diff_ids for {len(document.layers)} layers"
            )
        if config.config.os != self._platform.os:
            raise RejectedFault(f"image {document.config.digest}: made for {config.config.os}, this host runs Linux")
        return document, config

    def _view(self, record: ImageRecord) -> Image:
        known = self._state.images.get(record.manifest_digest)
        names = tuple(sorted(parse_reference(name).familiar for name in record.references))
        digests = tuple(sorted(parse_reference(name).familiar for name in record.repo_digests))
        if known is not None:
            return replace(known, references=names, repo_digests=digests)
        document, config = self._read(self._stored_manifest(record))
        sizes = tuple(self._layers.record(chain_id).size_bytes for chain_id in chain_ids(config.diff_ids))
        return Image(
            id=document.config.digest,
            manifest_digest=record.manifest_digest,
            references=names,
            repo_digests=digests,
            config=config.config,
            created=config.created,
            author=config.author,
            comment=config.comment,
            history=config.history,
            diff_ids=config.diff_ids,
            layer_digests=tuple(layer.digest for layer in document.layers),
            layer_sizes=sizes,
            layer_dirs=self._layers.directories(config.diff_ids),
            size_bytes=sum(sizes),
        )

    def _stored_manifest(self, record: ImageRecord) -> Manifest:
        body = self._blobs.read(record.manifest_digest, bytes_max=MANIFEST_BYTES_MAX)
        return Manifest(media_type=record.media_type, digest=record.manifest_digest, body=body)

    async def _revive(self, record: ImageRecord) -> None:
        """At opening: show an image, unpacking layers that are missing. One whose blobs are gone or damaged is
        dropped, loudly.
        """
        try:
            await self._prepare(await in_thread(self._stored_manifest, record))
            image = await in_thread(self._view, record)
        except (NotFoundError, RejectedFault) as error:
            _log.warning("image dropped", manifest=record.manifest_digest, names=record.references, cause=str(error))
            return
        key = record.manifest_digest
        self._state = _State(records={**self._state.records, key: record}, images={**self._state.images, key: image})

    async def _collect(self, *, forget_interrupted: bool = False) -> Names:
        """Sweep if nothing is being added; else the next removal, or opening, does. Chain ids of the layers that
        went.
        """
        async with self._gate:
            self._sweep_owed = self._adding > 0
            if forget_interrupted and not self._sweep_owed:
                await in_thread(self._interrupted.clear)
            return [] if self._sweep_owed else await in_thread(self._sweep)

    def _sweep(self) -> Names:
        """Delete every blob and layer that no record leads to."""
        state = self._state
        blobs: set[str] = set()
        layers: set[str] = set()
        for digest, record in state.records.items():
            image = state.images[digest]
            blobs |= {digest, image.id, *image.layer_digests, *record.indexes}
            layers |= set(chain_ids(image.diff_ids))
        gone = [chain_id for chain_id in self._layers.chain() if chain_id not in layers]
        for chain_id in gone:
            self._layers.remove(chain_id)
        awaited = self._interrupted.digests(self._clock.now().timestamp())
        self._blobs.sweep_partial(awaited)
        for digest in list(self._blobs.digests()):
            if digest not in blobs and digest not in awaited:
                self._blobs.remove(digest)
        return gone

    def _by_digest(self, digest: str) -> Image | None:
        if digest in self._state.images:
            return self._state.images[digest]
        found = [
            record
            for record in self._state.records.values()
            if digest in record.indexes or self._state.images[record.manifest_digest].id == digest
        ]
        newest = max(found, key=lambda record: (bool(record.references), record.added), default=None)
        return self._state.images[newest.manifest_digest] if newest else None

    def _by_name(self, text: str) -> Image | None:
        try:
            name = parse_reference(text)
        except UserError:
            return None
        if name.digest:
            return self._by_digest(name.digest)
        wanted = str(name)
        return next(
            (
                self._state.images[digest]
                for digest, record in self._state.records.items()
                if wanted in record.references
            ),
            None,
        )

    def _by_short_id(self, text: str) -> Image | None:
        match = _SHORT_ID.fullmatch(text)
        if match is None:
            return None
        found = {image.id for image in self._state.images.values() if image.id.startswith(f"sha256:{match[1]}")}
        if len(found) > 1:
            raise UserError(f"image id {text} is ambiguous: {len(found)} images begin with it")
        return self._by_digest(found.pop()) if found else None

    def _named_by(self, record: ImageRecord, text: str) -> str | None:
        """The complete name ``text`` means, when it is one of the record's rather than an id."""
        try:
            name = str(parse_reference(text))
        except UserError:
            return None
        return name if name in record.references else None


def _lock(root: Path) -> int:
    """Make the root private and hold it; the descriptor to close when done."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConflictError(f"image store {root} is in use by another process") from error
    return fd


def _write_archive_file(images: Sequence[ImageToSave], blobs: BlobStore, path: Path) -> None:
    with storage_errors("write an archive"), path.open("xb") as file:
        write_archive(images, blobs, file)
