"""Removing names and images: what is shared or in use stays, what nothing leads to goes, whatever else is going on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleet.errors import ConflictError, NotFoundError
from fleet.images import ImageStore
from tests.support.image_layouts import layer_blob, layout_tar, write_layout
from tests.support.image_trees import Entry, make_tar

pytestmark = pytest.mark.kernel


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: whiteouts, set-uid files and tens of thousands of names are not left lying about."""
    yield tmp_path
    shutil.rmtree(tmp_path)


BASE = layer_blob(make_tar([Entry(name="base", body=b"base")]))


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    yield body


def archive_of(scratch: Path, name: str, top: str) -> bytes:
    """An image of two layers, the lower one shared by all."""
    layout = scratch / f"layout-{top}"
    write_layout(layout, [BASE, layer_blob(make_tar([Entry(name=top, body=top.encode())]))], tag=name)
    layout_tar(layout, scratch / "layout.tar")
    return (scratch / "layout.tar").read_bytes()


def content(root: Path) -> tuple[set[str], set[str]]:
    return (
        {path.name for path in (root / "blobs/sha256").iterdir()},
        {path.name for path in (root / "snapshots").iterdir()} - {"empty"},
    )


def test_shared_layers_stay_until_their_last_image_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = tmp_path / "images"
        store = await ImageStore.open(root)
        await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        alone = content(root)
        (two,) = await store.load(chunks(archive_of(tmp_path, "two:1", "two")))
        assert len(content(root)[1]) == 3
        answer = await store.remove("two:1")
        assert answer[:2] == [{"Untagged": "two:1"}, {"Deleted": two.id}]
        assert content(root) == alone
        assert (store.get("one:1").layer_dirs[1] / "base").read_bytes() == b"base"
        await store.remove("one:1")
        assert content(root) == (set(), set())
        with pytest.raises(NotFoundError):
            store.get("one:1")
        await store.close()

    asyncio.run(scenario())


def test_image_with_several_names_loses_one_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        (image,) = await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        await store.tag(image.id[7:19], "other:2")
        assert store.get("other:2").references == ("one:1", "other:2")
        assert await store.remove("one:1") == [{"Untagged": "one:1"}]
        assert store.get(image.id).references == ("other:2",)
        await store.tag("other:2", "third:3")
        with pytest.raises(ConflictError, match="must be forced"):
            await store.remove(image.id)
        assert {"Deleted": image.id} in await store.remove(image.id, force=True)
        assert store.list() == []
        await store.close()

    asyncio.run(scenario())


def test_image_in_use_keeps_its_content_even_when_forced(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = tmp_path / "images"
        store = await ImageStore.open(root)
        (image,) = await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        before = content(root)
        with pytest.raises(ConflictError, match="being used"):
            await store.remove("one:1", in_use=lambda: {image.id})
        assert await store.remove("one:1", force=True, in_use=lambda: {image.id}) == [{"Untagged": "one:1"}]
        assert content(root) == before
        assert (await store.prune(in_use=lambda: {image.id}))[0] == []
        assert content(root) == before
        deleted, freed_bytes = await store.prune()
        assert {"Deleted": image.id} in deleted
        assert freed_bytes == image.size_bytes == len("baseone")
        assert content(root) == (set(), set())
        await store.close()

    asyncio.run(scenario())


def test_name_moves_to_the_image_that_got_it_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        (old,) = await store.load(chunks(archive_of(tmp_path, "app:1", "one")))
        (new,) = await store.load(chunks(archive_of(tmp_path, "app:1", "two")))
        assert store.get("app:1").id == new.id
        assert store.get(old.id).references == ()
        deleted, _ = await store.prune()
        assert {"Deleted": old.id} in deleted
        assert store.get("app:1").id == new.id
        await store.close()

    asyncio.run(scenario())


def test_content_being_added_survives_removals_at_the_same_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = tmp_path / "images"
        store = await ImageStore.open(root)
        (one,) = await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        two = archive_of(tmp_path, "two:1", "two")
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield two[:100]
            arrived.set()
            await go_on.wait()
            yield two[100:]

        loading = asyncio.create_task(store.load(slow()))
        await arrived.wait()
        await store.remove("one:1")
        assert content(root)[1], "the shared layer is not swept while something is being added"
        go_on.set()
        (loaded,) = await loading
        assert (loaded.layer_dirs[1] / "base").read_bytes() == b"base"
        blobs, layers = content(root)
        assert len(layers) == 2, "what only the removed image had is swept when the addition ends"
        assert one.id.removeprefix("sha256:") not in blobs
        await store.close()

    asyncio.run(scenario())


def test_many_additions_and_removals_at_once_end_consistent(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = tmp_path / "images"
        store = await ImageStore.open(root)
        archives = [archive_of(tmp_path, f"app{number}:1", f"top{number}") for number in range(6)]

        async def churn(number: int) -> None:
            for _ in range(3):
                await store.load(chunks(archives[number]))
                await store.remove(f"app{number}:1")
            await store.load(chunks(archives[number]))

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(churn(number))
        assert len(store.list()) == 6
        for number in range(6):
            image = store.get(f"app{number}:1")
            assert (image.layer_dirs[0] / f"top{number}").exists()
            assert (image.layer_dirs[1] / "base").exists()
        before = store.list()
        await store.close()
        again = await ImageStore.open(root)
        assert again.list() == before
        assert len(content(root)[1]) == 7
        await again.close()

    asyncio.run(scenario())


def test_who_uses_an_image_is_asked_when_it_goes_and_not_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        images = {}
        for name in ("one", "two"):
            (images[name],) = await store.load(chunks(archive_of(tmp_path, f"{name}:1", name)))
        begun: set[str] = set()

        def in_use() -> set[str]:
            """While the first image goes, a container of the other is begun."""
            used = set(begun)
            if len(store.list()) == 1:
                begun.add(store.list()[0].id)
            return used | begun

        await store.prune(dangling_only=False, in_use=in_use)
        (left,) = store.list()
        assert begun == {left.id}
        assert (left.layer_dirs[1] / "base").read_bytes() == b"base"
        await store.close()

    asyncio.run(scenario())


def test_an_image_cannot_be_taken_while_it_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        (image,) = await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        going = asyncio.create_task(store.remove("one:1"))
        await asyncio.sleep(0)  # it has decided, and writes
        assert not going.done()
        for name in ("one:1", image.id):
            with pytest.raises(NotFoundError):
                store.get(name)
        assert {"Deleted": image.id} in await going
        await store.close()

    asyncio.run(scenario())


def test_a_removal_that_cannot_be_written_leaves_the_image(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = tmp_path / "images"
        store = await ImageStore.open(root)
        (image,) = await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        moved = root.rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="No such file"):
            await store.remove("one:1")
        moved.rename(root)
        assert store.get("one:1") == image
        assert (image.layer_dirs[0] / "one").exists()
        await store.close()

    asyncio.run(scenario())


def test_held_images_stay_until_they_are_let_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await ImageStore.open(tmp_path / "images")
        (image,) = await store.load(chunks(archive_of(tmp_path, "one:1", "one")))
        with store.holding() as hold:
            hold(image.id)
            hold(image.id)
            await store.prune(dangling_only=False)
            with pytest.raises(ConflictError):
                await store.remove("one:1")
            await store.remove("one:1", force=True)
            assert store.get(image.id).layer_dirs == image.layer_dirs
        assert {"Deleted": image.id} in (await store.prune())[0]
        await store.close()

    asyncio.run(scenario())
