"""Loading, importing, sharing and removing images for real: mknod, trusted xattrs and sockets, as root."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleet.errors import ConflictError, NotFoundError, RejectedFault
from fleet.images import ImageStore, PeerSource
from tests.support.image_peer import PeerServer
from tests.support.images import busybox_rootfs_tar

pytestmark = pytest.mark.kernel


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: whiteouts, set-uid files and tens of thousands of names are not left lying about."""
    yield tmp_path
    shutil.rmtree(tmp_path)


async def chunks(body: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("rootfs") / "rootfs.tar"
    busybox_rootfs_tar(path, extra_files={"etc/motd": b"hello\n"})
    return path.read_bytes()


async def saved(store: ImageStore, *names: str) -> bytes:
    parts: list[bytes] = []

    async def sink(data: bytes) -> None:
        parts.append(data)

    await store.save(names, sink)
    return b"".join(parts)


def test_imported_root_file_system_is_ready_for_an_overlay(tmp_path: Path, rootfs: bytes) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        image = await store.import_tar(
            chunks(rootfs), reference="tiny:1", changes=['CMD ["sh"]', "ENV A=1", "EXPOSE 80", "USER 33:33"]
        )
        assert image.references == ("tiny:1",)
        assert image.config.cmd == ("sh",)
        assert image.config.env == ("A=1",)
        assert image.config.exposed_ports == ("80/tcp",)
        (layer,) = image.layer_dirs
        assert (layer / "etc/motd").read_text() == "hello\n"
        assert os.readlink(layer / "bin/sh") == "busybox"
        assert stat.S_IMODE((layer / "tmp").stat().st_mode) == 0o1777
        assert stat.S_IMODE((tmp_path / "images").stat().st_mode) == 0o700
        for name in ("tiny:1", "docker.io/library/tiny:1", image.id, image.id[7:19], image.manifest_digest):
            assert store.get(name) == image
        with pytest.raises(NotFoundError, match="no such image: other"):
            store.get("other")
        await store.close()

    asyncio.run(scenario())


def test_store_shows_the_same_images_after_reopening(tmp_path: Path, rootfs: bytes) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        image = await store.import_tar(chunks(rootfs), reference="tiny:1")
        with pytest.raises(ConflictError, match="in use by another process"):
            await ImageStore.open(tmp_path / "images")
        await store.close()
        again = await ImageStore.open(tmp_path / "images")
        assert again.list() == [image]
        await again.close()

    asyncio.run(scenario())


def test_saved_archive_loads_with_the_same_id_and_manifest(tmp_path: Path, rootfs: bytes) -> None:
    async def scenario() -> None:
        first = await ImageStore.open(tmp_path / "a")
        image = await first.import_tar(chunks(rootfs), reference="tiny:1")
        await first.tag("tiny:1", "team/other:2")
        archive = await saved(first, "tiny:1", "team/other:2")
        second = await ImageStore.open(tmp_path / "b")
        (loaded,) = await second.load(chunks(archive))
        assert (loaded.id, loaded.manifest_digest) == (image.id, image.manifest_digest)
        assert loaded.references == ("team/other:2", "tiny:1")
        await first.close()
        await second.close()

    asyncio.run(scenario())


def test_peer_gives_an_imported_image_by_name_and_by_digest(tmp_path: Path, rootfs: bytes) -> None:
    async def scenario() -> None:
        first = await ImageStore.open(tmp_path / "a")
        image = await first.import_tar(chunks(rootfs), reference="tiny:1", changes=["CMD sh"])
        with PeerServer(first) as server:
            for number, reference in enumerate(("tiny:1", f"tiny@{image.manifest_digest}")):
                second = await ImageStore.open(tmp_path / f"b{number}")
                source = PeerSource(server.url)
                steps: list[str] = []
                got = await second.fetch(reference, [source], progress=lambda step, to=steps: to.append(step.stage))
                assert (got.id, got.manifest_digest, got.config) == (image.id, image.manifest_digest, image.config)
                assert (got.layer_dirs[0] / "etc/motd").read_text() == "hello\n"
                assert steps[0] == "resolving"
                assert steps[-1] == "done"
                assert second.get(reference) == got
                await source.aclose()
                await second.close()
        await first.close()

    asyncio.run(scenario())


def test_fetch_resumes_after_a_peer_breaks_off(tmp_path: Path, rootfs: bytes) -> None:
    async def scenario() -> None:
        first = await ImageStore.open(tmp_path / "a")
        image = await first.import_tar(chunks(rootfs), reference="tiny:1")
        layer = image.layer_digests[0]
        with PeerServer(first, break_off_after=600_000) as server:
            second = await ImageStore.open(tmp_path / "b")
            source = PeerSource(server.url)
            got = await second.fetch("tiny:1", [source])
            assert got.id == image.id
            offsets = [offset for digest, offset in server.blob_requests if digest == layer]
            assert len(offsets) >= 3
            assert offsets == sorted(set(offsets)), "every request continues where the last one ended"
            await source.aclose()
            await second.close()
        await first.close()

    asyncio.run(scenario())


def test_fetch_passes_over_a_lying_peer_and_keeps_nothing_of_it(tmp_path: Path, rootfs: bytes) -> None:
    async def scenario() -> None:
        first = await ImageStore.open(tmp_path / "a")
        image = await first.import_tar(chunks(rootfs), reference="tiny:1")
        with PeerServer(first, flip_byte_at=1000) as liar, PeerServer(first) as honest:
            second = await ImageStore.open(tmp_path / "b")
            bad, good = PeerSource(liar.url), PeerSource(honest.url)
            with pytest.raises(RejectedFault, match="content has digest"):
                await second.fetch("tiny:1", [bad])
            assert second.list() == []
            assert (await second.fetch("tiny:1", [bad, good])).id == image.id
            await bad.aclose()
            await good.aclose()
            await second.close()
        await first.close()

    asyncio.run(scenario())
