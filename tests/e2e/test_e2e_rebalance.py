"""Real containers move to a node that came back, none is missed, and a manager killed in the middle goes on with it."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter

import pytest
from support.lab import TestLab

from fleet import errors

pytestmark = pytest.mark.e2e

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")


@pytest.fixture(autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


def counts(lab: TestLab, service: str) -> dict[str, int]:
    names = {node["ID"]: node["Description"]["Hostname"] for node in lab.get("/nodes")}
    tasks = [t for t in lab.tasks(service) if t["DesiredState"] == "running"]
    return dict(Counter(names[t["NodeID"]] for t in tasks))


def even(lab: TestLab, service: str, each: int) -> bool:
    try:
        return counts(lab, service) == dict.fromkeys(("m1", "w1", "w2"), each)
    except (errors.FleetError, OSError):  # the only manager is away
        return False


def crowd(lab: TestLab, name: str, *flags: str) -> None:
    """Six tasks on two nodes, with the third to take some of them."""
    lab.fleet("node", "update", "--availability", "drain", "w2")
    lab.fleet("service", "create", "--name", name, "--replicas", "6", *flags, "fleet/hello:1", *SLEEP)
    lab.fleet("node", "update", "--availability", "active", "w2")
    assert counts(lab, name) == {"m1": 3, "w1": 3}


def test_tasks_move_to_a_node_that_came_back(lab: TestLab) -> None:
    crowd(lab, "web", "--update-order", "start-first")
    lab.fleet("service", "create", "--name", "still", "--replicas", "1", "fleet/hello:1", *SLEEP)
    shown = lab.fleet("node", "rebalance", "--dry-run").stdout
    assert shown.count("w2") >= 2
    assert "has 3 tasks of web, w2 0" in shown
    assert "still stays: its only task would stop" in shown
    assert counts(lab, "web") == {"m1": 3, "w1": 3}, "a dry run moves nothing"

    fewest = [6]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            # The node that tasks go to is asked last: who has left before was followed by one that is seen then.
            found = [c for host in ("m1", "w1", "w2") for c in lab.get("/containers/json", host=host)]
            running = [c for c in found if c["Names"][0].startswith("/web.")]
            fewest.append(len(running))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        said = lab.fleet("node", "rebalance").stdout
    finally:
        is_over.set()
        watcher.join(30)
    assert "2 tasks moved; nothing is left to move." in said
    assert even(lab, "web", 2)
    assert min(fewest) >= 6
    assert "Nothing to move." in lab.fleet("node", "rebalance", "--dry-run").stdout

    crowd(lab, "stopping")
    lab.fleet("node", "rebalance", "--detach")
    lab.signal_daemon("m1", signal.SIGKILL)
    lab.start_daemon("m1")
    lab.wait_until(lambda: even(lab, "stopping", 2), 60, what="the moves begun before the kill go on")
    for name in ("web", "still", "stopping"):
        lab.fleet("service", "rm", name)
