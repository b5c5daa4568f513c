"""A real Prometheus finds a cluster by itself, and the dashboard that is shipped shows what it reads there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.lab import REPOSITORY, TestLab
from support.prometheus import Prometheus, running_prometheus

from fleet.metrics import CONTENT_TYPE

pytestmark = pytest.mark.e2e

_IDLE = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")
_SERVICES_JOB = """
  - job_name: services
    dockerswarm_sd_configs: [{host: HOST, role: services, port: 80, refresh_interval: 1s}]
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    lab = make_lab(workers=1, daemon_args=("--metrics-addr", "0.0.0.0:9323"))
    lab.load_hello()
    lab.fleet("network", "create", "--driver", "overlay", "front")
    lab.fleet(
        "service", "create", "--name", "web", "--replicas", "2", "--replicas-max-per-node", "1", "--network", "front",
        "--publish", "8080:80", "--label", "prometheus.job=shop", "--label", "prometheus.port=8081",
        "--limit-memory", "64m", "fleet/hello:1", *_IDLE,
    )  # fmt: skip
    return lab


@pytest.fixture(scope="module")
def prometheus(lab: TestLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """As shipped, but sooner, and with the lab's socket."""
    shipped = (REPOSITORY / "packaging/prometheus/prometheus.yml").read_text()
    host = f"unix://{lab.socket('m1')}"
    text = (shipped + _SERVICES_JOB).replace("HOST", host).replace("unix:///run/fleet/fleet.sock", host)
    text = text.replace("refresh_interval: 30s", "refresh_interval: 1s").replace(
        "scrape_interval: 15s", "scrape_interval: 1s"
    )
    assert text.count(host) == 3
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), text) as running:
        yield running


def _addresses(lab: TestLab) -> set[str]:
    """Of the tasks on ``front``."""
    return {
        address.partition("/")[0]
        for task in lab.tasks("web")
        for attachment in task["NetworksAttachments"]
        if attachment["Network"]["Spec"]["Name"] == "front"
        for address in attachment["Addresses"]
    }


def test_prometheus_finds_and_reads_every_host(lab: TestLab, prometheus: Prometheus) -> None:
    def up() -> dict[str, str]:
        return {t["labels"]["instance"]: t["scrapeUrl"] for t in prometheus.targets("fleet") if t["health"] == "up"}

    lab.wait_until(lambda: len(up()) == 2, 60, what="both hosts are read")
    assert up() == {host: f"http://{lab.address(host)}:9323/metrics" for host in ("m1", "w1")}
    found = {t["labels"]["instance"]: t["discoveredLabels"] for t in prometheus.targets("fleet")}
    assert found["m1"]["__meta_dockerswarm_node_role"] == "manager"
    assert found["m1"]["__meta_dockerswarm_node_manager_leader"] == "true"
    assert found["w1"]["__meta_dockerswarm_node_role"] == "worker"
    assert found["w1"]["__meta_dockerswarm_node_availability"] == "active"


def test_prometheus_finds_services_and_tasks(lab: TestLab, prometheus: Prometheus) -> None:
    lab.wait_until(lambda: len(prometheus.targets("tasks")) == 2, 60, what="both tasks are found")
    tasks = prometheus.targets("tasks")
    assert {t["scrapeUrl"] for t in tasks} == {f"http://{address}:8081/metrics" for address in _addresses(lab)}
    assert {t["labels"]["job"] for t in tasks} == {"shop"}
    labels = tasks[0]["discoveredLabels"]
    assert labels["__meta_dockerswarm_service_name"] == "web"
    assert labels["__meta_dockerswarm_task_state"] == "running"
    assert labels["__meta_dockerswarm_network_name"] == "front"
    assert {t["discoveredLabels"]["__meta_dockerswarm_node_hostname"] for t in tasks} == {"m1", "w1"}

    lab.wait_until(lambda: prometheus.targets("services"), 60, what="the service is found")
    service = prometheus.targets("services")[0]["discoveredLabels"]
    assert service["__meta_dockerswarm_service_mode"] == "replicated"
    assert service["__meta_dockerswarm_service_endpoint_port_publish_mode"] == "ingress"
    assert service["__meta_dockerswarm_service_label_prometheus_job"] == "shop"


