"""Times and sizes for people: ages as Docker says them, sizes in decimal units. The wall clock is read here alone."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from fleet import errors

__all__ = ["age", "ago", "go_time", "human_size", "memory_size", "now", "parse_time", "since_query", "sleep", "span"]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def now() -> datetime:
    """Wall time, UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds that never go back."""
    return time.monotonic()


def sleep(duration_s: float) -> None:
    """Wait."""
    time.sleep(duration_s)


def parse_time(text: str | None) -> datetime | None:
    """RFC 3339 with any number of decimals; None for absent, zero and unreadable times."""
    if not text or text.startswith("0001-"):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def go_time(found: datetime | None) -> str:
    """As Go, and so Docker's client, writes a time in a column: ``2026-01-02 03:04:05.5 +0000 UTC``; empty for None."""
    if found is None:
        return ""
    fraction = f".{found.microsecond:06}".rstrip("0") if found.microsecond else ""
    return f"{found:%Y-%m-%d %H:%M:%S}{fraction} {found:%z %Z}"


def span(seconds: float) -> str:
    """Docker's wording of a duration: ``3 seconds``, ``About a minute``, ``2 hours``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 46:
        return f"{minutes} minutes"
    hours = int(whole / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for limit_hours, unit_hours, name in (
        (24 * 14, 24, "days"),
        (24 * 60, 24 * 7, "weeks"),
        (24 * 365 * 2, 24 * 30, "months"),
    ):
        if hours < limit_hours:
            return f"{hours // unit_hours} {name}"
    return f"{hours // (24 * 365)} years"


def age(text: str | None) -> str:
    """How long ago an API timestamp was, without "ago"; empty when there is none."""
    found = parse_time(text)
    return span(max(0.0, (now() - found).total_seconds())) if found else ""


def ago(text: str | None) -> str:
    """``3 seconds ago``."""
    found = age(text)
    return f"{found} ago" if found else ""


def _scaled(size: float, step: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if size < step:
            return f"{size:.4g}{unit}"
        size /= step
    return f"{size:.4g}{units[-1]}"


def human_size(size_bytes: int) -> str:
    """``4.78MB``, powers of 1000 as Docker's image sizes."""
    if size_bytes < 1000:
        return f"{size_bytes}B"
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{_UNITS[unit]}"


def memory_size(size_bytes: int) -> str:
    """``23.54GiB``, powers of 1024."""
    return _scaled(float(size_bytes), 1024, _BINARY)


def since_query(text: str | None, *, flag: str) -> str | None:
    """``--since``: a duration back from now, a date or time, or Unix seconds -> Unix seconds for the API.

    A time without a zone is one of this machine, as in Docker's client. Raises ``UserError`` naming ``flag``.
    """
    if text is None:
        return None
    from fleet.compose.values import parse_duration_ns

    if text.replace(".", "", 1).isdecimal():
        return text
    try:
        return f"{datetime.fromisoformat(text).timestamp():.9f}"
    except (ValueError, OverflowError):
        pass
    try:
        return f"{time.time() - parse_duration_ns(text) / 1e9:.9f}"
    except errors.UserError as cause:
        raise errors.UserError(
            f"{flag} {text!r}: expected a time such as 2026-01-02T15:04:05Z or a duration such as 10m"
        ) from cause
