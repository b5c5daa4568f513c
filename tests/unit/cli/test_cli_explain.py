"""``fleet service explain``: nodes in a table, and sentences on what else there is to know."""

from __future__ import annotations

from typing import Any

from tests.support.fake_engine import FakeEngine

NODE = {
    "ID": "id1",
    "Hostname": "w1",
    "Reasons": [],
    "Notes": ["has the image"],
    "Score": 0,
    "Failures": 0,
    "ServiceTasks": 1,
    "Tasks": 2,
    "ReservedPermille": 500,
}
FULL = {
    **NODE,
    "ID": "id2",
    "Hostname": "w2",
    "Reasons": ["needs 2 CPUs, 1 are free"],
    "Notes": ["taint x:no (weight -1)"],
}
REPORT = {
    "Chosen": "id1",
    "Reason": "",
    "Nodes": [NODE, FULL],
    "Waiting": [],
    "Quotas": [],
    "Preempted": [],
    "Preempts": None,
}


def told(fleet: Any, engine: FakeEngine, **more: Any) -> list[str]:
    engine.on("GET", "/fleet/v1/services/web/placement", {**REPORT, **more})
    ran = fleet("service", "explain", "web")
    assert ran.code == 0, ran.err
    lines: list[str] = ran.out.splitlines()
    return lines


def test_the_chosen_node_and_reasons_carry_what_else_counts(fleet: Any, engine: FakeEngine) -> None:
    _, chosen, other = told(fleet, engine)
    assert chosen.endswith("chosen; has the image")
    assert other.endswith("needs 2 CPUs, 1 are free; taint x:no (weight -1)")


def test_quotas_and_who_yields_are_told_in_sentences(fleet: Any, engine: FakeEngine) -> None:
    lines = told(
        fleet,
        engine,
        Chosen="",
        Reason="beyond quota stack=shop (tasks=1)",
        Quotas=["quota stack=shop: tasks 1 of 1"],
        Preempts={"NodeID": "id2", "Names": ["low.1", "low.2"]},
        Preempted=[
            {"Name": "low.3", "NodeID": "id2", "Service": "web", "HasEnded": False},
            {"Name": "low.4", "NodeID": "gone", "Service": "web", "HasEnded": True},
        ],
    )
    assert lines[3:] == [
        "Another task would wait: beyond quota stack=shop (tasks=1)",
        "For another task low.1, low.2 would stop on w2, of lower priority.",
        "low.3 stops on w2 for a task of web.",
        "low.4 was stopped on gone for a task of web.",
        "Quota stack=shop: tasks 1 of 1",
    ]
    assert told(fleet, engine, Chosen="")[3:] == ["No node can take another task."]
