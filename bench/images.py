"""Pulling and unpacking an image of 200 MB in eight layers from a local registry, beside skopeo with umoci, and podman.

The registry is Debian's docker-registry on loopback. Each round begins with an empty store on the same disk; the page cache
holds the registry's files for everybody. Fleet's daemon is up already; the peers' process start is in their time. Fleet flushes
what it unpacked before it shows it, which the peers do not. Nothing is deleted before the end: ext4 without a journal avoids the
inodes of files that were deleted a short while ago, and looking for others then takes most of everybody's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from fleet.images import ImageStore, RegistrySource

ROUNDS = 3
LAYERS = 8
LAYER_BYTES = 25_000_000
"""Plain bytes of a layer: eight make 200 MB."""


def layer_tar(number: int) -> bytes:
    """Small text files, and a few large ones that compress by about a third, as programs do."""
    rng = random.Random(number)  # the same image every time
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        left, count = LAYER_BYTES, 0
        while left > 0:
            if count % 50 == 49:
                noise = rng.randbytes(700_000)
                body = b"".join(noise[at : at + 700] + bytes(300) for at in range(0, len(noise), 700))
            else:
                body = b" ".join(rng.choices(words, k=rng.randint(50, 2500)))
            member = tarfile.TarInfo(f"layer{number}/d{count % 40}/file{count}")
            member.size, member.mode = len(body), 0o644
            tar.addfile(member, BytesIO(body))
            left -= len(body)
            count += 1
    return packed.getvalue()


def write_layout(folder: Path) -> int:
    """An OCI layout with the image, tagged ``big``; its compressed bytes."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(body: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(body).hexdigest()
        (blobs / digest).write_bytes(body)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(body)}

    plain = [layer_tar(number) for number in range(LAYERS)]
    layers = [put(gzip.compress(body, 6, mtime=0), "layer.v1.tar+gzip") for body in plain]
    diff_ids = [f"sha256:{hashlib.sha256(body).hexdigest()}" for body in plain]
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": layers,
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "big"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}), encoding="utf-8")
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    return sum(layer["size"] for layer in layers)


@contextlib.contextmanager
def registry(scratch: Path) -> Iterator[str]:
    """docker-registry on loopback; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = scratch / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {scratch}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _ran(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")


def fleet_pull(name: str, folder: Path) -> float:
    """Seconds of one pull into an empty store."""

    async def pull() -> float:
        store = await ImageStore.open(folder)
        source = RegistrySource(name)
        try:
            begun = time.perf_counter()
            image = await store.fetch(name, [source])
            took = time.perf_counter() - begun
            if len(image.layer_dirs) != LAYERS:
                raise RuntimeError(f"{len(image.layer_dirs)} layers")
            return took
        finally:
            await source.aclose()
            await store.close()

    return asyncio.run(pull())


def skopeo_umoci(name: str, folder: Path) -> float:
    begun = time.perf_counter()
    layout = folder / "layout"
    _ran("skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", f"docker://{name}", f"oci:{layout}:big")
    _ran("umoci", "unpack", "--image", f"{layout}:big", str(folder / "bundle"))
    return time.perf_counter() - begun


def podman_pull(name: str, folder: Path) -> float:
    options = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "overlay"]
    (folder / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}', encoding="utf-8")
    begun = time.perf_counter()
    _ran(
        "podman", *options, "pull", "-q", "--tls-verify=false",
        "--signature-policy", str(folder / "policy.json"), f"docker://{name}",
    )  # fmt: skip
    took = time.perf_counter() - begun
    subprocess.run(["umount", str(folder / "root/overlay")], check=False, capture_output=True)
    return took


PEERS: dict[str, tuple[tuple[str, ...], Callable[[str, Path], float]]] = {
    "skopeo + umoci": (("skopeo", "umoci"), skopeo_umoci),
    "podman": (("podman",), podman_pull),
}


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too. Needs root, docker-registry and skopeo."""
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not installed (apt-get install {program})")
    rows: dict[str, Callable[[str, Path], float]] = {"fleet": fleet_pull}
    for peer, (programs, pull) in PEERS.items():
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            print(f"no {peer}: {', '.join(missing)} is not installed")
        else:
            rows[peer] = pull
    times: dict[str, list[float]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory(prefix="fleet-bench-", dir="/var/tmp") as scratch:
        root = Path(scratch)
        size = write_layout(root / "oci")
        with registry(root) as address:
            name = f"{address}/big:1"
            _ran(
                "skopeo",
                "copy",
                "-q",
                "--insecure-policy",
                "--dest-tls-verify=false",
                f"oci:{root}/oci:big",
                f"docker://{name}",
            )
            for number in range(ROUNDS):
                for row, pull in rows.items():
                    folder = root / f"{row.split()[0]}{number}"
                    folder.mkdir()
                    os.sync()
                    times[row].append(pull(name, folder))
    best = min((statistics.median(times[row]) for row in rows if row != "fleet"), default=None)
    print(f"{LAYERS} layers, {LAYERS * LAYER_BYTES / 1e6:.0f} MB, {size / 1e6:.0f} MB compressed; medians of {ROUNDS}")
    print(f"{'pull and unpack':>18}{'ms':>8}{'to the best peer':>18}")
    for row, measured in times.items():
        middle = statistics.median(measured)
        print(f"{row:>18}{middle * 1000:8.0f}" + (f"{middle / best:18.2f}" if best else ""))
    if json_path is not None:
        numbers = {"rounds": ROUNDS, "compressed_bytes": size, "seconds": times}
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(*sys.argv[1:2])
