"""What agents say of their hosts: rates, a bounded history, and nothing old or impossible."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from support.clocks import SetClock

from fleet.api.dispatch import HostUsage, Usage
from fleet.manager.host_loads import POINTS_MAX, HostLoad, HostLoads
from fleet.model.ids import NodeId
from fleet.store import Changes

N1, N2 = NodeId("n1"), NodeId("n2")


def make() -> tuple[HostLoads, SetClock]:
    clock = SetClock()
    store: Any = SimpleNamespace(nodes=SimpleNamespace(get=lambda _id: None))
    return HostLoads(store, clock), clock


def say(
    loads: HostLoads, clock: SetClock, cpu_s: float, *, after: float = 0, node: NodeId = N1, own_s: float = 0
) -> None:
    clock.go(after)
    used = HostUsage(int(cpu_s * 1e9), 500, int(own_s * 1e9), 50)
    loads.note(node, Usage(at_ns=int(clock.monotonic() * 1e9), host=used))


def test_rates_are_between_two_readings_by_the_hosts_own_clock() -> None:
    loads, clock = make()
    say(loads, clock, 10)
    assert loads.now(N1) is None
    say(loads, clock, 15, after=10, own_s=2)
    at = clock.now().timestamp()
    assert loads.now(N1) == HostLoad(at, 500_000_000, 500, 200_000_000, 50)
    assert loads.history(N1, since=0) == [loads.now(N1)]
    assert loads.history(N1, since=at) == []
    assert loads.now(N2) is None and loads.history(N2, since=0) == []


def test_a_history_has_its_spacing_and_its_bound_however_often_a_host_is_read() -> None:
    loads, clock = make()
    for number in range(5 * POINTS_MAX):
        say(loads, clock, number, after=2)
    points = loads.history(N1, since=0)
    assert len(points) == POINTS_MAX
    assert {round(b.at - a.at) for a, b in pairwise(points)} == {8}


def test_many_hosts_share_the_room() -> None:
    loads, clock = make()
    for round_ in range(30):
        clock.go(10)
        for number in range(1000):
            say(loads, clock, round_, node=NodeId(f"n{number}"))
    assert len(loads.history(N1, since=0)) == 20
    assert loads.period_s(1000) == 10 and loads.period_s(5000) == 50


def test_what_is_old_or_cannot_be_is_not_told() -> None:
    loads, clock = make()
    say(loads, clock, 10)
    say(loads, clock, 11, after=10)
    known = loads.now(N1)
    say(loads, clock, -5, after=10)
    say(loads, clock, 12, after=0.1)
    assert loads.now(N1) != known, "a reading after a bad one counts"
    say(loads, clock, 12.5, after=0.1)
    assert loads.now(N1) is not None and loads.now(N1).nano_cpus < 10**9, "and one that comes too soon does not"  # type: ignore[union-attr]
    clock.go(60)
    assert loads.now(N1) is None


def test_a_host_that_started_anew_keeps_its_history_and_has_no_rate_yet() -> None:
    loads, clock = make()
    say(loads, clock, 100)
    say(loads, clock, 101, after=10)
    say(loads, clock, 1, after=10)
    assert loads.now(N1) is None
    assert len(loads.history(N1, since=0)) == 1


def test_a_removed_host_is_forgotten() -> None:
    loads, clock = make()
    say(loads, clock, 1)
    say(loads, clock, 2, after=10)
    loads.follow(Changes((), resync=True))
    assert loads.history(N1, since=0) == []
