"""Requests of each operation of the API, right, nearly right and hostile, for seconds; ``scripts/fuzz-api`` takes longer."""

from __future__ import annotations

import random

import pytest
from support.api_fuzz import complaints, fuzz
from support.lab import TestLab

pytestmark = pytest.mark.e2e

SECONDS = 8


def test_no_request_is_the_daemons_fault_and_none_is_left_without_an_answer(make_lab: object) -> None:
    assert callable(make_lab)
    lab: TestLab = make_lab(managers=1, workers=0)
    lab.load_hello()
    seed = random.randrange(1 << 30)
    count, wrong = fuzz(str(lab.socket("m1")), ("fuzz", "m1", "bridge", "fleet/hello:1"), seconds=SECONDS, seed=seed)
    assert not wrong, f"seed {seed}\n" + "\n".join(f"{name}: {text}" for name, text in wrong.items())
    assert count, "it asked nothing"
    assert complaints(lab.log_path("m1").read_text()) == [], f"seed {seed}"
    assert lab.fleet("node", "ls").returncode == 0
