"""A tree sent in passes is the same on the other side; a stream that is not one changes nothing outside its directory."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fleet.containers.treestream import (
    DIRECTORY,
    FILE,
    HARDLINK,
    SYMLINK,
    Data,
    End,
    Gone,
    Item,
    Pass,
    TreeReader,
    TreeWriter,
)
from fleet.errors import FleetError, StorageFullError, UserError

ROOM = 1 << 30


def send(source: Path, target: Path, *, since: Pass | None = None, piece: int = 1 << 20) -> Pass:
    reader = TreeReader(source, since=since)
    writer = TreeWriter(target, room_bytes=ROOM)
    try:
        for data in reader:
            for start in range(0, len(data), piece):
                writer.feed(data[start : start + piece])
        writer.finish()
    finally:
        writer.close()
    return reader.result


def picture(root: Path) -> dict[str, object]:
    """Everything that is to be the same; hard links by the set of their names."""
    inodes: dict[int, list[str]] = {}
    found: dict[str, object] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
            inodes.setdefault(status.st_ino, []).append(name)
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs)
    found["links"] = sorted(names for names in inodes.values() if len(names) > 1)
    return found


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return source, target


def fill(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(os.urandom(3_000_000))
    (root / "a" / "b" / "empty").touch()
    os.link(root / "a" / "file", root / "a" / "b" / "also")
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    (root / "a").chmod(0o750)
    os.utime(root / "a", ns=(1, 123_456_789))
    with (root / "holes").open("wb") as file:
        file.truncate(50_000_000)
        file.seek(10_000_000)
        file.write(b"x" * 5000)


def test_a_tree_arrives_whole_with_links_holes_modes_and_times(trees: tuple[Path, Path]) -> None:
    source, target = trees
    fill(source)
    send(source, target, piece=777)
    assert picture(target) == picture(source)
    assert (target / "holes").stat().st_blocks <= (source / "holes").stat().st_blocks


def test_a_second_pass_brings_exactly_what_changed(trees: tuple[Path, Path]) -> None:
    source, target = trees
    fill(source)
    first = send(source, target)
    (source / "a" / "file").write_bytes(b"other")  # both its names
    (source / "a" / "b" / "empty").unlink()
    (source / "a" / "b" / "empty").mkdir()
    (source / "link").unlink()
    (source / "pipe").rename(source / "a" / "moved")
    (source / "new").write_text("new")
    (source / "holes").chmod(0o600)
    send(source, target, since=first)
    assert picture(target) == picture(source)


def test_an_unchanged_old_file_is_not_sent_again_and_a_fresh_one_is(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    (source / "file").write_bytes(b"x" * 100_000)
    first = send(source, target)
    assert send(source, target, since=first).bytes == 100_000  # as young as the pass: a mapped page may hide a change
    monkeypatch.setattr("fleet.containers.treestream.time.time_ns", lambda: 1 << 62)
    old = send(source, target)
    assert send(source, target, since=old).bytes == 0
    assert picture(target) == picture(source)


def frames(*items: object) -> bytes:
    out = b""
    for item in items:
        body = msgspec.msgpack.encode(item)
        out += struct.pack(">I", len(body)) + body
    return out


ROOT = Item(b"", DIRECTORY, 0o755)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "dots": lambda: frames(ROOT, Item(b"../out", FILE, 0o644)),
    "absolute": lambda: frames(ROOT, Item(b"/out", FILE, 0o644)),
    "inner dots": lambda: frames(ROOT, Item(b"a", DIRECTORY, 0o755), Item(b"a/../../out", FILE, 0o644)),
    "through a link": lambda: frames(ROOT, Item(b"l", SYMLINK, 0o777, link=b".."), Item(b"l/out", FILE, 0o644)),
    "hard link out": lambda: frames(ROOT, Item(b"h", HARDLINK, link=b"../secret")),
    "hard link to a link": lambda: frames(
        ROOT, Item(b"l", SYMLINK, 0o777, link=b"../secret"), Item(b"h", HARDLINK, link=b"l")
    ),
    "gone outside": lambda: frames(ROOT, Gone(b"../secret")),
    "gone through a link": lambda: frames(ROOT, Item(b"l", SYMLINK, 0o777, link=b".."), Gone(b"l/secret")),
    "contents of nothing": lambda: frames(ROOT, Data(0, b"x")),
    "beyond the size": lambda: frames(ROOT, Item(b"f", FILE, 0o644, size=1), Data(0, b"xx")),
    "negative offset": lambda: frames(ROOT, Item(b"f", FILE, 0o644, size=1), Data(-1, b"x")),
    "attribute": lambda: frames(ROOT, Item(b"f", FILE, 0o644, xattrs={"trusted.overlay.redirect": b"/"})),
    "kind": lambda: frames(ROOT, Item(b"f", 99, 0o644)),
    "mode": lambda: frames(ROOT, Item(b"f", FILE, 0o100644)),
    "count": lambda: frames(ROOT, End(5)),
    "after the end": lambda: frames(ROOT, End(1), ROOT),
    "long frame": lambda: struct.pack(">I", 1 << 31),
    "no frame": lambda: struct.pack(">I", 3) + b"abc",
    "broken off": lambda: frames(ROOT, Item(b"f", FILE, 0o644, size=9)),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_stream_is_refused_and_touches_nothing_outside(kind: str, trees: tuple[Path, Path]) -> None:
    _, target = trees
    secret = target.parent / "secret"
    secret.write_text("s")
    writer = TreeWriter(target, room_bytes=ROOM)
    try:
        with pytest.raises(FleetError):
            writer.feed(HOSTILE[kind]())
            writer.finish()
    finally:
        writer.close()
    assert sorted(path.name for path in target.parent.iterdir()) == ["secret", "source", "target"]
    assert secret.read_text() == "s"
    assert secret.stat().st_nlink == 1


def test_more_than_there_is_room_for_is_refused(trees: tuple[Path, Path]) -> None:
    source, target = trees
    (source / "file").write_bytes(b"x" * 10_000)
    writer = TreeWriter(target, room_bytes=9_999)
    try:
        with pytest.raises(StorageFullError):
            for data in TreeReader(source):
                writer.feed(data)
    finally:
        writer.close()


def test_a_stream_cut_anywhere_never_counts_as_whole(trees: tuple[Path, Path]) -> None:
    source, target = trees
    (source / "d").mkdir()
    (source / "d" / "file").write_bytes(b"x" * 100)
    whole = b"".join(TreeReader(source))
    for end in range(len(whole)):
        writer = TreeWriter(target, room_bytes=ROOM)
        try:
            writer.feed(whole[:end])
            with pytest.raises(UserError):
                writer.finish()
        finally:
            writer.close()
