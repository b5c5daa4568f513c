"""Figures and their text: what Prometheus would read."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import errors
from fleet.daemon.config import load_config
from fleet.daemon.metrics import RequestFigures, metrics_app
from fleet.daemon.metrics.host import network_bytes
from fleet.daemon.metrics.process import process_families
from fleet.metrics import Counter, Family, Histogram, Sample, render


def test_a_histogram_counts_what_is_at_most_its_bound_and_all_below() -> None:
    figure = Histogram("x_seconds", "Help.", ("kind",), buckets=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        figure.observe(value, "a")
    assert render([figure.family()]).decode().splitlines() == [
        "# HELP x_seconds Help.",
        "# TYPE x_seconds histogram",
        'x_seconds_bucket{kind="a",le="0.1"} 2',
        'x_seconds_bucket{kind="a",le="1"} 3',
        'x_seconds_bucket{kind="a",le="+Inf"} 4',
        'x_seconds_sum{kind="a"} 7.65',
        'x_seconds_count{kind="a"} 4',
    ]


def test_figures_without_labels_are_there_before_anything_happened() -> None:
    assert b"c_total 0\n" in render([Counter("c_total", "").family()])
    assert b"h_count 0\n" in render([Histogram("h", "").family()])


def test_a_series_can_be_shown_before_it_grows() -> None:
    figure = Histogram("h", "", ("kind",), buckets=(1.0,))
    figure.begin("a")
    assert b'h_count{kind="a"} 0\n' in render([figure.family()])


def test_names_beyond_the_bound_are_counted_together() -> None:
    figure = Counter("c_total", "", ("name",), series_max=2)
    for name in ("a", "b", "c", "d", "a"):
        figure.inc(name)
    values = {sample.labels[0][1]: sample.value for sample in figure.family().samples}
    assert values == {"a": 2, "b": 1, "other": 2}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_label_stays_on_its_line_and_is_read_back(value: str) -> None:
    text = render([Family("g", "", "gauge", [Sample((("name", value),), 1)])]).decode()
    line = text.removesuffix("\n").split("\n")[2]
    match = re.fullmatch(r'g\{name="((?:[^"\\\n]|\\["\\n])*)"\} 1', line, re.DOTALL)
    assert match is not None
    assert re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[1]) == value


class _Route:
    path = "/services/{name}"


def _request(figures: RequestFigures, app: Any, **scope: Any) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        await figures.around(app)({"type": "http", "method": "GET", "path": "/x", **scope}, None, send)

    asyncio.run(run())
    return sent


def test_requests_are_counted_by_pattern_and_never_by_what_a_client_makes_up() -> None:
    figures = RequestFigures()

    async def known(scope: Any, _receive: Any, send: Any) -> None:
        scope["route"] = _Route
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def unknown(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404})

    async def taken_over(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    for app, scope in ((known, {}), (unknown, {"method": "BREW"}), (taken_over, {"method": "POST"})):
        _request(figures, app, **scope)
    total, latency, _ = figures.families()
    assert {tuple(value for _, value in sample.labels): sample.value for sample in total.samples} == {
        ("/services/{name}", "GET", "200"): 1,
        ("other", "other", "404"): 1,
        ("other", "POST", "none"): 1,
    }
    assert sum(sample.value for sample in latency.samples if sample.suffix == "_count") == 2


def test_the_listener_of_its_own_answers_nothing_but_figures() -> None:
    class Fixed:
        async def text(self) -> bytes:
            return b"up 1\n"

    app = metrics_app(Fixed())  # type: ignore[arg-type]

    def answer(**scope: Any) -> tuple[int, bytes]:
        start, body = _request(RequestFigures(), app, **scope)
        return start["status"], body["body"]

    assert answer(path="/metrics") == (200, b"up 1\n")
    assert answer(path="/metrics", method="HEAD") == (200, b"")
    assert answer(path="/metrics", method="POST")[0] == 405
    assert answer(path="/services")[0] == 404


def test_traffic_is_that_of_all_interfaces_but_loopback() -> None:
    line = "{}: {} 1 0 0 0 0 0 0 {} 1 0 0 0 0 0 0"
    text = "\n".join(
        ["head", "head", line.format("  lo", 9, 9), line.format("eth0", 100, 7), line.format(" eth1", 1, 2)]
    )
    assert network_bytes(text) == (101, 9)


def test_the_process_is_described() -> None:
    values = {family.name: family.samples[0].value for family in process_families()}
    assert values["process_resident_memory_bytes"] > 1 << 20
    assert values["process_start_time_seconds"] > 1.6e9
    assert values["process_open_fds"] > 2


@pytest.mark.parametrize("text", ["127.0.0.1:99999", ":9323", "a:b:c"])
def test_a_wrong_metrics_address_is_refused(text: str) -> None:
    with pytest.raises(errors.UserError, match="metrics_addr"):
        load_config(["--metrics-addr", text])


def test_the_metrics_port_is_dockers_unless_said() -> None:
    assert load_config(["--metrics-addr", "127.0.0.1"]).metrics_addr == "127.0.0.1"
