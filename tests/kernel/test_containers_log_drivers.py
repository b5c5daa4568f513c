"""Log drivers with real containers, as the ``docker`` command sees them."""

from __future__ import annotations

import shutil

import pytest
from containers_host import RealHost, on_real_host
from test_containers_docker_cli import docker, served

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command"),
]


def test_driver_none_keeps_nothing_and_says_so(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            run = ["run", "--name", "mute", "--log-driver", "none", "--network", "none", "busybox", "echo", "hello"]
            assert "hello" in await docker(path, *run)
            answer = await docker(path, "logs", "mute", code=1)
            assert "configured logging driver does not support reading" in answer
            assert not host.engine.log_path(host.engine.get("mute").id).exists()

    on_real_host(story, unique=unique)


def test_driver_local_is_rotated_and_read(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            options = ["--log-driver", "local", "--log-opt", "max-size=2k", "--log-opt", "max-file=2"]
            script = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done"
            await docker(path, "run", "--name", "web", *options, "--network", "none", "busybox", "sh", "-c", script)
            lines = (await docker(path, "logs", "web")).splitlines()
            first = 200 - len(lines) + 1
            assert 1 < first < 200
            assert lines == [f"line {n}" for n in range(first, 201)]
            files = sorted(host.engine.log_path(host.engine.get("web").id).parent.iterdir())
            assert len(files) == 2
            assert all(file.stat().st_size <= 2048 for file in files)

    on_real_host(story, unique=unique)


def test_details_show_the_labels_and_variables_asked_for(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            options = ["--log-opt", "labels=tier,absent", "--log-opt", "env=WHERE"]
            given = ["--label", "tier=front end", "--label", "other=x", "-e", "WHERE=here", "-e", "SECRET=no"]
            await docker(path, "run", "--name", "web", *options, *given, "--network", "none", "busybox", "echo", "hi")
            assert await docker(path, "logs", "web") == "hi\n"
            assert await docker(path, "logs", "--details", "web") == "WHERE=here,tier=front+end hi\n"
            stamp = (await docker(path, "logs", "-t", "web")).split()[0]
            assert await docker(path, "logs", "--since", stamp, "web") == "hi\n"
            assert "invalid value for tail" in await docker(path, "logs", "--tail", "some", "web", code=1)

    on_real_host(story, unique=unique)
