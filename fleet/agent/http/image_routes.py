"""``/images``: translate, call the store, answer. Uploads and downloads go through piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet.agent.http.container_filters import matches_labels, parse_moment
from fleet.agent.http.older_clients import image_at, image_summary_at
from fleet.agent.http.streams import json_lines, upload
from fleet.api.http import Filters, json_response, parse_bool, parse_filters, spoken_version
from fleet.cancellation import cancel_and_wait
from fleet.containers import ContainerEngine
from fleet.errors import NotFoundError, UnsupportedError, UserError
from fleet.images import (
    Credentials,
    ImageStore,
    PeerSource,
    Platform,
    Progress,
    RegistryOptions,
    RegistrySource,
    RegistryTarget,
    Source,
    parse_reference,
    parse_registry_auth,
)
from fleet.images.authoring import unnamed_ancestors
from fleet.images.inspect import image_inspect, image_summary
from fleet.images.manifest import parse_platform
from fleet.images.progress import progress_message
from fleet.images.store import Image

__all__ = ["PullSources", "image_routes"]

PullSources = Callable[[str, Credentials | None], Awaitable[Sequence[Source]]]
"""Where a reference can be had, asked with the login the client sent; the caller closes the sources."""

_LIST_FILTERS: Final = frozenset({"before", "dangling", "label", "reference", "since", "until"})
_PRUNE_FILTERS: Final = frozenset({"dangling", "until", "label", "label!"})
_SAVE_QUEUE: Final = 4
"""Pieces of 1 MiB that wait for a slow client."""


def image_routes(images: ImageStore, engine: ContainerEngine, pull_sources: PullSources) -> APIRouter:
    """The router of everything below ``/images``."""
    router = APIRouter()
    _add_looking(router, images, engine)
    _add_adding(router, images, pull_sources)
    _add_pushing(router, images, pull_sources)
    _add_removing(router, images, engine)
    return router


def _add_looking(router: APIRouter, images: ImageStore, engine: ContainerEngine) -> None:
    @router.get("/images/json")
    async def list_images(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=_LIST_FILTERS)
        users = [container.image_id for container in engine.list()]
        return json_response(
            [
                image_summary_at(spoken_version(request), image_summary(i, containers=users.count(i.id)))
                for i in _select(images, filters, steps=parse_bool(request.query_params.get("all")))
            ],
        )

    @router.get("/images/get")
    async def save(request: Request) -> Response:
        return _archive(images, request.query_params.getlist("names"))

    @router.get("/images/{name:path}/get")
    async def save_one(name: str) -> Response:
        return _archive(images, [name])

    @router.get("/images/{name:path}/json")
    async def inspect(name: str, request: Request) -> Response:
        return json_response(image_at(spoken_version(request), image_inspect(_get(images, name))))

    @router.get("/images/{name:path}/history")
    async def history(name: str) -> Response:
        return json_response(images.history(_get(images, name)))


def _add_adding(router: APIRouter, images: ImageStore, pull_sources: PullSources) -> None:
    @router.post("/images/load")
    async def load(request: Request) -> Response:
        async def work(tell: Callable[[Any], None]) -> None:
            for image in await images.load(upload(request)):
                for name in image.references:
                    tell({"stream": f"Loaded image: {name}\n"})
                if not image.references:
                    tell({"stream": f"Loaded image ID: {image.id}\n"})

        return json_lines(work)

    @router.post("/images/create")
    async def create(request: Request) -> Response:
        query = request.query_params
        if query.get("fromImage"):
            reference = _joined(query["fromImage"], query.get("tag", ""))
            credentials = parse_registry_auth(request.headers.get("x-registry-auth", ""))
            platform = parse_platform(query["platform"]) if query.get("platform") else None
            parse_reference(reference)  # what is wrong with it is said before the stream begins
            return json_lines(
                lambda tell: _pull(
                    images, reference, tell, credentials=credentials, platform=platform, pull_sources=pull_sources
                )
            )
        source = query.get("fromSrc")
        if source != "-":
            raise UnsupportedError(f"import from {source!r} is not supported: download it and send it as the body (-)")
        repository, tag = query.get("repo", ""), query.get("tag", "")

        async def work(tell: Callable[[Any], None]) -> None:
            image = await images.import_tar(
                upload(request),
                reference=_joined(repository, tag) if repository else None,
                changes=query.getlist("changes"),
                message=query.get("message", ""),
            )
            tell({"status": image.id})

        return json_lines(work)

    @router.post("/images/{name:path}/tag")
    async def tag(name: str, request: Request) -> Response:
        query = request.query_params
        if not query.get("repo"):
            raise UserError("tag: no repository was named")
        await images.tag(_get(images, name).id, _joined(query["repo"], query.get("tag", "")))
        return Response(status_code=201)


def _add_pushing(router: APIRouter, images: ImageStore, pull_sources: PullSources) -> None:
    @router.post("/images/{name:path}/push")
    async def push(name: str, request: Request) -> Response:
        tag = request.query_params.get("tag", "")
        if "@" in name or ":" in tag:
            raise UserError("cannot push a digest reference: name the image with a tag")
        parsed = parse_reference(_joined(name, tag))
        credentials = parse_registry_auth(request.headers.get("x-registry-auth", ""))
        if tag or ":" in name.rpartition("/")[2]:
            references = [parsed.familiar]
        else:
            references = sorted(
                known
                for known in {text for image in images.list() for text in image.references}
                if parse_reference(known).name == parsed.name
            )

        async def work(tell: Callable[[Any], None]) -> None:
            tell({"status": f"The push refers to repository [{parsed.name}]"})
            if not references:
                raise NotFoundError(f"An image does not exist locally with the tag: {parsed.familiar_name}")
            for reference in references:
                await _push(images, reference, credentials, pull_sources, tell)

        return json_lines(work)


def _add_removing(router: APIRouter, images: ImageStore, engine: ContainerEngine) -> None:
    @router.post("/images/prune")
    async def prune(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=_PRUNE_FILTERS)
        dangling_only = parse_bool(next(iter(filters.get("dangling", ())), None), default=True)
        if {"until", "label", "label!"} & filters.keys():
            until = parse_moment(next(iter(filters.get("until", ())), None), now=datetime.now(UTC))
            removed, freed_bytes = await _prune_some(images, engine, filters, until, dangling_only=dangling_only)
        else:
            removed, freed_bytes = await images.prune(dangling_only=dangling_only, in_use=engine.images_in_use)
        return json_response({"ImagesDeleted": removed or None, "SpaceReclaimed": freed_bytes})

    @router.delete("/images/{name:path}")
    async def remove(name: str, request: Request) -> Response:
        _get(images, name)
        force = parse_bool(request.query_params.get("force"))
        return json_response(await images.remove(name, force=force, in_use=engine.images_in_use))


def _get(images: ImageStore, name: str) -> Image:
    try:
        return images.get(name)
    except NotFoundError:
        raise NotFoundError(f"No such image: {name}") from None


def _joined(name: str, tag: str) -> str:
    """``fromImage`` and ``tag`` as one reference; the tag may be a digest."""
    if not tag:
        return name
    return f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"


async def _pull(
    images: ImageStore,
    reference: str,
    tell: Callable[[Any], None],
    *,
    credentials: Credentials | None,
    platform: Platform | None,
    pull_sources: PullSources,
) -> None:
    name = parse_reference(reference)
    before = _known_id(images, reference)

    def progress(step: Progress) -> None:
        if step.stage != "done":
            tell(progress_message(step))

    # Who pulls by hand wants what the registry has now; peers come after it, where there is no way to it.
    found = await pull_sources(reference, credentials)
    sources = sorted(found, key=lambda source: isinstance(source, PeerSource))
    try:
        image = await images.fetch(reference, sources, platform=platform, progress=progress)
    finally:
        for source in sources:
            await source.aclose()
    digest = next((d.partition("@")[2] for d in image.repo_digests if d.startswith(f"{name.familiar_name}@")), "")
    tell({"status": f"Digest: {digest or image.manifest_digest}"})
    news = "Image is up to date for" if image.id == before else "Downloaded newer image for"
    tell({"status": f"Status: {news} {name.familiar}"})


async def _push(
    images: ImageStore,
    reference: str,
    credentials: Credentials | None,
    pull_sources: PullSources,
    tell: Callable[[Any], None],
) -> None:
    name = parse_reference(reference)
    if not _known_id(images, reference):
        raise NotFoundError(f"An image does not exist locally with the tag: {name.familiar_name}")

    def progress(step: Progress) -> None:
        message = progress_message(step)
        if step.stage == "exists":
            message["status"] = "Layer already exists"
        tell(message)

    target = RegistryTarget(
        reference, credentials=credentials, options=await _registry_options(reference, pull_sources)
    )
    try:
        manifest = await images.push(reference, target, progress=progress)
    finally:
        await target.aclose()
    size = len(manifest.body)
    tell({"status": f"{name.tag}: digest: {manifest.digest} size: {size}"})
    tell({"progressDetail": {}, "aux": {"Tag": name.tag, "Digest": manifest.digest, "Size": size}})


async def _registry_options(reference: str, pull_sources: PullSources) -> RegistryOptions | None:
    """How the registry is reached where images are pulled from it: what may be pushed in the clear is said there."""
    sources = await pull_sources(reference, None)
    try:
        return next((source.options for source in sources if isinstance(source, RegistrySource)), None)
    finally:
        for source in sources:
            await source.aclose()


def _known_id(images: ImageStore, reference: str) -> str:
    try:
        return images.get(reference).id
    except NotFoundError:
        return ""


def _archive(images: ImageStore, names: Sequence[str]) -> Response:
    """``docker save``: the store writes into a small queue that the client empties."""
    if not names:
        raise UserError("no image was named")
    for name in names:
        _get(images, name)

    async def body() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_SAVE_QUEUE)

        async def run() -> None:
            try:
                await images.save(names, queue.put)
            finally:
                await queue.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            await task  # an error here breaks the connection off, which the client sees as an incomplete archive
        finally:
            if not task.done():
                while not queue.empty():
                    queue.get_nowait()
                await cancel_and_wait(task)

    return StreamingResponse(body(), media_type="application/x-tar")


def _select(images: ImageStore, filters: Filters, *, steps: bool = False) -> list[Image]:
    """Images that pass the filters; unnamed ones that others were made of, with ``steps`` only."""
    ancestors = unnamed_ancestors(images.list())
    before = min((_created(_get(images, text)) for text in filters.get("before", ())), default=None)
    since = max((_created(_get(images, text)) for text in filters.get("since", ())), default=None)
    until = parse_moment(next(iter(filters.get("until", ())), None), now=datetime.now(UTC))
    dangling = [parse_bool(text) for text in filters.get("dangling", ())]
    return [
        image
        for image in images.list()
        if (steps or image.id not in ancestors)
        and (not dangling or (not image.references and image.id not in ancestors) in dangling)
        and matches_labels(image.config.labels, filters)
        and (before is None or _created(image) < before)
        and (since is None or _created(image) > since)
        and (until is None or _created(image) < until)
        and ("reference" not in filters or any(_fits(image, pattern) for pattern in filters["reference"]))
    ]


def _created(image: Image) -> datetime:
    return image.created or datetime.fromtimestamp(0, UTC)


def _fits(image: Image, pattern: str) -> bool:
    """Docker's ``reference`` filter: a shell pattern over ``name:tag`` or ``name``; ``*`` stops at a slash."""
    return any(
        PurePosixPath(text).match(pattern) and text.count("/") == pattern.count("/")
        for name in image.references
        for text in (name, name.rpartition(":")[0])
    )


async def _prune_some(
    images: ImageStore, engine: ContainerEngine, filters: Filters, until: datetime | None, *, dangling_only: bool
) -> tuple[list[dict[str, str]], int]:
    """Prune by label or age."""
    answer: list[dict[str, str]] = []
    before = sum(image.size_bytes for image in images.list())
    for image in sorted(images.list(), key=_created, reverse=True):  # children first: they lay bare what they are of
        used = image.id in engine.images_in_use() or image.id in unnamed_ancestors(images.list())
        if used or (dangling_only and image.references) or not matches_labels(image.config.labels, filters):
            continue
        if until is None or _created(image) < until:
            answer += await images.remove(image.id, force=True, in_use=engine.images_in_use)
    return answer, before - sum(image.size_bytes for image in images.list())
