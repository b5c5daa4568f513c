"""``fleet task move``, and ``fleet container move`` of a task: what is asked for, told, and exited with."""

from __future__ import annotations

from typing import Any

from tests.support.fake_engine import FakeEngine, Reply

PATH = "/fleet/v1/tasks/t1/move"
REPORT: dict[str, Any] = {
    "ID": "t1",
    "Name": "web.1.t1",
    "From": "ida",
    "To": "idb",
    "ToName": "b",
    "Stage": "copying",
    "Message": "a task is made for it",
    "Successor": None,
}
NEXT = {"ID": "t2", "Name": "web.1.t2", "NodeID": "idb"}


def test_it_follows_the_move_and_says_who_runs_there(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/fleet/v1/tasks/web.1/move", Reply(202, REPORT))
    engine.on("GET", PATH, {**REPORT, "Stage": "moved", "Message": "", "Successor": NEXT})
    ran = fleet("task", "move", "web.1", "b")
    assert ran.code == 0
    assert ran.out.startswith("web.1 is on b with its data")
    assert "task t2 (stopped, copied and started; no checkpoint)" in ran.out
    assert "copying" in ran.err
    (request,) = engine.sent("POST", ".*/move")
    assert request.body == {"To": "b", "Checkpoint": False}
    assert fleet("task", "move", "-q", "web.1", "b").out == "t2\n"


def test_one_that_stayed_or_was_taken_back_is_an_error_that_says_what_runs(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/fleet/v1/tasks/web.1/move", Reply(202, REPORT))
    for stage, said in (
        ("stayed", "web.1 was not moved and runs where it was: the disk is full"),
        ("returned", "web.1 was not moved; task t2 runs where it was, with its data: the disk is full"),
        ("lost", "no task uses its data (the disk is full)"),
    ):
        engine.on("GET", PATH, {**REPORT, "Stage": stage, "Message": "the disk is full", "Successor": NEXT})
        ran = fleet("task", "move", "web.1", "b")
        assert ran.code == 1
        assert said in ran.err


def test_detached_it_only_asks(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/fleet/v1/tasks/web.1/move", Reply(202, REPORT))
    assert fleet("task", "move", "-d", "web.1", "b").out.startswith("web.1 is to move to b")
    assert not engine.sent("GET", PATH)


def test_container_move_of_a_task_takes_the_same_way_and_refuses_what_is_for_others(
    fleet: Any, engine: FakeEngine
) -> None:
    engine.on("GET", "/fleet/v1/tasks", [{"ID": "t1", "Name": "web.1.t1"}])
    engine.on("POST", PATH, Reply(202, {**REPORT, "Stage": "moved", "Successor": NEXT}))
    assert "web.1 is on b" in fleet("container", "move", "web.1.t1", "b").out
    assert "are for other containers" in fleet("container", "move", "--keep", "web.1.t1", "b").err
    engine.on("POST", PATH, Reply(501, {"message": "move: checkpoints are not supported (no CRIU)"}))
    assert "no CRIU" in fleet("container", "move", "--checkpoint", "web.1.t1", "b").err
    assert engine.sent("POST", ".*/move")[-1].body["Checkpoint"] is True
