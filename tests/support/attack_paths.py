"""What a hostile container does to a volume it shares: names that are a directory at one moment and a link at the next."""

from __future__ import annotations

SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
link, name = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2])
while True:
    libc.renameat2(-100, link, -100, name, 2)  # RENAME_EXCHANGE
"""
"""``python3 -c SWAPPER LINK NAME``: exchanges the two names for ever, as fast as the kernel does it."""
