"""What a container changed, told from its writable layer, is what was done through a real overlay."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host
from test_containers_docker_cli import docker, served

from fleet.containers.changes import changes_of

pytestmark = pytest.mark.kernel


def test_changes_made_through_an_overlay_are_told_with_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    try:
        low, upper, work, merged = (disk / name for name in ("low", "upper", "work", "merged"))
        for directory in (low / "data/deep", low / "again", low / "same", upper, work, merged):
            directory.mkdir(parents=True)
        for name in ("data/kept", "data/gone", "data/deep/changed", "again/old", "again/both", "same/file"):
            (low / name).write_text(name)
        options = f"lowerdir={low},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
        try:
            (merged / "data/gone").unlink()
            (merged / "data/deep/changed").write_text("new")
            shutil.rmtree(merged / "again")
            (merged / "again").mkdir()
            (merged / "again/both").write_text("new")
            (merged / "fresh").mkdir()
            (merged / "fresh/link").symlink_to("/etc/passwd")
        finally:
            subprocess.run(["umount", str(merged)], check=True)
        assert [(change.path, int(change.kind)) for change in changes_of(upper, [low])] == [
            ("/again", 0),
            ("/again/both", 0),
            ("/again/old", 2),
            ("/data", 0),
            ("/data/deep", 0),
            ("/data/deep/changed", 0),
            ("/data/gone", 2),
            ("/fresh", 1),
            ("/fresh/link", 1),
        ]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command")
def test_docker_diff_tells_what_a_container_wrote(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async with served(host) as path:
            script = "echo x > /fresh; rm /bin/busybox"
            await docker(path, "run", "--name", "writer", "busybox", "sh", "-c", script)
            assert (await docker(path, "diff", "writer")).splitlines() == ["C /bin", "D /bin/busybox", "A /fresh"]

    on_real_host(story, unique=unique)


@pytest.mark.skipif(shutil.which("docker") is None, reason="not run: needs the docker command")
def test_layers_and_writable_directories_are_out_of_reach_of_users_of_the_host(unique: str) -> None:
    """CVE-2021-41091: a setuid program that an image or a container brings is nothing a user of the host can start."""

    async def story(host: RealHost) -> None:
        async with served(host) as path:
            await docker(
                path, "run", "--name", "box", "busybox", "sh", "-c", "cp /bin/busybox /bin/other; chmod 4755 /bin/other"
            )
            data = host.root / "d"
            programs = [found for found in data.rglob("other") if not found.is_symlink()]
            assert [oct(found.stat().st_mode)[-4:] for found in programs] == ["4755"]
            layers = [found for found in (data / "images").rglob("busybox") if found.is_file()]
            assert layers
            for found in (*programs, *layers):
                above = [p for p in found.parents if p.is_relative_to(data) and p != data]
                assert any(p.stat().st_mode & 0o077 == 0 for p in above), f"{found} can be reached"
            for folder in (
                "images",
                "images/blobs",
                "images/partial",
                "images/pulls",
                "images/ingest",
                "images/snapshots",
            ):
                assert (data / folder).stat().st_mode & 0o777 == 0o700, folder

    on_real_host(story, unique=unique)
