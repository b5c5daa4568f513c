"""Who asked for which change, from where, and what came of it: one line of the log for each request that is not a read, and for
each that was refused for want of credentials or of rights.

A request has an id: the client's ``X-Request-ID`` where it is plain and short, else one made here. It is in the line and in the
answer, so that a client's log and this one can be laid side by side, and it follows what the request wrote: from the service to
its tasks, and with them through the log of each manager and agent. Neither query nor body is told: they may hold secrets.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fleet import traces
from fleet.clock import Clock, SystemClock
from fleet.daemon.access.limits import FailureLimit, source_of
from fleet.daemon.access.principal import PRINCIPAL, Principal
from fleet.daemon.listeners import TLS_EXTENSION, TRANSPORT_EXTENSION
from fleet.logs import get_logger, request_id

__all__ = ["Audit"]

log = get_logger("api")

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TOO_MANY: Final = 429
_REFUSALS: Final = frozenset({401, 403, _TOO_MANY})
_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEADER: Final = b"x-request-id"
_CREDENTIALS: Final = struct.Struct("3i")
_PATH_MAX: Final = 200


class Audit:
    """ASGI middleware. ``write`` takes a phrase and fields, as a logger does. Refusals of strangers and of who asks too often are
    told so often for each address and no more, so that nobody fills the log; ``unsaid`` is how many were left out."""

    def __init__(self, app: Any, *, write: Callable[..., None] = log.info, clock: Clock | None = None) -> None:
        self._app = app
        self._write = write
        self._often = FailureLimit(clock or SystemClock())
        self._unsaid = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id, asked = _request_id(scope), scope["path"]
        began, code = time.perf_counter(), 0

        async def marked(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, own_id)]
                self._tell(scope, asked, own_id, code, began)
            await send(message)

        token = request_id.set(own_id.decode())
        try:
            await self._app(scope, receive, marked)
        finally:
            request_id.reset(token)
            if not code:  # attach and exec took the connection over, or the client left before an answer
                self._tell(scope, asked, own_id, 0, began)

    def _tell(self, scope: Any, asked: str, own_id: bytes, code: int, began: float) -> None:
        """``asked``: the path as it came; where the gate put an id in place of a name, that is told as ``object``."""
        is_refused = code in _REFUSALS
        if scope["method"] in _READS and not is_refused:
            return
        principal: Principal | None = scope.get(PRINCIPAL)
        is_often = principal is None or code == _TOO_MANY
        if is_refused and is_often and self._often.note(source_of(scope)):
            self._unsaid += 1
            return
        unsaid, self._unsaid = self._unsaid, 0
        who, origin = _caller(scope)
        if principal is not None and principal.user:
            who = f"user {principal.user}"
        ended = datetime.now(UTC)
        traces.span(
            f"{scope['method']} {asked[:_PATH_MAX]}",
            request=own_id.decode(),
            began=ended - timedelta(seconds=time.perf_counter() - began),
            ended=ended,
            is_first=True,
            code=str(code or "none"),
            who=who,
        )
        self._write(
            "refused" if is_refused else "change asked for",
            request=own_id.decode(),
            method=scope["method"],
            path=asked[:_PATH_MAX],
            code=str(code or "none"),
            ms=round((time.perf_counter() - began) * 1000, 1),
            who=who,
            origin=origin,
            **_grant(principal),
            **({"object": scope["path"][:_PATH_MAX]} if scope["path"] != asked else {}),
            **({"unsaid": unsaid} if unsaid else {}),
        )


def _grant(principal: Principal | None) -> dict[str, str]:
    """What the one who asked may do, and by which token; nothing for who was not let in."""
    if principal is None:
        return {}
    known = {"role": principal.role.value}
    return known | {"token": principal.token_id} if principal.token_id else known


def _request_id(scope: Any) -> bytes:
    given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
    return bytes(given) if _ID.fullmatch(given) else os.urandom(8).hex().encode()


def _caller(scope: Any) -> tuple[str, str]:
    """Who, and from where: the user and process behind a unix socket (unix(7), SO_PEERCRED), or the name in a certificate."""
    extensions = scope.get("extensions", {})
    tls = extensions.get(TLS_EXTENSION)
    if tls is not None:
        subject = (tls.getpeercert() or {}).get("subject", ())
        name = next((value for part in subject for key, value in part if key == "commonName"), "")
        who = f"certificate {name}" if name else "nobody known"
    else:
        who = "nobody known"
    client = scope.get("client")
    if client:
        return who, f"{client[0]}:{client[1]}"
    transport = extensions.get(TRANSPORT_EXTENSION)
    link = transport.get_extra_info("socket") if transport is not None else None
    if link is None or link.family != socket.AF_UNIX or link.fileno() < 0:
        return who, ""
    with socket.socket(fileno=os.dup(link.fileno())) as copy:
        pid, uid, _ = _CREDENTIALS.unpack(copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"uid {uid}", f"unix, process {pid}"
