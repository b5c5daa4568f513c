"""Services that are scaled by what their tasks really use: up under load, down after it, through the death of the leader."""

from __future__ import annotations

import itertools
import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.etcd import has_etcd
from support.lab import TestLab

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.story,
    pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)"),
]

BURN = "while :; do if [ -e /ask/burn ]; then i=0; while [ $i -lt 500 ]; do i=$((i+1)); done; else sleep 0.2; fi; done"
"""Uses all the CPU it may have while somebody asks for it."""
POLICY = (
    "--autoscale-max", "3", "--autoscale-cpu", "50", "--autoscale-interval", "1s", "--autoscale-warmup", "0s",
    "--autoscale-down-window", "10s",
)  # fmt: skip
DEADLINE_S = 120.0
"""Generous: the machine may be busy with other things, and the tasks have a twentieth of a core each."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    made = make_lab(managers=3, workers=1)
    made.load_hello()
    return made


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file whose presence makes the tasks burn."""
    return tmp_path_factory.mktemp("ask") / "burn"


@pytest.fixture(scope="module")
def service(lab: TestLab, asked: Path) -> str:
    lab.fleet(
        "service", "create", "--quiet", "--name", "burner", "--limit-cpu", "0.05", "--restart-delay", "0s", *POLICY,
        "--stop-grace-period", "1s", "--mount", f"type=bind,source={asked.parent},target=/ask,readonly",
        "fleet/hello:1", "sh", "-c", BURN,
    )  # fmt: skip
    return "burner"


def shown(lab: TestLab, *, host: str = "m1") -> dict[str, Any]:
    return dict(lab.get("/services/burner", host=host))


def replicas(lab: TestLab, *, host: str = "m1") -> int:
    return int(shown(lab, host=host)["Spec"]["Mode"]["Replicated"]["Replicas"])


def scalings(lab: TestLab, *, host: str = "m1") -> list[dict[str, Any]]:
    return list((shown(lab, host=host).get("Autoscale") or {}).get("Scalings") or [])


def leader(lab: TestLab, *, host: str = "m1") -> str:
    nodes = lab.get("/nodes", host=host)
    return next(n["Description"]["Hostname"] for n in nodes if (n.get("ManagerStatus") or {}).get("Leader"))


def chain(lab: TestLab, *, host: str = "m1") -> list[int]:
    """The numbers it had, and that each change began where the one before had ended."""
    found = scalings(lab, host=host)
    assert all(later["Before"] == earlier["After"] for earlier, later in itertools.pairwise(found)), found
    return [found[0]["Before"], *(each["After"] for each in found)] if found else []


def test_it_grows_under_load_and_says_why(lab: TestLab, service: str, asked: Path) -> None:
    lab.wait_until(lambda: len(lab.tasks(service)) == 1, 60, what="one task runs")
    asked.touch()
    lab.wait_until(lambda: replicas(lab) == 3, DEADLINE_S, what="three are wanted")
    lab.wait_until(lambda: len(lab.tasks(service)) == 3, DEADLINE_S, what="three run")
    reasons = [each["Reason"] for each in scalings(lab)]
    assert re.match(r"1 -> [23]: CPU \d+%, 50% wanted", reasons[0]), reasons
    row = next(line for line in lab.fleet("service", "ls").stdout.splitlines() if "burner" in line)
    assert "3/3 (auto 1-3)" in row
    explained = lab.fleet("service", "explain", service, host=leader(lab)).stdout
    assert "Scaled automatically: 1 to 3 tasks, CPU at 50% of the limit of 0.05 CPUs" in explained
    assert reasons[-1] in explained
    stays = r"now: stays at 3: CPU \d+%, 50% wanted"
    explain = ("service", "explain", service)
    lab.wait_until(lambda: re.search(stays, lab.fleet(*explain, host=leader(lab)).stdout), DEADLINE_S, what=stays)
    pretty = lab.fleet("service", "inspect", "--pretty", service).stdout
    assert "1 to 3 tasks, CPU at 50%" in pretty and "Last scaled" in pretty


def test_the_events_say_what_was_done_and_why(lab: TestLab, service: str) -> None:
    done = lab.fleet(
        "events", "--since", "10m", "--until", "0s", "--filter", "event=autoscale", "--format", "json", host="m2"
    )
    told = [json.loads(line)["Actor"]["Attributes"] for line in done.stdout.splitlines()]
    attributes = next(each for each in told if "replicas.old" in each)
    assert (attributes["name"], attributes["replicas.old"]) == (service, "1")
    assert attributes["reason"].startswith("1 -> ")


def test_dockers_client_shows_it_and_changes_the_policy(lab: TestLab, service: str) -> None:
    assert "3/3" in lab.docker("service", "ls").stdout
    (inspected,) = json.loads(lab.docker("service", "inspect", service).stdout)
    assert inspected["Spec"]["Labels"]["fleet.autoscale.max"] == "3"
    done = lab.docker("service", "update", "--detach", "--label-add", "fleet.autoscale.cpu=none", service, check=False)
    assert done.returncode != 0 and "label fleet.autoscale.cpu: 'none' is no percentage" in done.stderr
    lab.docker("service", "update", "--detach", "--label-add", "fleet.autoscale.cpu=49", service)
    assert replicas(lab) == 3


