"""Strategies, weights and affinities that services say in labels."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from support.decision_builders import a_node, a_task, a_task_spec

from fleet import errors
from fleet.model.node import Node
from fleet.model.task import Task, TaskState
from fleet.scheduler.place import place
from fleet.scheduler.pool import build_views
from fleet.scheduler.wishes import Strategy, default_strategy, parse_wishes


def a_wish(service: str = "web", count: int = 1, *, cpus: float = 0, **wishes: str) -> list[Task]:
    labels = {f"fleet.placement.{key.replace('_', '-')}": text for key, text in wishes.items()}
    tasks = [a_task(service, slot=i, spec=a_task_spec(cpus=cpus)) for i in range(1, count + 1)]
    return [msgspec.structs.replace(task, service_labels=labels) for task in tasks]


def running(service: str, node: str, *, cpus: float = 0, slot: int = 1) -> Task:
    return a_task(service, slot=slot, node=node, state=TaskState.RUNNING, spec=a_task_spec(cpus=cpus))


def counts(nodes: list[Node], waiting: list[Task], there: list[Task] | None = None) -> dict[str, int]:
    result = place(waiting, build_views(nodes, there or []))
    assert not result.pending
    return dict(Counter(result.assignments.values()))


def pending(nodes: list[Node], waiting: list[Task], there: list[Task] | None = None) -> str:
    (text,) = set(place(waiting, build_views(nodes, there or [])).pending.values())
    return text


def test_binpack_fills_the_fullest_node_that_has_room_and_then_the_next() -> None:
    nodes = [a_node(n, cpus=4) for n in "abc"]
    there = [running("db", "b", cpus=1)]
    assert counts(nodes, a_wish(count=4, cpus=1, strategy="binpack"), there) == {"b": 3, "a": 1}


def test_binpack_goes_by_what_is_reserved_not_by_tasks() -> None:
    nodes = [a_node("a", cpus=8), a_node("b", cpus=8)]
    there = [running("db", "b", cpus=4), *(running("small", "a", slot=i) for i in range(5))]
    assert counts(nodes, a_wish(cpus=1, strategy="binpack"), there) == {"b": 1}


def test_balanced_gives_to_nodes_in_proportion_to_their_size() -> None:
    nodes = [a_node("small", cpus=2), a_node("large", cpus=8)]
    assert counts(nodes, a_wish(count=10, cpus=0.5, strategy="balanced")) == {"small": 2, "large": 8}
    assert counts(nodes, a_wish(count=4, cpus=0.5, strategy="spread")) == {"small": 2, "large": 2}


def test_nodes_of_more_weight_come_first_and_others_when_these_are_full() -> None:
    nodes = [
        a_node("a", cpus=4),
        a_node("b", cpus=2, labels={"disk": "ssd"}),
        a_node("c", cpus=4, labels={"zone": "eu"}),
    ]
    waiting = a_wish(count=4, cpus=1, prefer="node.labels.disk==ssd:10; node.labels.zone in (eu, us):5")
    assert counts(nodes, waiting) == {"b": 2, "c": 2}


def test_tainted_node_gets_tasks_of_services_that_tolerate_it_alone() -> None:
    nodes = [
        a_node("a", labels={"fleet.taint.gpu": "a100:no-schedule"}),
        a_node("b", labels={"fleet.taint.x": ":no-execute"}),
    ]
    assert pending(nodes, a_wish()) == "no suitable node (taints not tolerated on 2 nodes)"
    assert (
        pending(nodes, a_wish(toleration="gpu=v100, x:no-schedule"))
        == "no suitable node (taints not tolerated on 2 nodes)"
    )
    assert counts(nodes, a_wish(count=2, toleration="gpu=a100:no-schedule")) == {"a": 2}
    assert counts(nodes, a_wish(count=2, toleration="gpu, x")) == {"a": 1, "b": 1}
    assert counts(nodes, a_wish(count=2, toleration="*")) == {"a": 1, "b": 1}


def test_node_to_avoid_is_taken_when_others_are_full_or_a_wish_weighs_more() -> None:
    nodes = [a_node("a", labels={"fleet.taint.old": ":prefer-no-schedule"}, cpus=4), a_node("b", cpus=2)]
    assert counts(nodes, a_wish(count=3, cpus=1)) == {"b": 2, "a": 1}
    assert counts(nodes, a_wish(count=2, cpus=1, prefer="node.id == a:101")) == {"a": 2}
    assert counts(nodes, a_wish(count=2, cpus=1, prefer="node.id == a:99")) == {"b": 2}
    assert counts(nodes, a_wish(count=2, cpus=1, toleration="old")) == {"a": 1, "b": 1}


def test_affinity_must_hold_and_says_so_while_it_does_not() -> None:
    nodes = [a_node(n) for n in "abc"]
    waiting = a_wish(count=3, affinity="cache")
    assert counts(nodes, waiting, [running("cache", "b")]) == {"b": 3}
    assert pending(nodes, waiting) == "no suitable node (affinity to services not satisfied on 3 nodes)"


def test_affinity_holds_within_the_pass_that_places_the_other() -> None:
    nodes = [a_node(n) for n in "abc"]
    result = place(a_wish("cache") + a_wish("web", affinity="cache"), build_views(nodes, []))
    assert len(set(result.assignments.values())) == 1


def test_anti_affinity_keeps_away_and_from_oneself() -> None:
    nodes = [a_node(n) for n in "abc"]
    assert counts(nodes, a_wish(count=2, anti_affinity="batch, web"), [running("batch", "b")]) == {"a": 1, "c": 1}
    assert "affinity to services not satisfied on 3 nodes" in (
        next(iter(place(a_wish(count=4, anti_affinity="web"), build_views(nodes, [])).pending.values()))
    )


def test_affinity_with_a_weight_is_a_wish() -> None:
    nodes = [a_node(n, cpus=2) for n in "ab"]
    waiting = a_wish(count=3, cpus=1, affinity="cache:10")
    assert counts(nodes, waiting, [running("cache", "b")]) == {"b": 2, "a": 1}
    assert counts(nodes, a_wish(count=3, anti_affinity="cache:10"), [running("cache", "b")]) == {"a": 3}


@pytest.mark.parametrize(
    ("label", "text", "complaint"),
    [
        ("strategy", "random", "label fleet.placement.strategy: 'random' is none of spread, binpack, balanced"),
        ("strategie", "spread", "label fleet.placement.strategie: is not known; known are strategy, prefer, "),
        (
            "prefer",
            "node.role==worker",
            "has no weight; expected a constraint and a weight, such as node.role==worker:10",
        ),
        ("prefer", "node.rule==worker:3", "unknown key 'node.rule'"),
        ("prefer", "node.role==worker:0", "weight '0' is not a whole number from 1 to 1000"),
        ("prefer", "", "is empty; remove the label"),
        ("affinity", "web", "web would wait for its own first task"),
        ("affinity", "my cache", "'my cache' is not a service's name"),
        ("anti-affinity", "db:many", "weight 'many' is not a whole number"),
        ("affinity", ",".join(f"s{i}" for i in range(40)), "has 40 entries, at most 32"),
    ],
)
def test_wrong_wish_is_refused_with_its_label(label: str, text: str, complaint: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        parse_wishes({f"fleet.placement.{label}": text}, service_name="web")
    assert complaint in str(caught.value)


def test_other_labels_are_nobodys_business() -> None:
    assert parse_wishes({"fleet.other": "x", "com.example": "y"}, service_name="web") == parse_wishes(
        {}, service_name="web"
    )


def test_cluster_says_the_strategy_of_services_that_say_none() -> None:
    nodes = [a_node(n, cpus=4) for n in "ab"]
    silent, outspoken = a_wish("silent", 2, cpus=1), a_wish("outspoken", 2, cpus=1, strategy="spread")
    result = place([*silent, *outspoken], build_views(nodes, []), strategy=Strategy.BINPACK)
    assert len({result.assignments[task.id] for task in silent}) == 1
    assert len({result.assignments[task.id] for task in outspoken}) == 2


def test_strategy_of_the_cluster_is_read_from_its_labels() -> None:
    assert default_strategy({}) is Strategy.SPREAD
    assert default_strategy({"fleet.placement.strategy": "balanced"}) is Strategy.BALANCED
    with pytest.raises(errors.UserError, match=r"label fleet\.placement\.strategy: 'tight' is none of spread, binpack"):
        default_strategy({"fleet.placement.strategy": "tight"})
