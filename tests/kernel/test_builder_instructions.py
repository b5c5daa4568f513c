"""Instructions that change how later ones work, sources of COPY and ADD, and what becomes of a build's steps."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host
from test_builder_docker_cli import docker, pytestmark, served

__all__ = ["pytestmark"]


def written(host: RealHost, dockerfile: str, **files: str) -> str:
    context = host.root / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        (context / name).write_text(text)
    return str(context)


def gzip_tar(path: Path, name: str, text: bytes) -> None:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))


def test_triggers_shells_and_healthchecks(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            base = written(host, "FROM busybox\nONBUILD COPY word /word\nONBUILD RUN cat /word > /read\n", word="w1")
            await docker(path, "build", "-t", "base:1", base)
            await docker(path, "run", "--rm", "base:1", "test", "!", "-e", "/word")
            text = (
                'FROM base:1\nSHELL ["/bin/sh", "-e", "-c"]\nRUN echo $- > /flags\n'
                "HEALTHCHECK --interval=7s --timeout=2s --retries=4 CMD test -e /word\nCMD cat /read /flags\n"
            )
            await docker(path, "build", "-t", "child:1", written(host, text))
            shown = await docker(path, "run", "--rm", "child:1")
            assert shown.startswith("w1") and "e" in shown.removeprefix("w1"), shown
            config = json.loads(await docker(path, "image", "inspect", "child:1"))[0]["Config"]
            assert config["Shell"] == ["/bin/sh", "-e", "-c"] and not config["OnBuild"]
            assert config["Cmd"] == ["/bin/sh", "-e", "-c", "cat /read /flags"]
            assert config["Healthcheck"] == {
                "Test": ["CMD-SHELL", "test -e /word"],
                "Interval": 7_000_000_000,
                "Timeout": 2_000_000_000,
                "Retries": 4,
            }
            await docker(path, "build", "-t", "none:1", written(host, "FROM child:1\nHEALTHCHECK NONE\n"))
            config = json.loads(await docker(path, "image", "inspect", "none:1"))[0]["Config"]
            assert config["Healthcheck"]["Test"] == ["NONE"]

    on_real_host(story, unique=unique)


def test_wildcards_heredocs_archives_and_addresses(unique: str) -> None:
    async def story(host: RealHost) -> None:
        text = (
            "FROM busybox\nENV WHO=me\nCOPY *.txt n?.md /some/\nCOPY <<one <<'two' /docs/\nI am $WHO\none\n$WHO\ntwo\n"
            "COPY <<EOF /single\nalone\nEOF\nADD packed.tgz /out/\n"
            'CMD ["sh", "-c", "ls /some; cat /docs/one /docs/two /single /out/deep/inner"]\n'
        )
        context = written(host, text, **{"a.txt": "", "b.txt": "", "n1.md": "", "n22.md": "", "c.log": ""})
        gzip_tar(Path(context, "packed.tgz"), "deep/inner", b"inside\n")
        async with served(host) as path:
            await docker(path, "build", "-t", "copied:1", context)
            shown = await docker(path, "run", "--rm", "copied:1")
            assert shown == "a.txt\nb.txt\nn1.md\nI am me\n$WHO\nalone\ninside\n"
            written(host, "FROM busybox\nADD http://127.0.0.1:1/x /x\n")
            refused = await docker(path, "build", context, code=1)
            assert "line 2" in refused and "download it into the context" in refused, refused
            written(host, "FROM busybox\nCOPY *.none /x/\n")
            assert "nothing fits *.none" in await docker(path, "build", context, code=1)

    on_real_host(story, unique=unique)


def test_target_quiet_and_what_prune_leaves(unique: str) -> None:
    async def story(host: RealHost) -> None:
        text = "FROM busybox AS early\nRUN echo 1 > /one\nRUN echo 2 > /two\nFROM early\nRUN exit 9\n"
        context = written(host, text)
        async with served(host) as path:
            quiet = await docker(path, "build", "-q", "--target", "early", "-t", "early:1", context)
            assert quiet.split()[-1] == host.images.get("early:1").id
            assert "failed to reach build target nowhere" in await docker(
                path, "build", "--target", "nowhere", written(host, "FROM busybox\n"), code=1
            )
            names = (await docker(path, "images", "--format", "{{.Repository}}")).split()
            assert "early" in names and "<none>" not in names
            assert "<none>" in (await docker(path, "images", "-a", "--format", "{{.Repository}}")).split()
            assert not await docker(path, "images", "-q", "--filter", "dangling=true")
            await docker(path, "image", "prune", "-f")
            written(host, text)
            again = await docker(path, "build", "--target", "early", context)
            assert again.count("Using cache") == 2, again
            await docker(path, "rmi", "early:1")
            await docker(path, "image", "prune", "-f")
            assert [image.references for image in host.images.list()] == [("busybox:latest",)]

    on_real_host(story, unique=unique)


@pytest.mark.parametrize("pause", [True, False])
def test_commit_of_a_running_container(unique: str, pause: bool) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            await docker(path, "run", "-d", "--name", "cc", "busybox", "sh", "-c", "echo kept > /kept; sleep 1000")
            for _ in range(100):
                if "kept" in await docker(path, "exec", "cc", "sh", "-c", "cat /kept || true"):
                    break
            pausing: list[str] = []
            paused = host.engine.pause

            async def watched(container_id: str) -> None:
                await paused(container_id)
                pausing.append(host.engine.get(container_id).state.status.value)

            host.engine.pause = watched  # type: ignore[method-assign]
            await docker(path, "commit", f"--pause={str(pause).lower()}", "-m", "note", "cc", "kept:1")
            assert pausing == (["paused"] if pause else [])
            assert host.engine.get("cc").state.status.value == "running"
            assert await docker(path, "run", "--rm", "kept:1", "cat", "/kept") == "kept\n"
            assert "note" in await docker(path, "history", "--format", "{{.Comment}}", "kept:1")
            await docker(path, "rm", "-f", "cc")

    on_real_host(story, unique=unique)


def test_images_of_a_build_are_not_pruned_under_it(unique: str) -> None:
    """A finished stage has no name, no container and nothing made of it yet, when the next one begins."""

    async def story(host: RealHost) -> None:
        text = "FROM busybox AS early\nRUN echo 1 > /one\nENV A=1\nFROM busybox\nRUN echo 2 > /two\nCOPY --from=early /one /got\n"
        context = written(host, text)
        async with served(host) as path:
            build = asyncio.create_task(docker(path, "build", "--no-cache", "-t", "made:1", context))
            while not build.done():
                await host.images.prune(in_use=host.engine.images_in_use)
                await asyncio.sleep(0.002)
            assert "Successfully tagged made:1" in await build
            assert (host.images.get("made:1").layer_dirs[0] / "got").read_text() == "1\n"

    on_real_host(story, unique=unique)
