"""Layers unpacked here and mounted as an overlay show what umoci, an independent implementation, unpacks."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.images import ImageStore
from tests.support.image_layouts import layer_blob, layout_tar, write_layout
from tests.support.image_trees import Entry, describe_mounted, describe_tree, make_tar
from tests.support.images import busybox_rootfs_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci (apt install umoci)"),
]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: whiteouts, set-uid files and tens of thousands of names are not left lying about."""
    yield tmp_path
    shutil.rmtree(tmp_path)


DIR, SYM, LNK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


async def file_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(100_000):
            yield data


def unpack_here(layout: Path, scratch: Path) -> dict[str, Any]:
    """Load the layout into a store, mount its layers, describe what shows."""

    async def scenario() -> dict[str, Any]:
        archive = scratch / "layout.tar"
        layout_tar(layout, archive)
        store = await ImageStore.open(scratch / "images")
        (image,) = await store.load(file_chunks(archive))
        try:
            return describe_mounted(image.layer_dirs, scratch / "overlay")
        finally:
            await store.close()

    return asyncio.run(scenario())


def unpack_by_umoci(layout: Path, scratch: Path) -> dict[str, Any]:
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:tiny", scratch / "rootfs"], check=True, capture_output=True
    )
    return describe_tree(scratch / "rootfs")


def comparable(tree: dict[str, Any], *, times: bool = True) -> dict[str, Any]:
    """Without what nobody promises: the root's own time; times of directories that entries were removed from."""
    result = {}
    for name, facts in tree.items():
        facts = dict(facts)  # noqa: PLW2901 - a copy to change
        if name == "." or not times or facts["mode"].startswith("0o4"):
            facts.pop("mtime")
        result[name] = facts
    return result


def both(layers: list[bytes], scratch: Path, *, compression: str = "gzip") -> tuple[dict[str, Any], dict[str, Any]]:
    layout = scratch / "layout"
    write_layout(layout, [layer_blob(layer, compression=compression) for layer in layers])
    return comparable(unpack_here(layout, scratch)), comparable(unpack_by_umoci(layout, scratch))


