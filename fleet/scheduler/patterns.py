"""Regular expressions over names and labels of nodes that can not take long, whatever is written.

Python's matcher goes back over every choice it made, so some expressions take for ever on some texts. Only those are let
through whose choices, multiplied, stay below a bound: a repetition may repeat one character or one set of characters, and
counts as often as it can; an alternative counts once each. ``web-.*-[0-9]+`` and ``(eu|us)-west-.`` pass; ``(a+)+`` does
not. Texts longer than ``TEXT_MAX`` never match.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Final

from fleet import errors

__all__ = ["TEXT_MAX", "compile_pattern"]

TEXT_MAX: Final = 128
PATTERN_MAX: Final = 256
_CHOICES_MAX: Final = 40_000
"""Two open repetitions over ``TEXT_MAX`` characters, and a few alternatives: some milliseconds at the very worst."""

_TOKEN: Final = re.compile(
    r"(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<escape>\\[^0-9bBAZ])|(?P<repeat>[*+?]|\{\d+(?:,\d*)?\})"
    r"|(?P<open>\((?:\?:)?(?!\?))|(?P<close>\))|(?P<or>\|)|(?P<plain>[^\\\[*+?{(])"
)
_REPEAT: Final = re.compile(r"\{(\d+)(,?)(\d*)\}")


def compile_pattern(text: str) -> Callable[[str], bool]:
    """A function that says whether the whole of a text matches, without regard to case. Raises ``UserError``."""
    if len(text) > PATTERN_MAX:
        raise errors.UserError(f"longer than {PATTERN_MAX} characters")
    choices = _choices(text)
    if choices > _CHOICES_MAX:
        raise errors.UserError("too many repetitions: use at most two of * and +, and few alternatives")
    try:
        compiled = re.compile(text, re.IGNORECASE)
    except re.error as cause:
        raise errors.UserError(f"no regular expression: {cause}") from cause

    @functools.lru_cache(maxsize=4096)
    def matches(found: str) -> bool:
        return len(found) <= TEXT_MAX and compiled.fullmatch(found) is not None

    return matches


def _choices(text: str) -> int:
    """A bound of the ways in which the expression can match one text. Raises ``UserError`` for what is not counted here."""
    choices, at, before = 1, 0, ""
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise errors.UserError(f"{text[at : at + 10]!r} is not supported in a regular expression")
        kind = found.lastgroup
        if kind == "repeat":
            if before not in ("set", "escape", "plain"):
                raise errors.UserError(f"{found[0]!r} must follow a single character or set, not {before or 'nothing'}")
            choices *= _times(found[0])
        elif kind == "or":
            choices *= 2
        before, at = kind, found.end()
    return choices


def _times(repeat: str) -> int:
    counted = _REPEAT.fullmatch(repeat)
    if counted is None:
        return 2 if repeat == "?" else TEXT_MAX
    least, comma, most = int(counted[1]), counted[2], counted[3]
    highest = int(most) if most else TEXT_MAX if comma else least
    if highest > TEXT_MAX:
        raise errors.UserError(f"{repeat!r} repeats more than {TEXT_MAX} times")
    return max(highest - least + 1, 1)
