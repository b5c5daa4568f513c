"""How often something may be, as a person writes it: ``200``, ``200:2000`` or ``off``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fleet import errors

__all__ = ["Rate", "parse_rate"]

_MAX: Final = 1_000_000
_BURST_FACTOR: Final = 10


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second over time, and ``burst`` at once; both above 0."""

    per_s: int
    burst: int

    def __str__(self) -> str:
        return f"{self.per_s} a second and {self.burst} at once"


def parse_rate(text: str) -> Rate | None:
    """``RATE[:BURST]``, or None for ``off``. The burst is ten times the rate unless given. Raises ``UserError``."""
    if text == "off":
        return None
    rate, colon, burst = text.partition(":")
    parts = [rate, burst] if colon else [rate]
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:9]) <= _MAX for part in parts):
        raise errors.UserError(
            f"{text[:40]!r} is no rate; expected requests a second, or with how many at once, such as 200 or 200:2000; or off"
        )
    return Rate(int(rate), int(burst) if colon else int(rate) * _BURST_FACTOR)
