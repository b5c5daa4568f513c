"""Trees as values: describe one, compare two, mount layers and describe what shows; and tars made entry by entry."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["describe_tree", "describe_mounted", "Entry", "make_tar"]


def describe_tree(root: Path, *, times: bool = True) -> dict[str, Any]:
    """Everything lstat, readlink, read and listxattr tell about each path below (and of) ``root``; hard links by
    group.
    """
    found: dict[str, Any] = {}
    groups: dict[tuple[int, int], str] = {}
    todo = [b""]
    while todo:
        name = todo.pop()
        path = os.path.join(os.fsencode(root), name) if name else os.fsencode(root)
        status = os.lstat(path)
        facts: dict[str, Any] = {
            "mode": oct(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
            "xattrs": {key: os.getxattr(path, key, follow_symlinks=False).hex() for key in sorted(_xattrs(path))},
        }
        if times:
            facts["mtime"] = status.st_mtime_ns
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                facts["content"] = [status.st_size, hashlib.sha256(file.read()).hexdigest()]
            if status.st_nlink > 1:
                facts["linked"] = groups.setdefault((status.st_dev, status.st_ino), os.fsdecode(name))
        elif stat.S_ISLNK(status.st_mode):
            facts["target"] = os.fsdecode(os.readlink(path))
        elif stat.S_ISDIR(status.st_mode):
            todo += sorted((os.path.join(name, child) for child in os.listdir(path)), reverse=True)
        else:
            facts["device"] = status.st_rdev
        found[os.fsdecode(name) or "."] = facts
    return found


def _xattrs(path: bytes) -> list[str]:
    return [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("security.selinux")]


def describe_mounted(layer_dirs: Sequence[Path], scratch: Path) -> dict[str, Any]:
    """What an overlay of the layers (topmost first) shows, seen from a mount namespace of its own."""
    for name in ("mnt", "floor"):
        (scratch / name).mkdir(parents=True)
    lowers = ":".join(str(path) for path in (*layer_dirs, scratch / "floor"))
    script = 'mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && exec "$3" -m tests.support.image_trees "$2"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", lowers, str(scratch / "mnt"), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    described: dict[str, Any] = json.loads(done.stdout)
    return described


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tar entry to write; ``kind`` is tarfile's type byte."""

    name: str
    kind: bytes = tarfile.REGTYPE
    body: bytes = b""
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_000_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def make_tar(entries: Sequence[Entry], *, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """The tar of some entries, names unchanged however evil."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type = entry.kind
            member.size = len(entry.body) if entry.kind == tarfile.REGTYPE else 0
            member.linkname = entry.target
            member.mode, member.uid, member.gid, member.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
            member.devmajor, member.devminor = entry.device
            member.pax_headers = dict(entry.pax)
            tar.addfile(member, io.BytesIO(entry.body))
    return buffer.getvalue()


if __name__ == "__main__":
    json.dump(describe_tree(Path(sys.argv[1])), sys.stdout)
