"""Requests over one connection to the supervisor: answers find who asked by number, events come between them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from fleet.errors import UnavailableError
from fleet.node_runtime.answers import fault_of
from fleet.node_runtime.wire import Channel, ClosedError

__all__ = ["Connection"]


class Connection:
    """``on_event`` gets each event in the order told; ``on_lost`` the reason when the connection ends by itself, after whoever
    waits for an answer was told. Belongs to the loop it is made in.
    """

    def __init__(
        self, sock: socket.socket, *, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[str], None]
    ) -> None:
        sock.setblocking(False)
        self._channel: Channel | None = Channel(sock)
        self._on_event = on_event
        self._on_lost = on_lost
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    async def call(self, message: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """The answer and the descriptors that came with it, the caller's. Raises what the supervisor refused with, and
        `UnavailableError` when it ended before it answered.
        """
        if self._channel is None:
            raise UnavailableError("no connection to the supervisor", retry_after_s=0.1)
        self._sequence += 1
        sequence = self._sequence
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[sequence] = future
        try:
            try:
                self._channel.send({**message, "seq": sequence}, fds)
                self._want_write()
            except ClosedError as error:
                self._lost(str(error))
            return await future
        finally:
            self._waiting.pop(sequence, None)

    def _want_write(self) -> None:
        if self._channel is None:
            return
        loop, fd = asyncio.get_running_loop(), self._channel.socket.fileno()
        try:
            if self._channel.flush():
                loop.remove_writer(fd)
            else:
                loop.add_writer(fd, self._want_write)
        except ClosedError as error:
            self._lost(str(error))

    def _readable(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except ClosedError as error:
            self._lost(str(error))
            return
        for message, fds in messages:
            if "event" in message:
                self._on_event(message)
                continue
            future = self._waiting.get(message["seq"])
            if future is None or future.done():  # cancelled meanwhile
                for fd in fds:
                    os.close(fd)
            elif "error" in message:
                future.set_exception(fault_of(message["error"]))
            else:
                future.set_result((message["ok"], fds))

    def _lost(self, reason: str) -> None:
        self.close(reason)
        self._on_lost(reason)

    def close(self, reason: str) -> None:
        """Who waits for an answer gets none. Idempotent."""
        if self._channel is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel.socket.fileno())
            loop.remove_writer(self._channel.socket.fileno())
            self._channel.close()
            self._channel = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError(f"the supervisor did not answer: {reason}", retry_after_s=0.1))
        self._waiting.clear()
