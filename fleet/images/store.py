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
import os
import random
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from fleet.clock import Clock, SystemClock
from fleet.errors import FleetError, NotFoundError, RejectedFault, StorageFullError, UnavailableError, UserError
from fleet.images.archive import import_layer, read_archive, spool, spooled, write_archive_file
from fleet.images.authoring import Authored, LayerWriter, author_manifest, unnamed_ancestors
from fleet.images.blobs import BlobStore
from fleet.images.catalog import Catalog
from fleet.images.changes import apply_changes
from fleet.images.contents import Contents
from fleet.images.fetch import Fetcher
from fleet.images.image import Image
from fleet.images.inspect import image_history
from fleet.images.interrupted import InterruptedPulls
from fleet.images.layers import LayerStore
from fleet.images.manifest import ImageManifest, Manifest, Platform, host_platform, parse_manifest, runs_on
from fleet.images.progress import Progress, ProgressCallback
from fleet.images.push import Pusher, RegistryTarget
from fleet.images.records import ImageRecord, RecordFile, lock_root
from fleet.images.reference import Reference, parse_reference
from fleet.images.sources import Source
from fleet.images.sweeping import SweepGate
from fleet.images.threads import in_thread, in_thread_until_cancelled
from fleet.images.unpack import UnpackLimits
from fleet.logs import get_logger
from fleet.metrics import Histogram

__all__ = ["ImageStore", "Image"]

_CHUNK = 1 << 20

# named here because ``ImageStore.list`` hides the type inside the class
Images: TypeAlias = list[Image]
Names: TypeAlias = list[str]
Removals: TypeAlias = list[dict[str, str]]
Steps: TypeAlias = list[dict[str, Any]]
InUse: TypeAlias = Callable[[], Collection[str]]

