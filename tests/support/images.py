"""A tiny real image for tests: a root file system around Debian's static busybox."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["busybox_rootfs_tar"]

_BUSYBOX = Path("/bin/busybox")  # package busybox-static
_DIRECTORIES = ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "tmp", "root", "var", "home", "run")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\ndaemon:x:1:\nwww:x:33:daemon\nnobody:x:65534:\n"


def busybox_rootfs_tar(path: Path, *, applets: bool = True, extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write an uncompressed root file system tar to ``path``: busybox, links for its applets, /etc/passwd and group,
    ``extra_files``.

    Keys of ``extra_files`` are paths without leading slash; their parents are made, and files below ``bin/`` are
    executable. The same arguments give the same bytes.
    """
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        made = set()

        def directory(name: str) -> None:
            if not name or name in made:
                return
            directory(name.rpartition("/")[0])
            made.add(name)
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            member.mode = 0o1777 if name == "tmp" else 0o755
            tar.addfile(member)

        def file(name: str, body: bytes, mode: int) -> None:
            directory(name.rpartition("/")[0])
            member = tarfile.TarInfo(name)
            member.size = len(body)
            member.mode = mode
            tar.addfile(member, io.BytesIO(body))

        for name in _DIRECTORIES:
            directory(name)
        file("bin/busybox", _BUSYBOX.read_bytes(), 0o755)
        if applets:
            listed = subprocess.run([_BUSYBOX, "--list"], capture_output=True, check=True, text=True).stdout
            for applet in sorted({line.strip() for line in listed.splitlines()} - {"busybox", ""}):
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type = tarfile.SYMTYPE
                link.linkname = "busybox"
                tar.addfile(link)
        file("etc/passwd", _PASSWD, 0o644)
        file("etc/group", _GROUP, 0o644)
        for name, body in (extra_files or {}).items():
            file(name, body, 0o755 if name.startswith("bin/") else 0o644)
