"""Services that are stopped, started and restarted, and commands in their tasks."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import errors
from fleet.cli.service_power import STOPPED_LABEL, restarted_spec, started_spec, stopped_spec
from tests.support.fake_engine import FakeEngine, Reply

TEMPLATE: dict[str, Any] = {"ContainerSpec": {"Image": "i"}, "Placement": {"Constraints": ["node.labels.a == b"]}}


def spec(mode: dict[str, Any], **labels: str) -> dict[str, Any]:
    return {"Name": "web", "Labels": labels, "TaskTemplate": TEMPLATE, "Mode": mode}


@pytest.mark.parametrize("mode", [{"Replicated": {"Replicas": 3}}, {"Global": {}}])
def test_what_was_stopped_and_started_is_as_it_was(mode: dict[str, Any]) -> None:
    before = spec(mode, own="label")
    stopped = stopped_spec(before)
    assert stopped is not None
    assert STOPPED_LABEL in stopped["Labels"]
    assert stopped != before
    assert stopped_spec(stopped) is None, "stopping twice does not forget how many there were"
    assert started_spec(stopped) == before
    assert started_spec(before) is None


def test_stopped_is_without_tasks() -> None:
    stopped = stopped_spec(spec({"Replicated": {"Replicas": 3}}))
    assert stopped is not None
    assert stopped["Mode"] == {"Replicated": {"Replicas": 0}}
    stopped = stopped_spec(spec({"Global": {}}))
    assert stopped is not None
    assert stopped["TaskTemplate"]["Placement"]["Constraints"] == ["node.labels.a == b", "node.id == stopped"]
    assert TEMPLATE["Placement"] == {"Constraints": ["node.labels.a == b"]}


def test_scaled_after_it_was_stopped_is_what_holds() -> None:
    stopped = stopped_spec(spec({"Replicated": {"Replicas": 3}}))
    assert stopped is not None
    started = started_spec({**stopped, "Mode": {"Replicated": {"Replicas": 5}}})
    assert started is not None
    assert started["Mode"] == {"Replicated": {"Replicas": 5}}


@pytest.mark.parametrize(
    ("change", "given", "words"),
    [
        (stopped_spec, spec({"ReplicatedJob": {"TotalCompletions": 3}}), "replicated job, which ends by itself"),
        (started_spec, spec({"Replicated": {"Replicas": 0}}), "was scaled to 0, not stopped; say how many"),
        (started_spec, spec({"Replicated": {"Replicas": 0}}, **{STOPPED_LABEL: "x"}), "is no number of replicas"),
    ],
)
def test_what_cannot_be_is_said(change: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        change(given)
    assert words in str(caught.value)


def test_restarting_asks_for_new_tasks() -> None:
    assert restarted_spec(spec({"Global": {}}))["TaskTemplate"]["ForceUpdate"] == 1


def test_the_commands_send_one_update_and_tell_what_was_nothing_to_do(fleet: Any, engine: FakeEngine) -> None:
    service = {"ID": "s1", "Version": {"Index": 7}, "Spec": spec({"Replicated": {"Replicas": 2}})}
    engine.on("GET", "/services/web", service)
    engine.on("GET", "/services/nope", Reply(404, {"message": "service nope not found"}))
    engine.on("POST", "/services/s1/update", {})
    engine.on("GET", "/tasks", [{"ID": "t", "Status": {"State": "shutdown"}}])
    ran = fleet("service", "stop", "web", "nope")
    assert (ran.code, ran.out.strip(), "nope not found" in ran.err) == (1, "web", True)
    (sent,) = engine.sent("POST", "/services/s1/update")
    assert (sent.query["version"], sent.body["Labels"]) == ("7", {STOPPED_LABEL: "2"})
    assert "web is not stopped" in fleet("service", "start", "web").err
    assert len(engine.sent("POST", "/services/s1/update")) == 1
    assert fleet("service", "restart", "-d", "web").code == 0
    assert engine.sent("POST", "/services/s1/update")[1].body["TaskTemplate"]["ForceUpdate"] == 1


def task(slot: int, state: str) -> dict[str, Any]:
    return {
        "ID": f"task{slot}",
        "Slot": slot,
        "Status": {"State": state, "ContainerStatus": {"ContainerID": f"c{slot}"}},
    }


def test_a_command_goes_to_the_task_that_is_meant(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/tasks", [task(3, "running"), task(1, "starting"), task(2, "running")])
    engine.on("POST", "/containers/[^/]+/exec", Reply(201, {"Id": "x"}))
    engine.on("POST", "/exec/x/start", {})
    for name, container in (("web", "c2"), ("web.3", "c3"), ("web.3.task3", "c3")):
        engine.requests.clear()
        assert fleet("service", "exec", "-d", name, "ls", "-l").code == 0
        assert [r.path for r in engine.sent("POST", "/containers/.*")] == [f"/containers/{container}/exec"]
        assert engine.requests[0].query["filters"]["service"] == ["web"]
    assert "no task of web.1 runs: starting" in fleet("service", "exec", "-d", "web.1", "ls").err
    assert "no task of a service is called web.9" in fleet("service", "exec", "-d", "web.9", "ls").err
