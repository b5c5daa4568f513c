"""`fleet network doctor`: what is wrong comes first and decides the exit code."""

from __future__ import annotations

import json
from typing import Any

from tests.support.fake_engine import FakeEngine
from tests.unit.cli.conftest import Fleet

PATH = "/fleet/v1/networks/doctor"
HOSTS = [{"ID": "n1", "Hostname": "m1", "Address": "192.0.2.1"}, {"ID": "n2", "Hostname": "w1", "Address": "192.0.2.2"}]


def finding(host: str, level: str, says: str, *, network: str = "", remedy: str = "") -> dict[str, Any]:
    return {"Check": "links", "Level": level, "Says": says, "Remedy": remedy, "Network": network, "Host": host}


def test_what_is_wrong_is_told_with_its_remedy_and_ends_with_1(engine: FakeEngine, fleet: Fleet) -> None:
    findings = [
        finding("m1", "right", "links are there"),
        finding("w1", "right", "links are there"),
        finding("w1", "wrong", "bridge fb1 is missing", network="front", remedy="wait a minute"),
        finding("w2", "note", "w2 is down, so it was not looked at"),
    ]
    engine.on("GET", PATH, {"Healthy": False, "Hosts": HOSTS, "Findings": findings})
    ran = fleet("network", "doctor", "front", "--node", "w1")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "m1: all is right",
        "w1: 1 thing is wrong",
        "  WRONG links: network front: bridge fb1 is missing",
        "        -> wait a minute",
        "w2: was not looked at",
        "  note  links: w2 is down, so it was not looked at",
    ]
    assert engine.requests[-1].query["filters"] == {"network": ["front"], "node": ["w1"]}
    assert "ok    links: links are there" in fleet("network", "doctor", "--verbose").out


def test_a_healthy_cluster_ends_with_0_and_the_report_is_had_as_json(engine: FakeEngine, fleet: Fleet) -> None:
    report = {"Healthy": True, "Hosts": HOSTS, "Findings": [finding("m1", "right", "links are there")]}
    engine.on("GET", PATH, report)
    ran = fleet("network", "doctor", "--format", "json")
    assert (ran.code, json.loads(ran.out)) == (0, report)
    refused = fleet("network", "doctor", "--format", "yaml")
    assert refused.code == 2 and "only 'json' is possible" in refused.err
