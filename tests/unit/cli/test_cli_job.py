"""``fleet job``: what it lists, what it sends, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine, Reply

CRON = "fleet.schedule.cron"


def job(name: str = "night", *, status: dict[str, Any] | None = None, **labels: str) -> dict[str, Any]:
    template = {"ContainerSpec": {"Image": "img", "Args": ["a"], "Env": ["A=1", "B=2"]}}
    spec = {
        "Name": name,
        "Labels": labels,
        "TaskTemplate": template,
        "Mode": {"ReplicatedJob": {"TotalCompletions": 2}},
    }
    counts = {"CompletedTasks": 2, "RunningTasks": 0, "DesiredTasks": 2}
    return {
        "ID": f"id-{name}",
        "Version": {"Index": 4},
        "Spec": spec,
        "JobStatus": status or {},
        "ServiceStatus": counts,
    }


def ended(state: str, code: int, err: str = "") -> dict[str, Any]:
    status = {"State": state, "Err": err, "Timestamp": "2026-01-01T00:00:00Z", "ContainerStatus": {"ExitCode": code}}
    return {"ID": f"t-{state}", "Slot": 0, "Status": status}


def test_ls_tells_when_and_how(fleet: Any, engine: FakeEngine) -> None:
    web = {"ID": "w", "Spec": {"Name": "web", "TaskTemplate": {}, "Mode": {"Replicated": {}}}}
    ran_once = job("once", status={"LastExecution": "2026-01-01T00:00:00Z"})
    night = job("night", **{CRON: "0 3 * * *", "fleet.schedule.timezone": "Europe/Berlin"})
    paused = job("paused", **{CRON: "@hourly", "fleet.schedule.suspended": "true"})
    engine.on("GET", "/services", [web, ran_once, night, paused])
    lines = [line.split("  ") for line in fleet("job", "ls").out.splitlines()]
    shown = {line[0]: [part.strip() for part in line[1:] if part.strip()] for line in lines}
    assert set(shown) == {"NAME", "night", "once", "paused"}
    assert shown["night"][0] == "0 3 * * * Europe/Berlin"
    assert shown["night"][1].endswith(":00:00 UTC")
    assert shown["night"][2] == "never"
    assert shown["once"][-2:] == ["succeeded", "2/2"]
    assert shown["paused"][1] == "suspended"
    assert fleet("job", "ls", "-q").out.split() == ["id-night", "id-once", "id-paused"]


def test_history_is_newest_first_with_reasons(fleet: Any, engine: FakeEngine) -> None:
    runs = [
        {
            "Scheduled": "2026-01-01T03:00:00Z",
            "Iteration": 1,
            "StartedAt": "2026-01-01T03:00:01Z",
            "Outcome": "succeeded",
        },
        {"Scheduled": "2026-01-02T03:00:00Z", "Outcome": "missed", "Reason": "nobody led"},
    ]
    engine.on("GET", "/services/night", job(status={"Runs": runs}))
    lines = fleet("job", "history", "night").out.splitlines()
    assert lines[1].split()[1:] == ["missed", "nobody", "led"]
    assert "succeeded" in lines[2]


@pytest.mark.parametrize(
    ("tasks", "code", "said"),
    [
        ([ended("complete", 0)], 0, ""),
        ([ended("failed", 9, "exit 9")], 9, "0 of 1 tasks ended well: exit 9"),
        ([ended("rejected", 0, "no such image")], 1, "no such image"),
    ],
)
def test_run_ends_as_its_task_did_and_removes_it(
    fleet: Any,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    tasks: list[dict[str, Any]],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("fleet.cli.logs.service_logs", lambda *_, **__: None)
    engine.on("GET", "/services/night", job(**{CRON: "0 3 * * *", "own": "label"}))
    engine.on("POST", "/services/create", Reply(201, {"ID": "new"}))
    engine.on("GET", "/services/new", job("new"))
    engine.on("GET", "/tasks", tasks)
    engine.on("DELETE", "/services/new", Reply(200, None))
    ran = fleet("job", "run", "--rm", "--from", "night", "-e", "B=3", "--name", "now", "x", "y")
    assert (ran.code, said in ran.err) == (code, True), ran.err
    (sent,) = engine.sent("POST", "/services/create")
    assert sent.body["Labels"] == {"own": "label", "fleet.job.from": "night"}
    assert sent.body["TaskTemplate"]["ContainerSpec"] == {"Image": "img", "Args": ["x", "y"], "Env": ["A=1", "B=3"]}
    assert sent.body["Mode"] == {"ReplicatedJob": {"TotalCompletions": 1, "MaxConcurrent": 1}}
    assert len(engine.sent("DELETE", "/services/new")) == 1


def test_suspend_and_resume_write_the_label(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/night", job(**{CRON: "0 3 * * *"}))
    engine.on("POST", "/services/id-night/update", {})
    assert fleet("job", "suspend", "night").code == 0
    assert fleet("job", "resume", "night").code == 0
    first, second = engine.sent("POST", "/services/id-night/update")
    assert first.body["Labels"] == {CRON: "0 3 * * *", "fleet.schedule.suspended": "true"}
    assert second.body["Labels"] == {CRON: "0 3 * * *"}


def test_misuse(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/plain", job("plain"))
    engine.on("GET", "/services/web", {"ID": "w", "Spec": {"Name": "web", "TaskTemplate": {}, "Mode": {"Global": {}}}})
    assert "has no schedule" in fleet("job", "suspend", "plain").err
    assert "service web is global, not a job" in fleet("job", "history", "web").err
    assert "an image is needed, or --from JOB" in fleet("job", "run").err
    assert "cannot be combined" in fleet("job", "run", "--rm", "-d", "img").err
