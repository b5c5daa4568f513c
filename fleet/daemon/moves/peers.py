"""How this host reaches other nodes of the cluster: over mutual TLS, with short patience."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import httpx

from fleet import errors
from fleet.daemon.moves.words import check_answer

__all__ = ["Peers"]

_CONNECT_S: Final = 5.0
_NOTICE_SILENCE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000),
)
"""tcp(7): a host that is cut off is noticed in 9 s, however long the answer may take: it may flush gigabytes to its disk."""
_STALL_S: Final = 20.0
"""A connection that takes no byte for so long is broken; while the container is stopped this is part of its standstill."""


class Peers:
    """``tls`` is set while this host is a member."""

    def __init__(self) -> None:
        self.tls: Callable[[], ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """This node's, as a client. Raises ``UnavailableError`` in no cluster."""
        if self.tls is None:
            raise errors.UnavailableError("this host is in no cluster", retry_after_s=1)
        return self.tls()

    def client(self, *, answer_s: float | None = 60.0) -> httpx.AsyncClient:
        """To be closed by the caller. ``answer_s``: from the last byte sent to the first of the answer."""
        timeout = httpx.Timeout(_CONNECT_S, read=answer_s, write=_STALL_S, pool=None)
        transport = httpx.AsyncHTTPTransport(verify=self.context(), trust_env=False, socket_options=_NOTICE_SILENCE)
        return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)

    async def ask(
        self,
        method: str,
        address: str,
        path: str,
        *,
        host: str,
        body: bytes | AsyncIterator[bytes] = b"",
        answer_s: float | None = 60.0,
        query: dict[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One call. Raises the other host's error, or ``UnavailableError`` when it cannot be reached."""
        async with self.client(answer_s=answer_s) as client:
            try:
                answer = await client.request(
                    method, f"https://{address}{path}", content=body, params=query, headers=headers
                )
            except httpx.HTTPError as cause:
                raise errors.UnavailableError(
                    f"{host} cannot be reached at {address}: {str(cause) or type(cause).__name__}"
                ) from cause
            return check_answer(answer, host)