_log = get_logger("images")


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
        self._catalog = Catalog(records={}, images={})
        self._contents = Contents(self._blobs, self._layers, platform=platform)
        self._gate = SweepGate()
        self._held: Counter[str] = Counter()
        """Image ids somebody works with, see ``holding``."""
        self.fetches_s = Histogram(
            "fleet_image_fetch_seconds",
            "Getting an image from peers or a registry, by how it ended",
            ("outcome",),
            buckets=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0),
        )
        for outcome in ("done", "present", "failed"):
            self.fetches_s.begin(outcome)
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
            lock_fd=await in_thread(lock_root, root),
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
        async with (
            self._addition(),
            spooled(stream, self._blobs, bytes_max=self._limits.archive_bytes_max) as path,
        ):
            try:
                found = await in_thread_until_cancelled(
                    lambda cancel: read_archive(
                        path, self._blobs, platform=self._platform, limits=self._limits, cancel=cancel
                    )
                )
                loaded = []
                for item in found:
                    config = await self._contents.prepare(item.manifest)
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
                await self._contents.prepare(manifest)
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
                stored = await in_thread(self._contents.stored_manifest, self._catalog.records[parent.manifest_digest])
                base, _ = await in_thread(self._contents.read, stored)
            manifest = await in_thread(
                author_manifest,
                base,
                digest,
                step,
                blobs=self._blobs,
                platform=self._platform,
                created=self._clock.now(),
            )
            await self._contents.prepare(manifest)
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
        is_here = bool(name.digest and self._catalog.by_digest(name.digest))
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
            known = self._catalog.by_digest(name.digest) if name.digest else None
            if known is not None and (platform is None or runs_on(known.config.platform, platform)):
                record = self._catalog.records[known.manifest_digest]
                image = await self._add(replace(record, repo_digests=(f"{name.name}@{name.digest}",)))
                report(Progress(reference=name.familiar, stage="done", digest=image.manifest_digest))
                return image
            try:
                fetched = await self._fetcher.fetch(name, sources, report, platform=platform or self._platform)
                made_for = fetched.config.config.platform
                if platform is not None and not runs_on(made_for, platform):
                    raise RejectedFault(f"image {name.familiar}: is for {made_for}, and there is none for {platform}")
                await self._contents.prepare(fetched.manifest, report=report, reference=name)
            except FleetError as error:
                if isinstance(error, StorageFullError) or not isinstance(error, UnavailableError):
                    await in_thread(self._interrupted.end, str(name))
                    self._gate.owe()
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
        return self._catalog.get(name_or_id)

    def list(self) -> Images:
        """Every image, newest first."""
        return self._catalog.newest_first()

    def history(self, image: Image) -> Steps:
        """How the image was made, in the Docker Engine API's shape, newest step first."""
        return image_history(image)

    def manifest(self, reference_or_digest: str) -> Manifest:
        """What this host answers a peer that asks for a name or digest: the index if there is one. Reads one small
        file.

        Raises ``NotFoundError``.
        """
        media_type, digest = self._catalog.manifest_of(reference_or_digest)
        return self._contents.manifest(media_type, digest)

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
            record = self._catalog.records[self.get(ref_or_id).manifest_digest]
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
            before = self._catalog
            image, left, answer = before.plan_removal(
                ref_or_id, force=force, is_used=lambda image: image.id in in_use() or image.id in self._held
            )
            records = dict(before.records)
            if left is not None:
                records[image.manifest_digest] = left
            else:
                del records[image.manifest_digest]
                # before the record is gone from disk: a container that is begun in between would lose its image
                self._catalog = before.without(image)
            try:
                await self._write(records)
            except (FleetError, OSError):
                self._catalog = before
                raise
        freed = await self._gate.collect(self._sweep)
        return answer + [{"Deleted": chain_id} for chain_id in freed]

    async def prune(self, *, dangling_only: bool = True, in_use: InUse = frozenset) -> tuple[Removals, int]:
        """Remove images nobody uses - those without names, or all; Docker's ``ImagesDeleted`` and the bytes freed.
        Steps of a build stay as long as an image made of them stays. What interrupted fetches left goes too, unless one is
        under way.
        """
        answer: Removals = []
        before = sum(image.size_bytes for image in self._catalog.images.values())
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
        await self._gate.collect(self._sweep, first=self._interrupted.clear)
        return answer, before - sum(image.size_bytes for image in self._catalog.images.values())

    async def save(self, names: Sequence[str], sink: Callable[[bytes], Awaitable[None]]) -> None:
        """Write images as one archive that both Docker and OCI tools load, piece by piece into ``sink``."""
        async with self._addition():  # nothing is swept while it is read
            wanted = self._contents.to_save(self._catalog, names)
            scratch = self._blobs.scratch_path()
            try:
                await in_thread(write_archive_file, wanted, self._blobs, scratch)
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
            record = self._catalog.records[self.get(name).manifest_digest]
            manifest = await in_thread(self._contents.stored_manifest, record)
            document = parse_manifest(manifest)
            assert isinstance(document, ImageManifest)
            report = progress or (lambda _step: None)
            await self._pusher.push(
                document, manifest,
                target=target, reference=reference, elsewhere=self._catalog.elsewhere(reference), report=report,
            )  # fmt: skip
            await self._add(replace(record, repo_digests=(f"{reference.name}@{manifest.digest}",)))
            return manifest

    # --- inside

    def _addition(self, *, keep_on_failure: bool = False) -> AbstractAsyncContextManager[None]:
        return self._gate.addition(self._sweep, keep_on_failure=keep_on_failure)

    async def _add(self, record: ImageRecord) -> Image:
        """Merge a record whose content is complete, take its names from others, write, and show the image."""
        async with self._writing:
            record = replace(record, added=self._clock.now().isoformat())
            known = self._catalog.records.get(record.manifest_digest)
            merged = replace(known.merged_with(record), added=record.added) if known else record
            records = {
                digest: replace(other, references=tuple(n for n in other.references if n not in record.references))
                for digest, other in self._catalog.records.items()
            }
            records[merged.manifest_digest] = merged
            await self._write(records)
            return self._catalog.images[merged.manifest_digest]

    async def _write(self, records: dict[str, ImageRecord]) -> None:
        def write() -> None:  # whole in the thread: a cancelled caller must not part the file from what is shown
            shown = self._catalog.images
            images = {digest: self._contents.view(record, shown.get(digest)) for digest, record in records.items()}
            self._file.write(records)
            self._catalog = Catalog(records=records, images=images)

        await in_thread(write)

    async def _revive(self, record: ImageRecord) -> None:
        """At opening: show an image, unpacking layers that are missing. One whose blobs are gone or damaged is
        dropped, loudly.
        """
        try:
            await self._contents.prepare(await in_thread(self._contents.stored_manifest, record))
            image = await in_thread(self._contents.view, record, self._catalog.images.get(record.manifest_digest))
        except (NotFoundError, RejectedFault) as error:
            _log.warning("image dropped", manifest=record.manifest_digest, names=record.references, cause=str(error))
            return
        self._catalog = self._catalog.with_image(record, image)

    def _sweep(self) -> Names:
        awaited = self._interrupted.digests(self._clock.now().timestamp())
        return self._contents.sweep(self._catalog, awaited=awaited)
