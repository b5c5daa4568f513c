"""Reading a pipe without waiting for it."""

from __future__ import annotations

import asyncio
import os

__all__ = ["read_pipe"]


async def read_pipe(fd: int, limit: int) -> bytes:
    """Until end of file or cancellation; what exceeds the limit is read and dropped. Closes the descriptor."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    data, done = bytearray(), loop.create_future()

    def readable() -> None:
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return
        data.extend(chunk[: max(limit - len(data), 0)])
        if not chunk and not done.done():
            done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return bytes(data)
