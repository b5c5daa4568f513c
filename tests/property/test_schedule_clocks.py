"""Schedules against a walk over all minutes around the hours at which clocks are turned."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.model.schedule import Schedule, parse_schedule

MINUTE = timedelta(minutes=1)
TURNS = [
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("America/Santiago", "2026-04-05T03:00"),  # shows 23:00 to 24:00 twice
    ("America/Santiago", "2026-09-06T04:00"),  # skips 0:00 to 1:00
    ("Australia/Lord_Howe", "2026-04-04T15:00"),  # half an hour
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Pacific/Apia", "2011-12-30T10:00"),  # skips a whole day
    ("UTC", "2026-03-29T01:00"),
]
CRONS = st.tuples(
    st.sampled_from(["*", "*/7", "0", "30", "5,50", "10-20", "59"]),
    st.sampled_from(["*", "*/2", "0", "1", "2", "3", "0-3", "1,2", "23", "22-23"]),
    st.sampled_from(["*", "1-31/2", "30"]),
    st.just("*"),
    st.sampled_from(["*", "SUN", "1-5"]),
).map(" ".join)


def is_shown(cron: str, wall: datetime) -> bool:
    return next(CronSim(cron, wall - MINUTE), None) == wall


def walked(cron: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """By the rules of ``fleet.model.schedule``, minute by minute."""
    minute, hour = cron.split()[:2]
    is_fixed = not minute.startswith("*") and not hour.startswith("*")
    found, here, shown = [], start, (start - MINUTE).astimezone(zoneinfo.ZoneInfo(zone)).replace(tzinfo=None)
    while here <= end:
        local = here.astimezone(zoneinfo.ZoneInfo(zone))
        wall = local.replace(tzinfo=None)
        skipped = [shown + n * MINUTE for n in range(1, (wall - shown) // MINUTE)]
        due = is_shown(cron, wall) and not (is_fixed and local.fold)
        if due or (is_fixed and any(is_shown(cron, each) for each in skipped)):
            found.append(here)
        here, shown = here + MINUTE, wall
    return found


def a_schedule(cron: str, zone: str) -> Schedule:
    schedule = parse_schedule({"fleet.schedule.cron": cron, "fleet.schedule.timezone": zone})
    assert schedule is not None
    return schedule


AUTUMN = TURNS[1]


@settings(max_examples=60, deadline=None)
@example(cron="30 2 * * *", turn=AUTUMN, before=120, after=1500, near=[60, 300, 1800])
@example(cron="*/7 * * * *", turn=AUTUMN, before=120, after=120, near=[0, 60, 2000])
@given(
    cron=CRONS,
    turn=st.sampled_from(TURNS),
    before=st.integers(121, 1500),
    after=st.integers(121, 1500),
    near=st.lists(st.integers(-7200, 7200), max_size=8),
)
def test_instants_are_those_a_walk_finds_from_wherever_one_asks(
    cron: str, turn: tuple[str, str], before: int, after: int, near: list[int]
) -> None:
    zone, text = turn
    at = datetime.fromisoformat(text).replace(tzinfo=UTC)
    start, end = at - before * MINUTE, at + after * MINUTE
    wanted = walked(cron, zone, start, end)
    schedule = a_schedule(cron, zone)

    found, here = [], start - timedelta(seconds=1)
    while (instant := schedule.next(here)) is not None and instant <= end:
        found.append(instant)
        here = instant
    assert found == wanted

    for second in near:
        asked = at + timedelta(seconds=second)
        coming = schedule.next(asked)
        assert coming is not None and coming > asked
        later, earlier = [each for each in wanted if each > asked], [each for each in wanted if each <= asked]
        if later:
            assert coming == later[0]
        if earlier:
            assert schedule.latest(asked) == earlier[-1]
