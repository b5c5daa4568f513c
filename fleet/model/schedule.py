"""When a job runs by itself. A schedule lies in labels of the service, so that any client and any Compose file can give one.

    fleet.schedule.cron          0 3 * * *     five fields as in cron(5), or six with seconds in front; also @hourly, @daily ...
    fleet.schedule.timezone      Europe/Berlin    whose clocks are meant; UTC without
    fleet.schedule.concurrency   forbid (default): a run due while the one before still runs is skipped; replace: that one ends
    fleet.schedule.deadline      10m           how late a run may still begin after nobody led or the managers were down
    fleet.schedule.suspended     true          nothing is due

Times that a clock skips in spring are made up for right after, and those it shows twice in autumn count once, as Debian's cron
has it (library ``cronsim``).
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from cronsim import CronSim, CronSimError

from fleet import errors

__all__ = ["PREFIX", "Schedule", "parse_schedule"]

PREFIX: Final = "fleet.schedule."
_NAMES: Final = ("cron", "timezone", "concurrency", "deadline", "suspended")
_CONCURRENCY: Final = ("forbid", "replace")
_MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_TEXT_MAX: Final = 256
_DURATION: Final = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DEADLINE: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """``replaces``: a run that is due ends the one before. ``deadline``: how late one may begin."""

    cron: str
    zone: tzinfo
    replaces: bool = False
    deadline: timedelta = _DEADLINE
    is_suspended: bool = False

    def latest(self, until: datetime) -> datetime | None:
        """The last instant at or before ``until``."""
        local = until.astimezone(self.zone).replace(microsecond=0) + timedelta(seconds=1)
        return _first(CronSim(self.cron, local, reverse=True))

    def next(self, after: datetime) -> datetime | None:
        """The first instant after ``after``; None when there is none within 50 years."""
        return _first(CronSim(self.cron, after.astimezone(self.zone).replace(microsecond=0)))


def _first(instants: CronSim) -> datetime | None:
    found = next(instants, None)
    return None if found is None else found.astimezone(UTC)


def parse_schedule(labels: Mapping[str, str]) -> Schedule | None:
    """Of a service with these labels; None without one. Raises ``UserError`` that names the label and what is expected."""
    given = tuple(sorted((key, value) for key, value in labels.items() if key.startswith(PREFIX)))
    return _parse(given) if given else None


@functools.lru_cache(maxsize=1024)
def _parse(given: tuple[tuple[str, str], ...]) -> Schedule:
    found = {key.removeprefix(PREFIX): value.strip() for key, value in given}
    for name, value in found.items():
        if name not in _NAMES:
            raise errors.UserError(
                f"label {PREFIX}{name} is not known; there are {', '.join(PREFIX + n for n in _NAMES)}"
            )
        if len(value) > _TEXT_MAX:
            raise errors.UserError(f"label {PREFIX}{name} is longer than {_TEXT_MAX} characters")
    if "cron" not in found:
        raise errors.UserError(f"label {PREFIX}{min(found)} needs {PREFIX}cron beside it, such as '0 3 * * *'")
    concurrency = found.get("concurrency", "forbid")
    if concurrency not in _CONCURRENCY:
        raise errors.UserError(
            f"label {PREFIX}concurrency: {concurrency!r} is not one of {', '.join(_CONCURRENCY)}; a job has one run at a time"
        )
    suspended = found.get("suspended", "false").lower()
    if suspended not in ("true", "false"):
        raise errors.UserError(f"label {PREFIX}suspended: {suspended!r} is neither true nor false")
    return Schedule(
        cron=_cron(found["cron"]),
        zone=_zone(found.get("timezone", "UTC")),
        replaces=concurrency == "replace",
        deadline=_duration(found["deadline"]) if "deadline" in found else _DEADLINE,
        is_suspended=suspended == "true",
    )


def _cron(text: str) -> str:
    cron = _MACROS.get(text.lower(), text)
    if cron.startswith("@"):
        raise errors.UserError(f"label {PREFIX}cron: {text!r} is not one of {', '.join(_MACROS)}")
    if len(cron.split()) not in (5, 6):
        raise errors.UserError(
            f"label {PREFIX}cron: {text!r} has {len(cron.split())} fields; expected minute hour day-of-month month day-of-week, "
            "with seconds in front of them if you like"
        )
    try:
        if _first(CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC))) is None:
            raise errors.UserError(f"label {PREFIX}cron: {text!r} never comes")
    except CronSimError as cause:
        raise errors.UserError(f"label {PREFIX}cron: {text!r}: {str(cause).lower()}") from cause
    return cron


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as cause:
        raise errors.UserError(
            f"label {PREFIX}timezone: {name!r} is no time zone; expected a name such as Europe/Berlin"
        ) from cause


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise errors.UserError(f"label {PREFIX}deadline: {text!r} is no duration such as 30s, 10m, 2h or 1d")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
