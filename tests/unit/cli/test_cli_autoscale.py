"""Policies and quotas on the command line: flags, tables, sentences."""

from __future__ import annotations

import json
from typing import Any

from tests.support.fake_engine import FakeEngine

ID = "5mokx85p9mz38wr3gfwxoxmdi"
LABELS = {"fleet.autoscale.min": "2", "fleet.autoscale.max": "10", "fleet.autoscale.cpu": "70"}


def service(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "ID": ID,
        "Version": {"Index": 7},
        "Spec": {
            "Name": "web",
            "Labels": labels,
            "TaskTemplate": {"ContainerSpec": {"Image": "app:1"}, "Resources": {"Limits": {"NanoCPUs": 500_000_000}}},
            "Mode": {"Replicated": {"Replicas": 4}},
        },
        "Autoscale": {
            "Scalings": [
                {"At": "2026-05-01T12:00:00Z", "Before": 2, "After": 4, "Reason": "2 -> 4: CPU 140%, 70% wanted"}
            ],
            "Held": "no room left",
        },
        "ServiceStatus": {"RunningTasks": 3, "DesiredTasks": 4},
    }


def test_the_flags_are_labels(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/services/create", {"ID": ID})
    flags = (
        "--autoscale-min", "2", "--autoscale-max", "10", "--autoscale-cpu", "70", "--autoscale-memory", "80%",
        "--autoscale-query", "sum(w)", "--autoscale-query-target", "20", "--autoscale-prometheus", "http://p:9090",
        "--autoscale-up-window", "10s", "--autoscale-down-window", "2m", "--autoscale-up-step", "2",
        "--autoscale-down-step", "50%", "--autoscale-interval", "5s", "--autoscale-warmup", "1m",
    )  # fmt: skip
    assert fleet("service", "create", "-d", "--no-resolve-image", *flags, "img").code == 0
    assert engine.sent("POST", "/services/create")[0].body["Labels"] == {
        f"fleet.autoscale.{name.removeprefix('--autoscale-')}": text
        for name, text in zip(flags[::2], flags[1::2], strict=True)
    }


def test_a_policy_is_changed_in_part_and_taken_away_as_a_whole(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/.*", service({**LABELS, "other": "1"}))
    engine.on("POST", "/services/.*/update", {})
    assert fleet("service", "update", "-d", "--autoscale-max", "20", "--autoscale-cpu", "", "web").code == 0
    assert fleet("service", "update", "-d", "--no-autoscale", "web").code == 0
    partly, wholly = engine.sent("POST", "/services/.*/update")
    assert partly.body["Labels"] == {"other": "1", "fleet.autoscale.min": "2", "fleet.autoscale.max": "20"}
    assert wholly.body["Labels"] == {"other": "1"}
    ran = fleet("service", "update", "-d", "--no-autoscale", "--autoscale-min", "1", "web")
    assert ran.code == 2 and "--no-autoscale cannot be combined with --autoscale-min" in ran.err


def test_lists_and_pretty_text_show_it_and_others_are_as_dockers(fleet: Any, engine: FakeEngine) -> None:
    plain = service({})
    plain["Spec"] = {**plain["Spec"], "Name": "plain"}
    engine.on("GET", "/services", [service(LABELS), plain])
    assert fleet("service", "ls", "--format", "{{.Replicas}}").out.splitlines() == ["3/4", "3/4 (auto 2-10)"]
    engine.on("GET", "/services/web", service(LABELS))
    text = fleet("service", "inspect", "--pretty", "web").out
    assert "2 to 10 tasks, CPU at 70% of the limit of 0.5 CPUs" in text
    assert "2 -> 4: CPU 140%, 70% wanted" in text and "no room left" in text
    engine.on("GET", "/services/web", service({}))
    assert "Autoscale" not in fleet("service", "inspect", "--pretty", "web").out


def test_scaling_by_hand_tells_how_long_it_holds(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/.*", service(LABELS))
    engine.on("POST", "/services/.*/update", {"Warnings": ["service web is scaled automatically"]})
    ran = fleet("service", "scale", "-d", "web=5")
    assert ran.out == "web scaled to 5\n"
    assert "service web is scaled automatically" in ran.err


def test_explain_tells_what_was_done_and_what_is_decided_now(fleet: Any, engine: FakeEngine) -> None:
    report = {
        "Chosen": "", "Reason": "", "Nodes": [], "Waiting": [],
        "Autoscale": {
            "Policy": "2 to 10 tasks, CPU at 70% of one core", "Scalings": service(LABELS)["Autoscale"]["Scalings"],
            "Held": "no room left", "HeldSince": "2026-05-01T12:00:00Z", "Now": "stays at 4: CPU 140%, 70% wanted",
        },
    }  # fmt: skip
    engine.on("GET", "/fleet/v1/services/web/placement", report)
    lines = fleet("service", "explain", "web").out.splitlines()
    assert lines[-4] == "Scaled automatically: 2 to 10 tasks, CPU at 70% of one core"
    assert lines[-3].endswith(": 2 -> 4: CPU 140%, 70% wanted")
    assert lines[-2].startswith("  held since ") and lines[-2].endswith(": no room left")
    assert lines[-1] == "  now: stays at 4: CPU 140%, 70% wanted"
    report["Autoscale"]["Now"] = ""  # type: ignore[index]
    assert "the manager that leads knows" in fleet("service", "explain", "web").out


QUOTAS = [
    {
        "Name": "label=team=red", "Label": "team", "Value": "red", "Services": 2, "Waiting": 1,
        "Used": {"Tasks": 3, "NanoCPUs": 1_500_000_000, "MemoryBytes": 1 << 30},
        "Limits": {"Tasks": 50, "NanoCPUs": 4_000_000_000, "MemoryBytes": None},
    },
    {
        "Name": "stack=shop", "Label": "com.docker.stack.namespace", "Value": "shop", "Services": 0, "Waiting": 0,
        "Used": {"Tasks": 0, "NanoCPUs": 0, "MemoryBytes": 1 << 30},
        "Limits": {"Tasks": None, "NanoCPUs": None, "MemoryBytes": 8 << 30},
    },
]  # fmt: skip


def test_quotas_are_listed_as_a_table_as_json_and_by_name(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/fleet/v1/quotas", QUOTAS)
    assert [line.split() for line in fleet("quota", "ls").out.splitlines()] == [
        ["QUOTA", "TASKS", "CPUS", "MEMORY", "SERVICES", "WAITING"],
        ["label=team=red", "3/50", "1.5/4", "-", "2", "1"],
        ["stack=shop", "-", "-", "1GiB/8GiB", "0", "0"],
    ]
    first = json.loads(fleet("quota", "ls", "--format", "json").out.splitlines()[0])
    assert (first["Used"], first["Limits"]) == (QUOTAS[0]["Used"], QUOTAS[0]["Limits"])
    assert fleet("quota", "ls", "-q").out == "label=team=red\nstack=shop\n"
    engine.on("GET", "/fleet/v1/quotas", [])
    assert fleet("quota", "ls").out.split() == ["QUOTA", "TASKS", "CPUS", "MEMORY", "SERVICES", "WAITING"]
