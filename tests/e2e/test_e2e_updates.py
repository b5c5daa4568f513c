"""Rolling updates, ways back, restart policies and placement, with the real processes of a lab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

IMAGE = "fleet/hello:1"
LOOP = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def services(lab: TestLab) -> Iterator[list[str]]:
    made: list[str] = []
    yield made
    for name in made:
        lab.fleet("service", "rm", name)
    lab.wait_until(lambda: not lab.get("/tasks"), 30, what="all tasks are gone")


def create(lab: TestLab, services: list[str], name: str, *flags: str, script: str = LOOP, detach: bool = False) -> None:
    services.append(name)
    extra = ("--detach",) if detach else ()
    lab.fleet("service", "create", *extra, "--name", name, *flags, IMAGE, "sh", "-c", script, timeout_s=90)


def inspect(lab: TestLab, name: str) -> dict[str, Any]:
    found = lab.get(f"/services/{name}")
    assert isinstance(found, dict)
    return found


def update_state(lab: TestLab, name: str) -> str:
    return str((inspect(lab, name).get("UpdateStatus") or {}).get("State", ""))


def live(lab: TestLab, name: str) -> list[dict[str, Any]]:
    return [task for task in lab.tasks(name) if task["DesiredState"] == "running"]


def env(task: dict[str, Any]) -> list[str]:
    return list(task["Spec"]["ContainerSpec"].get("Env") or [])


def test_update_replaces_every_task_and_says_when_it_is_complete(lab: TestLab, services: list[str]) -> None:
    create(lab, services, "up-roll", "--replicas", "4", "--update-parallelism", "2", "--update-monitor", "1s")
    before = {task["ID"] for task in live(lab, "up-roll")}
    began = time.monotonic()
    lab.fleet("service", "update", "--detach", "--env-add", "V=2", "up-roll")
    lab.wait_until(lambda: update_state(lab, "up-roll") == "completed", 40, what="the update is complete")
    print(f"update of 4 at parallelism 2, monitor 1 s: {time.monotonic() - began:.1f} s")
    after = live(lab, "up-roll")
    assert len(after) == 4
    assert not before & {task["ID"] for task in after}
    assert all("V=2" in env(task) for task in after)


def test_start_first_never_runs_fewer_than_all(lab: TestLab, services: list[str]) -> None:
    create(lab, services, "up-first", "--replicas", "2", "--update-order", "start-first", "--update-monitor", "1s")
    lab.fleet("service", "update", "--detach", "--env-add", "V=2", "up-first")
    least = 9
    end = time.monotonic() + 40
    while update_state(lab, "up-first") != "completed":
        slots = {task["Slot"] for task in lab.tasks("up-first")}
        least = min(least, len(slots))
        assert time.monotonic() < end, "the update does not complete"
        time.sleep(0.02)
    assert least == 2


def test_update_that_fails_goes_back_by_itself(lab: TestLab, services: list[str]) -> None:
    flags = ("--update-failure-action", "rollback", "--update-monitor", "2s", "--rollback-monitor", "1s")
    script = f'[ -z "$BROKEN" ] || exit 3; {LOOP}'
    create(lab, services, "up-back", "--replicas", "3", "--restart-delay", "1s", *flags, script=script)
    before = {task["ID"]: task["Slot"] for task in live(lab, "up-back")}
    lab.fleet("service", "update", "--detach", "--env-add", "BROKEN=1", "up-back")
    lab.wait_until(lambda: update_state(lab, "up-back") == "rollback_completed", 40, what="the update was rolled back")
    after = live(lab, "up-back")
    assert len(after) == 3
    assert not any("BROKEN=1" in env(task) for task in after)
    assert len(before.keys() & {task["ID"] for task in after}) >= 1, "slots that were not touched stay as they were"
    assert "rollback completed" in inspect(lab, "up-back")["UpdateStatus"]["Message"]


def test_update_that_fails_pauses_and_names_the_task(lab: TestLab, services: list[str]) -> None:
    script = f'[ -z "$BROKEN" ] || exit 3; {LOOP}'
    create(lab, services, "up-pause", "--replicas", "2", "--restart-delay", "1s", script=script)
    lab.fleet("service", "update", "--detach", "--env-add", "BROKEN=1", "up-pause")
    lab.wait_until(lambda: update_state(lab, "up-pause") == "paused", 30, what="the update is paused")
    message = inspect(lab, "up-pause")["UpdateStatus"]["Message"]
    assert "update paused due to failure or early termination of task" in message
    lab.fleet("service", "update", "--detach", "--env-rm", "BROKEN", "up-pause")
    lab.wait_until(lambda: len(live(lab, "up-pause")) == 2, 30, what="the mended service runs")


def test_update_that_does_not_get_anywhere_goes_back_when_its_deadline_is_over(
    lab: TestLab, services: list[str]
) -> None:
    create(
        lab, services, "up-stuck", "--replicas", "3", "--update-order", "start-first", "--update-failure-action", "rollback",
        "--update-progress-deadline", "2s", "--rollback-monitor", "200ms",
    )  # fmt: skip
    before = {task["ID"] for task in live(lab, "up-stuck")}
    stuck = lab.fleet("service", "update", "--constraint-add", "node.labels.nowhere==1", "up-stuck", check=False)
    assert "does not run after 2 s" in stuck.stdout + stuck.stderr
    lab.wait_until(lambda: update_state(lab, "up-stuck") == "rollback_completed", 30, what="rolled back")
    assert {task["ID"] for task in live(lab, "up-stuck")} == before, "what ran all the time runs on"
    assert "ProgressDeadline" in inspect(lab, "up-stuck")["Spec"]["UpdateConfig"]


def test_restart_condition_and_attempts_are_obeyed(lab: TestLab, services: list[str]) -> None:
    policy = ("--restart-condition", "on-failure", "--restart-max-attempts", "2", "--restart-delay", "0s")
    create(lab, services, "re-fail", *policy, script="exit 7", detach=True)
    lab.wait_until(lambda: len(lab.tasks("re-fail", state="failed")) == 3, 30, what="three attempts failed")
    create(lab, services, "re-done", *policy, script="exit 0", detach=True)
    lab.wait_until(lambda: len(lab.tasks("re-done", state="complete")) == 1, 30, what="it completed")
    time.sleep(1)
    assert len(lab.get("/tasks", filters={"service": ["re-fail"]})) == 3
    assert len(lab.get("/tasks", filters={"service": ["re-done"]})) == 1
    assert {t["Status"]["ContainerStatus"]["ExitCode"] for t in lab.tasks("re-fail", state="failed")} == {7}


def test_restart_waits_for_its_delay(lab: TestLab, services: list[str]) -> None:
    create(lab, services, "re-wait", "--restart-delay", "2s")
    (victim,) = live(lab, "re-wait")
    host = {n["ID"]: n["Description"]["Hostname"] for n in lab.get("/nodes")}[victim["NodeID"]]
    lab.exec(host, ["kill", "-9", str(victim["Status"]["ContainerStatus"]["PID"])])
    began = time.monotonic()
    lab.wait_until(lambda: {t["ID"] for t in live(lab, "re-wait")} - {victim["ID"]}, 20, what="another runs")
    assert 1.9 <= time.monotonic() - began < 6


def test_constraint_that_nobody_satisfies_says_so_and_a_label_mends_it(lab: TestLab, services: list[str]) -> None:
    create(lab, services, "pin", "--constraint", "node.labels.disk==ssd", detach=True)
    reason = "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    lab.wait_until(
        lambda: any(t["Status"].get("Err") == reason for t in lab.get("/tasks", filters={"service": ["pin"]})),
        20,
        what="the task says why it waits",
    )
    lab.fleet("node", "update", "--label-add", "disk=ssd", "w2")
    try:
        lab.wait_until(lambda: len(live(lab, "pin")) == 1, 20, what="it runs")
        names = {n["ID"]: n["Description"]["Hostname"] for n in lab.get("/nodes")}
        assert [names[t["NodeID"]] for t in live(lab, "pin")] == ["w2"]
    finally:
        lab.fleet("node", "update", "--label-rm", "disk", "w2")
    lab.wait_until(lambda: not live(lab, "pin"), 20, what="it left the node that satisfies it no longer")


def test_global_service_runs_everywhere_and_leaves_a_drained_host(lab: TestLab, services: list[str]) -> None:
    create(lab, services, "everywhere", "--mode", "global")
    assert len({t["NodeID"] for t in live(lab, "everywhere")}) == 3
    lab.fleet("node", "update", "--availability", "drain", "w1")
    try:
        lab.wait_until(lambda: len(live(lab, "everywhere")) == 2, 20, what="it left the drained host")
    finally:
        lab.fleet("node", "update", "--availability", "active", "w1")
    lab.wait_until(lambda: len(live(lab, "everywhere")) == 3, 20, what="it is back")


def test_labels_of_a_service_pack_its_tasks_and_put_it_near_another(lab: TestLab, services: list[str]) -> None:
    pack = ("--label", "fleet.placement.strategy=binpack", "--reserve-memory", "8M")
    create(lab, services, "packed", "--replicas", "3", *pack)
    assert len({task["NodeID"] for task in live(lab, "packed")}) == 1

    create(lab, services, "near", "--label", "fleet.placement.affinity=anchor", detach=True)
    reason = "no suitable node (affinity to services not satisfied on 3 nodes)"
    lab.wait_until(lambda: any(t["Status"].get("Err") == reason for t in lab.tasks("near", state="pending")), 20)
    told = lab.fleet("service", "explain", "near").stdout
    assert "has no task of anchor" in told
    assert f"near.1 waits: {reason}" in told
    create(lab, services, "anchor", "--constraint", "node.hostname in (w1, w9)", "--constraint", "node.role =~ work.*")
    lab.wait_until(lambda: live(lab, "near"), 20, what="it runs beside the other")
    assert {t["NodeID"] for t in live(lab, "near")} == {t["NodeID"] for t in live(lab, "anchor")}

    (chosen,) = [line for line in lab.fleet("service", "explain", "near").stdout.splitlines() if "chosen" in line]
    assert chosen.split()[:2] == ["1", "w1"]

    done = lab.fleet("service", "update", "--label-add", "fleet.placement.strategy=tight", "packed", check=False)
    assert done.returncode != 0
    assert "label fleet.placement.strategy: 'tight' is none of spread, binpack, balanced" in done.stderr
