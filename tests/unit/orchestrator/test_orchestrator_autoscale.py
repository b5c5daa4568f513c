"""How many tasks a service gets for its load: one rule a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fleet.model.autoscale import AutoscalePolicy, Step
from fleet.orchestrator.autoscale import Decision, Gauge, History, Observation, decide

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


def policy(**more: Any) -> AutoscalePolicy:
    return AutoscalePolicy(**{"min_replicas": 2, "max_replicas": 10, "cpu_percent": 50, **more})


def cpu(*shares: float, unknown: int = 0) -> Gauge:
    return Gauge(text="CPU", shares=shares, unknown=unknown)


def seen(replicas: int, *gauges: Gauge, **more: Any) -> Observation:
    return Observation(replicas=replicas, gauges=gauges, **more)


def settled(replicas: int) -> History:
    """Of a leader that has looked at the same number for an hour."""
    return History(replicas=replicas, since=START - timedelta(hours=1))


def number(observation: Observation, *, history: History | None = None, **more: Any) -> int:
    return decide(policy(**more), observation, history or settled(observation.replicas), now=START).replicas


def test_the_number_grows_and_shrinks_with_the_load_and_stays_within_a_tenth_of_the_target() -> None:
    assert number(seen(4, cpu(1.5, 1.5, 1.5, 1.5))) == 6
    assert number(seen(4, cpu(0.5, 0.5, 0.5, 0.5))) == 2
    assert number(seen(4, cpu(1.1, 1.1, 1.1, 1.1))) == 4
    assert number(seen(4, cpu(0.9, 0.9, 0.9, 0.9))) == 4


def test_it_stays_within_the_policys_numbers_and_comes_back_to_them_whatever_the_load() -> None:
    assert number(seen(4, cpu(9, 9, 9, 9))) == 8, "no more than doubled at once"
    assert number(seen(8, cpu(*[9] * 8))) == 10
    assert number(seen(3, cpu(0, 0, 0))) == 2
    assert number(seen(1, cpu(0))) == 2
    assert number(seen(50, cpu(*[9] * 50)), history=History(replicas=50, since=START)) == 10


def test_of_several_targets_the_one_that_asks_for_most_counts() -> None:
    assert number(seen(4, cpu(0.5, 0.5, 0.5, 0.5), Gauge(demand=7.2))) == 8
    assert number(seen(4, cpu(1.5, 1.5, 1.5, 1.5), Gauge(demand=1))) == 6


def test_nothing_is_taken_away_on_missing_figures() -> None:
    assert number(seen(4, cpu(0.1, 0.1, 0.1, unknown=1))) == 4
    assert number(seen(4, cpu(unknown=4))) == 4
    assert number(seen(4, cpu(0.1, 0.1, 0.1, 0.1), Gauge(error="no answer"))) == 4
    assert number(seen(4, cpu(2, 2, 2, unknown=1))) == 6, (
        "the silent one counts as idle, and more are needed all the same"
    )
    assert number(seen(4, cpu(1.6, 1.6, 1.6, 1.6), Gauge(error="no answer"))) == 7


def test_tasks_that_do_not_run_yet_count_as_idle_for_growing_and_as_busy_for_shrinking() -> None:
    assert number(seen(4, cpu(2, 2))) == 4, "the two that start will take their share"
    assert number(seen(8, cpu(0.1, 0.1, 0.1, 0.1))) == 5


def test_fewer_are_taken_only_after_a_window_in_which_fewer_would_have_done() -> None:
    history: History | None = settled(8)
    found: list[int] = []
    load, replicas = [1.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], 8
    for minute, share in enumerate(load):
        now = START + timedelta(minutes=minute)
        decision = decide(policy(), seen(replicas, cpu(*[share] * replicas)), history, now=now)
        replicas, history = decision.replicas, decision.history
        found.append(replicas)
    assert found == [8, 8, 8, 8, 8, 2, 2], "five minutes after the last look that wanted eight"


def test_more_are_added_only_after_a_window_in_which_more_were_needed() -> None:
    history: History | None = settled(2)
    found: list[int] = []
    for second, share in ((0, 1.0), (10, 3.0), (20, 2.0), (30, 1.0), (40, 3.0), (50, 2.0), (60, 3.0)):
        now = START + timedelta(seconds=second)
        decision = decide(policy(up_window=timedelta(seconds=30)), seen(2, cpu(share, share)), history, now=now)
        history = decision.history
        found.append(decision.replicas)
    assert found == [2, 2, 2, 2, 2, 2, 4], "the least of what was asked for meanwhile"


def test_a_new_leader_adds_at_once_and_takes_nothing_away_before_a_window_has_passed() -> None:
    first = decide(policy(), seen(8, cpu(*[0.1] * 8)), None, now=START)
    assert first.replicas == 8
    assert "nothing goes for another 300 s" in first.reason
    before = decide(policy(), seen(8, cpu(*[0.1] * 8)), first.history, now=START + timedelta(seconds=299))
    assert before.replicas == 8
    after = decide(policy(), seen(8, cpu(*[0.1] * 8)), before.history, now=START + timedelta(seconds=300))
    assert after.replicas == 2
    assert decide(policy(), seen(2, cpu(2, 2)), None, now=START).replicas == 4


def test_a_number_set_by_hand_begins_the_windows_anew() -> None:
    decision = decide(policy(), seen(9, cpu(*[0.1] * 9)), settled(3), now=START)
    assert decision.replicas == 9
    assert decision.history.since == START


def test_steps_limit_one_decision() -> None:
    assert number(seen(4, cpu(9, 9, 9, 9)), up_step=Step(tasks=1)) == 5
    assert number(seen(4, cpu(9, 9, 9, 9)), up_step=Step(percent=50)) == 6
    assert number(seen(8, cpu(*[0.1] * 8)), down_step=Step(tasks=2)) == 6
    assert number(seen(3, cpu(9, 9, 9)), up_step=Step(percent=10)) == 4, "one at least"


def test_no_more_are_added_while_some_find_no_node_and_it_is_said() -> None:
    decision = decide(policy(), seen(4, cpu(9, 9, 9), waiting="no node has 2 CPUs free"), settled(4), now=START)
    assert decision.replicas == 4
    assert decision.held == "no further tasks while some wait: no node has 2 CPUs free"
    assert number(seen(4, cpu(0.1, 0.1, 0.1), waiting="no room")) == 2, "those that wait may go"


def test_a_quota_limits_what_is_added() -> None:
    assert number(seen(4, cpu(3, 3, 3, 3), room=2, room_text="quota stack=shop (tasks=6)")) == 6
    full = decide(
        policy(), seen(4, cpu(3, 3, 3, 3), room=-1, room_text="quota stack=shop (tasks=4)"), settled(4), now=START
    )
    assert (full.replicas, full.held) == (4, "no room left in quota stack=shop (tasks=4)")


def test_a_paused_update_holds_the_number_and_one_in_work_keeps_it_from_shrinking() -> None:
    decision = decide(policy(), seen(4, cpu(9, 9, 9, 9), is_paused=True), settled(4), now=START)
    assert decision.replicas == 4
    assert decision.held.startswith("its update is paused")
    assert number(seen(20, cpu(9), is_paused=True)) == 20
    assert number(seen(4, cpu(0, 0, 0, 0), is_updating=True)) == 4
    assert number(seen(4, cpu(1.5, 1.5, 1.5, 1.5), is_updating=True)) == 6


def test_a_stopped_service_stays_stopped() -> None:
    assert number(seen(0, cpu())) == 0


def test_the_reason_is_a_sentence_with_the_change_the_figures_and_the_obstacle() -> None:
    def reason(observation: Observation, history: History) -> Decision:
        return decide(policy(max_replicas=5), observation, history, now=START)

    found = reason(seen(4, Gauge(text="CPU 95%, 50% wanted", shares=(1.9,) * 4)), settled(4))
    assert found.reason == "4 -> 5: CPU 95%, 50% wanted (the load asks for more than the policy's 5)"
    assert found.held == "the load asks for more than the policy's 5"
    found = reason(seen(4, Gauge(error="Prometheus at http://p does not answer")), settled(4))
    assert found.reason.startswith("stays at 4: Prometheus at http://p does not answer")
    assert reason(seen(3, cpu()), settled(3)).reason == "stays at 3: CPU"
