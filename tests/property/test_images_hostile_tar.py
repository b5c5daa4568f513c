"""Whatever a tar says, nothing outside the layer's directory changes, and nothing forbidden appears inside.

Needs root: whiteouts are device nodes, opaque marks are trusted attributes.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import RejectedFault
from fleet.images.tarstream import TarReader
from fleet.images.unpack import UnpackLimits, unpack_layer
from tests.support.image_trees import Entry, describe_tree, make_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for device nodes and trusted attributes")

LIMITS = UnpackLimits(bytes_max=8 << 20, file_bytes_max=1 << 20, entries_max=200, depth_max=12)

PARTS = [
    "a",
    "b",
    "lnk",
    "up",
    "..",
    ".",
    "",
    "dev",
    "outside",
    ".wh.a",
    ".wh.lnk",
    ".wh..wh..opq",
    ".wh...",
    ".wh..",
    ".wh.",
]
names = st.builds(
    lambda parts, absolute, trailing: ("/" if absolute else "") + "/".join(parts) + ("/" if trailing else ""),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
).filter(bool)
targets = st.one_of(
    names,
    st.sampled_from(
        ["../../outside", "/", "..", "../..", "lnk", "a", "/etc", "/proc/self/root", "../outside/secret", "."]
    ),
)
kinds = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
    ]
)
xattrs = st.dictionaries(
    st.sampled_from(
        [
            "SCHILY.xattr.user.plain",
            "SCHILY.xattr.user.overlay.opaque",
            "SCHILY.xattr.trusted.overlay.opaque",
            "SCHILY.xattr.trusted.overlay.redirect",
            "SCHILY.xattr.security.selinux",
        ]
    ),
    st.sampled_from(["y", "/etc", ""]),
    max_size=2,
)
entries = st.builds(
    Entry,
    name=names,
    kind=kinds,
    body=st.sampled_from([b"", b"changed", b"x" * 3000]),
    target=targets,
    mode=st.sampled_from([0o644, 0o4755, 0o777, 0]),
    uid=st.sampled_from([0, 1000, 65534]),
    device=st.sampled_from([(0, 0), (1, 3), (8, 0)]),
    pax=xattrs,
)
layers = st.lists(st.lists(entries, max_size=10), min_size=1, max_size=3)


def check_layer(layer: Path) -> None:
    """What may be inside: no devices but whiteouts, no attributes but the kept ones and opacity."""
    for folder, directories, files in os.walk(os.fsencode(layer)):
        for name in [b"", *directories, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            assert not stat.S_ISBLK(status.st_mode), path
            assert not stat.S_ISCHR(status.st_mode) or status.st_rdev == 0, path
            assert not name.startswith(b".wh."), path
            for attribute in os.listxattr(path, follow_symlinks=False):
                opaque = attribute == "trusted.overlay.opaque" and stat.S_ISDIR(status.st_mode)
                assert opaque or attribute == "user.plain", (path, attribute)


@settings(max_examples=300, deadline=None)
@given(layers)
def test_evil_layers_change_nothing_outside_their_directory(stack: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory(prefix="fleet-hostile-") as scratch:
        base = Path(scratch)
        outside = base / "outside"
        (outside / "a").mkdir(parents=True)
        (outside / "secret").write_bytes(b"secret")
        (outside / "a" / "b").write_bytes(b"inner")
        (base / "store").mkdir()
        before = describe_tree(outside)
        lowers: list[Path] = []
        for number, contents in enumerate(stack):
            layer = base / "store" / str(number)
            layer.mkdir()
            below = [describe_tree(lower) for lower in lowers]
            try:
                unpack_layer(io.BytesIO(make_tar(contents)), into=layer, lowers=lowers, limits=LIMITS)
            except RejectedFault as fault:
                assert str(fault)
            assert describe_tree(outside) == before
            assert [describe_tree(lower) for lower in lowers] == below, "lower layers are read-only"
            assert sorted(os.listdir(base)) == ["outside", "store"]
            check_layer(layer)
            lowers.insert(0, layer)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(entries, min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
)
def test_damaged_tars_are_refused_or_read_but_never_crash(contents: list[Entry], damage: list[tuple[int, int]]) -> None:
    body = bytearray(make_tar(contents))
    for at, value in damage:
        body[at % len(body)] = value
    total = 0
    try:
        reader = TarReader(io.BytesIO(bytes(body)))
        for entry in reader:
            assert entry.size >= 0
            for offset, data in reader.data():
                assert 0 <= offset <= entry.size - len(data)
                total += len(data)
    except RejectedFault as fault:
        assert str(fault).startswith("tar:")
    assert total <= len(body)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_arbitrary_bytes_are_refused_as_a_tar(junk: bytes) -> None:
    with pytest.raises(RejectedFault):
        list(TarReader(io.BytesIO(b"\1" + junk)))
