"""``fleet node rebalance``: what it asks for, tells, and exits with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine, Reply

PATH = "/fleet/v1/rebalance"
NODES = [{"ID": f"id{n}", "Description": {"Hostname": n}} for n in ("a", "b")]
MOVE = {"ID": "t1", "Service": "web", "Slot": 1, "From": "ida", "To": "idb", "State": "running", "Reason": "a is full"}
EMPTY: dict[str, Any] = {"Request": None, "Moves": [], "Stays": {}, "UnderWay": [], "Moved": [], "GivenUp": []}
ASKED = {"RequestedAt": "2026-05-01T12:00:00Z"}
FINISHED = {**ASKED, "FinishedAt": "2026-05-01T12:01:00Z", "Outcome": "nothing is left to move"}


@pytest.fixture(autouse=True)
def _nodes(engine: FakeEngine) -> None:
    engine.on("GET", "/nodes", NODES)


def test_dry_run_shows_which_task_goes_where_and_why_and_what_stays(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", PATH, {**EMPTY, "Moves": [MOVE], "Stays": {"db": "rebalancing is off"}})
    ran = fleet("node", "rebalance", "--dry-run")
    assert [line.split(maxsplit=3) for line in ran.out.splitlines()] == [
        ["TASK", "FROM", "TO", "WHY"],
        ["web.1", "a", "b", "a is full"],
        ["db", "stays:", "rebalancing", "is off"],
    ]
    assert not engine.sent("POST", ".*")
    engine.on("GET", PATH, EMPTY)
    assert fleet("node", "rebalance", "--dry-run").out == "Nothing to move.\n"


def test_it_tells_each_step_and_ends_when_the_request_does(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", PATH, Reply(202, {**EMPTY, "Request": ASKED, "UnderWay": [MOVE]}))
    engine.on("GET", PATH, {**EMPTY, "Request": FINISHED, "Moved": [{**MOVE, "ID": "t2", "From": ""}]})
    ran = fleet("node", "rebalance")
    assert ran.out.splitlines() == ["web.1 leaves a for b", "web.1 runs on b", "1 task moved; nothing is left to move."]
    assert ran.code == 0


def test_a_move_that_was_given_up_is_told_and_the_exit_code_says_so(fleet: Any, engine: FakeEngine) -> None:
    given_up = {**MOVE, "Since": "2026-05-01T12:00:30Z", "Reason": "no such image"}
    older = {**MOVE, "ID": "t0", "Since": "2026-05-01T11:00:00Z", "Reason": "long ago"}
    engine.on("POST", PATH, Reply(202, {**EMPTY, "Request": ASKED}))
    engine.on("GET", PATH, {**EMPTY, "Request": FINISHED, "GivenUp": [older, given_up]})
    ran = fleet("node", "rebalance")
    said = ["web.1 stays on a: no such image", "0 tasks moved, 1 stayed; nothing is left to move."]
    assert ran.out.splitlines() == said
    assert ran.code == 1


def test_flags_that_exclude_each_other(fleet: Any, engine: FakeEngine) -> None:
    assert "cannot be combined" in fleet("node", "rebalance", "--dry-run", "--cancel").err
    assert "--format needs --dry-run" in fleet("node", "rebalance", "--format", "json").err
    engine.on("DELETE", PATH, Reply(204, None))
    assert fleet("node", "rebalance", "--cancel").out == "No further tasks will be moved.\n"


def test_who_may_be_asked_for_a_number_is_a_label_and_can_be_taken_back(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/swarm", {"Version": {"Index": 3}, "Spec": {"Name": "default", "Labels": {"kept": "1"}}})
    engine.on("POST", "/swarm/update", None)
    for text in ("10.0.0.5,prometheus.example.org", ""):
        assert fleet("swarm", "update", "--prometheus-allow", text).out == "Swarm updated.\n"
        call = engine.sent("POST", "/swarm/update")[-1]
        assert call.body["Labels"] == {"kept": "1", "fleet.autoscale.prometheus-allow": text}


def test_swarm_update_writes_labels_and_keeps_others(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/swarm", {"Version": {"Index": 3}, "Spec": {"Name": "default", "Labels": {"a": "b"}}})
    engine.on("POST", "/swarm/update", None)
    ran = fleet("swarm", "update", "--rebalance", "automatic", "--placement-strategy", "balanced")
    assert ran.out == "Swarm updated.\n"
    (request,) = engine.sent("POST", "/swarm/update")
    labels = {"a": "b", "fleet.rebalance": "automatic", "fleet.placement.strategy": "balanced"}
    assert request.body["Labels"] == labels


def test_quotas_are_labels_of_the_swarm_and_are_taken_away_by_name(fleet: Any, engine: FakeEngine) -> None:
    labels = {"a": "b", "fleet.quota.stack=old": "tasks=1"}
    engine.on("GET", "/swarm", {"Version": {"Index": 3}, "Spec": {"Name": "default", "Labels": labels}})
    engine.on("POST", "/swarm/update", None)
    flags = ("--quota", "stack=shop:cpu=4,tasks=50", "--quota", "label=team=red:tasks=2", "--quota-rm", "stack=old")
    assert fleet("swarm", "update", *flags).out == "Swarm updated.\n"
    (request,) = engine.sent("POST", "/swarm/update")
    assert request.body["Labels"] == {
        "a": "b",
        "fleet.quota.stack=shop": "cpu=4,tasks=50",
        "fleet.quota.label=team=red": "tasks=2",
    }
    assert "has no limits; expected stack=NAME" in fleet("swarm", "update", "--quota", "stack=shop").err
    assert "there is no such quota" in fleet("swarm", "update", "--quota-rm", "stack=none").err
