"""Bodies that go on: log lines in Docker's frames, JSON values one a line, uploads taken in pieces."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote_plus

import msgspec
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fleet.agent.http.container_filters import parse_moment
from fleet.cancellation import cancel_and_wait
from fleet.containers.attach import frame
from fleet.errors import FleetError, TooLargeError, UserError
from fleet.node_runtime.logs import LogLine

__all__ = ["MULTIPLEXED", "RAW", "both_ways", "json_lines", "log_body", "log_moment", "log_tail", "upload"]

MULTIPLEXED: Final = "application/vnd.docker.multiplexed-stream"
RAW: Final = "application/vnd.docker.raw-stream"

UPLOAD_MAX: Final = 64 << 30
"""Bytes of an uploaded archive; the image store has tighter limits on what comes out of it."""

_BATCH: Final = 64 << 10
_QUEUE_MAX: Final = 256


async def both_ways(outwards: Coroutine[Any, Any, None], inwards: Coroutine[Any, Any, None]) -> None:
    """Both at a time until one of them ends, with its error if it has one; then neither goes on."""
    tasks = [asyncio.ensure_future(outwards), asyncio.ensure_future(inwards)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_and_wait(*tasks)


_SECONDS: Final = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")


def log_moment(text: str | None, *, now: datetime) -> datetime | None:
    """As `parse_moment`; Unix seconds without rounding, cut to the microseconds of `LogLine.time`, so that a line's own
    time as ``since`` finds the line.
    """
    match = _SECONDS.fullmatch(text or "")
    if match is None or text == "0":
        return parse_moment(text, now=now)
    try:
        whole = datetime.fromtimestamp(int(match[1]), UTC)
    except (ValueError, OverflowError, OSError) as cause:
        raise UserError(f"invalid time {text!r}: it is out of range") from cause
    return whole + timedelta(microseconds=int((match[2] or "")[:6].ljust(6, "0")))


def log_tail(text: str) -> int | None:
    """How many lines from the end; nothing, ``all`` and negative numbers mean all. Raises ``UserError``."""
    if text in ("", "all"):
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise UserError(f"invalid value for tail: {text!r} is neither a number nor all")
    return None if text.startswith("-") else int(text)


async def log_body(
    lines: AsyncIterator[LogLine], *, multiplexed: bool, timestamps: bool, details: Mapping[str, str] | None = None
) -> AsyncIterator[bytes]:
    """Log lines as a body. Lines that are there already go out in batches; one that just came goes at once.

    ``details`` precede each line as ``name=value,...`` in the form of a query string, and a space even if there are none.
    """
    prefix = b""
    if details is not None:
        pairs = (f"{quote_plus(name)}={quote_plus(value)}" for name, value in sorted(details.items()))
        prefix = ",".join(pairs).encode() + b" "
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
            data = prefix + line.data if prefix else line.data
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
        await cancel_and_wait(pending)
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
            except ClientDisconnect:
                pass  # in the middle of its upload: nobody is there to be told
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
            await cancel_and_wait(task)

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
