"""What records lead to: manifests and configurations as documents, layers unpacked; and what nothing leads to, swept."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

from fleet.errors import RejectedFault
from fleet.images.archive import ImageToSave
from fleet.images.blobs import BlobStore
from fleet.images.catalog import Catalog, named_by
from fleet.images.config import CONFIG_BYTES_MAX, ConfigDocument, parse_config
from fleet.images.image import Image
from fleet.images.layers import LayerSource, LayerStore, chain_ids
from fleet.images.manifest import MANIFEST_BYTES_MAX, ImageManifest, Manifest, Platform, parse_manifest
from fleet.images.progress import Progress, ProgressCallback
from fleet.images.records import ImageRecord
from fleet.images.reference import Reference, parse_reference
from fleet.images.threads import in_thread, in_thread_until_cancelled

__all__ = ["Contents"]


class Contents:
    """Over the blobs and layers of one store."""

    def __init__(self, blobs: BlobStore, layers: LayerStore, *, platform: Platform) -> None:
        self._blobs = blobs
        self._layers = layers
        self._platform = platform
        self._unpacking = asyncio.Lock()

    async def prepare(
        self, manifest: Manifest, *, report: ProgressCallback | None = None, reference: Reference | None = None
    ) -> ConfigDocument:
        """Have every layer of a manifest unpacked whose blobs are all here."""
        image, config = await in_thread(self.read, manifest)
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

    def read(self, manifest: Manifest) -> tuple[ImageManifest, ConfigDocument]:
        """An image's documents. Raises ``RejectedFault``, ``NotFoundError``. Blocks."""
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

    def view(self, record: ImageRecord, known: Image | None) -> Image:
        """What is shown of a record; ``known``: as it was shown before. Blocks."""
        names = tuple(sorted(parse_reference(name).familiar for name in record.references))
        digests = tuple(sorted(parse_reference(name).familiar for name in record.repo_digests))
        if known is not None:
            return replace(known, references=names, repo_digests=digests)
        document, config = self.read(self.stored_manifest(record))
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

    def stored_manifest(self, record: ImageRecord) -> Manifest:
        """Raises ``NotFoundError``. Blocks."""
        return self.manifest(record.media_type, record.manifest_digest)

    def manifest(self, media_type: str, digest: str) -> Manifest:
        """A manifest or index that is here. Raises ``NotFoundError``. Blocks."""
        body = self._blobs.read(digest, bytes_max=MANIFEST_BYTES_MAX)
        return Manifest(media_type=media_type, digest=digest, body=body)

    def to_save(self, catalog: Catalog, names: Sequence[str]) -> list[ImageToSave]:
        """What an archive of these images holds, each once with the names it was asked by. Raises ``NotFoundError``. Blocks."""
        wanted: dict[str, ImageToSave] = {}
        for name in names:
            record = catalog.records[catalog.get(name).manifest_digest]
            manifest = self.stored_manifest(record)
            named = named_by(record, name)
            references = {parse_reference(named)} if named else set()
            known = wanted.get(manifest.digest)
            document = parse_manifest(manifest)
            assert isinstance(document, ImageManifest)
            wanted[manifest.digest] = ImageToSave(
                manifest=manifest,
                image=document,
                references=tuple(sorted({*references, *(known.references if known else ())}, key=str)),
            )
        return list(wanted.values())

    def sweep(self, catalog: Catalog, *, awaited: Collection[str]) -> list[str]:
        """Delete every blob and layer that no record leads to, and no interrupted fetch waits for (``awaited``); the chain ids
        of the layers. Blocks.
        """
        blobs: set[str] = set()
        layers: set[str] = set()
        for digest, record in catalog.records.items():
            image = catalog.images[digest]
            blobs |= {digest, image.id, *image.layer_digests, *record.indexes}
            layers |= set(chain_ids(image.diff_ids))
        gone = [chain_id for chain_id in self._layers.chain() if chain_id not in layers]
        for chain_id in gone:
            self._layers.remove(chain_id)
        self._blobs.sweep_partial(awaited)
        for digest in list(self._blobs.digests()):
            if digest not in blobs and digest not in awaited:
                self._blobs.remove(digest)
        return gone
