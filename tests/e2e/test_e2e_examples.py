"""The example stacks, each exactly as shipped, with real software from Debian's packages under the names of the public images."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from support.lab import REPOSITORY, TestLab

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    return make_lab(workers=2, daemon_args=("--metrics-addr", "0.0.0.0:9323"))


@pytest.fixture(scope="module", autouse=True)
def images(lab: TestLab) -> None:
    archives = sorted((REPOSITORY / ".venv/example-images").glob("*.tar"))
    if not archives:
        pytest.skip("not run: needs the images of scripts/example-images (scripts/setup makes them)")
    for archive in archives:
        lab.fleet("image", "load", "--quiet", "--input", str(archive))


def deploy(lab: TestLab, name: str, **variables: str) -> None:
    lab.fleet("stack", "deploy", "-c", f"compose-examples/{name}/stack.yml", name, env=variables)


def fetch(lab: TestLab, port: int, path: str = "/", *, host: str = "w1", data: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{lab.address(host)}:{port}{path}", data and data.encode())
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def test_the_guest_book_keeps_its_entries_through_the_end_of_the_database(lab: TestLab) -> None:
    deploy(lab, "guestbook")
    lab.wait_until(lambda: fetch(lab, 8090)[0] == 200, 30, what="the page is there")
    assert fetch(lab, 8090, data="<b>was here</b>") == (201, "written\n")
    assert {fetch(lab, 8090)[1].split("served by ")[1][:12] for _ in range(20)} == set(hostnames(lab, "guestbook_web"))
    (task,) = lab.tasks("guestbook_db")
    host = host_of(lab, task)
    pid = str(task["Status"]["ContainerStatus"]["PID"])
    password = Path("compose-examples/guestbook/db_password.txt").read_text().strip()
    assert password not in str(lab.exec(host, ["cat", f"/proc/{pid}/cmdline"]).stdout)
    assert fetch(lab, 8090)[0] == 200
    lab.exec(host, ["kill", "-9", pid])
    lab.wait_until(
        lambda: [t for t in lab.tasks("guestbook_db") if t["ID"] != task["ID"]], 30, what="the database was replaced"
    )
    moved = host_of(lab, lab.tasks("guestbook_db")[0]) != host
    lab.wait_until(lambda: fetch(lab, 8090)[0] == 200, 30, what="the page is there again")
    if not moved:  # a local volume is where it was made
        assert "&lt;b&gt;was here&lt;/b&gt;" in fetch(lab, 8090)[1]
    lab.fleet("stack", "rm", "guestbook")


def host_of(lab: TestLab, task: dict[str, Any]) -> str:
    return next(str(n["Description"]["Hostname"]) for n in lab.get("/nodes") if n["ID"] == task["NodeID"])


def hostnames(lab: TestLab, service: str) -> list[str]:
    return [str(task["Status"]["ContainerStatus"]["ContainerID"])[:12] for task in lab.tasks(service)]


def test_more_workers_do_more_and_end_with_their_piece_done(lab: TestLab) -> None:
    deploy(lab, "queue")

    def done() -> int:
        lines = lab.fleet("service", "logs", "--raw", "--tail", "1", "queue_producer").stdout.split()
        return int(lines[-1]) if lines and lines[-1].isdigit() else 0

    lab.wait_until(lambda: done() > 50, 60, what="pieces are done")
    lab.fleet("service", "scale", "queue_worker=4")
    assert len({task["NodeID"] for task in lab.tasks("queue_worker")}) == 3
    lab.fleet("service", "scale", "queue_worker=0")

    def nobody_works() -> bool:
        before = done()
        time.sleep(2.5)  # the producer says it every second
        return done() == before > 0

    lab.wait_until(nobody_works, 40, what="nobody works any more")
    lab.wait_until(lambda: not lab.tasks("queue_worker"), 40, what="all workers have ended")
    ended = lab.fleet("service", "ps", "queue_worker", "--format", "{{.CurrentState}}").stdout
    assert "Failed" not in ended, "they ended by themselves, within their grace"
    lab.fleet("stack", "rm", "queue")


def test_the_number_of_workers_follows_the_queue(lab: TestLab) -> None:
    host = lab.address("w1")

    def deploy_both(**variables: str) -> str:
        files = [f"-ccompose-examples/queue/{name}.yml" for name in ("stack", "autoscale")]
        variables = {"DOWN_WINDOW": "10s", "PROMETHEUS_HOST": host, **variables}
        return lab.fleet("stack", "deploy", *files, "line", env=variables, timeout_s=180).stdout

    def workers() -> int:
        return int(lab.get("/services/line_worker")["Spec"]["Mode"]["Replicated"]["Replicas"])

    deploy_both()
    assert workers() <= 3
    lab.wait_until(lambda: workers() >= 4, 120, what="more workers")
    lab.wait_until(lambda: len(lab.tasks("line_worker")) >= 4, 60, what="they run")
    explained = lab.fleet("service", "explain", "line_worker").stdout
    assert f"50 a task of 'sum(queue_waiting)' from http://{host}:9091" in explained
    assert "the query gives " in explained
    many = workers()
    assert "Keeping service line_worker (unchanged)" in deploy_both()
    assert workers() >= many, "deploying again does not mean the number of the file"
    deploy_both(PAUSE_MS="500")
    lab.wait_until(lambda: workers() == 1, 120, what="one worker for little to do")
    many = workers()
    lab.fleet("service", "scale", "--detach", "line_prometheus=0")
    lab.fleet("service", "scale", "--detach", "line_worker=3")

    def held() -> str:
        return str((lab.get("/services/line_worker").get("Autoscale") or {}).get("Held") or "")

    lab.wait_until(lambda: f"Prometheus at http://{host}:9091 " in held(), 90, what="it is said that nobody answers")
    time.sleep(12)
    assert workers() == 3, "nothing is taken away on missing figures"
    lab.fleet("stack", "rm", "line")


def test_no_request_fails_while_the_application_is_updated_and_rolled_back(lab: TestLab) -> None:
    deploy(lab, "proxy")
    lab.wait_until(lambda: fetch(lab, 8092)[1].startswith("version 1 on "), 30, what="version 1 answers")
    answers: Counter[str] = Counter()
    is_over = threading.Event()

    def ask(host: str) -> None:
        """Some 70 requests a second; three of them are 200, what two cores do beside an update without queues of their own."""
        while not is_over.wait(0.01):
            status, text = fetch(lab, 8092, host=host)
            answers[text.split(" on ")[0] if status == 200 else f"{status} {text}"] += 1

    askers = [threading.Thread(target=ask, args=(host,)) for host in ("m1", "w1", "w2")]
    for asker in askers:
        asker.start()
    try:
        deploy(lab, "proxy", VERSION="2")
        lab.wait_until(lambda: fetch(lab, 8092)[1].startswith("version 2 on "), 30, what="version 2 answers")
        lab.fleet("service", "rollback", "proxy_app")
        lab.wait_until(lambda: fetch(lab, 8092)[1].startswith("version 1 on "), 30, what="version 1 answers again")
    finally:
        is_over.set()
        for asker in askers:
            asker.join()
    assert set(answers) == {"version 1", "version 2"}, answers
    lab.fleet("stack", "rm", "proxy")


def test_an_agent_on_each_node_and_prometheus_that_finds_hosts_and_agents(lab: TestLab) -> None:
    deploy(lab, "agent")
    for host in lab.hosts():
        lab.wait_until(
            lambda host=host: f'node_load1{{node="{host}"}}' in fetch(lab, 9101, "/metrics", host=host)[1],
            30,
            what=host,
        )
    deploy(lab, "monitoring", FLEET_SOCKET_FOLDER=str(lab.socket("m1").parent))

    def values(expression: str) -> list[str]:
        status, text = fetch(lab, 9090, f"/api/v1/query?{urlencode({'query': expression})}")
        return [each["value"][1] for each in json.loads(text)["data"]["result"]] if status == 200 else []

    lab.wait_until(lambda: values("sum by (job) (up)") == ["3", "3"], 90, what="three hosts, three agents are read")
    assert values('fleet_service_running_tasks{service="agent_agent"}') == ["3"]
    lab.fleet("stack", "rm", "agent")
    lab.fleet("stack", "rm", "monitoring")


def test_each_piece_of_the_job_is_done_once(lab: TestLab) -> None:
    deploy(lab, "jobs")

    def pieces() -> list[str]:
        lines = lab.fleet("service", "logs", "--raw", "jobs_render").stdout.splitlines()
        return sorted(line.split(":")[0] for line in lines)

    wanted = sorted(f"piece {number}" for number in range(1, 13))
    lab.wait_until(lambda: pieces() == wanted, 60, what="twelve pieces")
    assert "(12/12 completed)" in lab.fleet("service", "ls").stdout
    lab.fleet("stack", "rm", "jobs")
