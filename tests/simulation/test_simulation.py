"""Simulated clusters come through all their troubles, tell the same story twice, and notice mistakes put in on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DEADLINE_S = 900.0


def simulated(*arguments: str, jobs: int = 2) -> subprocess.CompletedProcess[str]:
    """``scripts/simulate`` with this run's interpreter: a fixed hash seed, which a running one cannot have."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "simulation.run", "--jobs", str(jobs), *arguments]
    return subprocess.run(
        command, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_hundreds_of_clusters_come_through() -> None:
    done = simulated("--seeds", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 seeds, 0 wrong" in done.stdout


def test_a_seed_tells_the_same_story_every_time() -> None:
    first, second = (simulated("--first", "7", "--seeds", "3", "--verbose", jobs=jobs).stdout for jobs in (1, 3))
    assert first.count("digest") == 3
    assert first.splitlines()[:-1] == second.splitlines()[:-1]  # the last line tells how long it took


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("unfenced", "was written by"),
        ("blind-writes", ""),
        ("hasty-addresses", "belongs to"),
    ],
)
def test_mistakes_are_found(fault: str, told: str) -> None:
    done = simulated("--seeds", "80", "--until-wrong", "--fault", fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout
    assert "again: scripts/simulate --first" in done.stdout
    assert f"--fault {fault}" in done.stdout
