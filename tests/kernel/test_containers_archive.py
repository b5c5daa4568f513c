"""docker cp and docker export, running and stopped."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import httpx
import pytest
from containers_host import RealHost, on_real_host
from test_containers_docker_cli import docker, served

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command"),
]


@pytest.mark.parametrize("running", [True, False])
def test_docker_cp_stays_inside_the_container_in_both_directions(unique: str, tmp_path: Path, running: bool) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            script = "mkdir -p /etc /data; echo inside > /etc/probe; ln -s /etc/probe /data/link; echo a > /data/a"
            tail = "; touch /ready; trap 'exit 0' TERM; while :; do sleep 0.05; done" if running else ""
            flags = ("-d",) if running else ()
            await docker(path, "run", *flags, "--name", "box", "busybox", "sh", "-c", script + tail)
            if running:
                await docker(path, "exec", "box", "sh", "-c", "while [ ! -e /ready ]; do sleep 0.05; done")
            await docker(path, "cp", "-L", "box:/data/link", str(tmp_path / "got"))
            assert (tmp_path / "got").read_text() == "inside\n"
            await docker(path, "cp", "box:/data", str(tmp_path / "tree"))
            assert (tmp_path / "tree/a").read_text() == "a\n"
            (tmp_path / "new").write_text("from outside\n")
            await docker(path, "cp", str(tmp_path / "new"), "box:/data/link")
            await docker(path, "cp", "box:/etc/probe", str(tmp_path / "back"))
            assert (tmp_path / "back").read_text() == "from outside\n"
            missing = await docker(path, "cp", "box:/nothing", str(tmp_path), code=1)
            assert "Could not find the file /nothing in container box" in missing
            await docker(path, "export", "-o", str(tmp_path / "all.tar"), "box")
            with tarfile.open(tmp_path / "all.tar") as tar:
                assert "etc/hosts" not in tar.getnames() or tar.getmember("etc/hosts").size == 0
                assert tar.getmember("data/link").linkname == "/etc/probe"
                probe = tar.extractfile("etc/probe")
                assert probe is not None and probe.read() == b"from outside\n"

    on_real_host(story, unique=unique)


def test_fleet_cp_reads_and_writes_through_the_same_calls(unique: str, tmp_path: Path) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            await docker(path, "create", "--name", "box", "busybox", "true")
            (tmp_path / "new").write_text("by fleet\n")
            for source, target in ((str(tmp_path / "new"), "box:/bin/"), ("box:/bin/new", str(tmp_path / "back"))):
                process = await asyncio.create_subprocess_exec(
                    str(Path(sys.executable).with_name("fleet")), "cp", source, target,
                    env={**os.environ, "FLEET_HOST": f"unix://{path}"},
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
                async with asyncio.timeout(60):
                    said = (await process.communicate())[0].decode()
                assert process.returncode == 0, said
            assert (tmp_path / "back").read_text() == "by fleet\n"

    on_real_host(story, unique=unique)


def test_a_hostile_archive_is_refused_and_writes_nothing_outside(unique: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = tmp_path / "evil.tar"

    async def story(host: RealHost) -> None:
        async with served(host) as path:
            await docker(path, "create", "--name", "box", "busybox", "true")
            for name in ("../climbs", "link/file"):
                with tarfile.open(archive, "w") as tar:
                    link = tarfile.TarInfo("link")
                    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
                    tar.addfile(link)
                    tar.addfile(tarfile.TarInfo(name))
                assert "entry" in await docker(path, "cp", "-", "box:/", stdin=archive, code=1)
            assert list(outside.iterdir()) == []

    on_real_host(story, unique=unique)


def test_docker_cp_refuses_a_read_only_root(unique: str, tmp_path: Path) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            await docker(path, "create", "--read-only", "--name", "box", "busybox", "true")
            (tmp_path / "new").write_text("x")
            said = await docker(path, "cp", str(tmp_path / "new"), "box:/", code=1)
            assert "container rootfs is marked read-only" in said

    on_real_host(story, unique=unique)


SWAPS = "while :; do rm -rf d; mkdir d; echo inside > d/secret; rm -rf d; ln -s {target} d; done"


def test_names_swapped_while_files_are_copied_lead_neither_out_nor_in(unique: str, tmp_path: Path) -> None:
    """CVE-2018-15664: the container turns a directory into a link to one of the host's, over and over, while cp works."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the host")

    def archive() -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            member = tarfile.TarInfo("planted")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"cuck"))
        return packed.getvalue()

    async def story(host: RealHost) -> None:
        async with served(host) as path:
            script = SWAPS.format(target=outside)
            await docker(path, "run", "-d", "--name", "box", "busybox", "sh", "-c", f"mkdir /w; cd /w; {script}")
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            statuses: list[int] = []
            async with httpx.AsyncClient(transport=transport, base_url="http://box", timeout=60) as client:
                for _ in range(150):
                    answer = await client.put("/containers/box/archive", params={"path": "/w/d"}, content=archive())
                    statuses.append(answer.status_code)
                    answer = await client.get("/containers/box/archive", params={"path": "/w/d/secret"})
                    statuses.append(answer.status_code)
                    assert b"of the host" not in answer.content
                    answer = await client.get("/containers/box/archive", params={"path": "/w"})
                    assert b"of the host" not in answer.content
            assert [entry.name for entry in outside.iterdir()] == ["secret"]
            assert (outside / "secret").read_text() == "of the host"
            assert set(statuses) <= {200, 400, 404, 409, 500}
            assert 200 in statuses, "not one copy met the directory: nothing was shown"
            assert {404, 400} & set(statuses), "not one copy met the link: nothing was shown"

    on_real_host(story, unique=unique)
