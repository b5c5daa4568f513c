"""A container's output, read from its log files; following ends when the container does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

from fleet.containers.entry import Entry
from fleet.node_runtime.logs import LogLine, read_log

__all__ = ["follow_log"]


async def follow_log(
    path: Path,
    entry: Entry,
    *,
    stdout: bool = True,
    stderr: bool = True,
    since: datetime | None = None,
    until: datetime | None = None,
    tail: int | None = None,
    follow: bool = False,
) -> AsyncIterator[LogLine]:
    """Lines of the wanted streams. ``tail`` counts lines of both, as in Docker. With ``follow`` it goes on until the
    container ends.
    """
    stop = asyncio.Event()
    if follow and (entry.record.is_up or entry.starting):
        entry.next_exit.add_done_callback(lambda _done: stop.set())
    else:
        follow = False
    async for line in read_log(path, since=since, until=until, tail=tail, follow=follow, stop=stop):
        if (stdout and line.stream == "stdout") or (stderr and line.stream == "stderr"):
            yield line
