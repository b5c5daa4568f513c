"""Jobs at set times and once: no run is doubled and none is lost, whatever is killed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


def runs(lab: TestLab, name: str) -> list[dict[str, Any]]:
    return list((lab.get(f"/services/{name}").get("JobStatus") or {}).get("Runs") or [])


def test_a_schedule_begins_each_run_once_through_the_death_of_the_daemon(lab: TestLab) -> None:
    lab.fleet(
        "service", "create", "--quiet", "--name", "tick", "--mode", "replicated-job", "--schedule", "*/3 * * * * *",
        "fleet/hello:1", "sh", "-c", "echo tick",
    )  # fmt: skip
    lab.wait_until(lambda: len([r for r in runs(lab, "tick") if r["Outcome"] == "succeeded"]) >= 2, 40, what="two runs")
    lab.restart_daemon("m1", signum=signal.SIGKILL)
    seen = {run["Scheduled"] for run in runs(lab, "tick")}
    lab.wait_until(lambda: len({r["Scheduled"] for r in runs(lab, "tick")} - seen) >= 3, 40, what="three more")
    found = runs(lab, "tick")
    assert max(Counter(run["Scheduled"] for run in found).values()) == 1
    began = [run["Iteration"] for run in found if run.get("Iteration")]
    assert began == list(range(began[0], began[0] + len(began))), "one run after the other"
    assert all(run["Scheduled"][17:19] in {f"{s:02}" for s in range(0, 60, 3)} for run in found)
    assert "succeeded" in lab.fleet("job", "history", "tick").stdout

    lab.fleet("job", "suspend", "tick")
    assert "suspended" in lab.fleet("job", "ls").stdout
    time.sleep(4)
    still = len(runs(lab, "tick")), runs(lab, "tick")[-1]["Scheduled"]
    time.sleep(4)
    assert (len(runs(lab, "tick")), runs(lab, "tick")[-1]["Scheduled"]) == still
    lab.fleet("job", "resume", "tick")
    lab.wait_until(lambda: runs(lab, "tick")[-1]["Scheduled"] > still[1], 20, what="it goes on")
    lab.fleet("service", "rm", "tick")


def test_a_run_that_is_due_too_early_is_skipped_or_replaces(lab: TestLab) -> None:
    for concurrency in ("forbid", "replace"):
        lab.fleet(
            "service", "create", "--quiet", "--name", concurrency, "--mode", "replicated-job",
            "--schedule", "*/2 * * * * *", "--schedule-concurrency", concurrency, "fleet/hello:1", "sleep", "60",
        )  # fmt: skip
    lab.wait_until(lambda: any(r["Outcome"] == "skipped" for r in runs(lab, "forbid")), 20, what="one is skipped")
    assert {r.get("Iteration") for r in runs(lab, "forbid")} == {1, None}
    lab.wait_until(lambda: len([r for r in runs(lab, "replace") if r.get("Iteration")]) >= 3, 40, what="three begun")
    assert runs(lab, "replace")[0]["Reason"] == "ended by the next run"
    lab.fleet("service", "rm", "forbid", "replace")


def test_a_job_is_run_once_with_its_output_and_exit_code(lab: TestLab) -> None:
    done = lab.fleet("job", "run", "--rm", "-e", "WHO=world", "fleet/hello:1", "sh", "-c", "echo hello $WHO")
    assert done.stdout == "hello world\n"
    done = lab.fleet("job", "run", "--rm", "fleet/hello:1", "sh", "-c", "echo bad; exit 9", check=False)
    assert (done.returncode, done.stdout) == (9, "bad\n")
    assert "0 of 1 tasks ended well: task: non-zero exit (9)" in done.stderr
    lab.fleet(
        "service", "create", "--quiet", "--name", "nightly", "--mode", "replicated-job", "--schedule", "0 3 * * *",
        "--env", "DAY=any", "fleet/hello:1", "sh", "-c", "echo of $DAY",
    )  # fmt: skip
    row = next(line for line in lab.fleet("job", "ls").stdout.splitlines() if "nightly" in line)
    assert "0 3 * * *" in row and "03:00:00 UTC" in row and "never" in row
    assert lab.fleet("job", "run", "--rm", "--from", "nightly", "-e", "DAY=monday").stdout == "of monday\n"
    assert lab.tasks("nightly", state="complete") == [], "the job itself did not run"
    done = lab.fleet("service", "create", "--schedule", "0 3 * * *", "fleet/hello:1", check=False)
    assert "only jobs have runs" in done.stderr
    assert "has no schedule" not in lab.fleet("job", "suspend", "nightly").stderr
    assert lab.fleet("job", "ls", "-q").stdout.strip()
    lab.fleet("service", "rm", "nightly")


def test_a_parameterised_job_runs_only_when_it_is_dispatched(lab: TestLab, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("from the payload\n")
    command = ("sh", "-c", 'echo "$GREETING $NAME"; cat /run/payload')
    lab.fleet(
        "job",
        "create",
        "-p",
        "NAME",
        "-p",
        "GREETING=hello",
        "--payload",
        "required",
        "greet",
        "fleet/hello:1",
        *command,
    )
    lacking = lab.fleet("job", "dispatch", "--payload", str(tmp_path / "words"), "greet", check=False)
    assert (lacking.returncode, "job greet needs NAME" in lacking.stderr) == (2, True)
    ran = lab.fleet("job", "dispatch", "--rm", "--payload", str(tmp_path / "words"), "greet", "NAME=anna")
    assert ran.stdout.splitlines() == ["hello anna", "from the payload"]
    assert lab.get("/tasks", filters={"service": ["greet"]}) == []
    assert [item for item in lab.get("/configs") if item["Spec"]["Name"].startswith("greet-")] == []
    lab.fleet("service", "rm", "greet")
