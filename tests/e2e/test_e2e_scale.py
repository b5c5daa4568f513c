"""scripts/scale with few nodes: the story comes to its end, and ^C in the middle of it leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from fleet.lab import list_labs

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--agents", "20", "--tasks", "60", "--replicas", "20", "--update-replicas", "20", "--idle", "1"]


def test_small_story_is_told_to_its_end(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    done = subprocess.run(
        [REPOSITORY / "scripts/scale", *SMALL, "--profile", tmp_path / "profile", "--json", numbers],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["step"]: row for row in json.loads(numbers.read_text())["rows"]}
    assert rows["nodes join"]["count"] == rows["sessions opened"]["count"] == 20
    assert rows["services created, tasks running"]["count"] == 60
    assert rows["rolling update, 10 % of a service at once"]["count"] == 20
    assert rows["2 nodes lost, tasks run elsewhere"]["count"] > 0
    assert not any(row["api"]["failed"] for row in rows.values())
    assert "<svg" in next(Path(tmp_path / "profile").glob("*tasks-running.svg")).read_text()


def test_interrupt_ends_it_cleanly() -> None:
    before = list_labs()
    heeds = (
        "env",
        "--default-signal=INT",
    )  # where the tests run in the background, it is ignored and that is inherited
    with subprocess.Popen([*heeds, REPOSITORY / "scripts/scale", *SMALL], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "sessions opened" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(120) == 130, rest
    assert "nothing is left behind" in rest
    assert list_labs() == before
