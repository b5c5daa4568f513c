"""What keeps tasks away from nodes, on real hosts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")


@pytest.fixture(autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def services(lab: TestLab) -> Iterator[list[str]]:
    made: list[str] = []
    yield made
    for name in made:
        lab.fleet("service", "rm", name, check=False)


def create(lab: TestLab, services: list[str], name: str, *flags: str) -> None:
    services.append(name)
    lab.fleet("service", "create", "--name", name, *flags, "fleet/hello:1", *SLEEP)


def explained(lab: TestLab, service: str) -> Any:
    """What ``fleet service explain`` is made of."""
    return lab.get(f"/fleet/v1/services/{service}/placement")


def hosts(lab: TestLab, service: str) -> list[str]:
    names = {node["ID"]: node["Description"]["Hostname"] for node in lab.get("/nodes")}
    tasks = [t for t in lab.tasks(service) if t["DesiredState"] == "running" and t["Status"]["State"] == "running"]
    return sorted(names[t["NodeID"]] for t in tasks)


def test_task_goes_where_its_image_is_and_further_ones_spread(lab: TestLab, services: list[str]) -> None:
    lab.load_hello("w2")
    lab.fleet("image", "tag", "fleet/hello:1", "fleet/here:1", host="w2")

    def is_known() -> bool:
        lab.fleet("service", "create", "--name", "probe", "--replicas", "0", "fleet/here:1", check=False)
        return any(n["Hostname"] == "w2" and "has the image" in n["Notes"] for n in explained(lab, "probe")["Nodes"])

    services.append("probe")
    lab.wait_until(is_known, 20, what="its agent says that it has the image")
    services.append("one")
    lab.fleet("service", "create", "--name", "one", "fleet/here:1", *SLEEP)
    assert hosts(lab, "one") == ["w2"]
    lab.fleet("service", "update", "--replicas", "3", "one")
    assert hosts(lab, "one") == ["m1", "w1", "w2"]


def test_quota_of_a_label_holds_tasks_back_until_it_grows(lab: TestLab, services: list[str]) -> None:
    lab.fleet("swarm", "update", "--quota", "label=team=red:tasks=3,memory=64M")
    try:
        create(lab, services, "red", "--detach", "--replicas", "4", "--label", "team=red", "--reserve-memory", "16M")
        create(lab, services, "free", "--replicas", "4", "--reserve-memory", "16M")

        def held(text: str) -> bool:
            return [t["Status"].get("Err") for t in lab.tasks("red", state="pending")] == [text]

        lab.wait_until(lambda: held("beyond quota label=team=red (tasks=3)"), 20)
        lab.wait_until(lambda: len(hosts(lab, "red")) == 3, 20)
        told = explained(lab, "red")
        assert told["Reason"] == "beyond quota label=team=red (tasks=3)"
        assert told["Quotas"] == ["quota label=team=red: tasks 3 of 3, memory 48M of 64M"]
        lab.fleet("swarm", "update", "--quota", "label=team=red:memory=60M")
        lab.wait_until(lambda: held("beyond quota label=team=red (memory=60M)"), 20)
        lab.fleet("swarm", "update", "--quota-rm", "label=team=red")
        lab.wait_until(lambda: len(hosts(lab, "red")) == 4, 20, what="without a quota all run")
    finally:
        lab.fleet("swarm", "update", "--quota-rm", "label=team=red", check=False)
    refused = lab.fleet("swarm", "update", "--quota", "stack=shop:disk=4", check=False)
    assert refused.returncode != 0 and "'disk=4' is no limit" in refused.stderr


def test_task_of_higher_priority_takes_room_and_its_victims_service_keeps_its_floor(
    lab: TestLab, services: list[str]
) -> None:
    lab.fleet("node", "update", "--label-add", "crowded=yes", "w1")
    try:
        total = next(n for n in lab.get("/nodes") if n["Description"]["Hostname"] == "w1")
        share = str(total["Description"]["Resources"]["MemoryBytes"] // 4 + (1 << 20))  # three fit
        there = ("--constraint", "node.labels.crowded == yes", "--reserve-memory", share)
        create(lab, services, "batch", "--replicas", "3", "--priority", "-5", *there)
        create(lab, services, "web", "--priority", "10", *there)
        assert hosts(lab, "web") == ["w1"]
        assert hosts(lab, "batch") == ["w1", "w1"]
        assert [(each["Service"], each["HasEnded"]) for each in explained(lab, "batch")["Preempted"]] == [("web", True)]
        assert "waits: no suitable node" in lab.fleet("service", "explain", "batch").stdout
        events = lab.fleet("events", "--since", "5m", "--until", "0s", "--filter", "event=preempt").stdout
        assert "service preempt" in events and "for=web" in events

        lab.fleet("service", "update", "--detach", "--replicas", "2", "web")
        lab.wait_until(lambda: lab.tasks("web", state="pending"), 20)
        for _ in range(15):  # longer than the scheduler takes to look again
            assert hosts(lab, "batch") == ["w1", "w1"], "not below what an update would leave running"
            time.sleep(0.2)
        lab.fleet("service", "rm", "web")
        lab.wait_until(lambda: hosts(lab, "batch") == ["w1"] * 3, 30, what="what was stopped runs again")
    finally:
        lab.fleet("node", "update", "--label-rm", "crowded", "w1", check=False)


def test_taints_keep_tasks_away_and_no_execute_drives_them_out(lab: TestLab, services: list[str]) -> None:
    lab.fleet("node", "update", "--taint-add", "gpu=a100:no-schedule", "w1")
    try:
        create(lab, services, "web", "--replicas", "4")
        assert set(hosts(lab, "web")) == {"m1", "w2"}
        create(lab, services, "train", "--replicas", "3", "--toleration", "gpu=a100")
        assert hosts(lab, "train") == ["m1", "w1", "w2"]
        create(lab, services, "everywhere", "--mode", "global")
        assert hosts(lab, "everywhere") == ["m1", "w2"]
        assert "taint gpu=a100:no-schedule is not tolerated" in lab.fleet("service", "explain", "web").stdout

        lab.fleet("node", "update", "--taint-add", "upkeep:no-execute", "w2")
        lab.wait_until(lambda: hosts(lab, "web") == ["m1"] * 4, 30, what="the tainted host is empty")
        lab.wait_until(lambda: hosts(lab, "everywhere") == ["m1"], 30, what="of global tasks too")

        waits = ("--detach", "--constraint", "node.hostname == w2")
        create(lab, services, "stuck", *waits)
        reason = "no suitable node (scheduling constraints not satisfied on 2 nodes; taints not tolerated on 1 node)"
        lab.wait_until(lambda: [t["Status"].get("Err") for t in lab.tasks("stuck", state="pending")] == [reason], 20)
        lab.fleet("service", "update", "--toleration-add", "upkeep", "stuck")
        assert hosts(lab, "stuck") == ["w2"]

        lab.fleet("node", "update", "--taint-rm", "upkeep", "w2")
        lab.wait_until(lambda: hosts(lab, "everywhere") == ["m1", "w2"], 30, what="it comes back")
    finally:
        for node, key in (("w1", "gpu"), ("w2", "upkeep")):
            lab.fleet("node", "update", "--taint-rm", key, node, check=False)
    refused = lab.fleet("node", "update", "--label-add", "fleet.taint.gpu=a100", "w1", check=False)
    assert refused.returncode != 0
    assert "label fleet.taint.gpu: 'a100' has no effect; expected VALUE:EFFECT" in refused.stderr
