"""Opening a connection to a manager: WebSocket over mutual TLS, and sure that it is a manager of this cluster."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from websockets.asyncio.client import connect

from fleet import errors
from fleet.api import dispatch
from fleet.identity.tls import verify_peer
from fleet.model.ids import ClusterId
from fleet.model.node import NodeRole

__all__ = ["OPEN_TIMEOUT_S", "Connection", "Dial", "manager_dialer"]

OPEN_TIMEOUT_S: Final = 5.0


class Connection(Protocol):
    """Frames in order, both ways. Both methods raise ``OSError`` or ``WebSocketException`` once it has ended."""

    async def send(self, message: bytes) -> None: ...

    async def recv(self) -> bytes | str: ...


Dial = Callable[[str], AbstractAsyncContextManager[Connection]]
"""``host:port`` of a manager -> the open connection, closed at the end of the block."""


def manager_dialer(tls: Callable[[], ssl.SSLContext], cluster_id: ClusterId) -> Dial:
    """``tls`` is asked anew for each connection: certificates change. Dialling raises ``OSError``, ``TimeoutError``,
    ``WebSocketException``, and ``FleetError`` for a peer that is no manager of this cluster."""

    @asynccontextmanager
    async def dial(address: str) -> AsyncIterator[Connection]:
        async with connect(
            f"wss://{address}{dispatch.PATH}",
            ssl=tls(),
            server_hostname="fleet-node",
            max_size=dispatch.FRAME_LIMIT,
            compression=None,
            ping_interval=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=1.0,
            proxy=None,
        ) as connection:
            ssl_object = connection.transport.get_extra_info("ssl_object")
            if ssl_object is None:
                raise errors.UnauthorizedError("the manager does not speak TLS")
            verify_peer(ssl_object, cluster_id=cluster_id, role=NodeRole.MANAGER)
            yield connection

    return dial
