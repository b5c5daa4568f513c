"""OCI layouts for tests, made by hand so that odd layers can be put into them."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

__all__ = ["Blob", "write_layout", "layout_tar", "layer_blob"]

OCI = "application/vnd.oci.image"
Blob = tuple[str, str, bytes]
"""(media type, diff_id, bytes) of a layer."""


def digest_of(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def layer_blob(plain: bytes, *, compression: str = "gzip") -> Blob:
    """A layer of some tar bytes."""
    packed = {
        "gzip": lambda: gzip.compress(plain, mtime=0),
        "zstd": lambda: zstandard.compress(plain),
        "plain": lambda: plain,
    }[compression]()
    suffix = "" if compression == "plain" else f"+{compression}"
    return f"{OCI}.layer.v1.tar{suffix}", digest_of(plain), packed


def write_layout(
    directory: Path,
    layers: Sequence[Blob],
    *,
    tag: str = "tiny",
    architecture: str = "amd64",
    config: dict[str, Any] | None = None,
) -> str:
    """Write a layout with one image; the manifest's digest. ``directory`` may hold earlier images: they stay listed."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(body: bytes, media_type: str) -> dict[str, Any]:
        (blobs / hashlib.sha256(body).hexdigest()).write_bytes(body)
        return {"mediaType": media_type, "digest": digest_of(body), "size": len(body)}

    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05.123456789Z",
        "config": config or {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id, _ in layers]},
        "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": put(json.dumps(document).encode(), f"{OCI}.config.v1+json"),
        "layers": [put(body, media_type) for media_type, _, body in layers],
    }
    entry = put(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    entry["platform"] = {"os": "linux", "architecture": architecture}
    listed = directory / "index.json"
    index = json.loads(listed.read_text()) if listed.exists() else {"schemaVersion": 2, "manifests": []}
    index["manifests"].append(entry)
    listed.write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return str(entry["digest"])


def layout_tar(directory: Path, path: Path) -> None:
    """The layout as one tar, as ``skopeo copy ... oci-archive:`` makes."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                tar.add(file, str(file.relative_to(directory)))
