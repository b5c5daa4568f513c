"""A real cluster for end-to-end tests: one manager and two workers in a lab of their own, once a module.

``lab`` is a ``fleet.lab.Lab`` with what a test needs besides: ``lab.fleet("service", "ls")`` runs the real command against m1,
``lab.docker(...)`` the docker client, ``lab.wait_until(...)`` waits for a condition. When a test fails, the end of each daemon's
log is part of its report.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet import errors
from fleet.lab import Lab
from fleet.lab.hosts import tail

REPOSITORY = Path(__file__).parents[2]
LOG_LINES = 40


class TestLab(Lab):
    """A lab with the helpers of the end-to-end tests."""

    __test__ = False

    def command_environment(self, host: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLEET_", "DOCKER_"))}
        return {**kept, **self.env(host), "PYTHONWARNINGS": "error"}

    def fleet(
        self, *args: str, host: str = "m1", check: bool = True, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run ``fleet ARGS`` against the host's daemon; with ``check`` a failure is the test's, with what was printed."""
        argv = [sys.executable, "-m", "fleet.cli.main", *args]
        return self._run(argv, host=host, check=check, stdin=stdin, timeout_s=timeout_s)

    def docker(
        self, *args: str, host: str = "m1", check: bool = True, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker client against the host's daemon; the test is skipped where there is none."""
        client = shutil.which("docker")
        if client is None:
            pytest.skip("not run: needs the docker client (package docker.io or docker-cli; scripts/setup installs it)")
        return self._run([client, *args], host=host, check=check, stdin=stdin, timeout_s=timeout_s)

    def _run(
        self, argv: list[str], *, host: str, check: bool, stdin: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv,
            env=self.command_environment(host),
            cwd=REPOSITORY,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def get(self, path: str, *, host: str = "m1", **query: object) -> Any:
        """``GET`` from the host's engine API."""
        with self.client(host) as client:
            return client.get(path, **query)

    def tasks(self, service: str, *, state: str = "running") -> list[dict[str, Any]]:
        """The service's tasks in that observed state."""
        found = self.get("/tasks", filters={"service": [service]})
        return [task for task in found if task["Status"]["State"] == state]

    def wait_until(self, condition: Callable[[], object], deadline_s: float, *, what: str = "") -> None:
        """Poll until it holds; the test fails after the deadline with what did not come true, and the tasks there are."""
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"after {deadline_s:g} s still not: {what or condition}\n{self._situation()}")
            time.sleep(0.1)

    def _situation(self) -> str:
        lines = [f"{row.name} {row.state}, fleetd {row.daemon}" for row in self.status()]
        try:
            lines += [
                f"{task.get('ServiceID', '')[:8]}.{task.get('Slot', '')} {task['DesiredState']} {json.dumps(task['Status'])}"
                for task in self.get("/tasks")
            ]
        except (errors.FleetError, OSError) as cause:  # the test has failed already; this only tells more
            lines.append(f"tasks unknown: {cause}")
        return "\n".join(lines)

    def load_hello(self, host: str = "m1") -> None:
        """Import ``fleet/hello:1`` (busybox) at the host."""
        environment = self.command_environment(host)
        subprocess.run(
            [REPOSITORY / "scripts/hello-image"], env=environment, check=True, capture_output=True, timeout=60
        )


@pytest.fixture(scope="module")
def make_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., TestLab]]:
    """``make_lab(managers=1, workers=2, daemon_args=())``: a lab of its own, taken down at the end of the module."""
    made: list[TestLab] = []
    token = os.environ["FLEET_TEST_RUN"]

    def make(*, managers: int = 1, workers: int = 2, swarm: bool = True, daemon_args: tuple[str, ...] = ()) -> TestLab:
        name = f"e{token}{request.path.stem.removeprefix('test_')[:10].replace('_', '-').strip('-')}{len(made)}"
        lab = TestLab(name, root=tmp_path_factory.mktemp("labs"), daemon_args=daemon_args)
        made.append(lab)
        lab.up(managers=managers, workers=workers, swarm=swarm)
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
