"""When a job runs by itself. A schedule lies in labels of the service, so that any client and any Compose file can give one.

    fleet.schedule.cron          0 3 * * *     five fields as in cron(5), or six with seconds in front; also @hourly, @daily ...
    fleet.schedule.timezone      Europe/Berlin    whose clocks are meant; UTC without
    fleet.schedule.concurrency   forbid (default): a run due while the one before still runs is skipped; replace: that one ends
    fleet.schedule.deadline      10m           how late a run may still begin after nobody led or the managers were down
    fleet.schedule.suspended     true          nothing is due

When a zone's clocks are turned, a schedule of fixed times (minute and hour without a leading ``*``, five fields) is made up for
right after what was skipped in spring, and counts once of what is shown twice in autumn, as Debian's cron has it. Any other
begins a run whenever the clock shows a time of it: nothing in the hour that is skipped, and twice in the one shown twice.

``cronsim`` knows of fields and calendars only: given a zone it answers by where one starts, also with instants that are past.
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
_FIELDS: Final = 5
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_FAR: Final = timedelta(days=3)
"""More than what clocks are ever turned by, so that no instant lies between."""
_AGES: Final = timedelta(days=50 * 366)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """``replaces``: a run that is due ends the one before. ``deadline``: how late one may begin."""

    cron: str
    zone: tzinfo
    replaces: bool = False
    deadline: timedelta = _DEADLINE
    is_suspended: bool = False

    def next(self, after: datetime) -> datetime | None:
        """The first instant after ``after``; None when there is none within 50 years."""
        start = after.astimezone(UTC).replace(microsecond=0)
        offset = self._offset(start)
        wall = _naive(start) + offset
        while (found := _next_wall(self.cron, wall)) is not None:
            here, instant = _instant(wall, offset), _instant(found, offset)
            turn = self._turn(here, min(instant, here + _DAY), offset)
            if turn is not None and turn <= instant:
                shown, offset = _naive(turn) + offset, self._offset(turn)
                resumed = _naive(turn) + offset
                if self._has_fixed_times and found < resumed:
                    return turn
                wall = (max(shown, resumed) if self._has_fixed_times else resumed) - _SECOND
            elif instant - here > _DAY:
                here = max(here + _DAY, instant - _FAR)
                offset = self._offset(here)
                wall = _naive(here) + offset
            elif self._has_fixed_times and instant.astimezone(self.zone).fold:
                wall = found
            else:
                return instant
        return None

    def latest(self, until: datetime) -> datetime | None:
        """The last instant at or before ``until``; None when there is none within 50 years."""
        until = until.astimezone(UTC).replace(microsecond=0)
        span = timedelta(minutes=1)
        while (low := self.next(until - span)) is None or low > until:
            span *= 2
            if span > _AGES:
                return None
        high = until
        while high > low:
            middle = low + timedelta(seconds=(high - low) // (2 * _SECOND))
            later = self.next(middle)
            if later is None or later > until:
                high = middle
            else:
                low = later
        return low

    @property
    def _has_fixed_times(self) -> bool:
        fields = self.cron.split()
        return len(fields) == _FIELDS and not fields[0].startswith("*") and not fields[1].startswith("*")

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self.zone).utcoffset() or timedelta()

    def _turn(self, start: datetime, end: datetime, offset: timedelta) -> datetime | None:
        """The first second after ``start`` with another offset, if ``end``, a day later at most, has another."""
        if self._offset(end) == offset:
            return None
        while end - start > _SECOND:
            middle = start + timedelta(seconds=(end - start) // (2 * _SECOND))
            if self._offset(middle) == offset:
                start = middle
            else:
                end = middle
        return end


def _naive(instant: datetime) -> datetime:
    return instant.replace(tzinfo=None)


def _instant(wall: datetime, offset: timedelta) -> datetime:
    return (wall - offset).replace(tzinfo=UTC)


def _next_wall(cron: str, after: datetime) -> datetime | None:
    """What a clock that is never turned shows next."""
    return next(CronSim(cron, after), None)


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
    if len(cron.split()) not in (_FIELDS, _FIELDS + 1):
        raise errors.UserError(
            f"label {PREFIX}cron: {text!r} has {len(cron.split())} fields; expected minute hour day-of-month month day-of-week, "
            "with seconds in front of them if you like"
        )
    try:
        if _next_wall(cron, datetime(2026, 1, 1)) is None:  # noqa: DTZ001 - what a clock shows
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
