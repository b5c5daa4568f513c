"""New images from what is here: the parent's configuration and layers, with one step more. Blocks; called in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from fleet.images.blobs import BlobStore
from fleet.images.config import CONFIG_BYTES_MAX, HistoryEntry
from fleet.images.image import Image
from fleet.images.jsondoc import decode_document, encode_canonical
from fleet.images.manifest import LAYER_TAR, OCI_CONFIG, Descriptor, ImageManifest, Manifest, Platform, build_manifest

__all__ = ["Authored", "LayerWriter", "Sink", "author_manifest", "unnamed_ancestors"]


class Sink(Protocol):
    """Where a layer's tar goes."""

    def write(self, data: bytes, /) -> object: ...


LayerWriter = Callable[[Sink], int]
"""Writes a layer's plain tar; the number of entries. None means that there is no layer to add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authored:
    """One step: ``config`` is the whole inner configuration in Docker's field names."""

    config: dict[str, Any]
    created_by: str
    author: str = ""
    comment: str = ""


def unnamed_ancestors(images: Iterable[Image]) -> frozenset[str]:
    """Ids of images without a name that others were made of: steps of builds. They are told by their history and
    layers, with which those of their children begin; so a child that was removed counts no more.
    """
    known = list(images)
    if all(image.references for image in known):
        return frozenset()
    nodes: dict[tuple[int, HistoryEntry, str], int] = {}
    ends: dict[str, int] = {}
    passed: set[int] = set()
    for image in known:
        node, layers = 0, iter(image.diff_ids)
        for entry in image.history:
            passed.add(node)
            layer = "" if entry.empty_layer else next(layers, "")
            node = nodes.setdefault((node, entry, layer), len(nodes) + 1)
        ends[image.id] = node
    return frozenset(image.id for image in known if not image.references and ends[image.id] in passed - {0})


def author_manifest(
    parent: ImageManifest | None,
    layer_digest: str | None,
    step: Authored,
    *,
    blobs: BlobStore,
    platform: Platform,
    created: datetime,
) -> Manifest:
    """Write configuration and manifest of the new image. ``layer_digest`` is a plain tar that is a blob already."""
    document: dict[str, Any] = {
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
    }
    diff_ids: list[str] = []
    history: list[Any] = []
    layers: list[Descriptor] = []
    if parent is not None:
        body = blobs.read(parent.config.digest, bytes_max=CONFIG_BYTES_MAX)
        old = decode_document(body, f"configuration {parent.config.digest}", bytes_max=CONFIG_BYTES_MAX)
        document = {key: old.raw[key] for key in ("architecture", "os", "variant", "author") if old.raw.get(key)}
        diff_ids = list(old.child("rootfs", required=True).texts("diff_ids"))
        history = list(old.raw.get("history") or [])
        layers = list(parent.layers)
    moment = created.isoformat().replace("+00:00", "Z")
    entry: dict[str, Any] = {"created": moment, "created_by": step.created_by}
    if step.comment:
        entry["comment"] = step.comment
    if step.author:
        entry["author"] = document["author"] = step.author
    if layer_digest is None:
        entry["empty_layer"] = True
    else:
        diff_ids.append(layer_digest)
        layers.append(Descriptor(media_type=LAYER_TAR, digest=layer_digest, size=blobs.size(layer_digest)))
    document |= {
        "config": {key: value for key, value in step.config.items() if value},
        "created": moment,
        "history": [*history, entry],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    if step.comment:
        document["comment"] = step.comment
    text = encode_canonical(document)
    config = Descriptor(media_type=OCI_CONFIG, digest=blobs.put(text), size=len(text))
    manifest = build_manifest(config=config, layers=layers)
    blobs.put(manifest.body)
    return manifest
