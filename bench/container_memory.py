"""Memory of what fleet keeps per running container: proportional set size of the supervisor, as containers are added.

The container's own process is not counted, nor kernel memory (slab, stacks), which is paid under any runtime.
For scale: conmon takes 350 KiB and containerd's shim 2.5 MiB of PSS for each container.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from bench.container_start import FleetPeer, Site

COUNTS = (0, 10, 50, 100, 200)


def resident_kib(pid: int) -> int:
    """Pss of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"no Pss for {pid}")


async def measure(directory: Path) -> dict[int, int]:
    peer = FleetPeer(Site(directory))
    await peer.open()
    found: dict[int, int] = {}
    try:
        await peer.run_true()
        running = 0
        for count in COUNTS:
            await asyncio.gather(*(peer.start_sleep() for _ in range(count - running)))
            running = count
            await asyncio.sleep(0.5)
            found[count] = resident_kib(peer.client.supervisor_pid)
    finally:
        await peer.close()
    return found


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too. Needs root and busybox-static."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        found = asyncio.run(measure(Path(folder)))
    base = found[0]
    print(f"{'containers':>12}{'supervisor PSS KiB':>22}{'KiB per container':>20}{'all in, KiB':>14}")
    for count, kib in found.items():
        more = f"{(kib - base) / count:20.1f}{kib / count:14.1f}" if count else ""
        print(f"{count:12}{kib:22}{more}")
    if json_path is not None:
        Path(json_path).write_text(json.dumps({"supervisor_pss_kib": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(*sys.argv[1:2])
