"""An application with the host's routes over a real image store and an engine on fakes."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from fleet.agent.http import host_routes
from fleet.api.http import install_error_handlers
from fleet.containers import ContainerEngine
from fleet.daemon.versions import VersionPrefix
from fleet.images import ImageStore

_FAKES = Path(__file__).parents[1] / "containers" / "conftest.py"
_spec = importlib.util.spec_from_file_location("containers_fakes", _FAKES)
assert _spec is not None and _spec.loader is not None
fakes = importlib.util.module_from_spec(_spec)
__import__("sys").modules["containers_fakes"] = fakes
_spec.loader.exec_module(fakes)


class Api:
    """A client of the routes, and what is behind them."""

    def __init__(self, client: httpx.AsyncClient, engine: ContainerEngine, runtime: Any, images: ImageStore) -> None:
        self.client = client
        self.engine = engine
        self.runtime = runtime
        self.images = images

    async def get(self, path: str, status: int = 200, **params: Any) -> Any:
        return _checked(await self.client.get(path, params=params), status)

    async def post(self, path: str, body: Any = None, status: int = 200, **params: Any) -> Any:
        return _checked(await self.client.post(path, json=body, params=params), status)

    async def delete(self, path: str, status: int = 204, **params: Any) -> Any:
        return _checked(await self.client.delete(path, params=params), status)


def _checked(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, (response.status_code, response.text)
    return response.json() if response.content else None


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Api], Awaitable[None]]], None]:
    """``api(story)`` runs a story with an ``Api``; image ``busybox`` is a tar with one file."""
    monkeypatch.setattr("fleet.containers.secretfs._is_memory", lambda _path: True)

    async def no_sources(_reference: str, _credentials: object) -> list[Any]:
        return []

    async def main(story: Callable[[Api], Awaitable[None]]) -> None:
        images = await ImageStore.open(tmp_path / "images")
        await images.import_tar(
            one_file_tar(), reference="busybox:latest", changes=['CMD ["sh"]', "EXPOSE 80", "LABEL tier=base"]
        )
        runtime = fakes.FakeRuntime()
        engine = await ContainerEngine.open(
            data_root=tmp_path / "data",
            exec_root=tmp_path / "exec",
            runtime=runtime,
            images=images,
            network=fakes.FakeNetworks(),
        )
        app = FastAPI()
        install_error_handlers(app)
        for router in host_routes(engine, images, pull_sources=no_sources):
            app.include_router(router)
        try:
            async with (
                asyncio.timeout(20),
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=VersionPrefix(app)), base_url="http://host"
                ) as client,
            ):
                await story(Api(client, engine, runtime, images))
        finally:
            await engine.close()
            await images.close()

    return lambda story: asyncio.run(main(story))


async def one_file_tar() -> AsyncIterator[bytes]:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"hi\n"))
    yield buffer.getvalue()
