"""Building an image of ten steps from busybox, cold and from the cache, beside buildah.

Both run as root on the same disk, with the host's network for commands: fleet through its builder with a container for each RUN,
buildah with ``--isolation chroot --layers``, its process's start in the time. Fleet's daemon is up already.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fleet.builder.build import Builder, BuildOptions
from fleet.containers import ContainerEngine
from fleet.images import Image, ImageStore
from fleet.network.host import HostNetwork
from fleet.node_runtime.client import RuntimeClient

ROUNDS = 3
APPLETS = ("sh", "echo", "cat", "mkdir", "seq", "rm", "ls")
DOCKERFILE = """FROM {base}
ENV A=1
WORKDIR /work
COPY words /work/words
RUN cat words > copied
RUN seq 1 20000 > numbers
RUN mkdir -p a/b/c && echo x > a/b/c/x
RUN rm copied
LABEL kind=measured
CMD ["cat", "/work/numbers"]
"""


def base_tar(path: Path) -> None:
    """The file system both begin with."""
    with tarfile.open(path, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("etc", "proc", "sys", "dev", "tmp"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for applet in APPLETS:
            member = tarfile.TarInfo(f"bin/{applet}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(member)
        for name, text in (("passwd", b"root:x:0:0:root:/root:/bin/sh\n"), ("group", b"root:x:0:\n")):
            member = tarfile.TarInfo(f"etc/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))


def write_context(folder: Path, base: str) -> None:
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base), encoding="utf-8")
    (folder / "words").write_text("word\n" * 1000, encoding="utf-8")


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _no_pull(name: str, _tell: Any) -> Image:
    raise RuntimeError(f"{name} is not here")


async def fleet_times(root: Path) -> dict[str, list[float]]:
    """Seconds of every round."""
    name = f"bench-build-{os.getpid()}"
    runtime = await RuntimeClient.open(
        state_dir=root / "d/runtime", run_dir=root / "x/runtime", cgroup_parent=f"/fleet-{name}"
    )
    images = await ImageStore.open(root / "d/images")
    network = HostNetwork(
        run_dir=root / "x/network",
        state_dir=root / "d/network",
        owner=name[-12:],
        underlay_address="127.0.0.1",
        pool_size=0,
    )
    await network.open()
    engine = await ContainerEngine.open(
        data_root=root / "d", exec_root=root / "x", runtime=runtime, images=images, network=network
    )
    found: dict[str, list[float]] = {"cold": [], "cached": []}
    try:
        await engine.recover()
        await images.import_tar(_pieces((root / "base.tar").read_bytes()), reference="base:1")
        write_context(root / "context", "base:1")
        builder = Builder(engine, images, root / "d/builder", _no_pull)
        for _ in range(ROUNDS):
            for kind, times in found.items():
                options = BuildOptions(tags=("made:1",), network="host", no_cache=kind == "cold")
                begun = time.perf_counter()
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w") as tar:
                    tar.add(root / "context", ".")
                said: list[Any] = []
                await builder.build(_pieces(packed.getvalue()), options, said.append)
                times.append(time.perf_counter() - begun)
                if ("Using cache" in str(said)) != (kind == "cached"):
                    raise RuntimeError(f"the {kind} build took its steps from elsewhere: {said}")
    finally:
        await engine.close()
        await runtime.shutdown()
        await network.destroy()
        await engine.destroy()
        await network.close()
        await images.close()
        await runtime.close()
    return found


def buildah_times(root: Path) -> dict[str, list[float]] | str:
    """Seconds of every round, or why there are none."""
    if shutil.which("buildah") is None:
        return "buildah is not installed (apt-get install buildah)"
    command = [
        "buildah",
        "--root",
        str(root / "b/root"),
        "--runroot",
        str(root / "b/run"),
        "--storage-driver",
        "overlay",
    ]
    write_context(root / "peer", "base")
    (root / "peer-base").mkdir()
    (root / "peer-base/Dockerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
    shutil.copy(root / "base.tar", root / "peer-base/base.tar")
    build = [*command, "bud", "--isolation", "chroot", "--layers", "--pull-never"]
    found: dict[str, list[float]] = {"cold": [], "cached": []}
    try:
        made = subprocess.run(
            [*build, "-t", "localhost/base", str(root / "peer-base")], check=False, capture_output=True, text=True
        )
        if made.returncode:
            return f"buildah cannot build here: {made.stderr.strip()[-300:]}"
        for _ in range(ROUNDS):
            for kind, times in found.items():
                arguments = [*build, *(["--no-cache"] if kind == "cold" else []), "-t", "made", str(root / "peer")]
                begun = time.perf_counter()
                done = subprocess.run(arguments, check=False, capture_output=True, text=True)
                times.append(time.perf_counter() - begun)
                if done.returncode:
                    return f"buildah cannot build here: {done.stderr.strip()[-300:]}"
                if ("Using cache" in done.stdout + done.stderr) != (kind == "cached"):
                    raise RuntimeError(f"buildah's {kind} build took its steps from elsewhere: {done.stdout}")
    finally:
        subprocess.run(["umount", str(root / "b/root/overlay")], check=False, capture_output=True)
    return found


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too. Needs root and busybox-static."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        base_tar(root / "base.tar")
        own = asyncio.run(fleet_times(root))
        peer = buildah_times(root)
    print(
        f"{'build of 10 steps':>18}{'fleet, ms':>12}"
        + ("" if isinstance(peer, str) else f"{'buildah, ms':>14}{'ratio':>8}")
    )
    for kind, times in own.items():
        middle = statistics.median(times) * 1000
        line = f"{kind:>18}{middle:12.0f}"
        if not isinstance(peer, str):
            other = statistics.median(peer[kind]) * 1000
            line += f"{other:14.0f}{middle / other:8.2f}"
        print(line)
    if isinstance(peer, str):
        print(f"no peer: {peer}")
    if json_path is not None:
        numbers = {"rounds": ROUNDS, "fleet_s": own, "buildah": peer}
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(*sys.argv[1:2])
