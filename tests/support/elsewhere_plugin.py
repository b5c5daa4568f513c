"""The part of ``scripts/test-elsewhere`` that runs on the other machine, in pytest: tells of each test as it begins and ends, one
line each, and ends a test that takes too long.

A test beyond its limit gets an exception where it is, so that it cleans up after itself; whoever reads the lines kills this
process when that does not help, and it is a process group of its own for that. Which tests are left out is told by the variables
below, by their place in the order of collection, so that a run goes on where another stopped.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

import pytest

AFTER, FROM, LIMIT, MARK = "FLEET_TESTS_AFTER", "FLEET_TESTS_FROM", "FLEET_TEST_LIMIT", "\x1efleet-test "
_TEXT_MAX = 6000
_out = os.dup(1)  # before pytest takes it


class TookTooLongError(Exception):
    """Raised in the middle of a test that is beyond its limit."""


def tell(**event: object) -> None:
    """One line that begins with ``MARK``."""
    os.write(_out, f"\n{MARK}{json.dumps(event)}\n".encode())


def place_in(tests: list[str], wanted: str) -> int:
    """Where the test of that id is, or the first whose id contains the words. Raises ``ValueError``."""
    if wanted in tests:
        return tests.index(wanted)
    for position, test in enumerate(tests):
        if wanted in test:
            return position
    raise ValueError(f"no test here is {wanted!r}, or has that in its name")


def pytest_configure() -> None:
    os.setpgid(0, 0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = [item.nodeid for item in items]
    first, after, start = 0, os.environ.get(AFTER), os.environ.get(FROM)
    try:
        first = place_in(tests, after) + 1 if after else place_in(tests, start) if start else 0
    except ValueError as cause:
        tell(event="refused", text=str(cause))
        first = len(items)
    tell(event="plan", pid=os.getpid(), tests=tests, first=first)
    config.hook.pytest_deselected(items=items[:first])
    items[:] = items[first:]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        tell(event="ended", test=report.nodeid, outcome="error", seconds=0.0, text=str(report.longrepr)[-_TEXT_MAX:])


class _Watched:
    def __init__(self) -> None:
        self.outcome, self.text = "passed", ""

    def take(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcome = "failed" if report.when == "call" and self.outcome == "passed" else "error"
            self.text += report.longreprtext[-_TEXT_MAX:]
        elif report.skipped and self.outcome == "passed":
            self.outcome = "skipped"
            self.text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


_now: dict[str, _Watched] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    limit_s = float(os.environ.get(LIMIT) or 0)
    watched = _now[item.nodeid] = _Watched()
    tell(event="begun", test=item.nodeid)
    began = time.monotonic()

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TookTooLongError(f"longer than {limit_s:g} s, the limit of a test on this machine")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        del _now[item.nodeid]
        seconds = round(time.monotonic() - began, 1)
        tell(event="ended", test=item.nodeid, outcome=watched.outcome, seconds=seconds, text=watched.text)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid in _now:
        _now[report.nodeid].take(report)
