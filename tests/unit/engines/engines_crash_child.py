"""A process that writes as fast as it can and prints each acknowledged write; the crash test kills it at random moments.

    python engines_crash_child.py DIRECTORY START

Four writers, each with its own counter; transactions write two keys that must always agree. ``history`` is kept short, so
that compaction and checkpoints happen all the time.
"""

import asyncio
import os
import sys
from pathlib import Path

from fleet.engines.sqlite import HistoryLimits, SqliteEngine
from fleet.store.engine import Put, Txn


async def write(engine: SqliteEngine, writer: int, start: int) -> None:
    for number in range(start, start + 1_000_000):
        value = str(number).encode()
        puts = (Put(f"/a/{writer}", value), Put(f"/b/{writer}", value), Put(f"/log/{writer}/{number:09}", b"x" * 500))
        drop = (f"/log/{writer}/{number - 20:09}",)
        revision = await engine.commit(Txn(puts=puts, deletes=drop))
        os.write(1, f"{writer} {number} {revision}\n".encode())


async def main() -> None:
    engine = SqliteEngine(Path(sys.argv[1]), cluster_id="c1", history=HistoryLimits(revisions=50))
    await engine.start()
    os.write(1, b"ready\n")
    await asyncio.gather(*(write(engine, writer, int(sys.argv[2])) for writer in range(4)))


asyncio.run(main())
