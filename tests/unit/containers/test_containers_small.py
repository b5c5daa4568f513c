"""The small pure parts: files in /etc, restart rules, the judgement on health, names, durations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.agent.http.container_filters import parse_moment
from fleet.agent.http.container_json import human_duration
from fleet.containers import RestartName, RestartRule
from fleet.containers.config import is_name, normal_target
from fleet.containers.health import judge
from fleet.containers.hostfiles import hosts_text, parse_extra_host, resolv_conf_text
from fleet.containers.names import new_container_id, pick_name
from fleet.containers.record import HealthResult, HealthState
from fleet.containers.restart import next_delay_s, should_restart, should_start_at_boot
from fleet.errors import UserError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_hosts_names_the_container_at_each_of_its_addresses() -> None:
    text = hosts_text(
        hostname="web",
        domainname="lan",
        addresses=("10.0.0.2", "10.0.1.2"),
        extra_hosts=("gw:host-gateway",),
        host_gateway="10.0.0.1",
    )
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("10.0.0.1\tgw\n10.0.0.2\tweb.lan web\n10.0.1.2\tweb.lan web\n")
    assert hosts_text(hostname="web", base="1.2.3.4 x") == "1.2.3.4 x\n"


@pytest.mark.parametrize(
    ("entry", "pair"),
    [
        ("a:1.2.3.4", ("a", "1.2.3.4")),
        ("a=::1", ("a", "::1")),
        ("a:[::1]", ("a", "::1")),
        ("a:fe80::1", ("a", "fe80::1")),
    ],
)
def test_extra_hosts_in_all_spellings(entry: str, pair: tuple[str, str]) -> None:
    assert parse_extra_host(entry) == pair


@pytest.mark.parametrize("entry", ["a", "a:", ":1.2.3.4", "a b:1.2.3.4", "a:nope", "a:1.2.3.4\n5.6.7.8 evil"])
def test_malformed_extra_hosts_are_refused(entry: str) -> None:
    with pytest.raises(UserError, match="bad format for extra host"):
        parse_extra_host(entry)


def test_resolv_conf_takes_the_hosts_where_nothing_was_given() -> None:
    host = "# comment\nnameserver 1.1.1.1 # one\nsearch a.b c.d\noptions ndots:2\n"
    assert resolv_conf_text(host) == "nameserver 1.1.1.1\nsearch a.b c.d\noptions ndots:2\n"
    assert resolv_conf_text(host, servers=("9.9.9.9",), search=(".",), options=("rotate",)) == (
        "nameserver 9.9.9.9\noptions rotate\n"
    )


@pytest.mark.parametrize(
    ("name", "code", "by_hand", "count", "again", "at_boot"),
    [
        (RestartName.NO, 1, False, 0, False, False),
        (RestartName.ALWAYS, 0, False, 9, True, True),
        (RestartName.ALWAYS, 0, True, 0, False, True),
        (RestartName.UNLESS_STOPPED, 0, False, 0, True, True),
        (RestartName.UNLESS_STOPPED, 0, True, 0, False, False),
        (RestartName.ON_FAILURE, 0, False, 0, False, False),
        (RestartName.ON_FAILURE, 1, False, 2, True, True),
        (RestartName.ON_FAILURE, 1, False, 3, False, True),
        (RestartName.ON_FAILURE, 1, True, 0, False, False),
    ],
)
def test_restart_rules(name: RestartName, code: int, by_hand: bool, count: int, again: bool, at_boot: bool) -> None:
    rule = RestartRule(name=name, retries_max=3)
    assert should_restart(rule, exit_code=code, stopped_by_hand=by_hand, restart_count=count) is again
    assert should_start_at_boot(rule, ever_started=True, exit_code=code, stopped_by_hand=by_hand) is at_boot
    assert not should_start_at_boot(rule, ever_started=False, exit_code=code, stopped_by_hand=by_hand)


def test_restart_delays_double_up_to_a_minute_and_a_steady_run_forgives() -> None:
    delay, delays = 0.0, []
    for _ in range(12):
        delay = next_delay_s(delay, ran_s=1)
        delays.append(delay)
    assert delays[:3] == [0.1, 0.2, 0.4] and delays[-1] == 60
    assert next_delay_s(60, ran_s=10) == 0.1


def result(code: int) -> HealthResult:
    return HealthResult(start=NOW, end=NOW, exit_code=code)


@given(st.lists(st.integers(0, 1), max_size=40), st.integers(1, 5))
def test_unhealthy_exactly_after_so_many_failures_in_a_row(codes: list[int], retries: int) -> None:
    state = HealthState()
    for code in codes:
        state = judge(state, result(code), retries=retries, in_start_period=False)
    streak = next((n for n, code in enumerate(reversed(codes)) if code == 0), len(codes))
    assert state.failing_streak == streak
    assert (state.status == "unhealthy") == (streak >= retries)
    assert (state.status == "healthy") == (0 in codes and streak < retries)
    assert [r.exit_code for r in state.log] == codes[-5:]


def test_failures_in_the_start_period_do_not_count_until_the_first_success() -> None:
    state = HealthState()
    for _ in range(9):
        state = judge(state, result(1), retries=1, in_start_period=True)
    assert (state.status, state.failing_streak) == ("starting", 0)
    state = judge(state, result(0), retries=1, in_start_period=True)
    assert judge(state, result(1), retries=1, in_start_period=True).status == "unhealthy"


def test_names_avoid_those_taken_and_are_valid() -> None:
    taken = {pick_name((), choose=lambda _n: 0)}
    second = pick_name(taken, choose=lambda _n: 0)
    assert second not in taken and is_name(second)
    assert len({new_container_id() for _ in range(50)}) == 50
    assert not new_container_id()[:12].isdigit()


@given(st.lists(st.sampled_from(["a", "b", "..", ".", ""]), max_size=8))
def test_targets_that_lead_to_one_place_have_one_name(parts: list[str]) -> None:
    clean = normal_target("/" + "/".join(parts))
    assert clean.startswith("/") and ".." not in clean.split("/") and normal_target(clean) == clean


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "Less than a second"), (1.5, "1 second"), (59, "59 seconds"), (61, "About a minute"), (300, "5 minutes"),
     (3700, "About an hour"), (7200, "2 hours"), (86400 * 3, "3 days"), (86400 * 20, "2 weeks"), (86400 * 800, "2 years")],
)  # fmt: skip
def test_durations_in_dockers_words(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_instants_as_clients_send_them() -> None:
    assert parse_moment(None, now=NOW) is None and parse_moment("0", now=NOW) is None
    assert parse_moment("1767225600.5", now=NOW) == NOW + timedelta(seconds=0.5)
    assert parse_moment("1h30m", now=NOW) == NOW - timedelta(hours=1.5)
    assert parse_moment("2026-01-01T00:00:00", now=NOW) == NOW
    assert parse_moment("2026-01-01T01:00:00.123456789+01:00", now=NOW) == NOW + timedelta(microseconds=123456)
    for bad in ("x", "1h30", "nan", "1e99"):
        with pytest.raises(UserError, match="invalid time"):
            parse_moment(bad, now=NOW)
