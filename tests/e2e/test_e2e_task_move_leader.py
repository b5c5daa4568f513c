"""The leader of three managers is killed for good while a task moves with its data: the next one goes on with the move."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from support.lab import TestLab

from fleet import errors

pytestmark = pytest.mark.e2e

COMMAND = ("sh", "-c", "trap 'exit 0' TERM; while :; do echo beat >>/data/log; sleep 0.1; done")


def running(lab: TestLab) -> list[str]:
    return [
        host
        for host in ("w1", "w2")
        for c in lab.get("/containers/json", host=host)
        if c["Names"][0].startswith("/web.")
    ]


def leader(lab: TestLab, at: str) -> str:
    nodes: list[dict[str, Any]] = lab.get("/nodes", host=at)
    leading = [n for n in nodes if (n.get("ManagerStatus") or {}).get("Leader")]
    return str(leading[0]["Description"]["Hostname"]) if leading else ""


def test_the_next_leader_goes_on_with_the_move(make_lab: Callable[..., TestLab]) -> None:
    lab = make_lab(managers=3, workers=2)
    lab.load_hello("m1")
    lab.fleet("service", "create", "--name", "web", "--constraint", "node.role==worker", "--mount",
              "type=volume,src=data,dst=/data", "fleet/hello:1", *COMMAND)  # fmt: skip
    lab.wait_until(lambda: len(running(lab)) == 1, 60, what="it runs")
    (source,) = running(lab)
    target = "w2" if source == "w1" else "w1"
    name = lab.get("/containers/json", host=source)[0]["Names"][0][1:]
    fill = "dd if=/dev/urandom of=/data/big bs=1M count=60 2>/dev/null; sha256sum /data/big >/data/sum"
    lab.fleet("container", "exec", name, "sh", "-c", fill, host=source)
    victim = leader(lab, "m1")
    other = next(host for host in ("m1", "m2", "m3") if host != victim)
    lab.fleet("task", "move", "--detach", "web.1", target, host=other)
    lab.signal_daemon(victim, signal.SIGKILL)

    def moved() -> bool:
        try:
            tasks = [t for t in lab.get("/tasks", host=other) if t["DesiredState"] == "running"]
            return [t["Status"]["State"] for t in tasks] == ["running"] and running(lab) == [target]
        except (errors.FleetError, OSError):
            return False  # nobody leads for a moment

    lab.wait_until(moved, 120, what=f"it runs on {target} alone")
    name = lab.get("/containers/json", host=target)[0]["Names"][0][1:]
    checked = lab.fleet("container", "exec", name, "sha256sum", "-c", "/data/sum", host=target).stdout
    assert checked == "/data/big: OK\n"
    lab.wait_until(
        lambda: not lab.get("/volumes", host=source)["Volumes"], 60, what="the source has let go of its volume"
    )
