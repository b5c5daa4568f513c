"""``docker cp`` and ``docker export``: tar streams between a client and a container's root, through a pipe."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, BinaryIO

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet.agent.http.streams import upload
from fleet.api.http import parse_bool
from fleet.containers import Container, ContainerEngine
from fleet.containers.archive import export_root, open_root, path_stat, read_archive, write_archive
from fleet.errors import ConflictError, NotFoundError, UnsupportedError, UserError
from fleet.images import ImageStore
from fleet.images.threads import in_thread

__all__ = ["archive_routes"]

_CHUNK = 1 << 16


def archive_routes(engine: ContainerEngine, images: ImageStore) -> APIRouter:
    """The router of ``/containers/{name}/archive`` and ``/export``."""
    router = APIRouter()

    async def users_of(container: Container) -> int:
        return -1 if container.is_up else await engine.user_namespaces.open(container.ids)

    def with_root(container: Container, users: int, call: Callable[[int], Any]) -> Any:
        """Blocks. ``users`` (of `users_of`) is closed."""
        try:
            layers = () if container.is_up else images.get(container.image_id).layer_dirs
            with open_root(container, engine.directory(container.id), layers, users) as root:
                now = engine.get(container.id)
                if (now.is_up, now.state.pid) != (container.is_up, container.state.pid):
                    raise ConflictError(f"container {container.id[:12]} started or ended just now: try again")
                return call(root)
        finally:
            if users >= 0:
                os.close(users)

    async def stat_header(container: Container, path: str) -> dict[str, str]:
        users = await users_of(container)
        value = await asyncio.to_thread(with_root, container, users, lambda root: path_stat(root, container, path))
        return {"X-Docker-Container-Path-Stat": base64.b64encode(msgspec.json.encode(value)).decode()}

    @router.head("/containers/{name}/archive")
    async def head(name: str, request: Request) -> Response:
        return Response(headers=await stat_header(engine.get(name), _path(request)))

    @router.get("/containers/{name}/archive")
    async def get(name: str, request: Request) -> Response:
        container, path = engine.get(name), _path(request)
        headers = await stat_header(container, path)
        users = await users_of(container)

        def run(sink: BinaryIO) -> None:
            with_root(container, users, lambda root: read_archive(root, container, path, sink))

        return StreamingResponse(await _begun(_download(run)), media_type="application/x-tar", headers=headers)

    @router.get("/containers/{name}/export")
    async def export(name: str) -> Response:
        container = engine.get(name)
        await stat_header(container, "/")
        users = await users_of(container)

        def run(sink: BinaryIO) -> None:
            with_root(container, users, lambda root: export_root(root, container, sink))

        return StreamingResponse(await _begun(_download(run)), media_type="application/octet-stream")

    @router.put("/containers/{name}/archive")
    async def put(name: str, request: Request) -> Response:
        container, path = engine.get(name), _path(request)
        query = request.query_params
        keep_kinds = parse_bool(query.get("noOverwriteDirNonDir"))
        owner = _owner(container) if parse_bool(query.get("copyUIDGID")) else None
        users = await users_of(container)

        def run(source: BinaryIO) -> None:
            with_root(
                container,
                users,
                lambda root: write_archive(root, container, path, source, keep_kinds=keep_kinds, owner=owner),
            )

        await _upload(run, request)
        return Response()

    return router


def _path(request: Request) -> str:
    path = request.query_params.get("path", "")
    if not path:
        raise UserError("bad parameter: path cannot be empty")
    return path


def _owner(container: Container) -> tuple[int, int] | None:
    """The container's user, for ``docker cp -a``; None leaves the archive's owners."""
    if not container.user:
        return None
    uid, _, gid = container.user.partition(":")
    if not (uid.isdigit() and (gid.isdigit() or not gid)):
        raise UnsupportedError(
            f"copy with owner: the container's user {container.user!r} is not numeric; copy without -a"
        )
    return int(uid), int(gid or 0)


async def _begun(stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The stream, once its first piece is there: what cannot be read at all is an answer of its own and no broken one. (The
    container may have moved the file since it was looked at.)
    """
    first = await anext(stream, b"")

    async def pieces() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(stream):
            yield first
            async for piece in stream:
                yield piece

    return pieces()


async def _download(run: Callable[[BinaryIO], None]) -> AsyncGenerator[bytes, None]:
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        with os.fdopen(writer, "wb", buffering=_CHUNK) as sink:
            run(sink)

    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        while piece := await in_thread(os.read, reader, _CHUNK):
            yield piece
        await task  # an error breaks the connection off, which the client sees as an incomplete archive
    finally:
        os.close(reader)  # a client that left: the writer hears EPIPE
        with contextlib.suppress(OSError, NotFoundError, ConflictError):
            await task


async def _upload(run: Callable[[BinaryIO], None], request: Request) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        with os.fdopen(reader, "rb") as source:
            run(source)
            while source.read(_CHUNK):
                pass  # padding after the end of the archive

    def send(piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(writer, view) :]

    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        with contextlib.suppress(BrokenPipeError):  # the reader refused; its reason follows
            async for piece in upload(request):
                await in_thread(send, piece)
    finally:
        os.close(writer)
        await asyncio.wait([task])
    task.result()
