"""Killed in the middle of unpacking, cancelled, out of bounds: what is left is either a whole image or nothing."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleet.errors import NotFoundError, RejectedFault, StorageFullError, TooLargeError, UserError
from fleet.images import ImageStore, UnpackLimits
from fleet.images.unpack import unpack_layer
from tests.support.image_layouts import layer_blob, layout_tar, write_layout
from tests.support.image_trees import Entry, make_tar

pytestmark = pytest.mark.kernel


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: whiteouts, set-uid files and tens of thousands of names are not left lying about."""
    yield tmp_path
    shutil.rmtree(tmp_path)


async def file_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            yield data


def many_files(path: Path, *, count: int) -> None:
    """A root file system that takes a while to unpack."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"d{number % 97}/f{number}")
            member.size = 200
            tar.addfile(member, io.BytesIO(b"x" * 200))


def leftovers(root: Path) -> list[str]:
    found = [*(root / "ingest").iterdir(), *(root / "snapshots").glob(".partial-*")]
    return [str(path) for path in found]


IMPORTER = """
import asyncio, sys
from pathlib import Path
from fleet.images import ImageStore

async def chunks(path):
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            yield data

async def main():
    store = await ImageStore.open(Path(sys.argv[1]))
    print("go", flush=True)
    await store.import_tar(chunks(sys.argv[2]), reference="many:1")
    print("done", flush=True)

