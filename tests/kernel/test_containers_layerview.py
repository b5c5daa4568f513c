"""Filling a volume from an image's layers gives what an overlay mount of the same layers shows."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fleet.containers.layerview import copy_image_directory
from fleet.errors import RuntimeFault

pytestmark = pytest.mark.kernel


def facts(root: Path) -> dict[str, Any]:
    """Path -> what it is: kind and mode, owner, content or link, time, capabilities."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: Any = None
        if stat.S_ISREG(kind):
            content = path.read_bytes()
        elif stat.S_ISLNK(kind):
            content = os.readlink(path)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name.startswith(("user.", "security."))
        }
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, content, status.st_mtime_ns, attributes
        )  # fmt: skip
    return found


def make_layers(root: Path) -> list[Path]:
    """Topmost first: a middle layer with whiteouts and an opaque directory, links, owners, modes, capabilities."""
    low, middle, top = (root / name for name in ("low", "middle", "top"))
    for layer in (low, middle, top):
        (layer / "data").mkdir(parents=True)
    for name in ("kept", "hidden", "replaced", "dir/inner", "opaque/old", "gone/x"):
        path = low / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"low {name}")
    os.mknod(middle / "data/hidden", 0o600 | stat.S_IFCHR, 0)
    os.mknod(middle / "data/gone", 0o600 | stat.S_IFCHR, 0)
    (middle / "data/opaque").mkdir()
    os.setxattr(middle / "data/opaque", "trusted.overlay.opaque", b"y")
    (middle / "data/opaque/new").write_text("new")
    (middle / "data/dir").mkdir(mode=0o711)
    os.chown(middle / "data/dir", 5, 6)
    (top / "data/replaced").write_text("top")
    os.chown(top / "data/replaced", 1000, 1001)
    (top / "data/replaced").chmod(0o6750)
    os.setxattr(top / "data/replaced", "user.note", b"hi")
    os.utime(top / "data/replaced", ns=(1_000_000_000, 2_000_000_123))
    (top / "data/link").symlink_to("/etc/passwd")
    (top / "data/loop").symlink_to("loop")
    os.mkfifo(top / "data/fifo", 0o640)
    for number, name in enumerate(("link", "loop", "fifo")):  # older than the copy by more than a tick of the clock
        os.utime(top / "data" / name, ns=(0, 1_500_000_000 + number), follow_symlinks=False)
    (top / "alias").symlink_to("/../data")
    return [top, middle, low]


def test_the_copy_equals_the_overlay(tmp_path: Path) -> None:
    layers = make_layers(tmp_path)
    copy, merged = tmp_path / "copy", tmp_path / "merged"
    copy.mkdir()
    merged.mkdir()
    assert copy_image_directory(layers, "/data", copy)
    lower = ":".join(map(str, layers))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}", str(merged)], check=True)
    try:
        assert facts(copy) == facts(merged / "data")
        assert {"kept", "replaced", "opaque/new", "dir/inner"} <= facts(copy).keys()
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def test_a_link_on_the_way_stays_inside_the_image(tmp_path: Path) -> None:
    layers = make_layers(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    assert copy_image_directory(layers, "/alias", copy)
    assert (copy / "replaced").read_text() == "top"
    (layers[0] / "outside").symlink_to("/../../../../../etc")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert not copy_image_directory(layers, "/outside", fresh)
    with pytest.raises(RuntimeFault, match="too many symbolic links"):
        copy_image_directory(layers, "/data/loop", fresh)
    assert not copy_image_directory(layers, "/data/replaced", fresh)
    assert not copy_image_directory(layers, "/nowhere/at/all", fresh)
    assert list(fresh.iterdir()) == []


def test_file_capabilities_survive_the_change_of_owner(tmp_path: Path) -> None:
    layer, copy = tmp_path / "layer", tmp_path / "copy"
    (layer / "data").mkdir(parents=True)
    copy.mkdir()
    program = layer / "data/program"
    program.write_text("x")
    os.chown(program, 7, 7)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep, revision 2
    os.setxattr(program, "security.capability", capability)
    assert copy_image_directory([layer], "/data", copy)
    assert os.getxattr(copy / "program", "security.capability") == capability
    assert (copy / "program").stat().st_uid == 7
