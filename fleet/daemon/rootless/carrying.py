"""Bytes between a socket of the host and 127.0.0.1 in this process's network namespace, for the anchor.

Everything has a bound: connections and clients of a port, what lies between the two sides, how long a silent UDP client counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, Protocol

__all__ = ["Carrier", "TcpCarrier", "UdpCarrier"]

_CONNECTIONS_MAX: Final = 1024
_PIECE_BYTES: Final = 1 << 16
_UDP_CLIENTS_MAX: Final = 1024
_UDP_SILENT_S: Final = 90.0
_CONNECT_TIMEOUT_S: Final = 10.0
_TARGET: Final = "127.0.0.1"


class Carrier(Protocol):
    """One published port."""

    async def close(self) -> None:
        """End what is under way; the port is free when this returns."""
        ...


class TcpCarrier:
    """Accepts on ``listener`` and connects each to ``port``. A half-closed connection stays half open, as without us."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._listener = listener
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._own = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """See ``Carrier``."""
        await _end(self._own, *self._tasks)
        self._listener.close()  # not before: the loop still watches its number

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError:  # out of descriptors, or the client is gone again
                await asyncio.sleep(0.05)
                continue
            if len(self._tasks) >= _CONNECTIONS_MAX:
                client.close()
                continue
            client.setblocking(False)
            task = loop.create_task(self._carry(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as target:
            for sock in (client, target):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target.setblocking(False)
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await loop.sock_connect(target, (_TARGET, self._port))
            except (OSError, TimeoutError):
                return
            with contextlib.suppress(OSError, ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(client, target))
                    group.create_task(_pump(target, client))


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(source, _PIECE_BYTES):
        await loop.sock_sendall(sink, piece)
    sink.shutdown(socket.SHUT_WR)


class UdpCarrier:
    """Each client of ``outer`` has a socket of its own towards ``port``, so that answers find their way back."""

    def __init__(self, outer: socket.socket, port: int) -> None:
        self._outer = outer
        self._port = port
        self._clients: dict[tuple[str, int], _UdpClient] = {}
        self._own = asyncio.get_running_loop().create_task(self._receive())

    async def close(self) -> None:
        """See ``Carrier``."""
        await _end(self._own, *(client.task for client in self._clients.values()))
        self._outer.close()

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, address = await loop.sock_recvfrom(self._outer, _PIECE_BYTES)
            except OSError:  # an ICMP error of an earlier answer
                continue
            client = self._clients.get(address)
            if client is None:
                if len(self._clients) >= _UDP_CLIENTS_MAX:
                    self._clients[min(self._clients, key=lambda key: self._clients[key].heard)].close()
                client = self._clients[address] = _UdpClient(self, address)
            client.send(data)

    def client(self, address: tuple[str, int]) -> _UdpClient | None:
        """For ``_UdpClient``."""
        return self._clients.get(address)

    def forget(self, address: tuple[str, int]) -> None:
        """For ``_UdpClient``."""
        self._clients.pop(address, None)

    @property
    def port(self) -> int:
        """Where to, on loopback."""
        return self._port

    async def answer(self, data: bytes, address: tuple[str, int]) -> None:
        """For ``_UdpClient``."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendto(self._outer, data, address)


class _UdpClient:
    def __init__(self, carrier: UdpCarrier, address: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self._carrier = carrier
        self._address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect((_TARGET, carrier.port))
        self.heard = loop.time()
        self.task = loop.create_task(self._answers())

    def send(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        with contextlib.suppress(OSError):  # nobody listens, or too much at once: datagrams may get lost
            self._socket.send(data)

    async def _answers(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while (left_s := self.heard + _UDP_SILENT_S - loop.time()) > 0:
                try:
                    async with asyncio.timeout(left_s):
                        data = await loop.sock_recv(self._socket, _PIECE_BYTES)
                except TimeoutError:
                    continue
                except OSError:
                    continue
                self.heard = loop.time()
                await self._carrier.answer(data, self._address)
        finally:
            self._socket.close()
            if self._carrier.client(self._address) is self:
                self._carrier.forget(self._address)

    def close(self) -> None:
        self._carrier.forget(self._address)
        self.task.cancel()
