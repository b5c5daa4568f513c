"""Containers that no service made, on the swarm's attachable networks: they and the services find each other from any host."""

from __future__ import annotations

import random
import secrets
import signal
import time
from collections.abc import Iterator

import pytest
from soak.names import World, live_through
from support.lab import TestLab

pytestmark = pytest.mark.e2e

IMAGE = "fleet/hello:1"
SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    for host in lab.hosts():
        lab.load_hello(host)


@pytest.fixture
def meeting(lab: TestLab) -> Iterator[str]:
    lab.fleet("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.33.0.0/24", "att-net")
    yield "att-net"
    for host in lab.hosts():
        for container in lab.get("/containers/json", host=host, all=True):
            if container["Names"][0].startswith("/att-"):
                lab.fleet("rm", "-f", container["Id"], host=host)
    for service in lab.get("/services"):
        lab.fleet("service", "rm", service["ID"])
    lab.wait_until(
        lambda: lab.fleet("network", "rm", "att-net", check=False).returncode == 0
        or not any(n["Name"] == "att-net" for n in lab.get("/networks")),
        30,
        what="nobody is on the network any more",
    )  # fmt: skip


def run(lab: TestLab, host: str, name: str, *flags: str) -> str:
    lab.docker("run", "-d", "--name", name, "--network", "att-net", *flags, IMAGE, *SLEEP, host=host)
    return address(lab, host, name)


def address(lab: TestLab, host: str, name: str) -> str:
    """A daemon that starts shows the network's id until it has taken its assignments up, some milliseconds later."""
    shown: dict[str, dict[str, str]] = {}

    def is_named() -> bool:
        shown.clear()
        shown.update(lab.get(f"/containers/{name}/json", host=host)["NetworkSettings"]["Networks"])
        return "att-net" in shown

    lab.wait_until(is_named, 20, what=f"{host} knows the name of its container's network")
    return str(shown["att-net"]["IPAddress"])


def reaches(lab: TestLab, host: str, name: str, other: str) -> bool:
    return lab.docker("exec", name, "ping", "-c1", "-W1", other, host=host, check=False).returncode == 0


def meets(lab: TestLab, host: str, name: str, other: str) -> None:
    lab.wait_until(lambda: reaches(lab, host, name, other), 20, what=f"{name} reaches {other}")


def test_containers_of_two_hosts_and_a_service_find_each_other(lab: TestLab, meeting: str) -> None:
    run(lab, "w1", "att-one", "--network-alias", "first")
    run(lab, "w2", "att-two", "--ip", "10.33.0.77")
    assert address(lab, "w2", "att-two") == "10.33.0.77"
    lab.fleet("service", "create", "--name", "web", "--network", "att-net", "--replicas", "2", IMAGE, *SLEEP)
    meets(lab, "w1", "att-one", "att-two")
    meets(lab, "w2", "att-two", "first")
    meets(lab, "w2", "att-two", "tasks.web")
    taken = {address(lab, "w1", "att-one"), "10.33.0.77"}
    given = {a.partition("/")[0] for t in lab.tasks("web") for n in t["NetworksAttachments"] for a in n["Addresses"]}
    assert not taken & given
    used = lab.fleet("network", "rm", "att-net", check=False)
    assert used.returncode == 1 and "in use" in used.stderr
    here = lab.fleet("network", "inspect", "att-net").stdout
    assert "10.33.0.0/24" in here


def test_an_address_is_free_again_when_its_container_ended_whatever_was_killed(lab: TestLab, meeting: str) -> None:
    run(lab, "w1", "att-one", "--ip", "10.33.0.50")
    taken = lab.docker("run", "--rm", "--network", meeting, "--ip", "10.33.0.50", IMAGE, "true", host="w2", check=False)
    assert taken.returncode != 0 and "10.33.0.50 is in use" in taken.stderr
    lab.restart_daemon("w1", signum=signal.SIGKILL)
    assert address(lab, "w1", "att-one") == "10.33.0.50"
    run(lab, "w2", "att-two")
    meets(lab, "w2", "att-two", "att-one")
    pid = lab.get("/containers/att-one/json", host="w1")["State"]["Pid"]
    lab.signal_daemon("w1", signal.SIGKILL)
    lab.exec("w1", ["kill", "-9", str(pid)])  # it ends while nobody watches
    lab.wait_until(
        lambda: next(r for r in lab.status() if r.name == "w1").daemon != "running", 10, what="fleetd is dead"
    )
    lab.start_daemon("w1")

    def free() -> bool:
        flags = ("--rm", "--network", meeting, "--ip", "10.33.0.50")
        return lab.docker("run", *flags, IMAGE, "true", host="w2", check=False).returncode == 0

    lab.wait_until(free, 40, what="the address is given to another")
    lab.docker("start", "att-one", host="w1", check=False)
    lab.wait_until(
        lambda: lab.docker("start", "att-one", host="w1", check=False).returncode == 0, 20, what="it starts again"
    )
    meets(lab, "w2", "att-two", "att-one")


def test_a_running_container_joins_and_leaves_the_swarms_network(lab: TestLab, meeting: str) -> None:
    run(lab, "w2", "att-two")
    lab.docker("run", "-d", "--name", "att-late", IMAGE, *SLEEP, host="w1")
    assert not reaches(lab, "w1", "att-late", "att-two")
    lab.docker("network", "connect", "--alias", "late", meeting, "att-late", host="w1")
    meets(lab, "w1", "att-late", "att-two")
    meets(lab, "w2", "att-two", "late")
    lab.docker("network", "disconnect", meeting, "att-late", host="w1")
    assert not reaches(lab, "w1", "att-late", "att-two")
    lab.wait_until(lambda: not reaches(lab, "w2", "att-two", "late"), 20, what="its name is gone")


def test_what_may_not_join_is_told_why(lab: TestLab, meeting: str) -> None:
    lab.fleet("network", "create", "-d", "overlay", "att-closed")
    try:
        for host in ("m1", "w1"):
            said = lab.docker("run", "--rm", "--network", "att-closed", IMAGE, "true", host=host, check=False)
            assert said.returncode == 125 and "not attachable" in said.stderr
            said = lab.docker("run", "--rm", "--network", "att-nowhere", IMAGE, "true", host=host, check=False)
            assert said.returncode == 125 and "neither on this host nor in the swarm" in said.stderr
        said = lab.docker(
            "run", "--rm", "--network", meeting, "--ip", "10.99.0.1", IMAGE, "true", host="w1", check=False
        )
        assert said.returncode != 0 and "10.99.0.1 is not between" in said.stderr
    finally:
        lab.fleet("network", "rm", "att-closed")


def test_names_lead_to_exactly_what_runs_whatever_is_changed(lab: TestLab) -> None:
    """A few rounds of ``scripts/names``, which breaks hosts besides."""
    seed = secrets.randbelow(1 << 32)
    print(f"seed {seed}")
    world = World(lab, random.Random(seed), calm=True)
    try:
        assert live_through(world, end=time.monotonic() + 60, rounds=3) == []
    finally:
        world.clear()