def test_the_same_stack_deployed_again_and_a_rollback_keep_the_number(lab: TestLab, tmp_path: Path) -> None:
    stack = tmp_path / "stack.yml"
    deploy = {
        "replicas": 1,
        "labels": {"fleet.autoscale.min": "2", "fleet.autoscale.max": "4", "fleet.autoscale.memory": "90%",
                   "fleet.autoscale.interval": "1s"},
        "resources": {"limits": {"memory": "32M"}},
    }  # fmt: skip
    sleeper = {"image": "fleet/hello:1", "command": ["sleep", "1000000"], "stop_grace_period": "1s", "deploy": deploy}
    stack.write_text(json.dumps({"services": {"web": sleeper}}))
    lab.fleet("stack", "deploy", "-d", "-c", str(stack), "auto")

    def number() -> int:
        return int(lab.get("/services/auto_web")["Spec"]["Mode"]["Replicated"]["Replicas"])

    lab.wait_until(lambda: number() == 2, 60, what="the fewest")
    assert "Keeping service auto_web (unchanged)" in lab.fleet("stack", "deploy", "-c", str(stack), "auto").stdout
    assert number() == 2
    sleeper["environment"] = {"CHANGED": "1"}
    stack.write_text(json.dumps({"services": {"web": sleeper}}))
    assert "Updating service auto_web" in lab.fleet("stack", "deploy", "-c", str(stack), "auto", timeout_s=120).stdout
    assert number() == 2
    lab.fleet("service", "rollback", "--quiet", "auto_web", timeout_s=120)
    assert number() == 2
    lab.fleet("stack", "rm", "auto")


def test_it_shrinks_after_the_load_through_the_death_of_the_leader(lab: TestLab, service: str, asked: Path) -> None:
    assert replicas(lab) == 3
    asked.unlink()
    dead = leader(lab)
    other = next(host for host in ("m1", "m2", "m3") if host != dead)
    began = time.monotonic()
    lab.restart_daemon(dead, signum=signal.SIGKILL)
    lab.wait_until(lambda: _led(lab, other), 60, what="somebody leads")
    assert len(lab.tasks(service)) >= 1
    lab.wait_until(lambda: replicas(lab, host=other) < 3, DEADLINE_S, what="fewer are wanted")
    assert time.monotonic() - began >= 10, "nothing goes before the new leader has looked for a window"
    lab.wait_until(lambda: replicas(lab, host=other) == 1, DEADLINE_S, what="one is wanted")
    lab.wait_until(lambda: len(lab.tasks(service)) == 1, DEADLINE_S, what="one runs")
    numbers = chain(lab, host=other)
    assert numbers[0] == 1 and numbers[-1] == 1 and max(numbers) == 3
    assert numbers == sorted(numbers[: numbers.index(3) + 1]) + sorted(numbers[numbers.index(3) + 1 :], reverse=True)


def _led(lab: TestLab, host: str) -> bool:
    nodes = lab.get("/nodes", host=host)
    return any((n.get("ManagerStatus") or {}).get("Leader") and n["Status"]["State"] == "ready" for n in nodes)


def test_by_hand_it_holds_until_the_next_decision_and_stopped_it_stays(lab: TestLab, service: str) -> None:
    done = lab.fleet("service", "scale", "--detach", f"{service}=7")
    assert "scaled automatically (1 to 3 tasks): 7 holds until the next decision, within 1 s" in done.stderr
    lab.wait_until(lambda: replicas(lab) == 3, 60, what="the most there may be")
    lab.wait_until(lambda: replicas(lab) == 1, DEADLINE_S, what="and then what the load asks for")
    lab.fleet("service", "stop", service)
    time.sleep(3)
    assert replicas(lab) == 0 and lab.tasks(service) == []
    lab.fleet("service", "start", "--quiet", service, timeout_s=120)
    lab.fleet("service", "update", "--detach", "--no-autoscale", service)
    assert not [label for label in shown(lab)["Spec"]["Labels"] if "autoscale" in label]
    assert "Autoscale" not in shown(lab)
    done = lab.fleet("service", "update", "--autoscale-max", "0", service, check=False)
    assert done.returncode != 0 and "label fleet.autoscale.max: '0' is no number of tasks" in done.stderr
    lab.fleet("service", "rm", service)


def test_no_room_and_quotas_are_told(lab: TestLab, asked: Path) -> None:
    asked.touch()
    lab.fleet("swarm", "update", "--quota", "label=team=red:tasks=2,memory=1G")
    lab.fleet(
        "service", "create", "--quiet", "--name", "red", "--label", "team=red", "--limit-cpu", "0.05", *POLICY,
        "--stop-grace-period", "1s", "--mount", f"type=bind,source={asked.parent},target=/ask,readonly",
        "fleet/hello:1", "sh", "-c", BURN,
    )  # fmt: skip

    def held() -> str:
        return str((lab.get("/services/red").get("Autoscale") or {}).get("Held") or "")

    lab.wait_until(
        lambda: "no room left in quota label=team=red (tasks=2, memory=1G)" in held(), DEADLINE_S, what="held"
    )
    assert lab.get("/services/red")["Spec"]["Mode"]["Replicated"]["Replicas"] == 2
    assert "no room left in quota label=team=red" in lab.fleet("service", "explain", "red").stdout
    listed = lab.fleet("quota", "ls").stdout.splitlines()
    assert listed[1].split()[:3] == ["label=team=red", "2/2", "-"]
    (quota,) = [json.loads(line) for line in lab.fleet("quota", "ls", "--format", "json").stdout.splitlines()]
    assert (quota["Used"]["Tasks"], quota["Limits"]["Tasks"], quota["Limits"]["NanoCPUs"]) == (2, 2, None)
    asked.unlink()
    lab.fleet("service", "rm", "red")
