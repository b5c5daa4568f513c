"""``POST /auth`` and ``POST /images/{name}/push`` against a real registry that wants a password, with the docker command."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from fleet.agent.http.image_routes import image_routes
from fleet.api.http import install_error_handlers
from fleet.daemon.config import DaemonConfig
from fleet.daemon.http.system import system_routes
from fleet.images import Credentials, ImageStore, RegistrySource, Source
from tests.support import image_registry
from tests.support.image_trees import Entry, make_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not image_registry.available(), reason="needs docker-registry and skopeo (apt install both)"),
]

USER, PASSWORD = "ann", "sea-shell:7"


class Host:
    """An image store behind the routes under test."""

    def __init__(self, images: ImageStore, client: httpx.AsyncClient, app: Any, scratch: Path) -> None:
        self.images, self.client, self.app, self.scratch = images, client, app, scratch

    async def push(self, name: str, *, login: dict[str, str] | None = None, **query: str) -> list[dict[str, Any]]:
        headers = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(login or {}).encode()).decode()}
        answer = await self.client.post(f"/images/{name}/push", params=query, headers=headers)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]


async def pull_sources(reference: str, credentials: Credentials | None) -> list[Source]:
    return [RegistrySource(reference, credentials=credentials)]


@asynccontextmanager
async def opened(scratch: Path) -> AsyncIterator[Host]:
    images = await ImageStore.open(scratch / "images")
    app = FastAPI()
    install_error_handlers(app)
    engine = cast(Any, None)  # neither pushing nor logging in asks the container engine
    system = {"membership": engine, "engine": engine, "events": engine, "clock": engine}
    app.include_router(image_routes(images, engine, pull_sources))
    app.include_router(system_routes(config=DaemonConfig(data_root=scratch), images=images, **system))

    @app.api_route("/docker-ping", methods=["GET", "HEAD"])
    async def ping(_request: Request) -> Response:
        return Response("OK", headers={"Api-Version": "1.47", "Ostype": "linux"})

    async def unversioned(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            path = "/" + path.split("/", 2)[2] if path.startswith("/v1.") else path
            scope = {**scope, "path": "/docker-ping" if path == "/_ping" else path}
        await app(scope, receive, send)

    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
            yield Host(images, client, unversioned, scratch)
    finally:
        await images.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    auth = image_registry.htpasswd_auth(tmp_path, {USER: PASSWORD})
    with image_registry.registry(tmp_path / "registry", auth=auth) as address:
        yield address


def on_hosts(tmp_path: Path, story: Callable[[Host, Host], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), opened(tmp_path / "a") as one, opened(tmp_path / "b") as two:
            await story(one, two)

    asyncio.run(main())


async def add_image(host: Host, *references: str) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield make_tar([Entry(name="etc/first", body=os.urandom(3 << 20))])

    image = await host.images.import_tar(chunks(), reference=references[0], changes=["CMD sh"])
    for other in references[1:]:
        await host.images.tag(image.id, other)
    return image.id


def test_what_is_pushed_is_pulled_back_the_same(registry: str, tmp_path: Path) -> None:
    good = {"username": USER, "password": PASSWORD, "serveraddress": registry}

    async def story(one: Host, two: Host) -> None:
        name = f"{registry}/team/app"
        image_id = await add_image(one, f"{name}:1", f"{name}:2")
        for login in (None, {**good, "password": "no"}):
            last = (await one.push(name, tag="1", login=login))[-1]
            assert last["error"] == last["errorDetail"]["message"]
            assert "login" in last["error"] or "401" in last["error"]

        told = await one.push(name, tag="1", login=good)
        assert told[0] == {"status": f"The push refers to repository [{name}]"}
        assert {step["progressDetail"]["total"] > 0 for step in told if step.get("status") == "Pushing"} == {True}
        assert sum(step.get("status") == "Pushed" for step in told) == 2
        aux = told[-1]["aux"]
        assert told[-2]["status"] == f"1: digest: {aux['Digest']} size: {aux['Size']}"

        told = await one.push(name, login=good)  # no tag: all of them
        assert [step["aux"]["Tag"] for step in told if "aux" in step] == ["1", "2"]
        assert not any(step.get("status") == "Pushing" for step in told)
        assert sum(step.get("status") == "Layer already exists" for step in told) == 4

        source = RegistrySource(f"{name}:2", credentials=Credentials(username=USER, password=PASSWORD))
        again = await two.images.fetch(f"{name}:2", [source])
        await source.aclose()
        assert (again.id, again.manifest_digest) == (image_id, aux["Digest"])

    on_hosts(tmp_path, story)


def test_push_refuses_what_cannot_be_pushed(registry: str, tmp_path: Path) -> None:
    async def story(one: Host, _two: Host) -> None:
        digest = "sha256:" + "1" * 64
        for path, query in ((f"{registry}/x@{digest}", {}), (f"{registry}/x", {"tag": digest})):
            answer = await one.client.post(f"/images/{path}/push", params=query)
            assert answer.status_code == 400
            assert "cannot push a digest reference" in answer.json()["message"]
        assert (await one.client.post(f"/images/{registry}/X/push")).status_code == 400
        for query in ({"tag": "1"}, {}):
            last = (await one.push(f"{registry}/absent", login=None, **query))[-1]
            assert last["error"] == f"An image does not exist locally with the tag: {registry}/absent"

    on_hosts(tmp_path, story)


def test_credentials_are_checked_with_the_registry(registry: str, tmp_path: Path) -> None:
    async def story(one: Host, _two: Host) -> None:
        async def login(**fields: str) -> httpx.Response:
            return await one.client.post("/auth", json={"serveraddress": registry, **fields})

        answer = await login(username=USER, password=PASSWORD)
        assert (answer.status_code, answer.json()) == (200, {"Status": "Login Succeeded", "IdentityToken": ""})
        answer = await login(username=USER, password="no")
        assert answer.status_code == 401
        assert "incorrect username or password" in answer.json()["message"]
        assert (await login()).status_code == 400
        assert (await one.client.post("/auth", content=b"[1]")).status_code == 400
        assert (await login(username=USER, password="x", serveraddress="127.0.0.1:9")).status_code == 503

    on_hosts(tmp_path, story)


def test_a_token_service_is_asked_for_the_login(tmp_path: Path) -> None:
    basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    with image_registry.TokenService(authorization=basic) as tokens:
        auth = f"auth: {{silly: {{realm: '{tokens.url}', service: here}}}}\n"
        with image_registry.registry(tmp_path / "registry", auth=auth) as address:

            async def story(one: Host, _two: Host) -> None:
                for password, status in ((PASSWORD, 200), ("no", 401)):
                    login = {"username": USER, "password": password, "serveraddress": f"http://{address}/v2/"}
                    assert (await one.client.post("/auth", json=login)).status_code == status

            on_hosts(tmp_path, story)
    assert tokens.requests[0][0] == basic


@pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command")
def test_the_docker_command_logs_in_pushes_and_pulls(registry: str, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        name = f"{registry}/team/app:1"
        image_id = await add_image(one, name)
        async with served(one) as docker:
            code, text = await docker("login", "-u", USER, "--password-stdin", registry, stdin="no")
            assert code != 0
            assert "incorrect username or password" in text
            code, text = await docker("push", name)
            assert code != 0
            code, text = await docker("login", "-u", USER, "--password-stdin", registry, stdin=PASSWORD)
            assert (code, "Login Succeeded" in text) == (0, True), text
            code, text = await docker("push", name)
            assert (code, "digest: sha256:" in text) == (0, True), text
        async with served(two) as docker:
            code, text = await docker("pull", name)
            assert code == 0, text
            assert two.images.get(name).id == image_id

    on_hosts(tmp_path, story)


@asynccontextmanager
async def served(host: Host) -> AsyncIterator[Callable[..., Awaitable[tuple[int, str]]]]:
    """The host on a unix socket, and the docker command talking to it; both hosts share one file of logins."""
    path = host.scratch / "s"
    settings = host.scratch.parent / "docker"
    server = uvicorn.Server(uvicorn.Config(host.app, uds=str(path), log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)

    async def docker(*arguments: str, stdin: str = "") -> tuple[int, str]:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{path}", "DOCKER_CONFIG": str(settings)}
        process = await asyncio.create_subprocess_exec(
            "docker", *arguments, env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate(stdin.encode())
        return process.returncode or 0, out.decode()

    try:
        yield docker
    finally:
        server.should_exit = True
        await task
