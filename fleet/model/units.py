"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Final

from fleet import errors

__all__ = ["parse_bytes"]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_bytes(text: str, *, what: str) -> int:
    """``512m``, ``1.5g``, ``64KiB``, ``4096`` in powers of 1024, as Docker. Raises ``UserError`` naming ``what``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise errors.UserError(f"{what}: {text!r} is not a size; write such as 64m, 1.5g or 4096")
    return int(float(match[1]) * 1024 ** _POWER[match[2].lower()])
