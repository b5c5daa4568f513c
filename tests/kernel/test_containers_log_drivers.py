"""Log drivers with real containers, as the ``docker`` command sees them."""

from __future__ import annotations

import asyncio
import shutil
import socket

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


def receiver(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    made.bind(path)
    made.setblocking(False)
    return made


async def arrived(made: socket.socket, count: int) -> list[str]:
    """The texts behind the heads of the next lines, once there are so many."""
    found: list[str] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                found.append(made.recv(1 << 16).decode().rpartition(": ")[2])
            except BlockingIOError:
                await asyncio.sleep(0.02)
    return found


def test_syslog_gets_every_line_and_logs_can_be_read_all_the_same(unique: str) -> None:
    async def story(host: RealHost) -> None:
        path = str(host.root / "log.sock")
        options = ["--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{path}", "--log-opt", "tag=t"]
        script = ["busybox", "sh", "-c", "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; done"]
        with receiver(path) as made:
            async with served(host) as api:
                await docker(api, "run", "--name", "web", *options, "--network", "none", *script)
                wanted = [f"line {n}" for n in range(1, 301)]
                assert await arrived(made, 300) == wanted
                assert (await docker(api, "logs", "web")).splitlines() == wanted
                shown = await docker(api, "inspect", "-f", "{{.HostConfig.LogConfig}}", "web")
                assert "syslog" in shown
                assert f"syslog-address:unixgram://{path}" in shown
                # One that is removed as soon as it ends is sent whole as well.
                run = docker(api, "run", "--rm", *options, "--network", "none", *script)
                assert (await asyncio.gather(arrived(made, 300), run))[0] == wanted

    on_real_host(story, unique=unique)


def test_lines_wait_for_a_receiver_that_is_away_and_for_the_next_daemon(unique: str) -> None:
    """The container is made to wait for neither."""

    async def story(host: RealHost) -> None:
        path = str(host.root / "log.sock")
        options = ["--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{path}"]
        script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; done; touch /done; sleep 3600"
        async with host.opened() as engine:
            await engine.recover()
            async with served(host) as api:
                run = ["run", "-d", "--name", "web", *options, "--network", "none", "busybox", "sh", "-c", script]
                await docker(api, *run)
                async with asyncio.timeout(60):
                    while "line 100" not in await docker(api, "logs", "web"):
                        await asyncio.sleep(0.05)
        with receiver(path) as made:
            async with host.opened() as engine:
                await engine.recover()
                assert await arrived(made, 100) == [f"line {n}" for n in range(1, 101)]
                await asyncio.sleep(1.5)  # long enough for the place to be noted
                await engine.stop("web", grace_s=0)
            async with host.opened() as engine:
                await engine.recover()
                await asyncio.sleep(0.5)
                with pytest.raises(BlockingIOError):
                    made.recv(100)  # nothing twice
                await engine.remove("web")

    on_real_host(story, unique=unique, opened=False)
