"""Docker's engine as the daemon of a lab: the same hosts, switch and power button as fleet's, so only the daemon differs.

``Lab(name, daemon=DOCKER_DAEMON)`` makes a cluster of real ``dockerd``. A lab starts its daemon with fleetd's options; run as a
program this module translates them and becomes dockerd, in the namespaces of the lab's host. Everything dockerd makes is
below the host's data and exec roots and its cgroup, or in its namespaces, so the lab's ``down`` removes it. The two
paths built into dockerd, ``/etc/docker`` and ``/var/lib/docker``, are covered by folders of the host in its own mount
namespace: the machine's engine, if it has one, is neither read nor written. ``covers`` makes sure they can be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DOCKER_DAEMON: Final = (sys.executable, "-I", str(Path(__file__).resolve()))
PACKAGES: Final = ("docker.io", "iptables")
_BUILT_IN: Final = (Path("/etc/docker"), Path("/var/lib/docker"))
_POLICY: Final = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """Programs the peer needs and this machine has not."""
    return [name for name in ("dockerd", "containerd", "docker", "iptables") if shutil.which(name) is None]


def install() -> None:
    """Install Debian's engine, without its service being started. Raises ``CalledProcessError``."""
    guard = not _POLICY.exists()
    if guard:
        with tempfile.NamedTemporaryFile("w", dir=_POLICY.parent, delete=False) as draft:
            draft.write("#!/bin/sh\nexit 101\n")
        Path(draft.name).chmod(0o755)
        Path(draft.name).replace(_POLICY)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], env=environment, check=True
        )
    finally:
        if guard:
            _POLICY.unlink()


@contextlib.contextmanager
def covers() -> Iterator[None]:
    """While it holds, the built-in paths exist as mount points; those it made are removed at the end."""
    made = []
    for path in _BUILT_IN:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            made.append(path)
    try:
        yield
    finally:
        for path in made:
            path.rmdir()


def version() -> str:
    """As dockerd says it."""
    return subprocess.run(["dockerd", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: list[str]) -> None:
    """Become dockerd with what the lab's options mean to it. Does not return."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("config", "data-root", "exec-root", "host", "cgroup-parent", "hostname", "log-format"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args(arguments)
    data = Path(options.data_root)
    for path in _BUILT_IN:
        cover = data / "covers" / path.relative_to("/")
        cover.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", cover, path], check=True)
    empty = data / "daemon.json"
    empty.write_text("{}\n", encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    # Otherwise its agent asks Docker's registry before each start of a task, for an image that is here.
    environment["DOCKER_SERVICE_PREFER_OFFLINE_IMAGE"] = "1"
    os.execvpe(
        "dockerd",
        [
            "dockerd",
            f"--config-file={empty}",
            f"--data-root={data / 'docker'}",
            f"--exec-root={options.exec_root}/docker",
            f"--pidfile={options.exec_root}/dockerd.pid",
            f"--host={options.host}",
            f"--cgroup-parent={options.cgroup_parent}",
            "--log-level=warn",
        ],
        environment,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
