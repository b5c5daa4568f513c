"""``fleet job``: what it lists, what it sends, and how it ends."""

from __future__ import annotations

from pathlib import Path
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
    template = job("template", status={"LastExecution": "2026-01-01T00:00:00Z"})
    template["Spec"]["Mode"]["ReplicatedJob"]["TotalCompletions"] = 0
    engine.on("GET", "/services", [web, ran_once, night, paused, template])
    lines = [line.split("  ") for line in fleet("job", "ls").out.splitlines()]
    shown = {line[0]: [part.strip() for part in line[1:] if part.strip()] for line in lines}
    assert set(shown) == {"NAME", "night", "once", "paused", "template"}
    assert shown["night"][0] == "0 3 * * * Europe/Berlin"
    assert shown["night"][1].endswith(":00:00 UTC")
    assert shown["night"][2] == "never"
    assert shown["once"][-2:] == ["succeeded", "2/2"]
    assert shown["paused"][1] == "suspended"
    assert shown["template"] == ["when dispatched"]
    assert fleet("job", "ls", "-q").out.split() == ["id-night", "id-once", "id-paused", "id-template"]


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


def test_a_parameterised_job_runs_nothing_and_says_what_it_takes(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/services/create", Reply(201, {"ID": "new"}))
    ran = fleet(
        "job",
        "create",
        "-p",
        "IN",
        "-p",
        "LEVEL=3",
        "--payload",
        "optional",
        "-e",
        "A=1",
        "conv",
        "img",
        "sh",
        "-c",
        "x",
    )
    assert (ran.code, ran.out) == (0, "new\n"), ran.err
    (sent,) = engine.sent("POST", "/services/create")
    assert sent.body["Labels"] == {
        "fleet.job.parameter.IN": "required",
        "fleet.job.parameter.LEVEL": "=3",
        "fleet.job.payload": "optional",
    }
    assert sent.body["Mode"] == {"ReplicatedJob": {"TotalCompletions": 0, "MaxConcurrent": 0}}
    container = sent.body["TaskTemplate"]["ContainerSpec"]
    assert (container["Args"], container["Env"]) == (["sh", "-c", "x"], ["A=1"])
    assert "is no name of a parameter" in fleet("job", "create", "-p", "a-b", "conv", "img").err
    assert "given twice" in fleet("job", "create", "-p", "A", "-p", "A=1", "conv", "img").err


PARAMETERS = {"fleet.job.parameter.IN": "required", "fleet.job.parameter.B": "=3", "own": "label"}


def test_a_dispatch_is_a_run_with_parameters_and_a_payload(
    fleet: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fleet.cli.logs.service_logs", lambda *_, **__: None)
    file_of_words = tmp_path / "words"
    file_of_words.write_text("text")
    engine.on("GET", "/services/conv", job("conv", **PARAMETERS, **{"fleet.job.payload": "required"}))
    engine.on("POST", "/configs/create", Reply(201, {"ID": "cfg"}))
    engine.on("POST", "/services/create", Reply(201, {"ID": "new"}))
    engine.on("GET", "/tasks", [ended("complete", 0)])
    engine.on("DELETE", "/services/new", Reply(200, None))
    engine.on("DELETE", "/configs/cfg", Reply(204))
    ran = fleet("job", "dispatch", "--rm", "--name", "one", "--payload", str(file_of_words), "conv", "IN=a=b")
    assert ran.code == 0, ran.err
    (sent,) = engine.sent("POST", "/services/create")
    assert sent.body["Labels"] == {"own": "label", "fleet.job.from": "conv"}
    container = sent.body["TaskTemplate"]["ContainerSpec"]
    assert container["Env"] == ["A=1", "B=3", "IN=a=b"]
    file = {"Name": "/run/payload", "UID": "0", "GID": "0", "Mode": 0o444}
    assert container["Configs"] == [{"ConfigID": "cfg", "ConfigName": "one-payload", "File": file}]
    assert engine.sent("POST", "/configs/create")[0].body["Data"] == "dGV4dA=="
    order = [request.path for request in engine.requests if request.method == "DELETE"]
    assert order == ["/services/new", "/configs/cfg"], "a config in use cannot be removed"
    engine.on("POST", "/services/create", Reply(400, {"message": "no"}))
    assert fleet("job", "dispatch", "--payload", str(file_of_words), "conv", "IN=1").code == 1
    assert len(engine.sent("DELETE", "/configs/cfg")) == 2, "what was made for nothing goes"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("conv",), "job conv needs IN: give NAME=VALUE"),
        (("conv", "IN"), "parameter IN: expected IN=VALUE"),
        (("conv", "IN=1", "X=2"), "job conv has no parameter 'X'; it has: B, IN"),
        (("--payload", "-", "conv", "IN=1"), "job conv takes no payload"),
        (("night",), "job night is not parameterised; run it with: fleet job run --from night"),
        (("needs",), "job needs needs a payload"),
    ],
)
def test_a_dispatch_that_does_not_fit_is_refused(
    fleet: Any, engine: FakeEngine, given: tuple[str, ...], says: str
) -> None:
    engine.on("GET", "/services/conv", job("conv", **PARAMETERS))
    engine.on("GET", "/services/night", job())
    engine.on("GET", "/services/needs", job("needs", **{"fleet.job.payload": "required"}))
    ran = fleet("job", "dispatch", *given)
    assert (ran.code, says in ran.err) == (2, True), ran.err
    assert not engine.sent("POST", "/services/create")
