"""``/build``, ``/build/prune`` and ``/commit``: translate, call, answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet.api.http import json_response, parse_bool, read_body
from fleet.builder.build import Builder, BuildOptions, CommandFailedFault, config_of
from fleet.cancellation import cancel_and_wait
from fleet.containers import ContainerEngine, Status
from fleet.containers.layertar import write_layer
from fleet.errors import UnsupportedError, UserError
from fleet.images import Image, ImageStore, Source, parse_reference
from fleet.images.authoring import Authored
from fleet.images.changes import apply_changes

__all__ = ["build_routes"]

_BODY_MAX = 1 << 20
PullSources = Callable[[str, None], Awaitable[Sequence[Source]]]
Tell = Callable[[Any], None]
JsonLines = Callable[[Callable[[Tell], Awaitable[None]]], StreamingResponse]


def build_routes(
    engine: ContainerEngine, images: ImageStore, root: Path, *, pull_sources: PullSources, json_lines: JsonLines
) -> APIRouter:
    """The router; ``root`` is the builder's directory, ``json_lines`` makes a body of what a job tells."""

    async def pull(name: str, tell: Tell) -> Image:
        tell({"stream": f"Pulling {name}\n"})
        sources = await pull_sources(name, None)
        try:
            return await images.fetch(name, sources)
        finally:
            for source in sources:
                await source.aclose()

    router = APIRouter()
    builder = Builder(engine, images, root, pull)

    @router.post("/build")
    async def build(request: Request) -> Response:
        options, quiet = _options(request), parse_bool(request.query_params.get("q"))
        return json_lines(lambda tell: _build(builder, request, options, quiet=quiet, tell=tell))

    @router.post("/build/prune")
    async def prune() -> Response:
        removed, freed = await builder.prune()
        return json_response({"CachesDeleted": removed or None, "SpaceReclaimed": freed})

    @router.post("/commit")
    async def commit(request: Request) -> Response:
        await read_body(request, limit=_BODY_MAX)  # of no use: what is to change comes in the query
        query = request.query_params
        repository, tag = query.get("repo", ""), query.get("tag", "")
        name = f"{repository}:{tag}" if repository and tag else repository
        if name:
            parse_reference(name)
        container = engine.get(query.get("container", ""))
        parent = images.get(container.image_id)
        config: dict[str, Any] = config_of(parent)
        config |= {"Env": list(container.env), "User": container.user, "Labels": dict(container.labels)}
        config["WorkingDir"] = container.working_dir
        if container.config.entrypoint is not None:
            config["Entrypoint"] = list(container.config.entrypoint)
            config["Cmd"] = []
        if container.config.command is not None:
            config["Cmd"] = list(container.config.command)
        config = apply_changes(
            config, [line for text in query.getlist("changes") for line in text.splitlines() if line]
        )
        step = Authored(
            config=config,
            created_by=" ".join(container.args),
            author=query.get("author", ""),
            comment=query.get("comment", ""),
        )
        upper = engine.directory(container.id) / "upper"
        pausing = container.state.status is Status.RUNNING and parse_bool(query.get("pause"), default=True)
        if pausing:
            await engine.pause(container.id)
        with images.holding() as hold:
            try:
                image = await images.derive(
                    parent, step, lambda sink: write_layer(upper, sink, container.ids), hold=hold
                )
            finally:
                if pausing:
                    await asyncio.shield(engine.unpause(container.id))
            if name:
                await images.tag(image.id, name)
        return json_response({"Id": image.id}, status=201)

    return router


def _options(request: Request) -> BuildOptions:
    query = request.query_params
    if query.get("version", "1") == "2":
        raise UnsupportedError("BuildKit is not supported: set DOCKER_BUILDKIT=0 for the classic builder")
    if query.get("remote"):
        raise UnsupportedError("building from a remote context is not supported: download it and build its directory")
    tags = tuple(tag for tag in query.getlist("t") if tag)
    for tag in tags:
        if parse_reference(tag).digest:
            raise UserError(f"build: {tag!r} names a digest; give a tag")
    try:
        return BuildOptions(
            tags=tags,
            dockerfile=query.get("dockerfile") or "Dockerfile",
            build_args={k: v for k, v in _mapping(query.get("buildargs")).items() if v is not None},
            labels={k: v or "" for k, v in _mapping(query.get("labels")).items()},
            target=query.get("target", ""),
            no_cache=parse_bool(query.get("nocache")),
            pull=parse_bool(query.get("pull")),
            network=query.get("networkmode", ""),
            memory_bytes=int(query.get("memory") or 0),
            shm_bytes=int(query.get("shmsize") or 0),
            extra_hosts=tuple(h for text in query.getlist("extrahosts") for h in text.split(",") if h),
            platform=query.get("platform", ""),
        )
    except ValueError as cause:
        raise UserError(f"build: {cause}") from cause


def _mapping(text: str | None) -> dict[str, str | None]:
    if not text:
        return {}
    return msgspec.convert(json.loads(text), dict[str, str | None])


async def _build(builder: Builder, request: Request, options: BuildOptions, *, quiet: bool, tell: Tell) -> None:
    """Build; a client that goes away cancels it, also while nothing is said."""
    received = asyncio.Event()

    async def body() -> Any:
        async for chunk in request.stream():
            yield chunk
        received.set()

    async def gone() -> None:
        await received.wait()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work = asyncio.ensure_future(builder.build(body(), options, (lambda _value: None) if quiet else tell))
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return
        image = work.result()
        if quiet:
            tell({"stream": f"{image.id}\n"})
            return
        tell({"aux": {"ID": image.id}})
        tell({"stream": f"Successfully built {image.id[7:19]}\n"})
        for tag in options.tags:
            tell({"stream": f"Successfully tagged {parse_reference(tag).familiar}\n"})
    except CommandFailedFault as cause:
        tell({"errorDetail": {"code": cause.code, "message": str(cause)}, "error": str(cause)})
    finally:
        await cancel_and_wait(work, watch)