asyncio.run(main())
"""


def test_killed_while_unpacking_leaves_nothing_after_reopening(tmp_path: Path) -> None:
    archive, root = tmp_path / "many.tar", tmp_path / "images"
    many_files(archive, count=30_000)
    process = subprocess.Popen([sys.executable, "-c", IMPORTER, root, archive], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "go\n"
        deadline = time.monotonic() + 30
        while not list((root / "snapshots").glob(".partial-*/fs/d96")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout.read() == "", "it was killed in the middle"
    assert leftovers(root)

    async def scenario() -> None:
        store = await ImageStore.open(root)
        assert store.list() == []
        assert leftovers(root) == []
        assert [path.name for path in (root / "snapshots").iterdir()] == ["empty"]
        assert list((root / "blobs/sha256").iterdir()) == [], "blobs no record leads to are swept"
        image = await store.import_tar(file_chunks(archive), reference="many:1")
        assert len(list(image.layer_dirs[0].glob("*/*"))) == 30_000
        await store.close()

    asyncio.run(scenario())


def test_cancelled_import_stops_soon_and_leaves_nothing(tmp_path: Path) -> None:
    archive, root = tmp_path / "many.tar", tmp_path / "images"
    many_files(archive, count=30_000)

    async def scenario() -> None:
        store = await ImageStore.open(root)
        work = asyncio.create_task(store.import_tar(file_chunks(archive), reference="many:1"))
        while not list((root / "snapshots").glob(".partial-*/fs/d96")):
            assert not work.done()
            await asyncio.sleep(0.005)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert leftovers(root) == []
        with pytest.raises(NotFoundError):
            store.get("many:1")
        await store.close()

    asyncio.run(scenario())


def test_missing_layer_directory_is_unpacked_anew_at_opening(tmp_path: Path) -> None:
    archive, root = tmp_path / "few.tar", tmp_path / "images"
    many_files(archive, count=10)

    async def scenario() -> None:
        store = await ImageStore.open(root)
        image = await store.import_tar(file_chunks(archive), reference="few:1")
        await store.close()
        (image.layer_dirs[0].parent / "layer.json").unlink()
        store = await ImageStore.open(root)
        assert store.get("few:1") == image
        assert len(list(image.layer_dirs[0].glob("*/*"))) == 10
        await store.close()

    asyncio.run(scenario())


def test_damaged_blob_drops_the_image_at_opening(tmp_path: Path) -> None:
    archive, root = tmp_path / "few.tar", tmp_path / "images"
    many_files(archive, count=10)

    async def scenario() -> None:
        store = await ImageStore.open(root)
        image = await store.import_tar(file_chunks(archive), reference="few:1")
        await store.close()
        config = root / "blobs/sha256" / image.id.removeprefix("sha256:")
        config.write_bytes(config.read_bytes().replace(b"linux", b"plan9"))
        store = await ImageStore.open(root)
        assert store.list() == []
        await store.close()

    asyncio.run(scenario())


def test_flipped_byte_in_a_layer_is_never_shown(tmp_path: Path) -> None:
    plain = make_tar([Entry(name="a", body=b"precious")])
    _, diff_id, _ = layer_blob(plain)
    media_type, _, wrong = layer_blob(plain.replace(b"precious", b"poisoned"))
    write_layout(tmp_path / "layout", [(media_type, diff_id, wrong)])
    layout_tar(tmp_path / "layout", tmp_path / "layout.tar")

    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        with pytest.raises(UserError, match="its plain content has digest"):
            await store.load(file_chunks(tmp_path / "layout.tar"))
        assert store.list() == []
        assert [path.name for path in (tmp_path / "images/snapshots").iterdir()] == ["empty"]
        await store.close()

    asyncio.run(scenario())


def zeros_tar(size: int) -> bytes:
    """gzip of a tar with one file of zeros, built without ever holding it: repeated members of 1 MiB of zeros."""
    member = tarfile.TarInfo("zeros")
    member.size = size
    pieces = [gzip.compress(member.tobuf())]
    pieces += [gzip.compress(bytes(1 << 20))] * (size >> 20)
    return b"".join(pieces)


def test_ten_gigabytes_of_zeros_in_ten_megabytes_are_refused_soon_and_in_little_memory(tmp_path: Path) -> None:
    bomb = zeros_tar(10 << 30)
    assert len(bomb) < 11 << 20
    (tmp_path / "layer").mkdir()
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(RejectedFault, match="limit ratio_max"):
            unpack_layer(io.BytesIO(bomb), into=tmp_path / "layer", lowers=[], limits=UnpackLimits())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 << 20
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("entries", "limits", "said"),
    [
        ([Entry(name=f"f{n}") for n in range(11)], UnpackLimits(entries_max=10), "limit entries_max"),
        ([Entry(name="d/" * 30 + "f")], UnpackLimits(depth_max=20), "limit depth_max"),
        ([Entry(name="d" * 100)], UnpackLimits(path_bytes_max=99), "limit path_bytes_max"),
        ([Entry(name="f", body=b"x" * 2000)], UnpackLimits(file_bytes_max=1999), "limit file_bytes_max"),
        ([Entry(name="f", body=b"x" * 20_000)], UnpackLimits(bytes_max=19_000), "limit bytes_max"),
        ([Entry(name="../x")], UnpackLimits(), "leads out of the image"),
        ([Entry(name="x", kind=tarfile.CHRTYPE, device=(1, 3))], UnpackLimits(), "device nodes .1:3. are not allowed"),
        ([Entry(name="dev/x", kind=tarfile.CHRTYPE)], UnpackLimits(), "device nodes .0:0. are not allowed"),
        ([Entry(name="x", kind=tarfile.LNKTYPE, target="../../etc/passwd")], UnpackLimits(), "leads out of the image"),
        ([Entry(name="x", kind=tarfile.LNKTYPE, target="etc/passwd")], UnpackLimits(), "does not exist"),
        ([Entry(name="d/.wh..")], UnpackLimits(), "whiteout of nothing"),
        ([Entry(name="d/.wh...")], UnpackLimits(), "whiteout of nothing"),
        ([Entry(name=".wh.d/x")], UnpackLimits(), "whiteout cannot be a directory"),
        ([Entry(name="f"), Entry(name="f/x")], UnpackLimits(), "is not a directory"),
        ([Entry(name="x", uid=0xFFFFFFFF)], UnpackLimits(), "owner"),
        (
            [
                Entry(name="a", kind=tarfile.SYMTYPE, target="b"),
                Entry(name="b", kind=tarfile.SYMTYPE, target="a"),
                Entry(name="a/x"),
            ],
            UnpackLimits(),
            "too many symbolic links",
        ),
    ],
)
def test_refusals_name_the_entry_and_the_reason(
    entries: list[Entry], limits: UnpackLimits, said: str, tmp_path: Path
) -> None:
    (tmp_path / "layer").mkdir()
    with pytest.raises(RejectedFault, match=said):
        unpack_layer(io.BytesIO(make_tar(entries)), into=tmp_path / "layer", lowers=[], limits=limits)


def test_archive_larger_than_its_limit_is_refused_while_it_arrives(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images", limits=UnpackLimits(archive_bytes_max=5 << 20))
        with pytest.raises(TooLargeError, match="larger than 5242880 bytes"):
            await store.import_tar(endless(), reference="big:1")
        assert leftovers(tmp_path / "images") == []
        await store.close()

    asyncio.run(scenario())


def test_full_disk_is_said_so_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", root], check=True)
    try:

        async def pieces(size: int) -> AsyncIterator[bytes]:
            yield make_tar([Entry(name="f", body=os.urandom(size))])

        async def scenario() -> None:
            store = await ImageStore.open(root)
            image = await store.import_tar(pieces(1 << 20), reference="fits:1")
            for size in (3 << 20, 5 << 20):  # the first has no room to be unpacked, the second none as a blob
                with pytest.raises(StorageFullError, match="No space left"):
                    await store.import_tar(pieces(size), reference="big:1")
                assert store.list() == [image]
                assert leftovers(root) == []
                assert len(list((root / "blobs/sha256").iterdir())) == 3
            await store.import_tar(pieces(1 << 20), reference="fits:2")
            await store.close()

        asyncio.run(scenario())
    finally:
        subprocess.run(["umount", root], check=True)


def test_device_nodes_below_dev_are_left_out(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    entries = [
        Entry(name="dev", kind=tarfile.DIRTYPE, mode=0o755),
        Entry(name="dev/null", kind=tarfile.CHRTYPE, device=(1, 3)),
        Entry(name="dev/sda", kind=tarfile.BLKTYPE, device=(8, 0)),
    ]
    unpack_layer(io.BytesIO(make_tar(entries)), into=layer, lowers=[], limits=UnpackLimits())
    assert os.listdir(layer / "dev") == []
