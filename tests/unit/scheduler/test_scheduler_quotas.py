"""Quotas of stacks and labels: what they are, what counts, and what is said of a task beyond one."""

from __future__ import annotations

import msgspec
import pytest
from support.decision_builders import a_node, a_task, a_task_spec

from fleet import errors
from fleet.model.task import Task, TaskState
from fleet.scheduler.place import place
from fleet.scheduler.pool import build_views
from fleet.scheduler.quotas import check_quotas, parse_quota, quotas_of

SHOP = {"com.docker.stack.namespace": "shop"}


def shop(slot: int, *, cpus: float = 1, node: str = "", desired: TaskState = TaskState.RUNNING) -> Task:
    state = TaskState.RUNNING if node else TaskState.PENDING
    task = a_task(slot=slot, spec=a_task_spec(cpus=cpus), node=node, state=state, desired=desired)
    return msgspec.structs.replace(task, service_labels=SHOP)


def pending(limits: str, waiting: list[Task], there: list[Task], *, name: str = "stack=shop") -> list[str]:
    pool = build_views([a_node("a", cpus=64), a_node("b", cpus=64)], there)
    pool.set_quotas((parse_quota(f"fleet.quota.{name}", limits),))
    return list(place(waiting, pool).pending.values())


def test_tasks_beyond_a_quota_wait_and_say_which_limit() -> None:
    waiting = [shop(i) for i in range(3)]
    assert pending("tasks=2", waiting, []) == ["beyond quota stack=shop (tasks=2)"]
    assert pending("cpu=3,tasks=3", waiting, [shop(9, node="a")]) == ["beyond quota stack=shop (tasks=3, cpu=3)"]
    assert pending("cpu=4", waiting, [shop(9, node="a")]) == []
    assert pending("tasks=0", waiting, [], name="stack=other") == []
    assert (
        pending("tasks=0", waiting, [], name="label=com.docker.stack.namespace=shop")
        == ["beyond quota label=com.docker.stack.namespace=shop (tasks=0)"] * 3
    )


def test_task_that_is_being_stopped_has_left_room_and_one_that_reserves_nothing_needs_none() -> None:
    assert pending("tasks=1,cpu=1", [shop(1)], [shop(1, node="a", desired=TaskState.SHUTDOWN)]) == []
    assert pending("cpu=1", [shop(1, cpus=0)], [shop(2, cpus=2, node="a")]) == []


def test_global_task_is_held_too_and_room_is_found_again() -> None:
    there = msgspec.structs.replace(shop(0, node="b"), status=shop(0).status)
    assert pending("cpu=0.5", [there], []) == ["beyond quota stack=shop (cpu=0.5)"]
    pool = build_views([a_node("a")], [ran := shop(1, node="a")])
    pool.set_quotas(quotas_of({"fleet.quota.stack=shop": "tasks=1", "fleet.quota.bad": "x", "other": "1"}))
    assert place([shop(2)], pool).pending
    assert [budget.explain() for budget in pool.budgets(SHOP)] == ["quota stack=shop: tasks 1 of 1"]
    pool.set_task(msgspec.structs.replace(ran, desired_state=TaskState.SHUTDOWN))
    assert not place([shop(2)], pool).pending


def test_room_is_how_many_more_tasks_the_tightest_limit_lets_be_placed() -> None:
    pool = build_views([a_node("a")], [shop(1, cpus=1, node="a"), shop(2, cpus=1, node="a")])
    pool.set_quotas((parse_quota("fleet.quota.stack=shop", "memory=1G, cpu=4.5, tasks=5"),))
    (budget,) = pool.budgets(SHOP)
    assert budget.room(a_task_spec(cpus=1)) == 2
    assert budget.room(a_task_spec(cpus=0)) == 3
    assert budget.room(a_task_spec(cpus=8)) == 0
    assert budget.room(a_task_spec(memory_bytes=1 << 29)) == 2


def test_usage_is_told_with_units() -> None:
    pool = build_views([a_node("a")], [shop(1, cpus=1.5, node="a")])
    pool.set_quotas((parse_quota("fleet.quota.stack=shop", "memory=1536M, cpu=4, tasks=50"),))
    (budget,) = pool.budgets(SHOP)
    assert budget.explain() == "quota stack=shop: tasks 1 of 50, cpu 1.5 of 4, memory 0 of 1.5G"
    assert pool.budgets({}) == []


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("shop", "tasks=1", "'shop' does not say whose quota it is; expected stack=NAME or label=KEY=VALUE"),
        ("label=team", "tasks=1", "'label=team' does not say whose quota it is"),
        ("stack=a", "", "'' is no limit; expected tasks=N, cpu=N, memory=N"),
        ("stack=a", "disk=1", "'disk=1' is no limit"),
        ("stack=a", "tasks=1,tasks=2", "tasks is limited twice"),
        ("stack=a", "tasks=-1", "tasks: '-1' is not a whole number"),
        ("stack=a", "cpu=nan", "cpu: 'nan' is not a number of CPUs"),
        ("stack=a", "cpu=-1", "cpu: '-1' is not a number of CPUs"),
        ("stack=a", "memory=lots", "memory: 'lots' is not a size"),
    ],
)
def test_a_quota_that_is_none_is_refused(name: str, limits: str, said: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        check_quotas({f"fleet.quota.{name}": limits})
    assert str(caught.value).startswith(f"label fleet.quota.{name}: {said}")
