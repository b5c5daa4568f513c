"""The lab with real daemons, as a newcomer types it: up, up again with more, a refusal passed on, down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.api.client import EngineError
from fleet.lab import Lab
from fleet.lab.swarm import Member, form_swarm

pytestmark = pytest.mark.e2e


@pytest.fixture
def empty(unique: str, tmp_path: Path) -> Iterator[Lab]:
    with Lab(unique, root=tmp_path) as lab:
        yield lab


def fleet(lab: Lab, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    url = f"unix://{lab.layout.socket('m1')}"
    environment = {**os.environ, "FLEET_LAB_ROOT": str(lab.layout.root), "FLEET_HOST": url}
    argv = [sys.executable, "-m", "fleet.cli.main", *args]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def nodes(lab: Lab) -> dict[str, str]:
    lines = fleet(lab, "node", "ls", "--format", "json").stdout.splitlines()
    return {node["Hostname"]: node["Status"] for node in map(json.loads, lines)}


def test_a_lab_grows_restarts_and_passes_refusals_on(empty: Lab) -> None:
    up = fleet(empty, "lab", "up", "--name", empty.name, "--workers", "1")
    assert "w1: joining as worker" in up.stderr
    assert nodes(empty) == {"m1": "Ready", "w1": "Ready"}

    grown = fleet(empty, "lab", "up", "--name", empty.name, "--workers", "2")
    assert "w2: joining as worker" in grown.stderr
    assert "w1: joining" not in grown.stderr
    assert nodes(empty) == {"m1": "Ready", "w1": "Ready", "w2": "Ready"}

    empty.kill("m1", "w1", "w2")
    again = fleet(empty, "lab", "up", "--name", empty.name, "--workers", "2")
    assert "joining" not in again.stderr
    assert nodes(empty) == {"m1": "Ready", "w1": "Ready", "w2": "Ready"}

    empty.up(managers=1, workers=3, swarm=False)  # w3 is there and in no swarm
    members = [
        Member(name="m1", role="manager", address=empty.address("m1"), url=f"unix://{empty.layout.socket('m1')}"),
        Member(name="w3", role="worker", address="no-such-interface", url=f"unix://{empty.layout.socket('w3')}"),
    ]
    with pytest.raises(EngineError, match=r"^w3 as worker: .*no-such-interface"):
        form_swarm(members, say=lambda _: None, timeout_s=10)

    fleet(empty, "lab", "down", "--name", empty.name)
    assert not empty.exists()