def _expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_every_query_of_the_dashboard_shows_data(lab: TestLab, prometheus: Prometheus) -> None:
    dashboard = json.loads((REPOSITORY / "packaging/grafana/fleet.json").read_text())
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, _, label = variable["definition"].removeprefix("label_values(").rstrip(")").partition(", ")
            lab.wait_until(
                lambda m=metric, q=label: all(q in s["metric"] for s in prometheus.query(m)) and prometheus.query(m),  # type: ignore[misc]
                60,
                what=f"values of ${variable['name']}",
            )
    expressions = _expressions(dashboard)
    assert len(expressions) > 30
    # Something has to happen while Prometheus looks: a new image is fetched by w1, a task is scheduled, and ends.
    lab.wait_until(
        lambda: len(prometheus.query("fleet_image_fetch_seconds_count")) == 6, 60, what="both hosts are read"
    )
    with lab.client("m1") as client:
        client.post("/commit", {}, container=lab.get("/containers/json")[0]["Id"], repo="fleet/hello", tag="2")
    lab.fleet("service", "create", "--name", "more", "--constraint", "node.role==worker", "fleet/hello:2", *_IDLE)
    for title, expression in expressions:
        asked = expression.replace("$__rate_interval", "5m").replace("$service", ".*").replace("$job", "fleet")
        assert "$" not in asked, asked
        lab.wait_until(
            # A quantile of a histogram nothing was added to is NaN: the panel would be empty.
            lambda a=asked: any(series["value"][1] != "NaN" for series in prometheus.query(a)),  # type: ignore[misc]
            90,
            what=f"data in panel {title!r}: {asked}",
        )
    lab.fleet("service", "rm", "more")


def test_figures_are_true(lab: TestLab, prometheus: Prometheus) -> None:
    def value(expression: str) -> float:
        result = prometheus.query(expression)
        return float(result[0]["value"][1]) if result else -1.0

    lab.fleet("service", "scale", "--detach", "web=3")  # one a node and two nodes: the third has to wait
    lab.wait_until(lambda: value('sum(fleet_service_desired_tasks{service="web"})') == 3, 30, what="three are desired")
    lab.wait_until(lambda: value('sum(fleet_tasks{service="web",state="pending"})') == 1, 30, what="one is pending")
    assert value('sum(fleet_service_running_tasks{service="web"})') == 2
    lab.fleet("service", "scale", "--detach", "web=2")
    lab.wait_until(lambda: value('sum(fleet_service_desired_tasks{service="web"})') == 2, 30, what="two are desired")

    tasks = {task["ID"] for task in lab.tasks("web")}

    def figures(name: str) -> list[dict[str, Any]]:
        return prometheus.query(f'{name}{{service="web"}} > 0')

    lab.wait_until(lambda: len(figures("fleet_container_memory_bytes")) == 2, 30, what="both containers are read")
    assert {s["metric"]["task_id"] for s in figures("fleet_container_memory_bytes")} == tasks
    assert {s["metric"]["instance"] for s in figures("fleet_container_cpu_seconds_total")} == {"m1", "w1"}
    assert {s["value"][1] for s in figures("fleet_container_memory_limit_bytes")} == {str(64 << 20)}
    assert value("sum(fleet_manager_leading)") == 1
    lab.wait_until(lambda: value("min(rate(fleet_agent_heartbeats_sent_total[30s]))") > 0, 30, what="agents beat")


def test_the_clear_listener_has_figures_alone(lab: TestLab) -> None:
    base = f"http://{lab.address('m1')}:9323"
    answer = httpx.get(f"{base}/metrics", timeout=10)
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    assert httpx.get(f"{base}/services", timeout=10).status_code == 404
    assert httpx.post(f"{base}/metrics", timeout=10).status_code == 405


def test_a_change_is_told_with_who_asked_and_the_id_of_the_request(lab: TestLab) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(lab.socket("m1"))), base_url="http://fleet") as client:
        body = {"Name": "told", "Data": "c2VjcmV0LWJ5dGVz"}
        answer = client.post("/v1.41/secrets/create?x=in-query", json=body, headers={"X-Request-ID": "order-17"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (201, "order-17")
        made = client.delete("/secrets/told", headers={"X-Request-ID": 'two words "}'}).headers["x-request-id"]
        assert client.get("/secrets").headers["x-request-id"]
        assert client.post("/containers/none/exec", json={}, headers={"X-Request-ID": "refused-1"}).status_code == 404
    log = lab.log_path("m1").read_text()
    lines = {line["request"]: line for line in map(json.loads, log.splitlines()) if "method" in line}
    told = lines["order-17"]
    assert (told["method"], told["path"], told["code"], told["who"]) == ("POST", "/secrets/create", "201", "uid 0")
    assert told["origin"].startswith("unix, process ")
    assert (lines[made]["method"], lines[made]["code"]) == ("DELETE", "204")
    assert lines["refused-1"]["code"] == "404"
    assert not any(line["method"] == "GET" for line in lines.values())
    assert "c2VjcmV0LWJ5dGVz" not in log
    assert "in-query" not in log


def test_the_api_has_the_same_figures_at_its_socket(lab: TestLab) -> None:
    transport = httpx.HTTPTransport(uds=str(lab.socket("w1")))
    with httpx.Client(transport=transport, base_url="http://fleet", timeout=10) as client:
        lines = client.get("/metrics").text.splitlines()
    assert "fleet_agent_connected 1" in lines
    assert not any(line.startswith("fleet_service_") for line in lines), "a worker speaks for itself"
