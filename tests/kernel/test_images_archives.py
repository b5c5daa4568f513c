"""Archives exchanged with other tools: what skopeo writes is loaded, what is saved here skopeo reads."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fleet.errors import UserError
from fleet.images import Image, ImageStore
from tests.support.image_layouts import digest_of, layer_blob, write_layout
from tests.support.image_trees import Entry, make_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo (apt install skopeo)"),
]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: whiteouts, set-uid files and tens of thousands of names are not left lying about."""
    yield tmp_path
    shutil.rmtree(tmp_path)


LOW = make_tar([Entry(name="etc/low", body=b"low"), Entry(name="gone", body=b"x")])
HIGH = make_tar([Entry(name="etc/high", body=b"high"), Entry(name=".wh.gone")])


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 10_000):
        yield body[at : at + 10_000]


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(root: Path, body: bytes) -> list[Image]:
    async def scenario() -> list[Image]:
        store = await ImageStore.open(root)
        try:
            return await store.load(chunks(body))
        finally:
            await store.close()

    return asyncio.run(scenario())


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    write_layout(tmp_path / "layout", [layer_blob(LOW), layer_blob(HIGH)])
    return tmp_path / "layout"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_docker_archive_by_skopeo(layout: Path, tmp_path: Path, pack: Any) -> None:
    archive = tmp_path / "a.tar"
    skopeo("copy", "--insecure-policy", f"oci:{layout}:tiny", f"docker-archive:{archive}:team/app:1")
    (image,) = load(tmp_path / "images", pack(archive.read_bytes()))
    assert image.references == ("team/app:1",)
    assert (image.layer_dirs[0] / "etc/high").read_bytes() == b"high"
    assert image.id == json.loads(skopeo("inspect", "--raw", f"docker-archive:{archive}"))["config"]["digest"]


def test_oci_archive_by_skopeo(layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    skopeo("copy", "--insecure-policy", f"oci:{layout}:tiny", f"oci-archive:{archive}:registry.example/app:2")
    (image,) = load(tmp_path / "images", archive.read_bytes())
    assert image.references == ("registry.example/app:2",)
    raw = skopeo("inspect", "--raw", f"oci-archive:{archive}")
    assert image.manifest_digest == digest_of(raw.encode()), "the manifest is kept as it came"


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_saved_archive_is_read_by_skopeo(layout: Path, tmp_path: Path, transport: str) -> None:
    async def scenario() -> tuple[Image, bytes]:
        with tarfile.open(tmp_path / "in.tar", "w") as tar:
            tar.add(layout, ".")
        store = await ImageStore.open(tmp_path / "images")
        (image,) = await store.load(chunks((tmp_path / "in.tar").read_bytes()))
        await store.tag(image.id, "team/app:1")
        parts: list[bytes] = []

        async def sink(data: bytes) -> None:
            parts.append(data)

        await store.save(["team/app:1"], sink)
        await store.close()
        return image, b"".join(parts)

    image, archive = asyncio.run(scenario())
    (tmp_path / "out.tar").write_bytes(archive)
    source = f"{transport}:{tmp_path}/out.tar"
    skopeo("copy", "--insecure-policy", source, f"oci:{tmp_path}/again:again")
    told = json.loads(skopeo("inspect", "--config", f"oci:{tmp_path}/again:again"))
    assert told["rootfs"]["diff_ids"] == list(image.diff_ids)
    assert told["config"]["Cmd"] == list(image.config.cmd)


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_an_image_comes_back_from_skopeo_with_the_digest_it_went_with(
    layout: Path, tmp_path: Path, transport: str
) -> None:
    async def scenario() -> None:
        with tarfile.open(tmp_path / "in.tar", "w") as tar:
            tar.add(layout, ".")
        store = await ImageStore.open(tmp_path / "images")
        (image,) = await store.load(chunks((tmp_path / "in.tar").read_bytes()))
        await store.tag(image.id, "team/app:1")
        parts: list[bytes] = []

        async def sink(data: bytes) -> None:
            parts.append(data)

        await store.save(["team/app:1"], sink)
        await store.close()
        (tmp_path / "out.tar").write_bytes(b"".join(parts))
        source, target = f"{transport}:{tmp_path}/out.tar", f"{transport}:{tmp_path}/back.tar:docker.io/team/app:1"
        await asyncio.to_thread(skopeo, "copy", "--insecure-policy", source, target)
        other = await ImageStore.open(tmp_path / "other")
        (again,) = await other.load(chunks((tmp_path / "back.tar").read_bytes()))
        await other.close()
        assert (again.id, again.diff_ids, again.config) == (image.id, image.diff_ids, image.config)
        assert again.references == ("team/app:1",)
        if transport == "oci-archive":  # docker-archive has no manifest, and layers that are not compressed
            assert again.manifest_digest == image.manifest_digest
            assert again.layer_digests == image.layer_digests

    asyncio.run(scenario())


def test_old_docker_archive_whose_layers_are_links(tmp_path: Path) -> None:
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest_of(LOW)] * 2}}
    ).encode()
    listing = json.dumps([{"Config": "c.json", "RepoTags": ["a:1", "b:2"], "Layers": ["1/layer.tar", "2/layer.tar"]}])
    archive = make_tar(
        [
            Entry(name="c.json", body=config),
            Entry(name="1/layer.tar", body=LOW),
            Entry(name="2/layer.tar", kind=tarfile.SYMTYPE, target="../1/layer.tar"),
            Entry(name="manifest.json", body=listing.encode()),
        ]
    )
    (image,) = load(tmp_path / "images", archive)
    assert image.references == ("a:1", "b:2")
    assert image.id == digest_of(config)
    assert len(image.layer_dirs) == 2


