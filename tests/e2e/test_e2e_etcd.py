"""A manager whose state is in three real etcd members: what is killed, and what goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.etcd import EtcdCluster, has_etcd
from support.lab import TestLab

from fleet.lab.record import save

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)")]

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    return make_lab(managers=1, workers=0, swarm=False)


@pytest.fixture
def etcd(lab: TestLab, tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path, size=3, host=lab.machine_address()) as cluster:
        yield cluster


def pids(lab: TestLab) -> dict[str, int]:
    found = lab.get("/containers/json")
    return {c["Id"]: lab.get(f"/containers/{c['Id']}/json")["State"]["Pid"] for c in found}


def swarm(lab: TestLab) -> dict[str, Any]:
    return dict(lab.get("/info")["Swarm"])


def scaled(lab: TestLab, replicas: int) -> bool:
    done = lab.fleet("service", "scale", "--detach", f"s={replicas}", check=False)
    assert done.returncode == 0 or "etcd" in done.stderr, done.stderr
    return done.returncode == 0


def test_state_in_etcd_outlives_the_daemon_and_a_member_and_waits_for_a_lost_majority(
    lab: TestLab, etcd: EtcdCluster
) -> None:
    addresses = ",".join(endpoint.removeprefix("http://") for endpoint in etcd.endpoints)
    with lab._locked() as record:
        changed = msgspec.structs.replace(record, daemon_args=("--store", f"etcd://{addresses}"))
        save(lab.layout, changed)
    lab.restart_daemon("m1")
    lab.load_hello()
    lab.fleet("swarm", "init", "--advertise-addr", lab.address("m1"))
    lab.fleet("service", "create", "--name", "s", "--replicas", "2", "fleet/hello:1", *SLEEP)
    lab.wait_until(lambda: len(lab.tasks("s")) == 2, 40, what="two tasks run")
    before, node = pids(lab), swarm(lab)["NodeID"]

    lab.restart_daemon("m1", signum=signal.SIGKILL)
    assert swarm(lab)["NodeID"] == node
    assert [s["Spec"]["Name"] for s in lab.get("/services")] == ["s"]
    assert pids(lab) == before

    etcd.kill(0)
    # While the others elect a leader, writes are refused as not made.
    lab.wait_until(lambda: scaled(lab, 3), 30, what="two members take a write")
    lab.wait_until(lambda: len(lab.tasks("s")) == 3, 40, what="three tasks run")
    before = pids(lab)

    for member in (1, 2):
        etcd.kill(member)
    refused = lab.fleet("service", "scale", "--detach", "s=4", check=False)
    assert refused.returncode != 0
    assert "etcd" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert pids(lab) == before

    lab.restart_daemon("m1", signum=signal.SIGKILL)
    told = swarm(lab)
    assert told["LocalNodeState"] == "active"
    assert not told["ControlAvailable"]
    assert "state cannot be reached" in told["Error"]
    assert pids(lab) == before

    for member in range(3):
        etcd.start(member)
    etcd.wait_ready()
    lab.wait_until(lambda: swarm(lab)["ControlAvailable"], 60, what="the manager is back")
    lab.wait_until(lambda: scaled(lab, 4), 30, what="the members take a write again")
    lab.wait_until(lambda: len(lab.tasks("s")) == 4, 40, what="four tasks run")
    assert before.items() <= pids(lab).items()

    lab.fleet("swarm", "leave", "--force")
    everything = {"key": "AA==", "range_end": "AA==", "keys_only": True}
    assert "kvs" not in httpx.post(etcd.endpoints[0] + "/v3/kv/range", json=everything).json()
