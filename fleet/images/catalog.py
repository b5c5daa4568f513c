"""The images a store shows, and how they are found: by digest, name, or the beginning of an id. Replaced, never changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fleet.errors import ConflictError, NotFoundError, UserError
from fleet.images.image import Image
from fleet.images.records import ImageRecord
from fleet.images.reference import Reference, is_digest, parse_reference

__all__ = ["Catalog", "named_by"]

_SHORT_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """By manifest digest; both have the same keys."""

    records: Mapping[str, ImageRecord]
    images: Mapping[str, Image]

    def get(self, name_or_id: str) -> Image:
        """As ``ImageStore.get``."""
        if is_digest(name_or_id):
            image = self.by_digest(name_or_id)
        else:
            image = self._by_name(name_or_id) or self._by_short_id(name_or_id)
        if image is None:
            raise NotFoundError(f"no such image: {name_or_id}")
        return image

    def newest_first(self) -> list[Image]:
        """Every image."""
        return sorted(
            self.images.values(),
            key=lambda image: (image.created.timestamp() if image.created else 0.0, image.manifest_digest),
            reverse=True,
        )

    def by_digest(self, digest: str) -> Image | None:
        """Of a manifest, an index or a configuration; of several with one configuration the newest that has a name."""
        if digest in self.images:
            return self.images[digest]
        found = [
            record
            for record in self.records.values()
            if digest in record.indexes or self.images[record.manifest_digest].id == digest
        ]
        newest = max(found, key=lambda record: (bool(record.references), record.added), default=None)
        return self.images[newest.manifest_digest] if newest else None

    def elsewhere(self, reference: Reference) -> dict[str, list[str]]:
        """By blob, the other repositories of a reference's registry that images with it were fetched from or sent to."""
        found: dict[str, list[str]] = {}
        for digest, record in self.records.items():
            names = [parse_reference(text) for text in record.repo_digests]
            paths = [name.path for name in names if name.domain == reference.domain and name.path != reference.path]
            image = self.images[digest]
            for blob in (*image.layer_digests, image.id):
                known = found.setdefault(blob, [])
                known += [path for path in paths if path not in known]
        return found

    def with_image(self, record: ImageRecord, image: Image) -> Catalog:
        """The same with one more."""
        key = record.manifest_digest
        return Catalog(records={**self.records, key: record}, images={**self.images, key: image})

    def without(self, image: Image) -> Catalog:
        """The same with one less."""
        return Catalog(
            records={key: value for key, value in self.records.items() if key != image.manifest_digest},
            images={key: value for key, value in self.images.items() if key != image.manifest_digest},
        )

    def plan_removal(
        self, text: str, *, force: bool, is_used: Callable[[Image], bool]
    ) -> tuple[Image, ImageRecord | None, list[dict[str, str]]]:
        """What ``ImageStore.remove`` has to do: the image meant, what stays of its record (None: nothing), Docker's answer."""
        image = self.get(text)
        record = self.records[image.manifest_digest]
        named = named_by(record, text)
        going = (named,) if named else record.references
        left = tuple(name for name in record.references if name not in going)
        if named is None and len(record.references) > 1 and not force:
            raise ConflictError(
                f"unable to delete {text} (must be forced) - image is referenced in multiple repositories"
            )
        used = is_used(image)
        if not left and used and not force:
            raise ConflictError(f"unable to delete {text} (must be forced) - image is being used by a container")
        answer = [{"Untagged": parse_reference(name).familiar} for name in going]
        if left or used:
            kept = tuple(item for item in record.repo_digests if left)
            return image, replace(record, references=left, repo_digests=kept), answer
        answer += [{"Untagged": parse_reference(item).familiar} for item in record.repo_digests]
        return image, None, [*answer, {"Deleted": image.id}]

    def manifest_of(self, text: str) -> tuple[str, str]:
        """(media type, digest) of what a peer is answered that asks for a name or digest: the index if there is one.

        Raises ``NotFoundError``.
        """
        digest = text if is_digest(text) else parse_reference(text).digest
        image = self.get(digest or text)
        record = self.records[image.manifest_digest]
        if digest is None:
            name = parse_reference(text).name
            served = [item.partition("@")[2] for item in record.repo_digests if item.startswith(f"{name}@")]
            digest = next((item for item in reversed(served) if item in record.indexes), record.manifest_digest)
        elif digest != record.manifest_digest and digest not in record.indexes:
            raise NotFoundError(f"no such manifest: {text}")
        return record.indexes.get(digest, record.media_type), digest

    def _by_name(self, text: str) -> Image | None:
        try:
            name = parse_reference(text)
        except UserError:
            return None
        if name.digest:
            return self.by_digest(name.digest)
        wanted = str(name)
        return next(
            (self.images[digest] for digest, record in self.records.items() if wanted in record.references),
            None,
        )

    def _by_short_id(self, text: str) -> Image | None:
        match = _SHORT_ID.fullmatch(text)
        if match is None:
            return None
        found = {image.id for image in self.images.values() if image.id.startswith(f"sha256:{match[1]}")}
        if len(found) > 1:
            raise UserError(f"image id {text} is ambiguous: {len(found)} images begin with it")
        return self.by_digest(found.pop()) if found else None


def named_by(record: ImageRecord, text: str) -> str | None:
    """The complete name ``text`` means, when it is one of the record's rather than an id."""
    try:
        name = str(parse_reference(text))
    except UserError:
        return None
    return name if name in record.references else None
