"""A real cluster for end-to-end tests: one manager and two workers in a lab of their own, once a module.

``lab`` is a ``fleet.lab.Lab`` with what a test needs besides: ``lab.fleet("service", "ls")`` runs the real command against m1,
``lab.docker(...)`` the docker client, ``lab.wait_until(...)`` waits for a condition. When a test fails, the end of each daemon's
log is part of its report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.lab import TestLab

from fleet.lab.hosts import tail

LOG_LINES = 40


@pytest.fixture(scope="module")
def make_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., TestLab]]:
    """``make_lab(managers=1, workers=2, daemon_args=())``: a lab of its own, taken down at the end of the module."""
    made: list[TestLab] = []
    token = os.environ["FLEET_TEST_RUN"]

    def make(
        *,
        managers: int = 1,
        workers: int = 2,
        swarm: bool = True,
        daemon_args: tuple[str, ...] = (),
        subnet: str | None = None,
    ) -> TestLab:
        name = f"e{token}{request.path.stem.removeprefix('test_')[:10].replace('_', '-').strip('-')}{len(made)}"
        lab = TestLab(name, root=tmp_path_factory.mktemp("labs"), daemon_args=daemon_args)
        made.append(lab)
        lab.up(managers=managers, workers=workers, swarm=swarm, subnet=subnet)
        return lab

    try:
        yield make
    finally:
        for lab in reversed(made):
            lab.down()


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    """One manager ``m1``, workers ``w1`` and ``w2``, in one swarm, all ready."""
    return make_lab()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules marked ``story`` run in the order of their file, wherever the shuffle has put them."""
    stories: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("story"):
            stories.setdefault(item.path, []).append(item)
    for path, members in stories.items():
        ordered = iter(sorted(members, key=lambda item: item.function.__code__.co_firstlineno))  # type: ignore[attr-defined]
        items[:] = [next(ordered) if item.path == path and item.get_closest_marker("story") else item for item in items]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc,assignment]
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, TestLab) and value.exists():
                for host in value.hosts():
                    text = "\n".join(tail(value.log_path(host), lines=LOG_LINES))
                    report.sections.append((f"fleetd of {host}", text))
    return report  # type: ignore[return-value]
