"""Traces of a real cluster: one request is one trace, with the spans of the manager and of the node that ran the task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

COLLECTOR = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as file:
            file.write(body + b"\\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", 4318), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def collected(
    make_lab: Callable[..., TestLab], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TestLab, Path]]:
    """A lab whose daemons send spans to a collector of their own host, and the folder with what each got."""
    lab = make_lab(workers=1, daemon_args=("--otlp-endpoint", "http://127.0.0.1:4318"))
    folder = tmp_path_factory.mktemp("spans")
    pids = {}
    for host in ("m1", "w1"):
        start = 'nohup "$0" -c "$1" "$2" >/dev/null 2>&1 & echo $!'
        argv = ["sh", "-c", start, sys.executable, COLLECTOR, str(folder / host)]
        pids[host] = str(lab.exec(host, argv).stdout).strip()
    lab.load_hello()
    try:
        yield lab, folder
    finally:
        for host, pid in pids.items():
            lab.exec(host, ["kill", pid], check=False)


def spans(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [
        {**span, "host": resource["resource"]["attributes"][1]["value"]["stringValue"]}
        for line in path.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_a_request_is_one_trace_over_hosts(collected: tuple[TestLab, Path]) -> None:
    lab, folder = collected
    body = {
        "Name": "traced",
        "TaskTemplate": {
            "ContainerSpec": {"Image": "fleet/hello:1", "Args": ["sleep", "3600"]},
            "Placement": {"Constraints": ["node.role==worker"]},
        },
    }
    with lab.client("m1") as client:
        client.request("POST", "/services/create", json_body=body, headers={"X-Request-ID": "story-17"})

    def all_spans() -> list[dict[str, Any]]:
        return [span for host in ("m1", "w1") for span in spans(folder / host)]

    try:
        lab.wait_until(
            lambda: "task starting" in {span["name"] for span in all_spans()}, 90, what="the task's spans came"
        )
        first = next(span for span in all_spans() if span["name"] == "POST /services/create")
        mine = [span for span in all_spans() if span["traceId"] == first["traceId"]]
        names = {(span["name"], span["host"]) for span in mine}
        assert {("POST /services/create", "m1"), ("orchestrate", "m1"), ("schedule", "m1")} <= names
        assert {("task preparing", "w1"), ("task starting", "w1")} <= names
        assert {span["parentSpanId"] for span in mine if span is not first and span["name"] != first["name"]} == {
            first["spanId"]
        }
        assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in mine)
    finally:
        lab.fleet("service", "rm", "traced")
