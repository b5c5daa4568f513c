"""The real ``docker`` command and docker-py against the host's routes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from containers_host import RealHost, on_real_host
from fastapi import FastAPI, Request, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fleet.agent.http import HijackMixin, host_routes
from fleet.api.http import install_error_handlers

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command"),
]


class Protocol(HijackMixin, HttpToolsProtocol):
    """What the daemon's listeners do as well."""


def make_app(host: RealHost) -> Any:
    """The host's routes with what every client asks first, and versions taken off paths."""
    app = FastAPI()
    install_error_handlers(app)
    for router in host_routes(host.engine, host.images, pull_sources=no_sources):
        app.include_router(router)

    @app.api_route("/_ping", methods=["GET", "HEAD"])
    async def ping(_request: Request) -> Response:
        return Response("OK", headers={"Api-Version": "1.47", "Ostype": "linux"})

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"ApiVersion": "1.47", "MinAPIVersion": "1.24", "Version": "0", "Os": "linux", "Arch": "amd64"}

    async def unversioned(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1."):
            scope = {**scope, "path": "/" + scope["path"].split("/", 2)[2]}
        await app(scope, receive, send)

    return unversioned


async def no_sources(_reference: str, _credentials: object) -> list[Any]:
    return []


@asynccontextmanager
async def served(host: RealHost) -> AsyncIterator[str]:
    """The socket's path, while a server listens there."""
    path = str(host.root / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    config = uvicorn.Config(make_app(host), http=Protocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
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


async def docker(path: str, *args: str, stdin: Path | None = None, code: int = 0) -> str:
    """Run docker; its output, standard error included."""
    with (stdin or Path("/dev/null")).open("rb") as source:
        process = await asyncio.create_subprocess_exec(
            "docker",
            "-H",
            f"unix://{path}",
            *args,
            stdin=source,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    async with asyncio.timeout(60):
        output = (await process.communicate())[0].decode()
    assert process.returncode == code, (args, output)
    return output


def test_the_docker_command_runs_a_container_through_its_life(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            script = "echo hello; echo bad >&2; trap 'exit 5' TERM; while :; do sleep 0.05; done"
            run = [
                "run",
                "-d",
                "--name",
                "web",
                "-p",
                "127.0.0.1:18080:80",
                "-v",
                "data:/data",
                "--label",
                "a=b",
                "-m",
                "64m",
            ]
            key = (await docker(path, *run, "busybox", "sh", "-c", script)).strip()
            assert len(key) == 64
            listing = await docker(path, "ps", "--no-trunc")
            assert key in listing and "127.0.0.1:18080->80/tcp" in listing and "Up " in listing
            inspected = json.loads(await docker(path, "inspect", "web"))[0]
            assert inspected["State"]["Running"] and inspected["HostConfig"]["Memory"] == 64 << 20
            while "hello" not in (logs := await docker(path, "logs", "web")):
                await asyncio.sleep(0.02)
            assert sorted(logs.split()) == ["bad", "hello"]
            assert (await docker(path, "logs", "--tail", "1", "-t", "web")).startswith("20")
            assert "sleep" in await docker(path, "top", "web")
            figures = await docker(path, "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", "web")
            assert figures.startswith("web ") and "64MiB" in figures
            await docker(path, "rename", "web", "site")
            await docker(path, "pause", "site")
            assert "(Paused)" in await docker(path, "ps")
            await docker(path, "unpause", "site")
            await docker(path, "stop", "site")
            assert (await docker(path, "wait", "site")).strip() == "5"
            assert "Exited (5)" in await docker(path, "ps", "-a")
            assert "data" in await docker(path, "volume", "ls")
            assert "in use" in await docker(path, "volume", "rm", "data", code=1)
            await docker(path, "rm", "site")
            await docker(path, "volume", "rm", "data")
            assert "No such container: site" in await docker(path, "container", "inspect", "site", code=1)

    on_real_host(story, unique=unique)


def test_the_docker_command_moves_images(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            archive = host.root / "saved.tar"
            await docker(path, "tag", "busybox", "team/app:1")
            await docker(path, "save", "-o", str(archive), "team/app:1")
            assert "IMAGE" in await docker(path, "history", "busybox")
            await docker(path, "rmi", "team/app:1", "busybox")
            assert "busybox" not in await docker(path, "images")
            assert "Loaded image: team/app:1" in await docker(path, "load", stdin=archive)
            assert "team/app" in await docker(path, "images")
            imported = await docker(path, "import", "--change", 'CMD ["true"]', str(archive), "odd:1")
            assert imported.strip().startswith("sha256:")
            denied = await docker(path, "run", "-d", "no/such:1", code=125)
            assert "no/such:1" in denied
            assert "Total reclaimed space" in await docker(path, "container", "prune", "-f")
            assert "Total reclaimed space" in await docker(path, "image", "prune", "-af")

    on_real_host(story, unique=unique)


def test_run_exec_and_attach_speak_both_ways(unique: str) -> None:
    async def story(host: RealHost) -> None:
        typed = host.root / "typed"
        typed.write_bytes(b"line\n" * 20_000)
        async with served(host) as path:
            assert await docker(path, "run", "--rm", "busybox", "sh", "-c", "echo out; exit 6", code=6) == "out\n"
            counted = await docker(path, "run", "--rm", "-i", "busybox", "wc", "-l", stdin=typed)
            assert counted.strip() == "20000"
            assert "not-there" in await docker(path, "run", "--rm", "busybox", "not-there", code=127)
            await docker(path, "run", "-d", "--name", "web", "busybox", "sleep", "100")
            assert (
                await docker(path, "exec", "-e", "A=b", "-w", "/tmp", "web", "sh", "-c", "echo $A $PWD") == "b /tmp\n"
            )
            assert await docker(path, "exec", "web", "sh", "-c", "exit 9", code=9) == ""
            assert (await docker(path, "exec", "-i", "web", "wc", "-l", stdin=typed)).strip() == "20000"
            big = await docker(path, "exec", "web", "sh", "-c", "seq 200000")
            assert big.count("\n") == 200_000 and big.endswith("\n200000\n")
            await docker(path, "exec", "-d", "web", "touch", "/made")
            assert await docker(path, "exec", "web", "ls", "/made") == "/made\n"
            assert "not-there" in await docker(path, "exec", "web", "not-there", code=127)
            await docker(path, "rm", "-f", "web")
            assert await in_terminal(path, "run", "--rm", "-it", "busybox", "sh", "-c", "tty; read x; echo got $x") == 0
            await until_gone(host)

    on_real_host(story, unique=unique)


async def until_gone(host: RealHost) -> None:
    async with asyncio.timeout(5):
        while host.engine.list():
            await asyncio.sleep(0.02)


async def in_terminal(path: str, *args: str) -> int:
    """Run docker on a terminal, type a line, return its exit code; what it showed must have the answer."""
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            "docker", "-H", f"unix://{path}", *args, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        seen = b""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while b"/dev/" not in seen:
                seen += await loop.run_in_executor(None, os.read, ours, 4096)
            os.write(ours, b"hello\r")
            while b"got hello" not in seen:
                seen += await loop.run_in_executor(None, os.read, ours, 4096)
            return await process.wait()
    finally:
        os.close(ours)


def test_docker_py_is_served(unique: str) -> None:
    docker_py = pytest.importorskip("docker")

    async def story(host: RealHost) -> None:
        async with served(host) as path:

            def use() -> None:
                client = docker_py.DockerClient(base_url=f"unix://{path}")
                try:
                    made = client.containers.run(
                        "busybox", ["sh", "-c", "echo $A; exit 0"], environment={"A": "b"}, detach=True
                    )
                    assert made.wait()["StatusCode"] == 0
                    assert made.logs() == b"b\n"
                    made.reload()
                    assert made.status == "exited" and made.image.tags == ["busybox:latest"]
                    assert [c.id for c in client.containers.list(all=True, filters={"status": "exited"})] == [made.id]
                    made.remove(v=True)
                    volume = client.volumes.create("v", labels={"a": "b"})
                    assert client.volumes.get("v").attrs["Labels"] == {"a": "b"}
                    volume.remove()
                    assert client.images.get("busybox").id == client.images.list()[0].id
                finally:
                    client.close()

            await asyncio.to_thread(use)

    on_real_host(story, unique=unique)
