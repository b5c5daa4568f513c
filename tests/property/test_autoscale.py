"""What scaling never does, whatever the load, the policy and the order of things; and that no text breaks a policy."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet import errors
from fleet.manager.prometheus import value_in
from fleet.model.autoscale import PREFIX, AutoscalePolicy, Step, parse_policy
from fleet.orchestrator.autoscale import Gauge, History, Observation, decide

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


def bounded(examples: int = 100) -> settings:
    """However busy the machine is."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


SECONDS = st.integers(0, 120).map(lambda seconds: timedelta(seconds=seconds))
SHARES = st.floats(0, 50, allow_nan=False)


@st.composite
def policies(draw: st.DrawFn) -> AutoscalePolicy:
    low = draw(st.integers(1, 6))
    return AutoscalePolicy(
        min_replicas=low,
        max_replicas=draw(st.integers(low, 12)),
        cpu_percent=50,
        up_window=draw(SECONDS),
        down_window=draw(SECONDS),
        up_step=draw(st.builds(Step, tasks=st.integers(0, 5), percent=st.integers(0, 200))),
        down_step=draw(st.builds(Step, tasks=st.integers(0, 5), percent=st.integers(0, 100))),
    )


@st.composite
def gauges(draw: st.DrawFn, replicas: int) -> Gauge:
    kind = draw(st.sampled_from(["shares", "shares", "demand", "error"]))
    if kind == "error":
        return Gauge(error="no answer")
    if kind == "demand":
        return Gauge(demand=draw(st.one_of(st.floats(0, 100), st.sampled_from([1e308, math.inf]))))
    shares = draw(st.lists(SHARES, max_size=replicas))
    return Gauge(shares=tuple(shares), unknown=draw(st.sampled_from([0, 0, 1])))


@st.composite
def observations(draw: st.DrawFn, replicas: int) -> Observation:
    return Observation(
        replicas=replicas,
        gauges=tuple(draw(st.lists(gauges(replicas), min_size=1, max_size=3))),
        waiting=draw(st.sampled_from(["", "", "no room"])),
        room=draw(st.sampled_from([None, None, 0, 1, 3])),
        is_paused=draw(st.sampled_from([False, False, False, True])),
        is_updating=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def histories(draw: st.DrawFn, replicas: int) -> History:
    ages = sorted(draw(st.lists(st.integers(1, 200), max_size=12, unique=True)), reverse=True)
    return History(
        replicas=replicas,
        since=START - timedelta(seconds=draw(st.integers(0, 200))),
        advice=tuple((START - timedelta(seconds=age), draw(st.integers(1, 12))) for age in ages),
    )


@bounded()
@given(st.data(), policies(), st.integers(0, 14))
def test_a_changed_number_is_within_the_policys(data: st.DataObject, policy: AutoscalePolicy, replicas: int) -> None:
    seen, history = data.draw(observations(replicas)), data.draw(histories(replicas))
    found = decide(policy, seen, history, now=START)
    assert found.reason
    if seen.is_paused or not replicas:
        assert found.replicas == replicas
    else:
        assert policy.min_replicas <= found.replicas <= policy.max_replicas
    if found.replicas > replicas and replicas >= policy.min_replicas:
        assert not seen.waiting
        assert seen.room is None or found.replicas - replicas <= seen.room
        assert found.replicas - replicas <= policy.up_step.most(replicas)
    if found.replicas < replicas <= policy.max_replicas:
        assert replicas - found.replicas <= policy.down_step.most(replicas)


@bounded()
@given(st.data(), policies(), st.integers(1, 12))
def test_more_load_never_gives_a_smaller_number(data: st.DataObject, policy: AutoscalePolicy, replicas: int) -> None:
    seen, history = data.draw(observations(replicas)), data.draw(histories(replicas))
    more = tuple(
        dataclasses.replace(
            gauge,
            shares=tuple(share + data.draw(st.floats(0, 5)) for share in gauge.shares),
            demand=None if gauge.demand is None else gauge.demand + data.draw(st.floats(0, 20)),
        )
        for gauge in seen.gauges
    )
    busier = dataclasses.replace(seen, gauges=more)
    assert decide(policy, busier, history, now=START).replicas >= decide(policy, seen, history, now=START).replicas


@bounded()
@given(st.data(), policies(), st.integers(1, 12))
def test_figures_that_are_missing_take_nothing_away(
    data: st.DataObject, policy: AutoscalePolicy, replicas: int
) -> None:
    seen, history = data.draw(observations(replicas)), data.draw(histories(replicas))
    lost = data.draw(
        st.sampled_from([Gauge(error="no answer"), Gauge(unknown=replicas), Gauge(shares=(0.0,), unknown=1)])
    )
    found = decide(policy, dataclasses.replace(seen, gauges=(*seen.gauges, lost)), history, now=START)
    assert found.replicas >= min(replicas, policy.max_replicas) or seen.is_paused
    again = START + policy.down_window / 2
    if policy.down_window and found.replicas >= replicas:
        quiet = Observation(replicas=found.replicas, gauges=(Gauge(shares=(0.0,) * found.replicas),))
        kept = decide(policy, quiet, found.history, now=again)
        assert kept.replicas >= min(found.replicas, policy.max_replicas), (
            "and neither while what was missing is within the window"
        )


EVENTS = ("", "", "", "leader", "silent", "paused", "updating", "no room")


@bounded()
@given(
    policies(),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 4), st.sampled_from(EVENTS)), max_size=25),
)
def test_a_number_that_grew_is_kept_for_the_window(
    policy: AutoscalePolicy, replicas: int, steps: list[tuple[int, float, str]]
) -> None:
    now = grew_at = START
    history: History | None = None
    for seconds, share, event in steps:
        now += timedelta(seconds=seconds)
        seen = Observation(
            replicas=replicas,
            gauges=(Gauge(error="no answer") if event == "silent" else Gauge(shares=(share,) * replicas),),
            waiting="no room" if event == "no room" else "",
            is_paused=event == "paused",
            is_updating=event == "updating",
        )
        found = decide(policy, seen, None if event == "leader" else history, now=now)
        if found.replicas < replicas <= policy.max_replicas:
            assert now - grew_at >= policy.down_window
        if found.replicas > replicas:
            grew_at = now
        replicas, history = found.replicas, found.history
        assert len(history.advice) <= len(steps)


