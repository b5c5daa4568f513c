"""A registry as a target: the write side of the OCI distribution API (v1.1), for ``push``.

Blobs the registry has are not sent. A blob is sent whole in one request after the upload was opened, the manifest last,
so that a registry never lists an image whose parts are missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from fleet.errors import RejectedFault
from fleet.images.blobs import BlobStore
from fleet.images.manifest import Descriptor, ImageManifest, Manifest
from fleet.images.progress import Progress, ProgressCallback, Stage
from fleet.images.reference import Reference
from fleet.images.registry import RegistrySource
from fleet.images.sources import raise_for_status, translate_errors
from fleet.images.threads import in_thread

__all__ = ["RegistryTarget", "push_image"]

_CHUNK = 1 << 20


class RegistryTarget(RegistrySource):
    """One repository of one registry, also to be written to. Errors are those of ``RegistrySource``."""

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        with translate_errors(self.name):
            response = await self._send_authorized(await self._url(f"blobs/{digest}"), {}, method="HEAD")
            try:
                if response.status_code == 404:
                    return False
                await raise_for_status(response, f"blob {digest}", source=self.name)
            finally:
                await response.aclose()
            return True

    async def upload_blob(self, path: Path, descriptor: Descriptor, reference: str, report: ProgressCallback) -> None:
        """Send one blob; the registry checks the digest."""
        what = f"upload blob {descriptor.digest}"

        async def content() -> AsyncIterator[bytes]:
            done = 0
            with path.open("rb") as file:
                while data := await in_thread(file.read, _CHUNK):
                    yield data
                    done += len(data)
                    report(_step(reference, "pushing", descriptor, done))

        with translate_errors(self.name):
            base = await self._url("blobs/uploads/")
            response = await self._send_authorized(base, {"Content-Length": "0"}, method="POST")
            await self._expect(response, 202, what)
            target = urljoin(base, response.headers.get("Location", ""))
            if urlsplit(target)[:2] != urlsplit(base)[:2]:
                raise RejectedFault(f"{self.name}: {what}: told to send it to another host, {urlsplit(target).netloc}")
            target += ("&" if urlsplit(target).query else "?") + f"digest={descriptor.digest}"
            headers = {"Content-Length": str(descriptor.size), "Content-Type": "application/octet-stream"}
            response = await self._send_authorized(target, headers, method="PUT", content=content)
            await self._expect(response, 201, what)

    async def put_manifest(self, manifest: Manifest, tag: str) -> None:
        """Send the manifest under a tag."""

        async def content() -> AsyncIterator[bytes]:
            yield manifest.body

        headers = {"Content-Type": manifest.media_type, "Content-Length": str(len(manifest.body))}
        with translate_errors(self.name):
            url = await self._url(f"manifests/{tag}")
            response = await self._send_authorized(url, headers, method="PUT", content=content)
            await self._expect(response, 201, f"upload manifest {tag}")

    def _default_scope(self) -> str:
        return f"repository:{self._repository}:pull,push"

    async def _url(self, path: str) -> str:
        return f"{await self._find_base()}/v2/{self._repository}/{path}"

    async def _expect(self, response: httpx.Response, status: int, what: str) -> None:
        try:
            if response.status_code != status:
                await raise_for_status(response, what, source=self.name)
                raise RejectedFault(f"{self.name}: {what}: HTTP {response.status_code}, not {status}")
        finally:
            await response.aclose()


async def push_image(
    image: ImageManifest,
    manifest: Manifest,
    blobs: BlobStore,
    *,
    target: RegistryTarget,
    reference: Reference,
    report: ProgressCallback,
) -> None:
    """Send what the registry lacks of an image, and then its manifest under the reference's tag. Idempotent."""
    name = reference.familiar
    for part in {item.digest: item for item in (*image.layers, image.config)}.values():
        if await target.has_blob(part.digest):
            report(_step(name, "exists", part, part.size))
            continue
        await target.upload_blob(blobs.path(part.digest), part, name, report)
        report(_step(name, "pushed", part, part.size))
    assert reference.tag is not None
    await target.put_manifest(manifest, reference.tag)


def _step(reference: str, stage: Stage, descriptor: Descriptor, done: int) -> Progress:
    return Progress(
        reference=reference,
        stage=stage,
        digest=descriptor.digest,
        current_bytes=done,
        total_bytes=descriptor.size,
    )
