"""The planning simulation: the same answer each time, and every cost tells."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.scale.plan import COSTS, fan_out_s, simulate


def test_one_size_has_one_answer_and_all_tasks_come_to_run() -> None:
    first, second = simulate(500, 20_000), simulate(500, 20_000)
    assert first == second
    assert first.running_s >= first.assigned_s > 0
    assert sum(first.busy.values()) <= 1.01


@pytest.mark.parametrize("part", ["write_us", "receive_us", "plan_us", "create_us", "schedule_us", "send_us"])
def test_what_is_dearer_takes_longer(part: str) -> None:
    dear = dataclasses.replace(COSTS, **{part: getattr(COSTS, part) * 4})
    assert simulate(500, 20_000, dear).running_s > simulate(500, 20_000).running_s


def test_a_slow_state_engine_is_what_saturates_when_it_is_the_slowest() -> None:
    found = simulate(500, 20_000, dataclasses.replace(COSTS, engine_ms=500.0))
    assert found.engine > 0.9 > simulate(500, 20_000).engine
    assert found.running_s > 1.5 * simulate(500, 20_000).running_s


def test_beats_that_take_all_are_said_to() -> None:
    with pytest.raises(ValueError, match="beats alone"):
        simulate(10_000, 1_000, dataclasses.replace(COSTS, beat_us=2_000))


def test_an_overlay_costs_its_tasks_times_its_nodes() -> None:
    assert fan_out_s(2_000, 500) > 1.5 * fan_out_s(1_000, 500)
