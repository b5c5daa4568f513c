"""Bundles for the OCI command line, with busybox as their only program."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.images import busybox_rootfs_tar

__all__ = ["CONFIG", "OciCommand", "make_bundle"]

_CAPS = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]

CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPS),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs"},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/sys"],
    },
}
"""What ``runc spec`` makes, nearly."""


def make_bundle(directory: Path, script: str = "", **changes: Any) -> Path:
    """A bundle whose program is ``sh -c script``; ``changes`` are members by dotted path with ``__`` for the dots."""
    (directory / "rootfs").mkdir(parents=True)
    busybox_rootfs_tar(directory / "rootfs.tar")
    # Not by tarfile: Python before 3.11.4 knows no filters, and later ones warn without.
    subprocess.run(["tar", "-xpf", str(directory / "rootfs.tar"), "-C", str(directory / "rootfs")], check=True)
    (directory / "rootfs.tar").unlink()
    rewrite(directory, script, **changes)
    return directory


def rewrite(directory: Path, script: str = "", **changes: Any) -> None:
    """Another ``config.json`` for the bundle."""
    config = copy.deepcopy(CONFIG)
    if script:
        config["process"]["args"] = ["sh", "-c", script]
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    (directory / "config.json").write_text(json.dumps(config))


class OciCommand:
    """The command with a root directory of its own. Its standard streams are files: a container keeps what it inherits."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.root = scratch / "state"
        self.count = 0
        """How many commands there were; `output` takes it."""
        self.log = scratch / "log.json"

    def __call__(self, *arguments: str, timeout_s: float = 60.0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        self.count += 1
        out, err = (self._scratch / f"{self.count}.{name}" for name in ("out", "err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            done = subprocess.run(
                self.line(*arguments),
                input=stdin.encode(),
                stdout=stdout,
                stderr=stderr,
                timeout=timeout_s,
                check=False,
            )
        return subprocess.CompletedProcess(arguments, done.returncode, out.read_text(), err.read_text())

    def line(self, *arguments: str) -> list[str]:
        """The command as a list, for ``Popen``."""
        start = ["--root", str(self.root), "--log", str(self.log), "--log-format", "json"]
        return [sys.executable, "-m", "fleet.node_runtime.oci.main", *start, *arguments]

    def output(self, count: int = 0) -> str:
        """What was written so far to the standard output of the last command, or an earlier one's."""
        return (self._scratch / f"{count or self.count}.out").read_text()

    def state(self, container_id: str) -> dict[str, Any]:
        """As printed."""
        done = self("state", container_id)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def delete_all(self) -> None:
        """Clean up after a test."""
        for name in os.listdir(self.root) if self.root.is_dir() else ():
            self("delete", "--force", name)
