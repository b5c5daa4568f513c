"""The shipped example, exactly as shipped: three replicas, a client that reaches them by name, a published port."""

from __future__ import annotations

import subprocess
import time
import urllib.request

import pytest
from support.lab import TestLab

pytestmark = [pytest.mark.e2e, pytest.mark.story]


@pytest.fixture(scope="module", autouse=True)
def deployed(lab: TestLab) -> None:
    lab.load_hello()
    lab.fleet("stack", "deploy", "-c", "compose-examples/hello/stack.yml", "hello")


def fetch(lab: TestLab, host: str) -> str:
    with urllib.request.urlopen(f"http://{lab.address(host)}:8080/", timeout=5) as answer:
        return answer.read().decode()


def test_three_replicas_run_on_three_hosts_though_only_one_was_given_the_image(lab: TestLab) -> None:
    assert len({t["NodeID"] for t in lab.tasks("hello_web")}) == 3


def test_every_host_answers_on_the_published_port_and_every_replica_is_reached(lab: TestLab) -> None:
    for host in lab.hosts():
        answers = {fetch(lab, host) for _ in range(30)}
        assert len(answers) == 3, f"{host}: {answers}"


def test_the_port_answers_on_loopback_of_a_host_too(lab: TestLab) -> None:
    done = lab.exec("w1", ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"])
    assert "hello from hello_web" in str(done.stdout)


def test_the_client_reaches_every_replica_through_the_service_name(lab: TestLab) -> None:
    def replicas() -> set[str]:
        out = lab.fleet("service", "logs", "--raw", "--tail", "200", "hello_client").stdout
        return {line.split()[2] for line in out.splitlines() if line.startswith("hello from")}

    lab.wait_until(lambda: len(replicas()) == 3, 40, what="the client has heard of all three")


def test_names_resolve_to_exactly_the_running_tasks(lab: TestLab) -> None:
    task = lab.tasks("hello_client")[0]
    host = next(n["Description"]["Hostname"] for n in lab.get("/nodes") if n["ID"] == task["NodeID"])
    pid = str(task["Status"]["ContainerStatus"]["PID"])

    def resolved(name: str) -> set[str]:
        inside = ["nsenter", "-t", pid, "-n", "-m", "/bin/busybox", "nslookup", name, "127.0.0.11"]
        out = str(lab.exec(host, inside, check=False).stdout)
        answers = out.split("\n\n", 1)[-1]
        return {line.split()[-1] for line in answers.splitlines() if line.startswith("Address")}

    def addresses() -> set[str]:
        return {
            attachment["Addresses"][0].partition("/")[0]
            for t in lab.tasks("hello_web")
            if t["DesiredState"] == "running"
            for attachment in t["NetworksAttachments"]
            if attachment["Network"]["Spec"]["Name"] == "hello_front"
        }

    assert len(resolved("web")) == 1, "one virtual address"
    assert resolved("hello_web") == resolved("web")
    assert resolved("tasks.web") == addresses()
    lab.fleet("service", "scale", "hello_web=5")
    lab.wait_until(lambda: resolved("tasks.web") == addresses() and len(addresses()) == 5, 10, what="five names")
    lab.fleet("service", "scale", "hello_web=3")
    lab.wait_until(lambda: resolved("tasks.web") == addresses() and len(addresses()) == 3, 10, what="three names")


def test_deploying_again_changes_nothing(lab: TestLab) -> None:
    def wanted() -> set[str]:
        return {t["ID"] for t in lab.get("/tasks", filters={"desired-state": ["running"]})}

    before = wanted()
    out = lab.fleet("stack", "deploy", "-c", "compose-examples/hello/stack.yml", "hello").stdout
    time.sleep(1)
    assert wanted() == before, out


def test_the_stack_is_removed_whole(lab: TestLab) -> None:
    lab.fleet("stack", "rm", "hello")
    lab.wait_until(
        lambda: not any(lab.get("/containers/json", host=host, all=True) for host in lab.hosts()),
        30,
        what="no container is left",
    )
    lab.wait_until(
        lambda: "hello_front" not in {n["Name"] for n in lab.get("/networks")}, 15, what="the network is gone"
    )
    with pytest.raises(OSError, match=r"refused|reset|timed out"):
        fetch(lab, "w1")
    links = subprocess.run(
        lab.command("w2", ["ip", "-br", "link", "show", "type", "vxlan"]), capture_output=True, text=True, check=True
    )
    assert len(links.stdout.splitlines()) <= 1, "only the ingress network may stay"
