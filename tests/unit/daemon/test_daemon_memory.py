"""Memory that was needed once is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, contextlib
from fleet.daemon import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

async def main():
    memory._LOOK_S = 0.05
    memory._BUSY = 1000.0
    memory._WORK_S = 0.0
    blocks = [bytearray(60_000) for _ in range(1000)]
    keep = blocks[::50]
    blocks.clear()
    full = resident()
    upkeep = asyncio.create_task(memory.give_back_unused())
    await asyncio.sleep(0.5)
    print(full - resident())
    upkeep.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upkeep

memory.prepare_allocator()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="not run: needs glibc")
def test_free_pages_between_used_ones_go_back_to_the_host() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 40_000_000
