"""``docker build`` and ``docker commit``, typed as a person does, against the builder's routes."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from containers_host import RealHost, on_real_host
from fastapi import FastAPI, Request, Response
from test_containers_docker_cli import Protocol, no_sources

from fleet.agent.http import host_routes
from fleet.agent.http.streams import json_lines
from fleet.api.http import install_error_handlers
from fleet.builder.build import LABEL, remove_leftovers
from fleet.builder.http import build_routes
from fleet.containers import ContainerConfig

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command"),
]

DOCKERFILE = """ARG BASE=busybox
FROM $BASE AS first
ARG WORD=hello
RUN echo $WORD > /made && rm /etc/group && mkfifo /pipe && ln /made /linked
FROM busybox
ENV A=1 B="two words"
COPY --from=first /made /copied/
COPY --chown=daemon . /ctx/
ADD more.tar /unpacked/
RUN test -f /copied/made && test ! -e /ctx/ignored.log && cat /unpacked/inner && rm /bin/vi
WORKDIR /ctx
CMD ["sh", "-c", "cat /copied/made; echo $B; stat -c %u file"]
"""


@asynccontextmanager
async def served(host: RealHost) -> Any:
    app = FastAPI()
    install_error_handlers(app)
    builder = build_routes(
        host.engine, host.images, host.root / "d/builder", pull_sources=no_sources, json_lines=json_lines
    )
    for router in (builder, *host_routes(host.engine, host.images, pull_sources=no_sources)):
        app.include_router(router)

    @app.api_route("/_ping", methods=["GET", "HEAD"])
    async def ping(_request: Request) -> Response:
        return Response("OK", headers={"Api-Version": "1.47", "Ostype": "linux"})

    async def unversioned(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1."):
            scope = {**scope, "path": "/" + scope["path"].split("/", 2)[2]}
        await app(scope, receive, send)

    path = str(host.root / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    server = uvicorn.Server(uvicorn.Config(unversioned, http=Protocol, log_level="error", lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,unused-ignore]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield path
    finally:
        server.should_exit = True
        await task
        listener.close()
        Path(path).unlink()


async def docker(path: str, *args: str, code: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        *("docker", "-H", f"unix://{path}", *args),
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(90):
        output = (await process.communicate())[0].decode()
    assert process.returncode == code, (args, output)
    return output


def test_docker_build_makes_an_image_that_runs_and_is_found_in_the_cache(unique: str) -> None:
    async def story(host: RealHost) -> None:
        import tarfile

        context = host.root / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(DOCKERFILE)
        (context / ".dockerignore").write_text("*.log\n")
        (context / "ignored.log").write_text("x")
        (context / "file").write_text("f")
        (context / "inner").write_text("inner-text\n")
        with tarfile.open(context / "more.tar", "w") as tar:
            tar.add(context / "inner", "inner")
        arguments = ("build", "-t", "made:1", "--build-arg", "WORD=howdy", str(context))
        async with served(host) as path:
            output = await docker(path, *arguments)
            assert "Successfully tagged made:1" in output and "inner-text" in output, output
            assert "Using cache" not in output
            assert await docker(path, "run", "--rm", "made:1") == "howdy\ntwo words\n1\n"
            await docker(path, "run", "--rm", "made:1", "test", "!", "-e", "/bin/vi")
            first = host.images.get("made:1").id
        async with served(host) as path:  # the cache is on disk
            output = await docker(path, *arguments)
            assert "Running in" not in output and host.images.get("made:1").id == first, output
            (context / "Dockerfile").write_text("FROM busybox\nRUN exit 7\n")
            output = await docker(path, "build", str(context), code=7)
            assert "line 2" in output and "returned a non-zero code: 7" in output
            assert not host.engine.list()
            await docker(path, "run", "--name", "cc", "busybox", "sh", "-c", "echo kept > /kept")
            await docker(path, "commit", "-c", 'CMD ["cat", "/kept"]', "cc", "kept:1")
            assert await docker(path, "run", "--rm", "kept:1") == "kept\n"
            await docker(path, "rm", "cc")
            (context / "Dockerfile").write_text("FROM busybox\nCOPY file /fleet\nRUN cat /fleet\n")
            arguments = ("-H", f"unix://{path}", "build", "-t", "fleet:1", str(context))
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "fleet.cli.main", *arguments)
            assert await process.wait() == 0 and host.images.get("fleet:1")
        await host.engine.create(ContainerConfig(image="busybox", labels={LABEL: "1"}))
        await remove_leftovers(host.engine)
        assert not host.engine.list()

    on_real_host(story, unique=unique)


def test_a_client_that_goes_away_ends_its_build(unique: str) -> None:
    async def story(host: RealHost) -> None:
        context = host.root / "context"
        context.mkdir()
        (context / "Dockerfile").write_text("FROM busybox\nRUN sleep 1000\n")
        async with served(host) as path:
            process = await asyncio.create_subprocess_exec(
                *("docker", "-H", f"unix://{path}", "build", str(context)),
                env={**os.environ, "DOCKER_BUILDKIT": "0"},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            async with asyncio.timeout(60):
                while not any(container.is_up for container in host.engine.list()):
                    await asyncio.sleep(0.02)
                process.kill()
                await process.wait()
                while host.engine.list() or list((host.root / "d/builder/scratch").iterdir()):
                    await asyncio.sleep(0.02)

    on_real_host(story, unique=unique)
