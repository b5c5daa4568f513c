"""Bodies that go on: log lines in Docker's frames, JSON values one a line, uploads taken in pieces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC
from typing import Any, Final

import msgspec
from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fleet.containers.attach import frame
from fleet.errors import FleetError, TooLargeError
from fleet.node_runtime.logs import LogLine

__all__ = ["MULTIPLEXED", "RAW", "json_lines", "log_body", "upload"]

MULTIPLEXED: Final = "application/vnd.docker.multiplexed-stream"
RAW: Final = "application/vnd.docker.raw-stream"

UPLOAD_MAX: Final = 64 << 30
"""Bytes of an uploaded archive; the image store has tighter limits on what comes out of it."""

_BATCH: Final = 64 << 10
_QUEUE_MAX: Final = 256


async def log_body(lines: AsyncIterator[LogLine], *, multiplexed: bool, timestamps: bool) -> AsyncIterator[bytes]:
    """Log lines as a body. Lines that are there already go out in batches; one that just came goes at once."""
    batch = bytearray()
    iterator = aiter(lines)
    pending: asyncio.Task[LogLine] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(_next(iterator))
            await asyncio.wait((pending,), timeout=0 if batch else None)
            if not pending.done():  # nothing more for now
                yield bytes(batch)
                batch.clear()
            try:
                line = await pending
            except StopAsyncIteration:
                break
            data = line.data
            if timestamps:
                stamp = line.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
                data = stamp.encode() + b" " + data
            batch += frame(line.stream, data) if multiplexed else data
            if len(batch) >= _BATCH:
                yield bytes(batch)
                batch.clear()
        if batch:
            yield bytes(batch)
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending
        close = getattr(lines, "aclose", None)
        if close is not None:
            await close()


async def _next(iterator: AsyncIterator[LogLine]) -> LogLine:
    return await anext(iterator)


def json_lines(work: Callable[[Callable[[Any], None]], Awaitable[None]]) -> StreamingResponse:
    """A body of JSON values, one a line, that ``work`` tells to its argument while it runs.

    The status is sent before the work begins, so an error becomes the last value, as Docker's clients expect it:
    ``{"errorDetail": {"message": ...}, "error": ...}``. When the client goes away the work is cancelled. Values a slow
    client does not take are dropped but for the newest (progress), never the last ones of finished work.
    """

    async def body() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        def tell(value: Any) -> None:
            if queue.qsize() < _QUEUE_MAX or "progressDetail" not in value:
                queue.put_nowait(msgspec.json.encode(value) + b"\r\n")

        async def run() -> None:
            try:
                await work(tell)
            except FleetError as cause:
                tell({"errorDetail": {"message": str(cause)}, "error": str(cause)})
            finally:
                queue.put_nowait(None)

        task = asyncio.ensure_future(run())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            await task
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    return _Duplex(body(), media_type="application/json")


class _Duplex(StreamingResponse):
    """Answers while the request's body is still being read: unlike its parent it leaves the incoming side alone, where it
    would swallow pieces of the upload in search of a disconnect. A client that goes away ends the upload instead.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


async def upload(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces, as it comes. Raises ``TooLargeError`` beyond ``UPLOAD_MAX``."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > UPLOAD_MAX:
            raise TooLargeError(f"upload is larger than the limit of {UPLOAD_MAX} bytes")
        if chunk:
            yield chunk