def docker_archive(**changes: Any) -> bytes:
    """A small archive with one thing wrong."""
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest_of(LOW)]}}
    item = {"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"]} | changes.get("item", {})
    return make_tar(
        [
            Entry(name="c.json", body=json.dumps(config | changes.get("config", {})).encode()),
            Entry(name="l.tar", body=changes.get("layer", LOW)),
            Entry(name="manifest.json", body=changes.get("listing") or json.dumps([item]).encode()),
        ]
    )


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"", "the archive is empty"),
        (b"junk" * 1000, "not a tar archive"),
        (docker_archive()[:1500], "cut short"),
        (gzip.compress(docker_archive())[:-30], "stream is damaged"),
        (LOW, "not an image archive"),
        (docker_archive(listing=b"[]"), "lists no image"),
        (docker_archive(listing=b"{"), "not JSON"),
        (docker_archive(item={"Config": "../../etc/passwd"}), "has no file"),
        (docker_archive(item={"Layers": []}), "0 layers, the configuration has 1"),
        (docker_archive(item={"RepoTags": ["A:1"]}), "must be lowercase"),
        (docker_archive(layer=HIGH), "its plain content has digest"),
        (docker_archive(layer=b"\xfd7zXZ\x00junk"), "bzip2 or xz"),
        (docker_archive(config={"os": "windows"}), "made for windows"),
        (docker_archive(config={"rootfs": 1}), "rootfs must be an object"),
        (make_tar([Entry(name="manifest.json", kind=tarfile.SYMTYPE, target="manifest.json")]), "has no file"),
    ],
)
def test_wrong_archives_are_refused_with_the_reason_and_leave_nothing(archive: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        load(tmp_path / "images", archive)
    root = tmp_path / "images"
    assert list((root / "ingest").iterdir()) == []
    assert [path.name for path in (root / "snapshots").iterdir()] == ["empty"]
    assert not (root / "images.json").exists()


def test_import_of_something_else_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        with pytest.raises(UserError, match="not a tar archive"):
            await store.import_tar(chunks(b"junk" * 1000), reference="a:1")
        with pytest.raises(UserError, match="invalid reference format"):
            await store.import_tar(chunks(LOW), reference="A:1")
        with pytest.raises(UserError, match="RUN is not one of"):
            await store.import_tar(chunks(LOW), reference="a:1", changes=["RUN x"])
        for pack in (gzip.compress, zstandard.compress):
            image = await store.import_tar(chunks(pack(LOW)), reference=None)
            assert (image.references, image.diff_ids) == ((), (digest_of(LOW),))
        await store.close()

    asyncio.run(scenario())
