"""Extended headers, damaged compression and archives of any JSON: read or refused in a sentence, never anything else."""

from __future__ import annotations

import gzip
import io
import json
import string
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import RejectedFault, UserError
from fleet.images import UnpackLimits
from fleet.images.archive import read_archive
from fleet.images.blobs import BlobStore
from fleet.images.compression import PlainReader
from fleet.images.manifest import Platform, parse_platform
from fleet.images.registry_auth import parse_challenges, union_of_scopes
from fleet.images.tarstream import TarReader
from tests.property.test_images_documents import VALUES
from tests.support.tar_headers import END, FILE, extended, record

PAX_KEYS = [
    b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name",
    b"GNU.sparse.realsize", b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.offset", b"GNU.sparse.numbytes",
    b"SCHILY.xattr.user.a", b"SCHILY.xattr.security.capability", b"comment",
]  # fmt: skip
NUMBERS = st.one_of(st.integers(-2, 1 << 70), st.sampled_from([0, 1, 511, 512, 513, 1 << 33])).map(lambda n: b"%d" % n)
PAX_VALUES = st.one_of(
    NUMBERS,
    st.binary(max_size=40),
    st.lists(NUMBERS, max_size=6).map(b",".join),
    st.sampled_from([b"1", b"0", b"a/b", b"../x", b"1.5", b"-3.25", b"1.9999999999999"]),
)
RECORDS = st.lists(st.tuples(st.sampled_from(PAX_KEYS), PAX_VALUES), max_size=8)


@settings(max_examples=300, deadline=None)
@given(RECORDS, st.sampled_from([b"x", b"g", b"L", b"K"]), st.binary(max_size=1500), st.integers(-3, 3))
def test_extended_headers_are_read_or_refused(
    records: list[tuple[bytes, bytes]], flag: bytes, data: bytes, shift: int
) -> None:
    body = b"".join(record(key, value) for key, value in records)
    body = body[shift:] if shift > 0 else body + b"\n" * -shift
    stream = extended(flag, body) + FILE + data + bytes(-len(data) % 512) + END
    total = 0
    try:
        reader = TarReader(io.BytesIO(stream))
        for entry in reader:
            assert 0 <= entry.size < 1 << 63
            for offset, piece in reader.data():
                assert 0 <= offset <= entry.size - len(piece)
                total += len(piece)
    except RejectedFault as fault:
        assert str(fault).startswith("tar:")
    assert total <= len(stream)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(min_size=1, max_size=3000),
    st.sampled_from(["gzip", "zstd"]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    st.integers(0, 40),
)
def test_damaged_compression_is_refused_or_seen_in_the_digest(
    plain: bytes, kind: str, damage: list[tuple[int, int]], cut: int
) -> None:
    packed = bytearray(gzip.compress(plain, mtime=0) if kind == "gzip" else zstandard.compress(plain))
    whole = bytes(packed)
    for at, value in damage:
        packed[at % len(packed)] = value
    stream = bytes(packed[: len(packed) - cut]) if cut < len(packed) else bytes(packed)
    try:
        reader = PlainReader(io.BytesIO(stream), bytes_max=1 << 20, ratio_max=1000)
        reader.drain()
    except RejectedFault as fault:
        assert str(fault)
    else:
        untouched = PlainReader(io.BytesIO(whole), bytes_max=1 << 20, ratio_max=1000)
        untouched.drain()
        assert reader.count <= 1 << 20
        assert stream != whole or reader.digest == untouched.digest


NAMES = st.sampled_from(
    ["manifest.json", "index.json", "oci-layout", "a.json", "a/layer.tar", "blobs/sha256/" + "1" * 64]
)
DOCKER = st.lists(
    st.fixed_dictionaries({}, optional={"Config": NAMES, "RepoTags": VALUES, "Layers": st.lists(NAMES, max_size=3) | VALUES}),
    max_size=3,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, VALUES | DOCKER, min_size=1, max_size=5))
def test_archives_of_any_json_are_loaded_or_refused(members: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        with tarfile.open(path, "w") as tar:
            for name, value in members.items():
                body = json.dumps(value).encode()
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
        blobs = BlobStore(Path(folder) / "store")
        blobs.open()
        try:
            read_archive(
                path, blobs, platform=Platform(os="linux", architecture="amd64"), limits=UnpackLimits(),
                cancel=threading.Event(),
            )  # fmt: skip
        except (RejectedFault, UserError) as error:
            assert str(error)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet=string.ascii_letters + ' ="\\,:/', max_size=60) | st.text(max_size=30), max_size=3))
def test_challenges_of_any_text_are_read(headers: list[str]) -> None:
    for scheme, fields in parse_challenges([*headers, *(f"Bearer {text}" for text in headers)]):
        assert scheme in {"basic", "bearer"}
        assert all(isinstance(value, str) for value in fields.values())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab:,", max_size=12), max_size=6))
def test_scopes_once_asked_for_are_asked_for_again(scopes: list[str]) -> None:
    together = union_of_scopes(scopes)
    assert union_of_scopes((*together, *scopes)) == together
    assert len({scope.rpartition(":")[0] for scope in together}) == len(together)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["linux", "arm", "ARM64", "v7", "", "x86_64", "a b"]), max_size=4).map("/".join)
)
def test_platforms_are_read_or_refused(text: str) -> None:
    try:
        platform = parse_platform(text)
    except UserError as error:
        assert "platform" in str(error)
    else:
        assert parse_platform(str(platform)) == platform
