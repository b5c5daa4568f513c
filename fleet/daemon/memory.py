"""Giving memory back to the host: the allocator of the C library keeps what was once needed unless it is asked.

Starting forty containers takes 40 MiB for a moment, and without this fleetd holds them for ever: freed blocks lie between used
ones. ``malloc_trim`` gives whole free pages back wherever they lie. One arena instead of one a thread keeps
those blocks together; threads here hold Python's lock most of the time and so hardly meet in the allocator.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from typing import Final

__all__ = ["give_back_unused", "prepare_allocator"]

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_BLOCK_BYTES: Final = 128 * 1024
"""glibc's own first value of both thresholds; setting them stops it from raising them after each large block."""
_LOOK_S: Final = 5.0
_BUSY: Final = 0.2
"""Share of a processor above which the process is at work and will want its memory again."""
_WORK_S: Final = 0.25
"""Processor time since the last time after which there may be something to give back."""


def _library() -> ctypes.CDLL | None:
    """The C library if it is glibc; others (musl) give memory back by themselves."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None


def prepare_allocator() -> None:
    """Before the first thread is started: one arena, thresholds that stay."""
    library = _library()
    if library is not None:
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_TRIM_THRESHOLD, _BLOCK_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)


async def give_back_unused() -> None:
    """Until cancelled: whenever the process rests after some work, give free memory back (some milliseconds, in a thread)."""
    library = _library()
    given_at = before = 0.0
    while True:
        await asyncio.sleep(_LOOK_S)
        used = time.process_time()
        rests, before = used - before < _BUSY * _LOOK_S, used
        if library is not None and rests and used - given_at > _WORK_S:
            await asyncio.to_thread(library.malloc_trim, 0)
            given_at = time.process_time()
