"""A control API over a memory engine, by itself and behind HTTP."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.memory_engine import MemoryEngine

from fleet.api.http import install_error_handlers
from fleet.manager.control import ControlApi
from fleet.manager.http import SwarmNetworks, swarm_routes
from fleet.model.node import NodeRole
from fleet.store import Store


class TickingClock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def now(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    def monotonic(self) -> float:
        return self._now.timestamp()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


@dataclass
class World:
    """What a test gets."""

    store: Store
    engine: MemoryEngine
    api: ControlApi
    client: httpx.AsyncClient
    networks: SwarmNetworks
    rotated: list[NodeRole] = field(default_factory=list)

    async def call(self, method: str, path: str, *, status: int, json: Any = None, **kwargs: Any) -> Any:
        """The parsed answer (None if empty) of a request that must end with ``status``."""
        response = await self.client.request(method, path, json=json, **kwargs)
        assert response.status_code == status, response.text
        return response.json() if response.content else None


Body = Callable[[World], Awaitable[None]]


@pytest.fixture
def run() -> Callable[[Body], None]:
    """Runs a test body in a world of its own."""

    def runner(body: Body) -> None:
        async def main() -> None:
            engine = MemoryEngine()
            await engine.start()
            store = await Store.open(engine)
            numbers = itertools.count(1)
            rotated: list[NodeRole] = []

            async def rotate(role: NodeRole) -> None:
                rotated.append(role)

            api = ControlApi(
                store, TickingClock(), lambda size: next(numbers).to_bytes(size, "little"), rotate_token=rotate
            )
            app = FastAPI()
            install_error_handlers(app)
            app.include_router(swarm_routes(lambda: api))
            transport = httpx.ASGITransport(app=app)
            try:
                async with (
                    asyncio.timeout(20),
                    httpx.AsyncClient(transport=transport, base_url="http://fleet") as client,
                ):
                    await body(World(store, engine, api, client, SwarmNetworks(lambda: api), rotated))
            finally:
                await store.close()
                await engine.close()

        asyncio.run(main())

    return runner
