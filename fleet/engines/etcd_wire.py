"""etcd's JSON gateway (``/v3/...``): several endpoints, mutual TLS, a deadline on every call, errors mapped.

A call that never reached a member goes to the next one. A call whose answer was lost is repeated only when the caller
says that this is harmless; else ``OutcomeUnknownError`` tells that it may or may not have happened.

The gateway rather than gRPC: HTTP and JSON are dependencies already, grpcio and protobuf are not. Values are base64 and 64-bit
numbers are strings; fields that are zero are absent (protobuf's JSON mapping).
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fleet import errors
from fleet.engines.http1 import BrokenError, NotSentError, Pool
from fleet.store.engine import LeaseLostError

__all__ = [
    "EtcdTls",
    "Gateway",
    "MembersRefusedError",
    "OutcomeUnknownError",
    "RevisionGoneError",
    "decode",
    "encode",
    "range_end",
]

RETRY_AFTER_S: Final = 1.0
_PAUSE_S: Final = 0.1
CALLS_AT_A_TIME: Final = 32
_IDLE_STREAM_S: Final = 30.0
"""A watch that is silent for so long is opened anew: the gateway sends nothing by which to tell idle from dead."""
_ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""One page of a list, or one message of a watch: at most 1,000 revisions, most of them far smaller than a transaction may be."""


class OutcomeUnknownError(errors.UnavailableError):
    """The answer to a write was lost: it may or may not have happened. Read before trying again."""


class MembersRefusedError(errors.UnavailableError):
    """etcd did not change its members, and will not until they are all well."""


class RevisionGoneError(errors.FleetError):
    """etcd has compacted the wanted revision away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdTls:
    """Files of the client side: whom to trust, and what to show."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ``UserError`` naming the files."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            if self.certificate is not None:
                context.load_cert_chain(str(self.certificate), str(self.key) if self.key else None)
        except (OSError, ssl.SSLError) as cause:
            raise errors.UserError(
                f"TLS files for etcd ({self.ca}, {self.certificate}, {self.key}): {cause}"
            ) from cause
        return context


def encode(data: bytes | str) -> str:
    """bytes (or text) as the gateway wants them."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def decode(text: str | None) -> bytes:
    """The opposite; absent is empty."""
    return base64.b64decode(text or "")


def range_end(prefix: str) -> bytes:
    """The first key after all that start with ``prefix``; prefixes here are never all 0xff."""
    raw = bytearray(prefix.encode())
    raw[-1] += 1
    return bytes(raw)


class Gateway:
    """One client of several members; ``endpoints`` are ``http(s)://host:port``."""

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None, timeout_s: float) -> None:
        self._endpoints = tuple(endpoints)
        self._current = 0
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(CALLS_AT_A_TIME)
        self._pool = Pool(tls.context() if tls else None)

    async def close(self) -> None:
        await self._pool.close()

    async def call(self, path: str, body: dict[str, Any], *, repeatable: bool) -> dict[str, Any]:
        """One request and its answer within the deadline. Raises as the module says."""
        content = msgspec.json.encode(body)
        last = "no answer"
        sent = False
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    endpoint = self._endpoints[self._current]
                    try:
                        async with self._turns:
                            sent = True
                            async with self._pool.post(endpoint, path, content) as answer:
                                return self._read(answer.status, await answer.whole(bytes_max=_ANSWER_BYTES_MAX))
                    except NotSentError as cause:
                        sent, last = False, f"{endpoint}: {cause}"
                    except (BrokenError, errors.UnavailableError) as cause:
                        if isinstance(cause, (LeaseLostError, MembersRefusedError, errors.StorageFullError)):
                            raise
                        last = f"{endpoint}: {cause or type(cause).__name__}"
                        if not repeatable:
                            raise OutcomeUnknownError(
                                f"etcd did not confirm the write ({last}); it may have happened",
                                retry_after_s=RETRY_AFTER_S,
                            ) from cause
                    self.next_endpoint()
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError as cause:
            self.next_endpoint()
            if sent and not repeatable:
                raise OutcomeUnknownError(
                    "etcd did not confirm the write in time; it may have happened", retry_after_s=RETRY_AFTER_S
                ) from cause
            raise errors.UnavailableError(
                f"etcd at {', '.join(self._endpoints)} does not answer or has no quorum ({last}); nothing was changed, try again",
                retry_after_s=RETRY_AFTER_S,
            ) from cause

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The messages of one stream, until it breaks, which raises ``UnavailableError``."""
        endpoint = self._endpoints[self._current]
        try:
            async with self._pool.post(endpoint, path, msgspec.json.encode(body)) as answer:
                if answer.status != 200:
                    self._read(answer.status, await answer.whole(bytes_max=_ANSWER_BYTES_MAX))
                parts: list[bytes] = []
                size = 0
                async for chunk in answer.chunks(idle_s=_IDLE_STREAM_S):
                    *lines, rest = chunk.split(b"\n")
                    for line in lines:
                        message = msgspec.json.decode(b"".join([*parts, line]) or b"{}")
                        parts, size = [], 0
                        if "error" in message:
                            self._raise(message["error"])
                        yield message.get("result", {})
                    parts.append(rest)
                    size += len(rest)
                    if size > _ANSWER_BYTES_MAX:
                        raise errors.TooLargeError(f"a message of etcd is larger than {_ANSWER_BYTES_MAX} bytes")
        except (NotSentError, BrokenError, msgspec.DecodeError) as cause:
            raise errors.UnavailableError(f"{endpoint}: {cause}", retry_after_s=RETRY_AFTER_S) from cause
        raise errors.UnavailableError(f"{endpoint} ended the stream", retry_after_s=RETRY_AFTER_S)

    def next_endpoint(self) -> None:
        self._current = (self._current + 1) % len(self._endpoints)

    def _read(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            answer = msgspec.json.decode(content)
        except msgspec.DecodeError as cause:
            raise errors.UnavailableError(f"answer {status} is not JSON; is this an etcd client address?") from cause
        if not isinstance(answer, dict):
            raise errors.UnavailableError(f"answer {status} is not an object; is this an etcd client address?")
        if status != 200:
            self._raise(answer)
        return answer

    def _raise(self, answer: Any) -> None:
        """gRPC status codes: google.golang.org/grpc/codes; sentences: etcd's rpctypes/error.go."""
        fields = answer if isinstance(answer, dict) else {}
        text = str(fields.get("message") or fields.get("error") or answer)
        code = fields.get("code", fields.get("grpc_code"))
        if "compacted" in text:
            raise RevisionGoneError(text)
        if "lease not found" in text:
            raise LeaseLostError("the lease has ended")
        if "unhealthy cluster" in text:
            raise MembersRefusedError(
                "etcd does not change its members while too few are there, or have been for 5 s; nothing was changed, "
                "try again",
                retry_after_s=RETRY_AFTER_S,
            )
        if "database space exceeded" in text:
            raise errors.StorageFullError(
                "etcd's space quota is used up: an etcd of fleet's own makes room by itself within a minute; in another one "
                "compact, defragment and disarm the alarm"
            )
        if "too large" in text or "too many operations" in text:
            raise errors.TooLargeError(text)
        if code in (7, 16) or "permission denied" in text:
            raise errors.UserError(f"etcd refuses this client: {text}")
        raise errors.UnavailableError(text, retry_after_s=RETRY_AFTER_S)
