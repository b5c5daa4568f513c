"""Getting an image's content from several sources: manifest, then configuration and layers, in parallel, each with
failover.

Sources are asked in order. One that lacks something, answers wrong bytes, or stays unreachable after a few tries is
passed over for that blob; bytes already received are kept and the next source continues after them, since the digest
judges the whole. So does the next fetch, if this one is ended in the middle by a fault, its caller or ``kill -9``
(``interrupted``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from weakref import WeakValueDictionary

from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.errors import FleetError, NotFoundError, RejectedFault, StorageFullError, UnavailableError
from fleet.images.blobs import BlobStore, Ingest
from fleet.images.config import CONFIG_BYTES_MAX, ConfigDocument, parse_config
from fleet.images.interrupted import InterruptedPulls
from fleet.images.manifest import (
    MANIFEST_BYTES_MAX,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Manifest,
    Platform,
    choose_platform,
    parse_manifest,
)
from fleet.images.progress import Progress, ProgressCallback, Stage
from fleet.images.reference import Reference
from fleet.images.retry import ATTEMPTS, back_off_s
from fleet.images.sources import Source
from fleet.images.threads import in_thread
from fleet.images.unpack import UnpackLimits

__all__ = ["Fetcher", "FetchedImage"]

_PARALLEL_LAYERS = 3  # as Docker's max-concurrent-downloads
_MANIFEST_ATTEMPTS = 3  # somebody is waiting to hear that a registry cannot be reached
_ATTEMPTS_WITH_OTHERS = 2  # of a source that is not the last to ask
_WRITE_BYTES = 1 << 20
_INDEX_DEPTH_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedImage:
    """Everything of one image is in the blob store."""

    target: Manifest
    """What the reference names: an index, or the manifest itself."""
    indexes: tuple[Manifest, ...]
    manifest: Manifest
    image: ImageManifest
    config: ConfigDocument


class Fetcher:
    """Fetches into one blob store. Two fetches of the same blob share one transfer."""

    def __init__(
        self,
        blobs: BlobStore,
        *,
        interrupted: InterruptedPulls,
        limits: UnpackLimits,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._blobs = blobs
        self._interrupted = interrupted
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def fetch(
        self, reference: Reference, sources: Sequence[Source], report: ProgressCallback, *, platform: Platform
    ) -> FetchedImage:
        """Fetch whatever of the image is not here yet. Cancels safely: what came so far is there for the next fetch.

        Raises ``NotFoundError`` when no source has it, else the first error that is not that.
        """
        if not sources:
            raise NotFoundError(f"fetch {reference.familiar}: nowhere to fetch it from")
        name = str(reference)
        report(Progress(reference=reference.familiar, stage="resolving"))
        sources = list(sources)
        target = await self._manifest(name, sources, report)
        indexes: list[Manifest] = []
        manifest = target
        for _ in range(_INDEX_DEPTH_MAX):
            document = parse_manifest(manifest)
            if isinstance(document, ImageManifest):
                break
            indexes.append(manifest)
            chosen = choose_platform(document.manifests, platform)
            manifest = await self._manifest(str(reference.with_digest(chosen.digest)), sources, report)
            if manifest.media_type != chosen.media_type:
                raise RejectedFault(
                    f"manifest {chosen.digest}: listed as {chosen.media_type}, is {manifest.media_type}"
                )
        if isinstance(document, ImageIndex):
            raise RejectedFault(f"manifest {target.digest}: indexes nested deeper than {_INDEX_DEPTH_MAX}")
        parts = (document.config, *document.layers)
        wanted = {item.digest for item in (*indexes, manifest)} | {item.digest for item in parts}
        await in_thread(self._interrupted.begin, name, wanted)
        for item in (*indexes, manifest):
            await in_thread(self._blobs.put, item.body)

        def only_trouble(step: Progress) -> None:
            if step.stage == "retrying":  # people are shown layers
                report(step)

        await self._blob(document.config, sources, reference, only_trouble, bytes_max=CONFIG_BYTES_MAX)
        body = await in_thread(lambda: self._blobs.read(document.config.digest, bytes_max=CONFIG_BYTES_MAX))
        config = parse_config(body, what=f"configuration {document.config.digest}")
        if len(config.diff_ids) != len(document.layers):
            raise RejectedFault(
                f"image {document.config.digest}: {len(config.diff_ids)} diff_ids for {len(document.layers)} layers"
            )
        await self._layers(document.layers, sources, reference, report)
        return FetchedImage(target=target, indexes=tuple(indexes), manifest=manifest, image=document, config=config)

    async def _layers(
        self, layers: Sequence[Descriptor], sources: Sequence[Source], reference: Reference, report: ProgressCallback
    ) -> None:
        gate = asyncio.Semaphore(_PARALLEL_LAYERS)

        async def one(layer: Descriptor) -> None:
            async with gate:
                await self._blob(layer, sources, reference, report, bytes_max=self._limits.blob_bytes_max)

        for layer in layers:
            _report(report, reference, "waiting", layer)
        try:
            async with TaskGroup() as group:
                for layer in {item.digest: item for item in layers}.values():
                    group.create_task(one(layer))
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from failures

    async def _manifest(self, reference: str, sources: list[Source], report: ProgressCallback) -> Manifest:
        """Ask in order. A source that cannot be reached moves to the end of the list: blobs are asked of others first."""
        failures: list[FleetError] = []
        asked = list(sources)
        for source in asked:
            attempts = _MANIFEST_ATTEMPTS if source is asked[-1] else 1
            try:
                return await self._manifest_from(source, reference, attempts, report)
            except FleetError as error:
                failures.append(error)
                if isinstance(error, UnavailableError):
                    sources.remove(source)
                    sources.append(source)
        raise _worst(failures, f"fetch {reference}")

    async def _manifest_from(self, source: Source, reference: str, attempts: int, report: ProgressCallback) -> Manifest:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(120):
                    manifest = await source.manifest(reference)
            except TimeoutError as error:
                raise UnavailableError(f"{source.name}: manifest {reference}: no answer in 120 s") from error
            except UnavailableError as error:
                attempt += 1
                if attempt >= attempts:
                    raise
                await self._back_off(attempt - 1, error, reference, "", report)
            else:
                if len(manifest.body) > MANIFEST_BYTES_MAX:
                    raise RejectedFault(f"{source.name}: manifest {reference}: too large")
                return manifest

    async def _blob(
        self,
        descriptor: Descriptor,
        sources: Sequence[Source],
        reference: Reference,
        report: ProgressCallback,
        *,
        bytes_max: int,
    ) -> None:
        if descriptor.size > bytes_max:
            raise RejectedFault(f"blob {descriptor.digest}: {descriptor.size} bytes, more than {bytes_max}")
        lock = self._locks.setdefault(descriptor.digest, asyncio.Lock())
        async with lock:
            if self._blobs.has(descriptor.digest):
                _report(report, reference, "exists", descriptor)
                return
            with await in_thread(self._blobs.resume, descriptor.digest, descriptor.size) as ingest:
                failures: list[FleetError] = []
                for source in sources:
                    attempts = ATTEMPTS if source is sources[-1] else _ATTEMPTS_WITH_OTHERS
                    try:
                        await self._blob_from(source, descriptor, ingest, reference, report, attempts=attempts)
                    except StorageFullError:
                        raise
                    except FleetError as error:
                        failures.append(error)
                    else:
                        _report(report, reference, "downloaded", descriptor, current=descriptor.size)
                        return
            raise _worst(failures, f"fetch {reference.familiar}: blob {descriptor.digest}")

    async def _blob_from(
        self,
        source: Source,
        descriptor: Descriptor,
        ingest: Ingest,
        reference: Reference,
        report: ProgressCallback,
        *,
        attempts: int,
    ) -> None:
        """The whole blob, or the rest of it, checked and published. Wrong bytes are forgotten, whoever sent them; if some
        of them were here before, this source is asked for all of it.
        """
        attempt = 0
        while True:
            before = ingest.offset
            had = ingest.resumed_bytes
            try:
                if ingest.offset < descriptor.size:
                    await self._receive(source, descriptor, ingest, reference, report)
                if ingest.offset < descriptor.size:
                    raise UnavailableError(
                        f"{source.name}: blob {descriptor.digest}:"
                        f" ended after {ingest.offset} of {descriptor.size} bytes"
                    )
                await in_thread(ingest.commit, descriptor.digest)
                return
            except StorageFullError:
                ingest.reset()  # a full disk is no place for half a blob
                raise
            except RejectedFault:
                ingest.reset()  # somebody's bytes are wrong, and nobody can tell whose
                if not had:
                    raise
            except UnavailableError as error:
                attempt = 0 if ingest.offset > before else attempt + 1
                if attempt >= attempts:
                    ingest.resumed_bytes = ingest.offset  # the next source continues after bytes that are not its own
                    raise
                await self._back_off(attempt, error, reference.familiar, descriptor.digest, report)

    async def _receive(
        self, source: Source, descriptor: Descriptor, ingest: Ingest, reference: Reference, report: ProgressCallback
    ) -> None:
        pending = bytearray()

        async def flush() -> None:
            await in_thread(ingest.write, bytes(pending))
            pending.clear()
            _report(report, reference, "downloading", descriptor, current=ingest.offset)

        try:
            async with aclosing(source.blob(descriptor.digest, ingest.offset)) as stream:
                async for data in stream:
                    pending += data
                    if ingest.offset + len(pending) > descriptor.size:
                        raise RejectedFault(
                            f"{source.name}: blob {descriptor.digest}: longer than {descriptor.size} bytes"
                        )
                    if len(pending) >= _WRITE_BYTES:
                        await flush()
        except UnavailableError:
            await flush()
            raise
        await flush()

    async def _back_off(
        self, attempt: int, error: UnavailableError, reference: str, digest: str, report: ProgressCallback
    ) -> None:
        delay_s = back_off_s(attempt, error, self._rng)
        report(Progress(reference=reference, stage="retrying", digest=digest, detail=f"in {delay_s:.1f} s: {error}"))
        await self._clock.sleep(delay_s)


def _report(
    report: ProgressCallback, reference: Reference, stage: Stage, descriptor: Descriptor, *, current: int = 0
) -> None:
    report(
        Progress(
            reference=reference.familiar,
            stage=stage,
            digest=descriptor.digest,
            current_bytes=current,
            total_bytes=descriptor.size,
        )
    )


def _worst(failures: Sequence[FleetError], what: str) -> FleetError:
    """The error to raise when every source failed: the first that is more telling than "not found", with all texts."""
    telling = next((error for error in failures if not isinstance(error, NotFoundError)), failures[0])
    text = "; ".join(str(error) for error in failures)
    if isinstance(telling, UnavailableError):
        return UnavailableError(f"{what}: {text}", retry_after_s=telling.retry_after_s)
    return type(telling)(f"{what}: {text}")
