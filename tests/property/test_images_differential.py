"""Random layers mounted as an overlay show what umoci makes of them. Each example runs both; root and umoci needed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.errors import RejectedFault
from fleet.images.unpack import UnpackLimits, unpack_layer
from tests.support.image_layouts import layer_blob, write_layout
from tests.support.image_trees import Entry, describe_mounted, describe_tree, make_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci (apt install umoci)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

folders = st.lists(st.sampled_from(["a", "b"]), max_size=2)
leaves = st.sampled_from(["x", "y", "z", "a"])
paths = st.builds(lambda parts, leaf: "/".join([*parts, leaf]), folders, leaves)
files = st.builds(Entry, name=paths, body=st.sampled_from([b"", b"1", b"22"]), mode=st.sampled_from([0o644, 0o4755]))
plain = st.one_of(
    files,
    files,
    st.builds(
        Entry,
        name=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2).map("/".join),
        kind=st.just(tarfile.DIRTYPE),
        mode=st.sampled_from([0o755, 0o700]),
        uid=st.sampled_from([0, 7]),
    ),
    st.builds(
        Entry, name=paths, kind=st.just(tarfile.SYMTYPE), target=st.sampled_from(["a", "/b", "../b", "a/b", "/"])
    ),
    files,
    st.builds(Entry, name=paths, kind=st.just(tarfile.LNKTYPE), target=st.sampled_from(["x", "y", "a/x", "b/a/z"])),
)


def whiteout(path: str, opaque: bool) -> Entry:
    folder, _, name = path.rpartition("/")
    return Entry(name=f"{path}/.wh..wh..opq" if opaque else f"{folder}/.wh.{name}".lstrip("/"))


whiteouts = st.lists(
    st.one_of(
        st.builds(whiteout, paths, st.just(False)),
        st.builds(whiteout, st.sampled_from(["a", "b", "a/a", "a/b", "b/a"]), st.booleans()),
    ),
    max_size=3,
)
first = st.lists(plain, min_size=1, max_size=6)
later = st.tuples(whiteouts, st.lists(plain, max_size=5)).map(lambda parts: [*parts[0], *parts[1]])
"""Whiteouts come first, as every tool writes them: after other entries, umoci 0.4.7 lets them hide its own layer's
files.
"""


def seen(tree: dict[str, Any]) -> dict[str, Any]:
    """Without directory times, and without which names are one file when a copy was made of a lower layer's."""
    return {
        name: {key: value for key, value in facts.items() if key != "mtime" and key != "linked"}
        for name, facts in tree.items()
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first, st.lists(later, max_size=2))
def test_random_layers_show_what_umoci_unpacks(bottom: list[Entry], above: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory(prefix="fleet-differential-") as scratch:
        base = Path(scratch)
        tars = [make_tar(layer) for layer in (bottom, *above)]
        write_layout(base / "layout", [layer_blob(tar) for tar in tars])
        command = ["umoci", "raw", "unpack", "--image", f"{base}/layout:tiny", f"{base}/rootfs"]
        theirs = subprocess.run(command, capture_output=True, text=True, check=False)
        lowers: list[Path] = []
        try:
            for number, tar in enumerate(tars):
                layer = base / f"layer{number}"
                layer.mkdir(mode=0o755)
                unpack_layer(io.BytesIO(tar), into=layer, lowers=lowers, limits=UnpackLimits())
                lowers.insert(0, layer)
        except RejectedFault as fault:
            assert theirs.returncode != 0, f"refused here ({fault}), unpacked by umoci"
            return
        if theirs.returncode != 0:
            return  # umoci is stricter in places: a directory where a link was, a link to itself
        assert seen(describe_mounted(lowers, base / "overlay")) == seen(describe_tree(base / "rootfs"))