LABELS = st.dictionaries(
    st.sampled_from(
        [
            "min",
            "max",
            "cpu",
            "memory",
            "query",
            "query-target",
            "prometheus",
            "up-window",
            "down-window",
            "up-step",
            "down-step",
            "interval",
            "warmup",
            "other",
            "",
        ]
    ),
    st.one_of(
        st.sampled_from(
            ["3", "10", "70%", "4,100%", "5m", "0s", "http://p:9090", "sum(x)", "1e9", "-1", "٣", "NaN", "99999999"]
        ),
        st.text(max_size=12),
    ),
)


@bounded(400)
@given(LABELS)
def test_labels_are_a_good_policy_or_a_sentence_that_names_the_label(labels: dict[str, str]) -> None:
    given_labels = {PREFIX + name: text for name, text in labels.items()}
    try:
        policy = parse_policy(given_labels)
    except errors.UserError as cause:
        assert PREFIX in str(cause)
        return
    if policy is None:
        assert not labels
        return
    assert 1 <= policy.min_replicas <= policy.max_replicas
    assert policy.cpu_percent or policy.memory_percent or policy.query
    assert policy.interval >= timedelta(seconds=1)


@bounded()
@given(st.text(max_size=40))
def test_any_text_is_a_step_or_refused(text: str) -> None:
    try:
        policy = parse_policy({PREFIX + "max": "9", PREFIX + "cpu": "50", PREFIX + "up-step": text})
    except errors.UserError as cause:
        assert f"label {PREFIX}up-step" in str(cause)
        return
    assert policy is not None
    assert policy.up_step.most(1) >= 1


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["status", "data", "resultType", "result", "value", "error"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)
NAMED = st.fixed_dictionaries(
    {
        "status": st.just("success"),
        "data": st.fixed_dictionaries({"resultType": st.sampled_from(["vector", "scalar", "matrix"]), "result": JSON}),
    }
)


@bounded(300)
@given(st.one_of(JSON, NAMED).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_any_answer_of_a_prometheus_is_a_finite_number_or_a_sentence(answer: bytes) -> None:
    try:
        assert math.isfinite(value_in(answer, status=200))
    except errors.UnavailableError as cause:
        assert 0 < len(str(cause)) < 600
        assert str(cause).isprintable()
