"""Lines of container logs on their way: from a node's files to a manager, and from a manager to a client.

Between nodes a line is a frame: four bytes of length, then MessagePack ``[stream, time, data]``. To clients it is Docker's
multiplexed form: an 8-byte header (stream, length) before every line, or the bare line for a terminal.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Final, Self

import msgspec

from fleet import errors
from fleet.api.http import parse_bool
from fleet.containers.engine import ContainerEngine

__all__ = ["LogFrame", "LogQuery", "container_log_frames", "multiplexed", "parse_instant", "read_frames"]

_LENGTH: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">BxxxI")
_FRAME_MAX: Final = 1 << 20
_TAIL_MAX: Final = 1_000_000


class LogFrame(msgspec.Struct, frozen=True, array_like=True):
    """One line (or 16 KiB piece of one). ``stream`` is 1 for stdout, 2 for stderr."""

    stream: int
    time: datetime
    data: bytes


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for; ``tail`` is ``None`` for all."""

    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: datetime | None = None
    until: datetime | None = None
    tail: int | None = None
    timestamps: bool = False
    details: bool = False

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Self:
        """Docker's parameters. Raises ``UserError`` naming the bad one."""
        tail = query.get("tail", "all") or "all"
        if tail != "all" and not (tail.isdigit() and int(tail) <= _TAIL_MAX):
            raise errors.UserError(f"tail: {tail!r} is neither 'all' nor a number up to {_TAIL_MAX}")
        result = cls(
            stdout=parse_bool(query.get("stdout")),
            stderr=parse_bool(query.get("stderr")),
            follow=parse_bool(query.get("follow")),
            since=parse_instant(query.get("since", ""), "since"),
            until=parse_instant(query.get("until", ""), "until"),
            tail=None if tail == "all" else int(tail),
            timestamps=parse_bool(query.get("timestamps")),
            details=parse_bool(query.get("details")),
        )
        if not (result.stdout or result.stderr):
            raise errors.UserError("Bad parameters: you must choose at least one stream")
        return result

    def to_query(self) -> dict[str, str]:
        """The same as parameters for another node."""
        result = {"stdout": str(int(self.stdout)), "stderr": str(int(self.stderr)), "follow": str(int(self.follow))}
        result["tail"] = "all" if self.tail is None else str(self.tail)
        for name, instant in (("since", self.since), ("until", self.until)):
            if instant is not None:
                result[name] = f"{instant.timestamp():.6f}"
        return result


def parse_instant(text: str, name: str) -> datetime | None:
    """Unix seconds with fraction, or RFC 3339; empty and 0 mean none."""
    if text in ("", "0"):
        return None
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as cause:
        raise errors.UserError(
            f"{name}: {text!r} is neither unix seconds nor a time such as 2026-01-02T15:04:05Z"
        ) from cause
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


async def container_log_lines(engine: ContainerEngine, name: str, query: LogQuery) -> AsyncIterator[LogFrame]:
    """A container's lines on this host."""
    lines = engine.logs(
        name,
        stdout=query.stdout,
        stderr=query.stderr,
        since=query.since,
        until=query.until,
        tail=query.tail,
        follow=query.follow,
    )
    async for line in lines:
        yield LogFrame(1 if line.stream == "stdout" else 2, line.time, line.data)


async def container_log_frames(engine: ContainerEngine, name: str, query: LogQuery) -> AsyncIterator[bytes]:
    """The same as frames for another node."""
    async for frame in container_log_lines(engine, name, query):
        body = msgspec.msgpack.encode(frame)
        yield _LENGTH.pack(len(body)) + body


async def read_frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[LogFrame]:
    """Frames from another node. Raises ``RuntimeFault`` for what is none."""
    buffer = b""
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > _FRAME_MAX:
                raise errors.RuntimeFault(f"log frame of {length} bytes from a node; at most {_FRAME_MAX} are possible")
            end = _LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                yield msgspec.msgpack.decode(buffer[_LENGTH.size : end], type=LogFrame)
            except msgspec.DecodeError as cause:
                raise errors.RuntimeFault(f"log frame from a node: {cause}") from cause
            buffer = buffer[end:]


def multiplexed(frame: LogFrame, query: LogQuery, *, details: str = "", raw: bool = False) -> bytes:
    """A line for a client: header unless ``raw``, then time stamp and details as asked."""
    line = frame.data if frame.data.endswith(b"\n") or raw else frame.data + b"\n"
    if query.details and details:
        line = details.encode() + b" " + line
    if query.timestamps:
        stamp = frame.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        line = stamp.encode() + b" " + line
    return line if raw else _HEADER.pack(frame.stream, len(line)) + line
