"""One container writing lines as fast as it can: MB/s without loss, beside runc writing to a plain file.

Both run the same ``yes | head`` of busybox with the same limits (one processor). fleet's supervisor splits the output
into lines and writes them as JSON with a time each; runc's container has the file itself as its standard output, so
nothing is between them: that is the most the disk and the program give. The time is from before the start to the exit,
and fleet's includes the last line being in the file. Afterwards every byte is counted; a missing one fails the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench.container_start import FleetPeer, OciPeer, Site, unmount
from fleet.node_runtime.logs import read_log
from fleet.node_runtime.spec import LogSpec

ROUNDS = 3
LINE = "x" * 99
BYTES = 64 * 1000 * 1000
_COMMAND = ("/bin/sh", "-c", f"yes {LINE} | head -c {BYTES}")


async def _fleet(peer: FleetPeer) -> float:
    spec = peer._spec(*_COMMAND)
    path = peer.site.directory / "logs" / "json.log"
    path.parent.mkdir()
    spec = dataclasses.replace(spec, log=LogSpec(path=str(path), max_size_bytes=1 << 40, max_files=1))
    begin = time.perf_counter()
    await peer.client.start(spec)
    await peer._gone(spec.id)
    spent = time.perf_counter() - begin
    size = sum([len(line.data) async for line in read_log(path)])
    await peer.client.remove(spec.id)
    shutil.rmtree(path.parent)
    if size != BYTES:
        raise RuntimeError(f"fleet kept {size} of {BYTES} bytes")
    return spent


async def _runc(peer: OciPeer) -> float:
    bundle = peer._bundle("logs", *_COMMAND)
    path = peer.site.directory / "plain.log"
    with path.open("wb") as file:
        begin = time.perf_counter()
        peer._mount(bundle)
        process = await asyncio.create_subprocess_exec(
            *peer.base, "run", "--bundle", str(bundle), "runc-logs", stdin=subprocess.DEVNULL, stdout=file
        )
        code = await process.wait()
        spent = time.perf_counter() - begin
    unmount(bundle / "root")
    size = path.stat().st_size
    path.unlink()
    if code or size != BYTES:
        raise RuntimeError(f"runc: status {code}, {size} of {BYTES} bytes")
    return spent


async def _measure(directory: Path) -> dict[str, list[float]]:
    site = Site(directory)
    for applet in ("yes", "head"):
        (site.image / "bin" / applet).symlink_to("/bin/busybox")
    fleet = FleetPeer(site)
    runc = OciPeer(site, "runc") if shutil.which("runc") else None
    figures: dict[str, list[float]] = {peer.name: [] for peer in (fleet, runc) if peer is not None}
    await fleet.open()
    try:
        for _ in range(ROUNDS):
            figures["fleet"].append(BYTES / 1e6 / await _fleet(fleet))
            if runc is not None:
                figures["runc"].append(BYTES / 1e6 / await _runc(runc))
    finally:
        await fleet.close()
    return figures


def run(output: str | None = None) -> None:
    """Print MB/s of each; write the rounds to ``output``."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as directory:
        figures = asyncio.run(_measure(Path(directory)))
    for name, rounds in figures.items():
        print(f"{name:8} {statistics.median(rounds):8.1f} MB/s   ({min(rounds):.1f} to {max(rounds):.1f})")
    if output:
        Path(output).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
