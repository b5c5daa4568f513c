"""Things die, and the cluster mends: containers, workers, daemons, managers - with the real processes of a lab."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
from support.lab import TestLab

from fleet import errors
from fleet.api.client import EngineClient

pytestmark = pytest.mark.e2e

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def service(lab: TestLab) -> Any:
    made: list[str] = []

    def make(name: str, *flags: str, replicas: int = 3, everywhere: bool = False) -> str:
        lab.wait_until(lambda: all_ready(lab), 60, what="all nodes are ready")
        if everywhere:  # the test counts on a share of each node, whatever the test before did to the manager
            lab.wait_until_all_take_tasks()
        lab.fleet(
            "service", "create", "--name", name, "--replicas", str(replicas), "--restart-delay", "0s", *flags,
            "fleet/hello:1", *SLEEP,
        )  # fmt: skip
        made.append(name)
        return name

    yield make
    for name in made:
        lab.fleet("service", "rm", name)
    for name in made:
        lab.wait_until(lambda n=name: gone(lab, n), 30, what=f"{name} is gone")


def gone(lab: TestLab, service: str) -> bool:
    containers = [c for host in lab.hosts() for c in lab.get("/containers/json", host=host, all=True)]
    return not any(name.startswith(f"/{service}.") for c in containers for name in c["Names"])


def all_ready(lab: TestLab) -> bool:
    return all(node["Status"]["State"] == "ready" for node in lab.get("/nodes"))


def hostname_of(lab: TestLab) -> dict[str, str]:
    return {node["ID"]: node["Description"]["Hostname"] for node in lab.get("/nodes")}


def running(lab: TestLab, service: str) -> list[dict[str, Any]]:
    return [t for t in lab.tasks(service) if t["DesiredState"] == "running"]


def pids(lab: TestLab, host: str) -> dict[str, int]:
    """Container id -> pid of what runs on the host."""
    found = {}
    for container in lab.get("/containers/json", host=host):
        found[container["Id"]] = lab.get(f"/containers/{container['Id']}/json", host=host)["State"]["Pid"]
    return found


def kill_daemon(lab: TestLab, host: str) -> None:
    lab.signal_daemon(host, signal.SIGKILL)
    lab.wait_until(
        lambda: next(row for row in lab.status() if row.name == host).daemon != "running", 10, what="fleetd is dead"
    )


def test_a_killed_container_is_replaced(lab: TestLab, service: Any) -> None:
    name = service("heal-container")
    victim = running(lab, name)[0]
    host = hostname_of(lab)[victim["NodeID"]]
    lab.exec(host, ["kill", "-9", str(victim["Status"]["ContainerStatus"]["PID"])])
    lab.wait_until(
        lambda: len(running(lab, name)) == 3 and victim["ID"] not in {t["ID"] for t in running(lab, name)},
        20,
        what="three run again, another one among them",
    )
    dead = lab.get(f"/tasks/{victim['ID']}")
    assert dead["Status"]["State"] == "failed"
    assert dead["Status"]["ContainerStatus"]["ExitCode"] == 137
    assert dead["Slot"] in {t["Slot"] for t in running(lab, name)}


def test_a_killed_workers_tasks_run_elsewhere_and_spread_again_when_scaled(lab: TestLab, service: Any) -> None:
    name = service("heal-worker", replicas=6)
    lab.kill("w2")
    try:
        lab.wait_until(
            lambda: (
                len(running(lab, name)) >= 6 and all(hostname_of(lab)[t["NodeID"]] != "w2" for t in running(lab, name))
            ),
            30,
            what="all six run on the hosts that are left",
        )
        assert {n["Description"]["Hostname"]: n["Status"]["State"] for n in lab.get("/nodes")}["w2"] == "down"
    finally:
        lab.start("w2")
    lab.wait_until(lambda: all_ready(lab), 30, what="w2 is ready again")
    lab.fleet("service", "scale", f"{name}=9")
    counts = [hostname_of(lab)[t["NodeID"]] for t in running(lab, name)]
    assert len(counts) == 9
    assert counts.count("w2") == 3, "the returned host takes the new tasks until the service is even"


def test_a_drained_node_empties_and_takes_tasks_again_when_active(lab: TestLab, service: Any) -> None:
    name = service("heal-drain", replicas=3, everywhere=True)
    lab.fleet("node", "update", "--availability", "drain", "w1")
    lab.wait_until(
        lambda: (
            len(running(lab, name)) == 3 and "w1" not in {hostname_of(lab)[t["NodeID"]] for t in running(lab, name)}
        ),
        30,
        what="w1 is empty and three run",
    )
    lab.wait_until(lambda: not pids(lab, "w1"), 20, what="no container is left on w1")
    lab.fleet("node", "update", "--availability", "active", "w1")
    lab.fleet("service", "scale", f"{name}=6")
    assert "w1" in {hostname_of(lab)[t["NodeID"]] for t in running(lab, name)}


@pytest.mark.parametrize("host", ["w1", "m1"])
def test_a_daemon_killed_with_9_restarts_no_container_and_loses_nothing(lab: TestLab, service: Any, host: str) -> None:
    name = service(f"heal-daemon-{host}", replicas=6, everywhere=True)
    before = pids(lab, host)
    assert before
    tasks = {t["ID"] for t in running(lab, name)}
    lab.restart_daemon(host, signum=signal.SIGKILL)
    lab.wait_until(lambda: all_ready(lab), 30, what="all nodes are ready again")
    time.sleep(2)
    assert pids(lab, host) == before
    assert {t["ID"] for t in running(lab, name)} == tasks
    victim = next(t for t in running(lab, name) if hostname_of(lab)[t["NodeID"]] == host)
    lab.exec(host, ["kill", "-9", str(victim["Status"]["ContainerStatus"]["PID"])])
    lab.wait_until(
        lambda: victim["ID"] not in {t["ID"] for t in running(lab, name)} and len(running(lab, name)) == 6,
        20,
        what="an adopted container's death is noticed and mended",
    )


def test_a_container_that_ends_while_the_daemon_is_down_is_reported_with_its_code(lab: TestLab, service: Any) -> None:
    name = service("heal-exit", "--restart-condition", "none", "--constraint", "node.hostname==w1", replicas=1)
    victim = running(lab, name)[0]
    kill_daemon(lab, "w1")
    lab.exec("w1", ["kill", "-TERM", str(victim["Status"]["ContainerStatus"]["PID"])])
    lab.start_daemon("w1")
    lab.wait_until(
        lambda: lab.get(f"/tasks/{victim['ID']}")["Status"]["State"] == "complete", 20, what="its exit 0 is known"
    )


def test_a_manager_killed_in_the_middle_of_writes_has_every_acknowledged_one(lab: TestLab) -> None:
    acknowledged: list[str] = []
    killed = threading.Event()

    def write() -> None:
        with EngineClient(lab.env("m1")["FLEET_HOST"], timeout_s=5) as client:
            for number in range(200):
                try:
                    body = {"Name": f"written-{number}", "Data": "eA=="}
                    acknowledged.append(client.post("/configs/create", body)["ID"])
                except errors.FleetError:
                    return
                if number == 60:
                    killed.set()

    writer = threading.Thread(target=write)
    writer.start()
    killed.wait(30)
    kill_daemon(lab, "m1")
    writer.join(30)
    lab.start_daemon("m1")
    assert len(acknowledged) >= 60
    kept = {config["ID"] for config in lab.get("/configs")}
    assert set(acknowledged) <= kept
    with lab.client("m1") as client:
        for config in kept:
            client.delete(f"/configs/{config}")


def test_power_loss_of_the_manager_loses_no_state_and_its_tasks_run_again(lab: TestLab, service: Any) -> None:
    name = service("heal-power", replicas=3)
    spec = lab.get(f"/services/{name}")["Spec"]
    elsewhere = {t["ID"] for t in running(lab, name) if hostname_of(lab)[t["NodeID"]] != "m1"}
    kept = {h: pids(lab, h) for h in ("w1", "w2")}
    lab.kill("m1")
    time.sleep(1)
    lab.start("m1")
    lab.wait_until(lambda: len(running(lab, name)) == 3, 40, what="three run again")
    assert lab.get(f"/services/{name}")["Spec"] == spec
    assert elsewhere <= {t["ID"] for t in running(lab, name)}
    for host, before in kept.items():
        assert before.items() <= pids(lab, host).items(), f"no container of {host} was restarted"


def test_a_cut_off_worker_keeps_its_tasks_and_gives_up_the_replaced_ones_when_it_returns(
    lab: TestLab, service: Any
) -> None:
    name = service("heal-partition", replicas=3, everywhere=True)
    before = pids(lab, "w1")
    assert before
    lab.partition(["w1"], ["m1", "w2"])
    lab.wait_until(
        lambda: len([t for t in running(lab, name) if hostname_of(lab)[t["NodeID"]] != "w1"]) == 3,
        30,
        what="three run on the other side",
    )
    assert pids(lab, "w1") == before, "cut off, it keeps what it had"
    lab.heal()
    lab.wait_until(lambda: not pids(lab, "w1"), 40, what="what was replaced is stopped")
    assert len(running(lab, name)) == 3