def test_busybox_root_file_system(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs.tar"
    busybox_rootfs_tar(rootfs)
    ours, theirs = both([rootfs.read_bytes()], tmp_path)
    assert ours == theirs
    assert len(ours) > 200


ODD: dict[str, list[list[Entry]]] = {
    "owners, modes, set-uid and times": [
        [
            Entry(name="bin", kind=DIR, mode=0o755),
            Entry(name="bin/su", body=b"x", mode=0o4755),
            Entry(name="bin/mail", body=b"x", mode=0o2711, gid=8),
            Entry(name="home/user", kind=DIR, mode=0o700, uid=1000, gid=1000),
            Entry(name="tmp", kind=DIR, mode=0o1777),
            Entry(name="old", body=b"x", mtime=1.25),
        ]
    ],
    "parents that only a lower layer has keep owner and mode": [
        [Entry(name="srv", kind=DIR, mode=0o2750, uid=33, gid=44), Entry(name="srv/a", body=b"a")],
        [Entry(name="srv/b", body=b"b"), Entry(name="new/deep/c", body=b"c")],
    ],
    "whiteouts of files, trees and links": [
        [
            Entry(name="a/one", body=b"1"),
            Entry(name="a/two", body=b"2"),
            Entry(name="b/x/y", body=b"3"),
            Entry(name="l", kind=SYM, target="a"),
        ],
        [
            Entry(name="a/.wh.one", body=b""),
            Entry(name=".wh.b", body=b""),
            Entry(name=".wh.l", body=b""),
            Entry(name=".wh.absent", body=b""),
            Entry(name="nowhere/.wh.absent", body=b""),
        ],
    ],
    "a tree removed and made again": [
        [Entry(name="d/old", body=b"1"), Entry(name="d/sub/old", body=b"2")],
        [Entry(name=".wh.d", body=b""), Entry(name="d", kind=DIR, mode=0o711), Entry(name="d/new", body=b"3")],
    ],
    "opaque directories": [
        [Entry(name="d/old", body=b"1"), Entry(name="d/sub/old", body=b"2"), Entry(name="e/old", body=b"3")],
        [
            Entry(name="d", kind=DIR, mode=0o755),
            Entry(name="d/.wh..wh..opq", body=b""),
            Entry(name="d/new", body=b"4"),
            Entry(name="e/.wh..wh..opq", body=b""),
        ],
        [Entry(name="d/sub/again", body=b"5")],
    ],
    "files in place of directories and the other way round": [
        [
            Entry(name="was_dir/x", body=b"1"),
            Entry(name="was_file", body=b"2"),
            Entry(name="was_link", kind=SYM, target="x"),
        ],
        [
            Entry(name="was_dir", body=b"3"),
            Entry(name="was_file", kind=DIR, mode=0o755),
            Entry(name="was_file/y", body=b"4"),
            Entry(name="was_link", body=b"5"),
        ],
    ],
    "names through links of an earlier layer": [
        [
            Entry(name="usr/lib", kind=DIR, mode=0o755),
            Entry(name="lib", kind=SYM, target="usr/lib"),
            Entry(name="abs", kind=SYM, target="/usr"),
            Entry(name="climb", kind=SYM, target="../../../usr"),
        ],
        [
            Entry(name="lib/one.so", body=b"1"),
            Entry(name="abs/lib/two.so", body=b"2"),
            Entry(name="climb/three", body=b"3"),
        ],
    ],
    "hard links, also to files and links of a lower layer": [
        [
            Entry(name="a/file", body=b"1", mode=0o4755, uid=5),
            Entry(name="a/same", kind=LNK, target="a/file"),
            Entry(name="s", kind=SYM, target="nowhere"),
            Entry(name="t", kind=LNK, target="s"),
        ],
        [Entry(name="b/more", body=b"2"), Entry(name="b/link", kind=LNK, target="/b/more")],
    ],
    "fifos, long names and unusual bytes": [
        [
            Entry(name="pipe", kind=tarfile.FIFOTYPE, mode=0o622, uid=7),
            Entry(name="long/" + "n" * 200 + "/" + "m" * 240, body=b"1"),
            Entry(name="link", kind=SYM, target="t" * 300),
            Entry(name="ünï/c\u00f6de \n x", body=b"2"),
        ]
    ],
    "extended attributes": [
        [
            Entry(
                name="bin/ping",
                body=b"x",
                mode=0o755,
                pax={
                    "SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1"),
                    "SCHILY.xattr.user.note": "hello",
                },
            ),
        ]
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_layers(name: str, tmp_path: Path) -> None:
    ours, theirs = both([make_tar(layer) for layer in ODD[name]], tmp_path)
    assert ours == theirs


@pytest.mark.parametrize("compression", ["plain", "zstd"])
def test_other_compressions(compression: str, tmp_path: Path) -> None:
    layers = [make_tar(layer) for layer in ODD["opaque directories"]]
    (tmp_path / "gzip").mkdir()
    _, theirs = both(layers, tmp_path / "gzip")
    write_layout(tmp_path / "layout", [layer_blob(layer, compression=compression) for layer in layers])
    assert comparable(unpack_here(tmp_path / "layout", tmp_path)) == theirs


def test_archives_of_gnu_tar_with_sparse_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "holes").open("wb") as file:
        for at in range(5):
            file.seek(at * 1_000_000)
            file.write(b"data" * 300)
        file.truncate(9_000_000)
    (tree / ("d" * 90)).mkdir()
    (tree / ("d" * 90) / ("n" * 90)).write_bytes(b"long name")  # 181 bytes: beyond the 100 of a plain header
    expected = comparable(describe_tree(tree))
    for style in ("gnu", "posix", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "ustar"):
        scratch = tmp_path / style.replace(" ", "_")
        scratch.mkdir()
        sparse = [] if style == "ustar" else ["--sparse"]
        command = ["tar", *sparse, *f"--format={style}".split(), "-cf", scratch / "layer.tar", "-C", tree, "."]
        subprocess.run(command, check=True, capture_output=True)
        write_layout(scratch / "layout", [layer_blob((scratch / "layer.tar").read_bytes())])
        ours = comparable(unpack_here(scratch / "layout", scratch))
        if style in {"ustar", "gnu"}:  # whole seconds
            assert {k: v["mtime"] // 10**9 for k, v in ours.items() if "mtime" in v} == {
                k: v["mtime"] // 10**9 for k, v in expected.items() if "mtime" in v
            }
            assert [{**v, "mtime": 0} for v in ours.values()] == [{**v, "mtime": 0} for v in expected.values()]
        else:
            assert ours == expected, style
