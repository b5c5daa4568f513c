"""A container with a 200 MB volume to another host: standing still, and MB/s; beside stop, tar and start by hand.

Both hosts are of one lab, on one disk and two network namespaces. By hand is a person's best case: the image is there already,
tar writes into tar through a pipe of this machine (no network, no encryption), nothing is flushed to the disk, and nobody types.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.services import IMAGE, Cluster, clusters

ROUNDS: Final = 5
VOLUME_MB: Final = 200
_COMMAND: Final = "trap 'exit 0' TERM; while :; do echo beat >>/data/log; sleep 0.05; done"


def make(cluster: Cluster, host: str) -> None:
    """The container, with its volume filled long enough ago that it counts as unchanged."""
    cluster.run("container", "run", "-d", "--name", "app", "-v", "data:/data", IMAGE, "sh", "-c", _COMMAND, host=host)
    fill = f"dd if=/dev/urandom of=/data/big bs=1M count={VOLUME_MB} 2>/dev/null"
    cluster.run("container", "exec", "app", "sh", "-c", fill, host=host)
    time.sleep(2.0)


def clear(cluster: Cluster) -> None:
    for host in ("w1", "w2"):
        with contextlib.suppress(subprocess.CalledProcessError):
            cluster.run("container", "rm", "-f", "-v", "app", host=host)
        with contextlib.suppress(subprocess.CalledProcessError):
            cluster.run("volume", "rm", "-f", "data", host=host)


def by_fleet(cluster: Cluster) -> tuple[float, float]:
    """Seconds it stood still; seconds in all."""
    body = json.dumps({"To": "w2", "Source": "w1"}).encode()
    headers = {"Content-Type": "application/json"}
    said: dict[str, Any] = {}
    path = "/fleet/v1/containers/app/move"
    with cluster.client().stream("POST", path, body=body, headers=headers) as chunks:
        for line in b"".join(chunks).splitlines():
            said = json.loads(line)
    if "done" not in said:
        raise RuntimeError(f"the move failed: {said}")
    return float(said["done"]["standstill_s"]), float(said["done"]["seconds"])


def by_hand(cluster: Cluster) -> tuple[float, float]:
    """The same: stop, make the volume there, tar into tar, run there."""
    source, target = (Path(cluster.lab.layout.data(host)) / "volumes" / "data" / "_data" for host in ("w1", "w2"))
    begun = time.monotonic()
    cluster.run("container", "stop", "app", host="w1")
    cluster.run("volume", "create", "data", host="w2")
    with subprocess.Popen(["tar", "-C", source, "--xattrs", "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-C", target, "--xattrs", "-xpf", "-"], stdin=tar.stdout, check=True)
    cluster.run("container", "run", "-d", "--name", "app", "-v", "data:/data", IMAGE, "sh", "-c", _COMMAND, host="w2")
    seconds = time.monotonic() - begun
    return seconds, seconds


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too."""
    ways = {"fleet container move": by_fleet, "stop, tar, start by hand": by_hand}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with clusters(peer=False) as (cluster,):
        for _ in range(ROUNDS):
            for name, way in ways.items():
                make(cluster, "w1")
                found[name].append(way(cluster))
                clear(cluster)
    print(f"{VOLUME_MB} MB, medians of {ROUNDS}{'':6}{'still s':>10}{'in all s':>10}{'MB/s':>8}")
    numbers = {}
    for name, rounds in found.items():
        still, whole = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"{name:28}{still:10.2f}{whole:10.2f}{VOLUME_MB / whole:8.0f}")
        numbers[name] = {"standstill_s": still, "seconds": whole, "mb_per_s": VOLUME_MB / whole, "rounds": rounds}
    if json_path is not None:
        Path(json_path).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(*sys.argv[1:2])
