"""Spans of what came of a request: what a collector gets, and that one that is slow or away costs no work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fleet import errors, traces
from fleet.daemon.config import load_config

BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DEADLINE_S = 30


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent; answers with ``status``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, Any]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[dict[str, Any]]:
        return [
            span
            for _, body in self.got
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    traces.configure(None)
    server.shutdown()
    thread.join()
    server.server_close()


def exporter(collector: Collector) -> traces.Exporter:
    found = traces.Exporter(traces.check_endpoint(f"{collector.url}/"), resource={"host.name": "m1"})
    traces.configure(found)
    return found


def test_spans_of_one_request_are_one_trace_below_its_first(collector: Collector) -> None:
    sender = exporter(collector)
    sender.start()
    ended = BEGAN + timedelta(seconds=1.5)
    traces.span("schedule", request="story-1", began=BEGAN, ended=ended, task="t1", node="")
    traces.span("POST /services/create", request="story-1", began=BEGAN, ended=ended, is_first=True)
    traces.span("schedule", request="other", began=BEGAN, ended=BEGAN - timedelta(seconds=1))
    traces.span("nothing", request="", began=BEGAN, ended=ended)
    sender.stop()
    ((path, body),) = collector.got
    assert path == "/v1/traces"
    assert body["resourceSpans"][0]["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "fleetd"}},
        {"key": "host.name", "value": {"stringValue": "m1"}},
    ]
    child, first, other = collector.spans()
    assert child["traceId"] == first["traceId"] != other["traceId"]
    assert child["parentSpanId"] == first["spanId"] != child["spanId"]
    assert "parentSpanId" not in first
    assert (len(first["traceId"]), len(first["spanId"]), first["kind"], child["kind"]) == (32, 16, 2, 1)
    assert (child["startTimeUnixNano"], child["endTimeUnixNano"]) == ("1767323045678901000", "1767323047178901000")
    assert other["endTimeUnixNano"] == other["startTimeUnixNano"]  # clocks of hosts differ; time does not run backwards
    assert child["attributes"] == [
        {"key": "fleet.request", "value": {"stringValue": "story-1"}},
        {"key": "task", "value": {"stringValue": "t1"}},
    ]


def test_nothing_is_kept_when_nobody_asked_for_traces() -> None:
    traces.configure(None)
    traces.span("x", request="r", began=BEGAN, ended=BEGAN)


def test_collector_that_is_away_costs_spans_and_no_work(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def say(_self: object, _level: str, _event: str, fields: dict[str, Any], _trace: object) -> None:
        told.append(dict(fields))

    monkeypatch.setattr(type(traces.log), "_say", say)
    collector.status = 503
    sender = exporter(collector)
    sender.start()
    for _ in range(3):
        traces.span("x", request="r", began=BEGAN, ended=BEGAN)
    end = time.monotonic() + DEADLINE_S
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    assert told[0]["count"] == 3
    assert "503" in told[0]["cause"]
    collector.status = 200
    traces.span("y", request="r", began=BEGAN, ended=BEGAN)
    sender.stop()
    assert [span["name"] for span in collector.spans()][-1] == "y"


def test_full_queue_never_blocks(collector: Collector) -> None:
    exporter(collector)  # not started: nobody empties it
    for _ in range(5000):
        traces.span("x", request="r", began=BEGAN, ended=BEGAN)


@pytest.mark.parametrize("url", ["collector:4318", "ftp://x", "http://", "http://x?a=b", "grpc://x:4317"])
def test_wrong_endpoint_is_refused(url: str) -> None:
    with pytest.raises(errors.UserError, match="otlp_endpoint"):
        load_config(["--otlp-endpoint", url])


def test_endpoint_is_taken_from_the_command_line() -> None:
    assert load_config(["--otlp-endpoint", "http://c:4318/"]).otlp_endpoint == "http://c:4318"
    assert load_config([]).otlp_endpoint == ""
