"""Pulls, removals and prunes at the same time, killed with -9 again and again: what is listed is whole, nothing else is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet.images import ImageStore
from fleet.images.layers import chain_ids
from tests.support import image_registry
from tests.support.image_layouts import layer_blob, write_layout
from tests.support.image_trees import Entry, make_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not image_registry.available(), reason="needs docker-registry and skopeo (apt install both)"),
]

IMAGES, KILLS = 4, 12

CHURN = """
import asyncio, random, sys
from pathlib import Path
from fleet.errors import ConflictError, NotFoundError
from fleet.images import ImageStore, RegistrySource

async def main():
    root, address, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    store = await ImageStore.open(root)
    print("go", flush=True)

    async def churn(number):
        name = f"{address}/app{number}:1"
        while True:
            source = RegistrySource(name)
            await store.fetch(name, [source])
            await source.aclose()
            assert (store.get(name).layer_dirs[0] / f"top{number}").stat().st_size == 300_000
            await asyncio.sleep(rng.uniform(0, 0.02))
            if rng.random() < 0.7:
                try:
                    await store.remove(name)
                except (NotFoundError, ConflictError):
                    pass
            if rng.random() < 0.2:
                await store.prune()

    async with asyncio.TaskGroup() as group:
        for number in range(int(sys.argv[4])):
            group.create_task(churn(number))

asyncio.run(main())
"""


def test_what_is_listed_after_a_kill_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    base = layer_blob(make_tar([Entry(name=f"base{n}", body=os.urandom(20_000)) for n in range(40)]))
    for number in range(IMAGES):
        top = layer_blob(make_tar([Entry(name=f"top{number}", body=os.urandom(300_000))]))
        write_layout(tmp_path / str(number), [base, top])
    root = tmp_path / "images"
    rng = random.Random(20)

    async def look() -> int:
        """Open, check everything, close; how many images there are."""
        store = await ImageStore.open(root)
        try:
            wanted: set[str] = set()
            for image in store.list():
                number = image.references[0].partition("/app")[2][0]
                assert (image.layer_dirs[0] / f"top{number}").stat().st_size == 300_000
                assert len(list(image.layer_dirs[1].glob("base*"))) == 40
                wanted |= {chain.removeprefix("sha256:") for chain in chain_ids(image.diff_ids)}
                for digest in (*image.layer_digests, image.id, image.manifest_digest):
                    assert store.blob_path(digest).is_file()
            assert {path.name for path in (root / "snapshots").iterdir()} == wanted | {"empty"}
            assert list((root / "ingest").iterdir()) == []
            return len(store.list())
        finally:
            await store.close()

    async def end_with_nothing() -> None:
        store = await ImageStore.open(root)
        await store.prune(dangling_only=False)
        for folder in ("blobs/sha256", "partial", "pulls", "ingest"):
            assert list((root / folder).iterdir()) == [], folder
        assert [path.name for path in (root / "snapshots").iterdir()] == ["empty"]
        await store.close()

    with image_registry.registry(tmp_path / "registry") as address:
        for number in range(IMAGES):
            image_registry.push(tmp_path / str(number), f"{address}/app{number}:1")
        counts = []
        for kill in range(KILLS):
            process = subprocess.Popen(
                [sys.executable, "-c", CHURN, root, address, str(kill), str(IMAGES)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "go\n"
                time.sleep(rng.uniform(0.02, 0.6))
            finally:
                process.send_signal(signal.SIGKILL)
                _, said = process.communicate(timeout=30)
            assert "Traceback" not in said, said
            counts.append(asyncio.run(look()))
    assert set(counts) != {0}, "not one image was ever there at a kill: nothing was shown"
    asyncio.run(end_with_nothing())
