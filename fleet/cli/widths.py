"""How much room text takes on a terminal, and making tables fit: functions over lines and columns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, TextIO

__all__ = ["GAP", "clean", "columns_of", "cut", "is_live", "pad", "shrunk", "width_of"]

GAP: Final = 3
"""Spaces between columns, as in Docker's tables."""


def columns_of(stream: TextIO) -> int | None:
    """Columns of the terminal that ``stream`` is; None when it is none: what goes into a pipe or a file is not cut."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # a terminal that does not know its size says 0
    except (OSError, ValueError):
        return None


def is_live(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal on which lines can be written over."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def clean(text: str) -> str:
    """Without control characters: names and reasons come from elsewhere and must not steer the terminal."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


def width_of(text: str) -> int:
    """Columns of a terminal; East Asian wide characters take two, combining ones none (Unicode annex 11)."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def cut(text: str, width: int) -> str:
    """At most ``width`` columns; what is left out shows as an ellipsis."""
    if width_of(text) <= width:
        return text
    kept, room = "", max(width, 1) - 1
    for sign in text:
        room -= width_of(sign)
        if room < 0:
            break
        kept += sign
    return f"{kept}…"


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Filled up with spaces, on the left if it belongs to the ``right``."""
    room = " " * max(0, width - width_of(text))
    return room + text if right else text + room


def shrunk(widths: Sequence[int], *, room: int, floors: Sequence[int]) -> list[int]:
    """``widths`` made to sum to ``room``, the widest first, none below its floor; more than ``room`` if the floors are."""
    result = list(widths)
    excess = sum(result) - room
    while excess > 0:
        loose = [i for i, width in enumerate(result) if width > floors[i]]
        if not loose:
            break
        widest = max(result[i] for i in loose)
        top = [i for i in loose if result[i] == widest]
        below = max([*(result[i] for i in loose if result[i] < widest), *(floors[i] for i in top), 0])
        step = max(1, min(widest - below, excess // len(top)))
        for i in top:
            taken = min(step, result[i] - floors[i], excess)
            result[i] -= taken
            excess -= taken
    return result
