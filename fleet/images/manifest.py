"""Manifests and indexes: what an image consists of, and which of several platforms to take.

Docker schema 2 and OCI documents are the same shape under different media types. The type is never guessed from the
content (CVE-2021-41190): a document that names its own type must agree with the one it was delivered under, and one
that could be read both ways is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet.errors import RejectedFault, UserError
from fleet.images.jsondoc import Document, decode_document, encode_canonical
from fleet.images.reference import is_digest

__all__ = [
    "Manifest",
    "Descriptor",
    "Platform",
    "ImageManifest",
    "ImageIndex",
    "parse_manifest",
    "choose_platform",
    "parse_platform",
    "runs_on",
    "host_platform",
    "build_manifest",
    "digest_of",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MANIFEST_BYTES_MAX",
]

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
MANIFEST_BYTES_MAX = 4 << 20  # OCI distribution spec: registries accept at least 4 MiB
_LAYERS_MAX = 500  # overlayfs stacks at most 500 lower directories (OVL_MAX_STACK)
_PLATFORMS_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as delivered: ``digest`` is the sha256 of ``body``, checked by whoever made this value."""

    media_type: str
    digest: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Operating system and processor, in Go's words (``linux``, ``amd64``, ``v8``)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A pointer to content: its type, digest and exact size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageManifest:
    """One platform's image: a configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageIndex:
    """A list of manifests, usually one a platform."""

    manifests: tuple[Descriptor, ...]


def digest_of(body: bytes) -> str:
    """The sha256 digest of some bytes, with its prefix."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


def parse_manifest(manifest: Manifest) -> ImageManifest | ImageIndex:
    """Read a delivered document as the type it was delivered under; ``RejectedFault`` says what is wrong."""
    what = f"manifest {manifest.digest}"
    if manifest.media_type.startswith(_SCHEMA1):
        raise RejectedFault(f"{what}: image manifest schema 1 was retired in 2019; rebuild or re-push the image")
    if manifest.media_type not in MANIFEST_TYPES + INDEX_TYPES:
        raise RejectedFault(f"{what}: {manifest.media_type!r} is not an image (neither manifest nor index)")
    document = decode_document(manifest.body, what, bytes_max=MANIFEST_BYTES_MAX)
    claimed = document.text("mediaType", "")
    if claimed and claimed != manifest.media_type:
        raise RejectedFault(f"{what}: says it is {claimed!r} and was delivered as {manifest.media_type!r}")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise RejectedFault(f"{what}: is both an index and a manifest")
    if document.number("schemaVersion") != 2:
        raise RejectedFault(f"{what}: schemaVersion must be 2")
    if manifest.media_type in INDEX_TYPES:
        entries = document.children("manifests")
        if len(entries) > _PLATFORMS_MAX:
            raise RejectedFault(f"{what}: lists {len(entries)} manifests, more than {_PLATFORMS_MAX}")
        return ImageIndex(manifests=tuple(parse_descriptor(item) for item in entries))
    layers = document.children("layers")
    if len(layers) > _LAYERS_MAX:
        raise RejectedFault(f"{what}: has {len(layers)} layers, more than the {_LAYERS_MAX} that overlayfs can stack")
    config = parse_descriptor(document.child("config", required=True))
    if config.media_type not in {OCI_CONFIG, DOCKER_CONFIG}:
        raise RejectedFault(f"{what}: its configuration is {config.media_type!r}: not a container image")
    return ImageManifest(config=config, layers=tuple(parse_descriptor(item) for item in layers))


def parse_descriptor(document: Document) -> Descriptor:
    """Read one descriptor (OCI image spec, descriptor.md)."""
    digest = document.text("digest")
    if not is_digest(digest):
        raise RejectedFault(f"{document.what}: {digest[:100]!r} is not a sha256 digest")
    platform = None
    if "platform" in document:
        child = document.child("platform")
        platform = Platform(
            os=child.text("os", ""), architecture=child.text("architecture", ""), variant=child.text("variant", "")
        )
    return Descriptor(
        media_type=document.text("mediaType"),
        digest=digest,
        size=document.number("size"),
        platform=platform,
        annotations=document.text_map("annotations"),
    )


_MACHINES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6")}
_MACHINES |= {"i686": ("386", ""), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""), "riscv64": ("riscv64", "")}


def host_platform() -> Platform:
    """The platform of the running kernel."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


_SAME = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armhf": "arm"}
_PLATFORM_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)


def parse_platform(text: str) -> Platform:
    """``OS/ARCH[/VARIANT]``, or an architecture alone, as people write it; ``UserError`` for what is neither."""
    parts = text.split("/")
    if len(parts) > 3 or not all(_PLATFORM_WORD.fullmatch(part) for part in parts):
        raise UserError(f"platform {text[:100]!r} is not OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64")
    if len(parts) == 1:
        parts.insert(0, "linux")
    system, architecture = parts[0].lower(), _SAME.get(parts[1].lower(), parts[1].lower())
    return Platform(os=system, architecture=architecture, variant=parts[2].lower() if len(parts) == 3 else "")


def choose_platform(manifests: Sequence[Descriptor], platform: Platform) -> Descriptor:
    """The entry that runs best on ``platform``: exact variant, else the next older arm variant, else the first without.

    Entries for ``unknown`` platforms are attestations and never chosen. An index whose only usable entry names no
    platform gives that. Raises ``RejectedFault`` listing what there is.
    """
    usable = [item for item in manifests if item.media_type in MANIFEST_TYPES + INDEX_TYPES]
    same = [item for item in usable if runs_on(item.platform, platform)]
    if same:
        return min(same, key=lambda item: _variant_distance(item.platform, platform))
    unnamed = [item for item in usable if item.platform is None]
    if len(unnamed) == 1 and len(usable) == 1:
        return unnamed[0]
    there = sorted({str(item.platform) for item in usable if item.platform and item.platform.os != "unknown"})
    raise RejectedFault(
        f"no matching manifest for {platform} in the manifest list (it has: {', '.join(there) or 'none'})"
    )


def build_manifest(*, config: Descriptor, layers: Sequence[Descriptor]) -> Manifest:
    """The manifest of an image that came without one; the same parts give the same bytes on every node."""
    body = encode_canonical(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe_descriptor(config),
            "layers": [describe_descriptor(layer) for layer in layers],
        }
    )
    return Manifest(media_type=OCI_MANIFEST, digest=digest_of(body), body=body)


def describe_descriptor(descriptor: Descriptor) -> dict[str, object]:
    """The JSON shape of a descriptor."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def runs_on(offered: Platform | None, wanted: Platform) -> bool:
    """Whether an image made for one platform does for another: the same, or an older or unnamed variant of it."""
    if offered is None or offered.os != wanted.os or offered.architecture != wanted.architecture:
        return False
    return _variant_distance(offered, wanted) < 1000


def _variant_distance(offered: Platform | None, wanted: Platform) -> int:
    """0 for the wanted variant, growing for older ones, 1000 for ones this processor cannot run."""
    theirs, ours = (offered.variant if offered else ""), wanted.variant
    if theirs == ours:
        return 0
    if not theirs:
        return 100
    if not ours:
        return 200 if wanted.architecture != "amd64" else 1000  # amd64/v3 does not run everywhere
    their_number, our_number = theirs.removeprefix("v"), ours.removeprefix("v")
    if their_number.isdecimal() and our_number.isdecimal() and int(their_number) < int(our_number):
        return int(our_number) - int(their_number)
    return 1000
