"""A registry as a target: the write side of the OCI distribution API (v1.1), for ``push``.

Blobs the registry has are not sent; one that another of its repositories has is mounted from there. A blob is sent whole in
one request after the upload was opened, the manifest last, so that a registry never lists an image whose parts are missing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

import httpx

from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.errors import ForbiddenError, RejectedFault, UnauthorizedError, UnavailableError
from fleet.images.blobs import BlobStore
from fleet.images.manifest import Descriptor, ImageManifest, Manifest
from fleet.images.progress import Progress, ProgressCallback, Stage
from fleet.images.reference import Reference
from fleet.images.registry import RegistrySource
from fleet.images.retry import ATTEMPTS, back_off_s
from fleet.images.sources import raise_for_status, translate_errors
from fleet.images.threads import in_thread

__all__ = ["Pusher", "RegistryTarget"]

_CHUNK = 1 << 20
_PARALLEL_BLOBS = 3  # Docker's max-concurrent-uploads is 5; more did not help on one disk
_MOUNT_TRIES = 3


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

    async def mount_blob(self, digest: str, repository: str) -> bool:
        """Have a blob of another repository of the registry here too; False when that is not possible, or not allowed."""
        with translate_errors(self.name):
            query = urlencode({"mount": digest, "from": repository})
            url = await self._url(f"blobs/uploads/?{query}")
            try:
                response = await self._send_authorized(url, {"Content-Length": "0"}, method="POST")
                try:
                    if response.status_code == 201:
                        return True
                    if response.status_code == 202:  # an upload was opened instead; close it again, politely
                        await self._abandon(urljoin(url, response.headers.get("Location", "")), url)
                        return False
                    await raise_for_status(response, f"mount blob {digest} of {repository}", source=self.name)
                finally:
                    await response.aclose()
            except (UnauthorizedError, ForbiddenError, RejectedFault):
                return False  # it is sent then, which says what is wrong if that is not allowed either
            return False

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

    def _scopes(self) -> tuple[str, ...]:
        return (f"repository:{self._repository}:pull,push",)

    async def _url(self, path: str) -> str:
        return f"{await self._find_base()}/v2/{self._repository}/{path}"

    async def _abandon(self, target: str, base: str) -> None:
        if urlsplit(target)[:2] == urlsplit(base)[:2]:
            response = await self._send_authorized(target, {}, method="DELETE")
            await response.aclose()  # whatever it says: registries drop uploads by themselves

    async def _expect(self, response: httpx.Response, status: int, what: str) -> None:
        try:
            if response.status_code != status:
                await raise_for_status(response, what, source=self.name)
                raise RejectedFault(f"{self.name}: {what}: HTTP {response.status_code}, not {status}")
        finally:
            await response.aclose()


class Pusher:
    """Sends images from one blob store, trying again what fails for a while."""

    def __init__(self, blobs: BlobStore, *, clock: Clock, rng: random.Random) -> None:
        self._blobs = blobs
        self._clock = clock
        self._rng = rng

    async def push(
        self,
        image: ImageManifest,
        manifest: Manifest,
        *,
        target: RegistryTarget,
        reference: Reference,
        elsewhere: Mapping[str, Sequence[str]],
        report: ProgressCallback,
    ) -> None:
        """Send what the registry lacks of an image, and then its manifest under the reference's tag. Idempotent.

        ``elsewhere``: by digest, other repositories of the same registry that seem to have the blob.
        """
        assert reference.tag is not None
        gate = asyncio.Semaphore(_PARALLEL_BLOBS)

        async def send(part: Descriptor) -> None:
            async with gate:
                others = elsewhere.get(part.digest, ())[:_MOUNT_TRIES]
                await self._again(
                    lambda: self._blob(part, target=target, reference=reference, others=others, report=report),
                    reference, part.digest, report,
                )  # fmt: skip

        try:
            async with TaskGroup() as group:
                for part in {item.digest: item for item in (*image.layers, image.config)}.values():
                    group.create_task(send(part))
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from failures
        tag = reference.tag
        await self._again(lambda: target.put_manifest(manifest, tag), reference, manifest.digest, report)

    async def _blob(
        self,
        part: Descriptor,
        *,
        target: RegistryTarget,
        reference: Reference,
        others: Sequence[str],
        report: ProgressCallback,
    ) -> None:
        name = reference.familiar
        if await target.has_blob(part.digest):
            report(_step(name, "exists", part, part.size))
            return
        for other in others:
            if await target.mount_blob(part.digest, other):
                report(_step(name, "mounted", part, part.size, detail=other))
                return
        await target.upload_blob(self._blobs.path(part.digest), part, name, report)
        report(_step(name, "pushed", part, part.size))

    async def _again(
        self, work: Callable[[], Awaitable[None]], reference: Reference, digest: str, report: ProgressCallback
    ) -> None:
        attempt = 0
        while True:
            try:
                await work()
                return
            except UnavailableError as error:
                attempt += 1
                if attempt >= ATTEMPTS:
                    raise
                delay_s = back_off_s(attempt - 1, error, self._rng)
                told = f"in {delay_s:.1f} s: {error}"
                report(Progress(reference=reference.familiar, stage="retrying", digest=digest, detail=told))
                await self._clock.sleep(delay_s)


def _step(reference: str, stage: Stage, descriptor: Descriptor, done: int, *, detail: str = "") -> Progress:
    return Progress(
        reference=reference,
        stage=stage,
        digest=descriptor.digest,
        current_bytes=done,
        total_bytes=descriptor.size,
        detail=detail,
    )
