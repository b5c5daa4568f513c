"""``fleetd`` with a sampler in it: ``python profiled.py FOLDER [fleetd's own arguments]``, run as a file, with fleet installed.

Every ``_EVERY_S`` of processor time the stack of the main thread is counted. At SIGUSR2 the counts since the last one go to
``FOLDER/<host>.folded`` ("caller;callee count" a line, as flame graph programs read it), replaced in one step. The work of other
threads (the SQLite writer, unpacking) is not in it. A sampler of signals sees C code as its Python caller.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

_EVERY_S: Final = 0.005
_DEPTH_MAX: Final = 48


def _name(frame: FrameType) -> str:
    code = frame.f_code
    parts = Path(code.co_filename).with_suffix("").parts
    start = len(parts) - 1 - parts[::-1].index("fleet") if "fleet" in parts else -2
    return f"{'.'.join(parts[start:])}:{code.co_qualname}"


def watch(folder: Path) -> None:
    """Begin to sample this process."""
    counts: Counter[tuple[str, ...]] = Counter()
    names: dict[object, str] = {}

    def sample(_signal: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None and len(stack) < _DEPTH_MAX:
            code = frame.f_code
            if code not in names:
                names[code] = _name(frame)
            stack.append(names[code])
            frame = frame.f_back
        counts[tuple(reversed(stack))] += 1

    def write(_signal: int, _frame: FrameType | None) -> None:
        lines = [f"{';'.join(stack)} {count}\n" for stack, count in counts.items()]
        counts.clear()
        draft = folder / f".{socket.gethostname()}.new"
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(folder / f"{socket.gethostname()}.folded")

    signal.signal(signal.SIGPROF, sample)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.signal(signal.SIGUSR2, write)
    signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    from fleet.daemon.main import main

    main(sys.argv[2:])
