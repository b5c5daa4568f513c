"""Stores over the in-memory engine, and small objects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.memory_engine import MemoryEngine

from fleet.store import Store

Body = Callable[[Store, MemoryEngine], Awaitable[None]]


@pytest.fixture
def run_store() -> Callable[[Body], None]:
    """Runs a test body against an open store on a memory engine."""

    def runner(body: Body) -> None:
        async def main() -> None:
            engine = MemoryEngine()
            await engine.start()
            store = await Store.open(engine)
            try:
                async with asyncio.timeout(20):
                    await body(store, engine)
            finally:
                await store.close()
                await engine.close()

        asyncio.run(main())

    return runner
